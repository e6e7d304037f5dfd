"""Clients that hold only one part of every sample, where samples have several."""

from __future__ import annotations

import copy

from atoll.errors import ConfigError
from atoll.modalities import kept, modalities, said
from atoll.parts import shapes
from atoll.seeds import rng

from .federated import SPLITS, FederatedData, Resident, pack
from .samples import Samples

__all__ = ["lacking"]


def lacking(data: FederatedData, share: float, seed: int) -> FederatedData:
    """The same data, of which this share of the clients, drawn by the seed, holds one part alone.

    Which one takes turns: of two parts, half of them hold the first. They hold it in all their splits; the global test
    set keeps all parts, where there is an official one.

    Raises ConfigError where samples have no parts by name, where data are made on demand or are not here, and for a
    part that nobody would hold.
    """
    what = f"missing_parts = {share:g}"
    inputs = data.example().inputs
    names = modalities(said(inputs))
    if len(names) < 2:
        raise ConfigError(
            f"{what} takes parts of samples away, and the inputs of {data.dataset} are {shapes(inputs)}",
            hint='leave it out, or take data with several parts by name: data = "av-mnist"',
        )
    if not isinstance(data, Resident):
        raise ConfigError(
            f"{what} is for data in memory, and these are elsewhere, or made on demand",
            hint="leave it out; inputs say themselves which parts are there (docs/modalities.md)",
        )
    some = rng(seed, "data.missing_parts").permutation(len(data))[: round(share * len(data))]
    holds = {int(client): names[at % len(names)] for at, client in enumerate(some)}
    lost = [name for name in names if len(holds) == len(data) and name not in holds.values()]
    if lost:
        raise ConfigError(
            f"{what}: nobody of the {len(data)} clients would hold {lost[0]}",
            hint="make it less, or take more clients",
        )
    made = copy.copy(data)
    made.__dict__.pop("_union", None)  # it is of the whole samples
    made._pools, made._rows = {}, {}
    for split in SPLITS:
        held: list[Samples | None] = []
        for client in range(len(data)):
            found = data.samples(client, split)
            own = [holds[client]] if client in holds else names
            held.append(found and found._replace(inputs=kept(said(found.inputs), own)))
        if (packed := pack(held)) is not None:
            made._pools[split], made._rows[split] = packed
    for name in ("_official", "public", "root"):
        if (found := getattr(data, name)) is not None:
            setattr(made, name, found._replace(inputs=said(found.inputs)))
    return made
