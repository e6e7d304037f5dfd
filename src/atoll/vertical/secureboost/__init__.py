"""Boosted trees over columns of several parties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from atoll import he
from atoll.errors import ConfigError
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.protocol import Case, Known, Progress, Protocol, Task
from atoll.vertical.secureboost import growing, hosting
from atoll.vertical.secureboost.forest import Forest
from atoll.vertical.secureboost.messages import KINDS
from atoll.vertical.side import FloatArray, Side

__all__ = ["Importance", "Mode", "SecureBoost"]

Mode = Literal["normal", "complete", "mix", "layered"]
Importance = Literal["party", "column"]


@dataclass(frozen=True)
class SecureBoost(Protocol):
    """Gradient boosting as XGBoost's `hist` does it, with the same trees as over joined columns.

    Cheng et al., IEEE Intelligent Systems 2021;  Chen et al., arXiv 2110.10927 (SecureBoost+)

    guest:  g, h of each row as one encrypted number -> hosts, once a tree
    hosts:  sums over the rows inside each of their splits, for the smaller of two children, several in a ciphertext
    guest:  gain = 1/2 [G_L^2/(H_L + l2) + G_R^2/(H_R + l2) - G^2/(H + l2)] - gamma; tells the host whose split is best
    host:   notes column and threshold, and says which rows are inside
    leaves: -lr G/(H + l2), at the guest

    Args:
        trees: how many steps; several classes grow a tree each in a step.
        depth: splits between the root and a leaf, at most.
        lr: of leaves.
        bins: quantile bins of a column; missing values have one of their own, whose side is learned.
        l2: penalty on leaves.
        gamma: what a split must gain.
        min_child: least sum of h on each side of a split.
        min_rows: least rows of a node that is split; hosts refuse sums over fewer.
        goss_top: share of rows with the largest gradients that a tree is grown on; 1 is all rows.
        goss_rest: share of rows that are drawn from the others.
        mode: whose splits are looked at. "normal": everybody's; "complete": the guest's alone in the first tree;
            "mix": one party's in each tree, in turn; "layered": the hosts' in the first half of levels, then the
            guest's.
        precision: bits of the largest gradient; 24 are a float32's.
        max_delta: for counts, what a leaf changes the logarithm of a mean by at most, before `lr`; their h is that of
            means as much higher, as XGBoost has it.
        importance: what the guest learns of the worth of hosts' columns: "party", of all columns of a host together;
            "column", of each, under a number. Then hosts tell which of their splits are of one column.
        workers: processes that share encryption and sums, at each party.
    """

    trees: int = 50
    depth: int = 3
    lr: float = 0.3
    bins: int = 32
    l2: float = 1.0
    gamma: float = 0.0
    min_child: float = 1.0
    min_rows: int = 8
    goss_top: float = 1.0
    goss_rest: float = 0.1
    mode: Mode = "normal"
    precision: int = 24
    max_delta: float = 0.7
    importance: Importance = "party"
    workers: int = 1

    name: ClassVar[str] = "secureboost"
    says: ClassVar[str] = "boosted trees over columns of several parties, by sums of encrypted gradients"
    ciphers: ClassVar[tuple[str, ...]] = ("ou", "paillier", "none")
    tasks: ClassVar[tuple[Task, ...]] = ("binary", "multiclass", "regression", "poisson")
    kinds: ClassVar[tuple[Kind, ...]] = KINDS

    def __post_init__(self) -> None:
        bounds = {
            "trees": (1, 100_000), "depth": (1, 12), "lr": (1e-9, 100), "bins": (2, 1024), "l2": (0, 1e12),
            "gamma": (0, 1e12), "min_child": (0, 1e12), "min_rows": (1, 1e12), "goss_top": (0, 1),
            "precision": (16, 40), "max_delta": (1e-6, 10), "workers": (1, 256),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} = {getattr(self, name)} must lie between {low:g} and {high:g}")
        if self.goss_top < 1 and not 0 < self.goss_rest <= 1 - self.goss_top:
            raise ConfigError(
                f"goss_rest = {self.goss_rest} must be above 0, and at most 1 with goss_top = {self.goss_top}"
            )
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode = {self.mode!r} is none of {', '.join(get_args(Mode))}")
        if self.importance not in get_args(Importance):
            raise ConfigError(
                f"importance = {self.importance!r} is none of {', '.join(get_args(Importance))}"
            )

    @property
    def steps(self) -> int:
        return self.trees

    def check(self, case: Case) -> None:
        super().check(case)
        he.check(case.crypto)

    def asked(self, step: int, level: int, parties: int) -> list[int]:
        """Whose splits are looked at: 0 is the guest, k the k-th host."""
        if self.mode == "complete" and step == 0:
            return [0]
        if self.mode == "mix":
            return [step % parties]
        if self.mode == "layered":
            return list(range(1, parties)) if level < self.depth // 2 else [0]
        return list(range(parties))

    async def guest(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        return await growing.grow(self, link, side, case, progress)

    async def host(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        return await hosting.grow(self, link, side, case, progress)

    async def score(self, link: Link, side: Side, case: Case, half: Record) -> FloatArray:
        return await growing.score(link, side, case, half)

    async def answer(self, link: Link, side: Side, case: Case, half: Record) -> None:
        await hosting.answer(link, side, case, half)

    def knows(self, case: Case, party: str, columns: Sequence[str], half: Record) -> Known:
        if party != case.guest:  # gains are the guest's; a host knows how often a column was taken
            count = np.bincount(half.splits.column.numpy(), minlength=len(columns)).astype(np.float64)
            return Known(tuple(columns), {"splits": count})
        forest, names = Forest.of(half), list(columns)
        worth = forest.worth(len(columns))
        for host, (gain, _) in zip(case.hosts, worth[1:], strict=True):
            names += [f"{host}.{at}" for at in range(len(gain))] if forest.numbers else [host]
        figures = [np.concatenate([each[at] for each in worth]).astype(np.float64) for at in (0, 1)]
        return Known(tuple(names), {"gain": figures[0], "splits": figures[1]})
