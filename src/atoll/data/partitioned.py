"""Data that something else has divided: partitions by number, as `flwr-datasets` gives them. It is not needed."""

from __future__ import annotations

from typing import Any

from atoll.errors import DataError

from .federate import from_clients
from .federated import FederatedData

__all__ = ["from_partitions"]


def from_partitions(
    divided: Any,
    clients: int | None = None,
    *,
    split: str = "train",
    name: str = "partitions",
    **options: Any,
) -> FederatedData:
    """Clients that are the partitions of a `FederatedDataset` or a `Partitioner` of flwr-datasets, or anything alike.

    Args:
        divided: has ``load_partition(number)``, which gives a Hugging Face dataset, or what else `from_clients` takes
            as a client. Of a partitioner `dataset` must be set, as for its own use.
        clients: how many partitions there are; by default what the partitioner of this split says.
        split: which split of a `FederatedDataset` is divided.
        name: what reports call the data.
        options: as in `from_clients`, such as ``label="label", inputs="image", test=0.2``.

    Raises DataError for what has no partitions, or does not say how many.
    """
    load = getattr(divided, "load_partition", None)
    if not callable(load):
        raise DataError(
            f"a {type(divided).__name__} has no load_partition",
            hint="give a FederatedDataset or a Partitioner; a dataset that is not divided: from_hf(...).partition(...)",
        )
    several = getattr(divided, "partitioners", None)
    if several is not None and split not in several:
        raise DataError(
            f"the split {split!r} is not divided",
            hint=f"split: one of {', '.join(map(repr, several)) or 'none'}",
        )
    first = (
        load(0) if several is None else load(0, split)
    )  # a FederatedDataset divides when it is first asked
    if clients is None:
        clients = getattr(divided if several is None else several[split], "num_partitions", None)
    if clients is None:
        raise DataError("nobody has said how many partitions there are", hint="clients=10")
    rest = [load(number) if several is None else load(number, split) for number in range(1, clients)]
    found = {f"partition-{number}": each for number, each in enumerate([first, *rest])}
    return from_clients(found, name=name, **options)
