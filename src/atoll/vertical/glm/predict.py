"""Scores of rows: each party's linear score of its own columns, added up at the guest.

With one host the guest sees its linear score of each row, u_B = X_B w_B: it could compute it from the prediction
anyway, since it knows its own part and z = u_A + u_B + b. With more than one host each pair of them shares a mask that
one adds and the other subtracts, over the integers modulo 2^64 with 32 bits behind the point, so that the guest sees
the sum over hosts and nothing of a single one. Hosts learn which rows are asked for.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import DataError
from atoll.parties import Link
from atoll.tensors import Record
from atoll.vertical.glm import kinds
from atoll.vertical.glm.columns import Columns
from atoll.vertical.glm.label import predicted
from atoll.vertical.protocol import Case
from atoll.vertical.side import FloatArray, Side

__all__ = ["answer", "score"]

_POINT = 2.0**32


async def score(link: Link, side: Side, case: Case, half: Record) -> FloatArray:
    """The guest's part."""
    z = _own(side, half) + half.intercept.numpy()
    if len(case.hosts) == 1:
        z = z + _fitting((await link.receive(case.hosts[0], kinds.PARTIAL)).score.numpy(), z, case.hosts[0])
    else:
        total = np.zeros(z.shape, dtype=np.int64)
        for name in case.hosts:
            total += _fitting((await link.receive(name, kinds.HIDDEN)).score.numpy(), z, name)
        z = z + total / _POINT
    return predicted(z, case, half, side.exposure)


async def answer(link: Link, side: Side, case: Case, half: Record) -> None:
    """A host's part."""
    u = _own(side, half)
    if len(case.hosts) == 1:
        await link.send(case.guest, kinds.PARTIAL, Record(score=torch.from_numpy(u)))
        return
    if u.size and float(np.abs(u).max()) >= 2**30:
        raise DataError(
            "a linear score is beyond 2^30: are these the columns that the model has learned from?"
        )
    hidden = np.round(u * _POINT).astype(np.int64)
    for sign, seed in await _seeds(link, case):
        hidden += sign * _mask(seed, u.shape)
    await link.send(case.guest, kinds.HIDDEN, Record(score=torch.from_numpy(hidden)))


async def _seeds(link: Link, case: Case) -> list[tuple[int, bytes]]:
    """With each other host a seed, +1 where this host has drawn it and -1 where the other has."""
    at, found = case.hosts.index(link.name), []
    for name in case.hosts[at + 1 :]:
        seed = os.urandom(32)
        await link.send(name, kinds.SEED, Record(seed=torch.frombuffer(bytearray(seed), dtype=torch.uint8)))
        found.append((1, seed))
    for name in case.hosts[:at]:
        seed = (await link.receive(name, kinds.SEED)).seed.numpy().tobytes()
        found.append((-1, seed))
    return found


def _mask(seed: bytes, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Uniform over the integers modulo 2^64."""
    blob = hashlib.shake_256(b"atoll.glm.hidden" + seed).digest(8 * int(np.prod(shape)))
    return np.frombuffer(blob, dtype="<i8").astype(np.int64).reshape(shape)


def _own(side: Side, half: Record) -> FloatArray:
    return np.asarray(Columns.held(half).apply(side) @ half.weights.numpy())


def _fitting(found: NDArray[Any], due: FloatArray, name: str) -> NDArray[Any]:
    if found.shape != due.shape:
        raise DataError(f"{name} has scores {list(found.shape)}, and {list(due.shape)} are due")
    return found
