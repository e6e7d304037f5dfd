"""What methods of adapters share: which tensors are factors of which weight, and their products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from atoll.adapters import Pair, is_adapted, pairs
from atoll.contract import Method
from atoll.errors import ConfigError
from atoll.task import Task, architecture
from atoll.tensors import Record, Tensors

__all__ = [
    "Factors",
    "a_names",
    "b_names",
    "factored",
    "mean_product",
    "product_error",
    "read",
    "table",
    "wide",
]


def factored(method: Method, task: Task) -> list[Pair]:
    """The factors that are trained.  Raises ConfigError where the model has none, or trains other tensors as well."""
    found, name = pairs(task.module), type(method).__name__
    if not found and is_adapted(task.module):
        raise ConfigError(
            f"{name} averages factors of low rank, and the adapter of this model has none",
            hint='set adapter="lora:8,16", or method="fedavg", which averages any adapter',
        )
    if not found:
        raise ConfigError(
            f"{name} averages adapters, and the model has none: all of it is trained",
            hint='set adapter="lora:8,16", or method="fedavg" for the whole model',
        )
    return found


def a_names(task: Task) -> frozenset[str]:
    """The names of all factors A of a task."""
    return frozenset(pair.A for pair in pairs(task.module))


def b_names(task: Task) -> frozenset[str]:
    """The names of all factors B of a task."""
    return frozenset(pair.B for pair in pairs(task.module))


# --- in a server's state --------------------------------------------------------------------------------------------


class Factors(NamedTuple):
    """The factors of a weight, as a server knows them: names, ranks and scales by architecture, how the weight lies."""

    weight: str
    A: str
    B: str
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    transposed: bool
    embedding: bool

    def rank(self, client: int) -> int:
        """The rank of a client's factors."""
        return self.ranks[architecture(client, len(self.ranks))]

    def scale(self, client: int) -> float:
        """What a client's product is scaled by."""
        return self.scales[architecture(client, len(self.scales))]

    def laid(self, product: Tensor) -> Tensor:
        """A product [out, in] in the shape of the weight."""
        return product.t() if self.transposed else product


def table(method: Method, tasks: Sequence[Task]) -> Record:
    """The factors of these tasks, one for each architecture, as a record (see `read`).

    Raises ConfigError where a task has none, or its adapters stand at other layers than the first one's.
    """
    found = [factored(method, task) for task in tasks]
    places = [[(pair.weight, pair.A, pair.B) for pair in each] for each in found]
    if any(each != places[0] for each in places):
        raise ConfigError(
            f"{type(method).__name__} averages adapters of unequal ranks, and these stand at unequal layers",
            hint="name the same targets for all of them",
        )
    return Record(
        {
            first.weight: Record(
                A=Record({first.A: 0}),
                B=Record({first.B: 0}),
                ranks=torch.tensor([each[at].rank for each in found]),
                scales=torch.tensor([each[at].scale for each in found], dtype=torch.float64),
                transposed=int(first.transposed),
                embedding=int(first.kind == "embedding"),
            )
            for at, first in enumerate(found[0])
        }
    )


def read(known: Record) -> list[Factors]:
    """The inverse of `table`."""
    return [
        Factors(
            weight, next(iter(one.A)), next(iter(one.B)),
            tuple(one.ranks.tolist()), tuple(one.scales.tolist()), bool(one.transposed),
            bool(one.embedding),
        )
        for weight, one in known.items()
    ]  # fmt: skip


# --- products -------------------------------------------------------------------------------------------------------


def wide(tensor: Tensor) -> Tensor:
    """At least as precise as float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mean_product(sent: Iterable[tuple[float, float, Tensor, Tensor]]) -> Tensor:
    """sum_k p_k scale_k B_k A_k [out, in] of (p, scale, A, B): one product of the stacked factors, of any ranks."""
    found = list(sent)
    stacked = torch.cat([wide(a) for _, _, a, _ in found])
    return torch.cat([wide(b) * (p * scale) for p, scale, _, b in found], dim=1) @ stacked


def product_error(factors: Sequence[Pair], clients: Sequence[Tensors], weights: Sequence[float]) -> float:
    """How far B A of the mean factors is from the mean of the products B_k A_k, over the norm of the latter.

    Args:
        factors: which tensors are factors (`atoll.adapters.pairs`).
        clients: the factors of each client, by name.
        weights: what they count for; they are divided by their sum.

    0 where means are exact: one client, one of both factors the same for all. It is what FedIT is off by.
    """
    shares = [weight / sum(weights) for weight in weights]
    squares = torch.zeros(2, dtype=torch.float64)
    for pair in factors:
        both = [(wide(each[pair.A]).double(), wide(each[pair.B]).double()) for each in clients]
        true = mean_product((p, pair.scale, a, b) for p, (a, b) in zip(shares, both, strict=True))
        a = sum(p * a for p, (a, _) in zip(shares, both, strict=True))
        b = sum(p * b for p, (_, b) in zip(shares, both, strict=True))
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        squares += torch.stack([(true - b @ a * pair.scale).square().sum(), true.square().sum()])
    off, whole = squares.sqrt().tolist()
    return off / whole if whole else 0.0
