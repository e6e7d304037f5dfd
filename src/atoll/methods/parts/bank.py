"""Models that a server holds client by client: a record from the client's number to its model, in no dense array.

Replacing some of them makes a new record that shares the others, so a round costs what its cohort costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from atoll.tensors import Record, Tensors

__all__ = ["held", "keep", "stack", "without"]


def keep(bank: Record, models: Mapping[int, Tensors]) -> Record:
    """The bank with these clients' models in it."""
    return bank.replace(**{str(client): model for client, model in models.items()})


def without(bank: Record, clients: Iterable[int]) -> Record:
    """The bank without what it has of these clients."""
    gone = set(map(str, clients))
    return Record({client: model for client, model in bank.items() if client not in gone})


def held(bank: Record, clients: Iterable[int] | None = None) -> list[int]:
    """Which clients (of these) have a model in the bank, ascending."""
    known = sorted(map(int, bank))
    if clients is None:
        return known
    wanted = set(clients)
    return [client for client in known if client in wanted]


def stack(bank: Record, clients: Sequence[int]) -> Tensors:
    """Their models, each tensor [len(clients), ...]."""
    models = [bank[str(client)] for client in clients]
    return Tensors({name: torch.stack([model[name] for model in models]) for name in models[0]})
