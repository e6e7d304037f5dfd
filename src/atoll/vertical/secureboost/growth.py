"""How one tree grows at the guest: level by level, the best split of everybody's for each node."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atoll.vertical.secureboost.forest import Forest, Tree
from atoll.vertical.secureboost.loss import Whole
from atoll.vertical.secureboost.sums import Level, Own, Remote
from atoll.vertical.side import FloatArray

if TYPE_CHECKING:
    from atoll.vertical.secureboost import SecureBoost

__all__ = ["Growth"]

_LEAST = 1e-6  # what a split must gain at least, as XGBoost has it


@dataclass
class _Best:
    """A node's best split so far: what it gains, whose it is, its number there, and sums inside [2]."""

    gain: float
    party: int = -1
    split: int = -1
    sums: FloatArray | None = None


class Growth:
    """One tree under way.

    Args:
        numbers: g and h of each row as whole numbers, 0 for rows that do not count.
        grown: the rows that count.
        limit: what a leaf may change a score by at most, before `lr`.
    """

    def __init__(
        self, terms: SecureBoost, forest: Forest, own: Own, remotes: list[Remote], x: FloatArray,
        numbers: list[Whole], grown: NDArray[np.bool_], limit: float = np.inf,
    ) -> None:  # fmt: skip
        self.terms, self.forest, self.own, self.remotes, self.x = terms, forest, own, remotes, x
        self.whole = np.stack([each.whole.astype(np.float64) for each in numbers])
        self.scale = np.array([each.scale for each in numbers])
        self.grown, self.limit = grown, limit
        self.tree = Tree()
        self.at = np.zeros(len(grown), np.int64)
        """The node of each row."""
        self.made = forest.theirs
        """How many splits each host has by now."""

    async def run(self, step: int) -> tuple[Tree, NDArray[np.int64]]:
        """The tree, and the leaf of each row."""
        self.tree.leaf(self._leaf(self.whole.sum(1)))
        nodes, parent, sibling = [0], [-1], [-1]
        for depth in range(self.terms.depth):
            level = self._level(nodes, parent, sibling)
            best = await self._best(level, self.terms.asked(step, depth, 1 + len(self.remotes)))
            inside = await self._inside(level, best)
            nodes, parent, sibling = self._cut(level, nodes, best, inside)
            if not nodes:
                break
        for remote in self.remotes:
            await remote.end()
        return self.tree, self.at

    def _leaf(self, sums: FloatArray) -> float:
        """What a leaf with these sums adds to a score."""
        g, h = sums / self.scale
        bottom = h + self.terms.l2
        return float(self.terms.lr * np.clip(-g / bottom, -self.limit, self.limit)) if bottom > 0 else 0.0

    def _level(self, nodes: list[int], parent: list[int], sibling: list[int]) -> Level:
        place = np.full(len(self.tree.party), -1, np.int64)
        place[nodes] = np.arange(len(nodes))
        slot = place[self.at]
        inside = np.flatnonzero(slot >= 0)
        g, h = self.whole[:, inside]
        sums = np.array([np.bincount(slot[inside], values, len(nodes)) for values in (g, h, np.abs(g))])
        return Level(slot, self.grown, parent, sibling, sums[:2].T, sums[2])

    # --- the best splits ----------------------------------------------------------------------------------------

    async def _best(self, level: Level, asked: list[int]) -> list[_Best]:
        """Of each node; the guest's where gains are equal, then the first host's."""
        built = {party: await self.remotes[party - 1].ask(level) for party in asked if party}
        best = [_Best(_LEAST) for _ in level.parent]
        for party in asked:
            if party:
                sums = await self.remotes[party - 1].sums(level, built[party])
            else:
                sums = self.own.sums(level, self.whole)
            gains = self._gains(sums, level.totals[:, None])
            if not gains.shape[1]:
                continue
            for node, (split, found) in enumerate(zip(gains.argmax(1), best, strict=True)):
                if gains[node, split] > found.gain:
                    best[node] = _Best(float(gains[node, split]), party, int(split), sums[node, split].copy())
        return best

    def _gains(self, sums: FloatArray, totals: FloatArray) -> FloatArray:
        """Gains [nodes, splits] of sums inside [nodes, splits, 2]; -inf where a side has too little."""
        terms, others = self.terms, totals - sums
        least = max(terms.min_child * self.scale[1], 1.0)
        fair = (sums[..., 1] >= least) & (others[..., 1] >= least)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [self._fit(each) for each in (sums, others, totals)]
            gains: FloatArray = np.where(fair, (parts[0] + parts[1] - parts[2]) / 2 - terms.gamma, -np.inf)
        return gains

    def _fit(self, sums: FloatArray) -> FloatArray:
        """G^2 / (H + l2), or what a leaf within the limit makes of it: -2 G w - (H + l2) w^2."""
        g, h = sums[..., 0] / self.scale[0], sums[..., 1] / self.scale[1]
        fit: FloatArray = g * g / (h + self.terms.l2)
        if np.isfinite(self.limit):
            w = np.clip(-g / (h + self.terms.l2), -self.limit, self.limit)
            fit = -2 * g * w - (h + self.terms.l2) * w * w
        return fit

    # --- splitting ----------------------------------------------------------------------------------------------

    async def _inside(
        self, level: Level, best: list[_Best]
    ) -> dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Nodes that are split: their rows, and which of them are inside. Owners keep the splits."""
        order = np.argsort(level.slot, kind="stable")
        ends = np.searchsorted(level.slot[order], np.arange(len(best) + 1))
        rows = [order[a:b] for a, b in pairwise(ends)]
        found = {}
        for party, remote in enumerate(self.remotes, 1):
            mine = [node for node, each in enumerate(best) if each.party == party]
            if remote.waits:
                flags = await remote.sides(
                    mine, [best[node].split for node in mine], [len(rows[n]) for n in mine]
                )
                found.update({node: (rows[node], part) for node, part in zip(mine, flags, strict=True)})
            for node in mine:
                best[node].split = self.made[party - 1]
                self.made[party - 1] += 1
        mine = [node for node, each in enumerate(best) if each.party == 0]
        splits = self.own.bins.splits.take([best[node].split for node in mine])
        for place, node in enumerate(mine):
            found[node] = rows[node], splits.inside(place, self.x, rows[node])
            best[node].split = len(self.forest.splits) + place
        self.forest.splits = self.forest.splits.joined(splits)
        return found

    def _cut(
        self, level: Level, nodes: list[int], best: list[_Best],
        inside: dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]],
    ) -> tuple[list[int], list[int], list[int]]:  # fmt: skip
        """Make the nodes' children; those that may be split again, their parents' places, and their siblings'."""
        children: list[int] = []
        parent: list[int] = []
        sibling: list[int] = []
        least = 2 * self.terms.min_child * self.scale[1]
        for place, each in enumerate(best):
            if each.sums is None:
                continue
            sums = each.sums, level.totals[place] - each.sums
            pair = self.tree.cut(
                nodes[place], each.party, each.split, each.gain, self._leaf(sums[0]), self._leaf(sums[1])
            )
            rows, left = inside[place]
            self.at[rows] = np.where(left, *pair)
            counts = [np.count_nonzero(self.grown[rows[side]]) for side in (left, ~left)]
            fit = [
                child
                for child, part, count in zip(pair, sums, counts, strict=True)
                if part[1] >= least and count >= self.terms.min_rows
            ]
            start = len(children)
            children += fit
            parent += [place] * len(fit)
            sibling += [start + 1, start] if len(fit) == 2 else [-1] * len(fit)
        return children, parent, sibling
