"""Everybody as often as everybody else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atoll.tensors import Record

from .contract import Ask, Choice, Chosen, chosen
from .drawing import changed, first

__all__ = ["Fair"]


@dataclass(frozen=True)
class Fair(Choice):
    """Whoever was asked least often comes first, by chance where that is equal.

    Where all are there, nobody is ever asked twice more than somebody else: the round robin of Yang, Liu, Quek and
    Poor ("Scheduling Policies for Federated Learning in Wireless Networks", IEEE Transactions on Communications 68,
    2020), in a new order every time round. Clients that are rarely there are asked whenever they are, and one that
    joins late is asked every round until it has caught up.
    """

    name = "fair"

    def begin(self, clients: int) -> Record:
        """How often each was asked."""
        return Record(asked=torch.zeros(clients, dtype=torch.int64))

    def draw(self, state: Record, ask: Ask) -> Chosen:
        """Counts at once, so that a second draw for a round knows of the first."""
        clients = ask.everyone()
        asked = state.asked.numpy()
        keys = asked[clients] + ask.rng().random(len(clients))
        found = first(clients, keys, ask.count, ask.there)
        return chosen(found, state.replace(asked=changed(state.asked, found, asked[found] + 1)))
