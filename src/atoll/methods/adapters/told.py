"""What clients have been told already: bytes of a broadcast of which they hold a part from earlier rounds.

A server's state keeps the round in which each client was last there, and what the updates since then come to. What
clients are given in a simulation is whole; `lengths` is what would travel to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atoll.tensors import Record

__all__ = ["heard", "lengths", "untold"]


def untold() -> Record:
    """Nobody has been told of anything."""
    none = torch.empty(0, dtype=torch.int64)
    return Record(clients=none, since=none, sizes=none, round=0)


def heard(told: Record, clients: Sequence[int], size: int, whole: int) -> Record:
    """After a round in which these clients were there, and an update of the server of `size` bytes.

    Sizes of updates that together are no less than `whole` are forgotten: nobody would be sent them.
    """
    since = dict(zip(told.clients.tolist(), told.since.tolist(), strict=True)) | dict.fromkeys(
        clients, told.round
    )
    sizes = torch.cat([told.sizes, torch.tensor([size])])
    behind = sizes.flip(0).cumsum(0).flip(0)  # of an update and all that follow
    return Record(
        clients=torch.tensor(sorted(since)),
        since=torch.tensor([since[k] for k in sorted(since)]),
        sizes=sizes[behind < whole],
        round=told.round + 1,
    )


def lengths(told: Record, clients: Sequence[int], rest: int, whole: int, stranger: bool) -> dict[int, int]:
    """Bytes for each of these clients: `rest`, and of what changes from round to round the lesser of two.

    Args:
        rest: what all are sent.
        whole: all that may have changed, as it is.
        stranger: whether a client that was never there needs all of it; else it has what the first round began with.
    """
    since = dict(zip(told.clients.tolist(), told.since.tolist(), strict=True))
    found = {}
    for client in clients:
        last = since.get(client, -1 if stranger else 0)
        found[client] = rest + _missed(told.sizes, told.round - last if last >= 0 else told.round + 1, whole)
    return found


def _missed(sizes: Tensor, count: int, whole: int) -> int:
    """Bytes of the last `count` updates, `whole` where they are no longer known or no less."""
    if count > len(sizes):
        return whole
    return min(whole, int(sizes[len(sizes) - count :].sum()))
