"""What tests of split networks share: runs in one process, real columns, what was said in which batch."""

from __future__ import annotations

import lzma
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atoll.parties import Played, play
from atoll.tensors import Record
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import FloatArray, Side
from atoll.vertical.splitnn import SplitNN
from atoll.vertical.splitnn.run import batches

BINARY = Case("binary")
ROOT = Path(os.environ.get("ATOLL_DATA", "absent")) / "fate-vertical"
real = pytest.mark.skipif(not ROOT.is_dir(), reason="ATOLL_DATA has no fate-vertical")


@cache
def table(name: str) -> tuple[tuple[str, ...], FloatArray]:
    """Column names and values, by id."""
    with lzma.open(ROOT / f"{name}.csv.xz", "rt") as file:
        names = file.readline().strip().split(",")
        values = np.loadtxt(file, delimiter=",")
    return tuple(names), values[np.argsort(values[:, 0])]


def sides(data: str) -> tuple[Side, Side]:
    """The guest's and the host's columns of the same rows."""
    (mine, guest), (theirs, host) = table(f"{data}_hetero_guest"), table(f"{data}_hetero_host")
    assert (guest[:, 0] == host[:, 0]).all()
    return Side(guest[:, 2:], mine[2:], guest[:, 1]), Side(host[:, 1:], theirs[1:])


def divided(y: FloatArray) -> tuple[Any, Any]:
    """80 % and 20 % of the rows, of each class."""
    chance, test = np.random.default_rng(0), np.zeros(len(y), dtype=bool)
    for each in np.unique(y):
        rows = chance.permutation(np.flatnonzero(y == each))
        test[rows[: round(len(rows) / 5)]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def made(rows: int = 90, hosts: int = 1, own: int = 2, seed: int = 0) -> tuple[Side, list[Side]]:
    """Columns from chance, with a label that needs all parties."""
    chance = np.random.default_rng(seed)
    parts = [chance.normal(size=(rows, 3 + at)) for at in range(hosts)]
    mine = chance.normal(size=(rows, own))
    score = sum(x[:, 0] - x[:, 1] for x in parts) + mine.sum(1)
    y = (score + 0.3 * chance.normal(size=rows) > 0).astype(float)
    names = [tuple(f"c{at}" for at in range(x.shape[1])) for x in (mine, *parts)]
    return Side(mine, names[0], y), [Side(x, each) for x, each in zip(parts, names[1:], strict=True)]


def learn(
    how: SplitNN | Mapping[str, SplitNN],
    guest: Side,
    hosts: list[Side],
    case: Case = BINARY,
    begin: Mapping[str, Progress] | None = None,
    keep: bool = True,
) -> Played:
    """A run; `how` may be another protocol for each party, `begin` where each starts and whom it tells."""
    begin = begin or {}

    def hosting(name: str, side: Side) -> Any:
        return lambda link: _of(how, name).host(link, side, case, begin.get(name, Progress()))

    roles: dict[str, Any] = {
        "guest": lambda link: _of(how, "guest").guest(link, guest, case, begin.get("guest", Progress()))
    }
    roles |= {name: hosting(name, side) for name, side in zip(case.hosts, hosts, strict=True)}
    return play(roles, keep=keep)


def asked(
    how: SplitNN | Mapping[str, SplitNN],
    guest: Side,
    hosts: Mapping[str, Side],
    halves: Mapping[str, Record],
    case: Case = BINARY,
) -> FloatArray:
    """Scores, with the hosts that are there."""

    def answering(name: str, side: Side) -> Any:
        return lambda link: _of(how, name).answer(link, side, case, halves[name])

    roles: dict[str, Any] = {
        "guest": lambda link: _of(how, "guest").score(link, guest, case, halves["guest"])
    }
    roles |= {name: answering(name, side) for name, side in hosts.items()}
    found: FloatArray = play(roles).results["guest"]
    return found


def _of(how: SplitNN | Mapping[str, SplitNN], name: str) -> SplitNN:
    return how if isinstance(how, SplitNN) else how[name]


def heard(played: Played, kind: str, how: SplitNN, rows: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Epoch, rows and tensor of each message of a kind between guest and one host."""
    messages = iter([record.x for _, _, name, record in played.transcript.said if name == kind])
    for epoch in range(how.epochs):
        for batch in batches(0, epoch, rows, how.batch):
            yield epoch, batch, next(messages)


def whole(played: Played, kind: str, how: SplitNN, rows: int) -> Tensor:
    """The same in the order of the rows, [epochs, rows, width]."""
    found = torch.zeros(how.epochs, rows, how.width)
    for epoch, batch, x in heard(played, kind, how, rows):
        found[epoch, batch] = x
    return found
