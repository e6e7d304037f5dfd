"""The guest's half of the model: the forms of trees, its own splits, and what leaves add."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from atoll.errors import DataError
from atoll.tensors import Record
from atoll.vertical.secureboost.bins import Splits
from atoll.vertical.secureboost.records import as_array, as_tensor
from atoll.vertical.side import FloatArray

__all__ = ["Forest", "Tree"]

Numbers = NDArray[np.int64]

_WHOLE, _REAL = ("party", "split", "left", "right"), ("value", "gain")
_NODES = (*_WHOLE, *_REAL)


@dataclass
class Tree:
    """Nodes, the root first: whose split decides (0 the guest's, k the k-th host's, -1 a leaf) and which of theirs,
    where rows go that are inside and the others, what a leaf adds to a score, and what a split has gained."""

    party: list[int] = field(default_factory=list)
    split: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)

    def leaf(self, value: float) -> int:
        """A new leaf, by number."""
        at = len(self.party)
        for name, entry in zip(_NODES, (-1, -1, at, at, value, 0.0), strict=True):
            getattr(self, name).append(entry)
        return at

    def cut(self, at: int, party: int, split: int, gain: float, left: float, right: float) -> tuple[int, int]:
        """Make a leaf a node with two leaves, of these values."""
        self.gain[at] = gain
        self.party[at], self.split[at], self.value[at] = party, split, 0.0
        self.left[at], self.right[at] = self.leaf(left), self.leaf(right)
        return self.left[at], self.right[at]


@dataclass
class Forest:
    """Trees, in the order in which they were grown, a group's in turn.

    Attributes:
        base: the score of every row before the first tree, [groups].
        hosts: how many hosts have splits; `theirs` counts them.
        splits: the guest's own.
        numbers: of each host that has told which of its splits are of one column, that column's number for each.
    """

    base: FloatArray
    hosts: int
    trees: list[Tree] = field(default_factory=list)
    splits: Splits = field(default_factory=Splits.none)
    numbers: list[Numbers] = field(default_factory=list)

    @property
    def theirs(self) -> list[int]:
        """How many splits each host has."""
        found = [0] * self.hosts
        for tree in self.trees:
            for party in tree.party:
                if party > 0:
                    found[party - 1] += 1
        return found

    def worth(self, columns: int) -> list[tuple[FloatArray, Numbers]]:
        """What splits have gained in all, and how many there are, by column: of the guest's, [columns], and of each
        host's, [1] where it has not told which splits are of one column."""
        party = np.array([each for tree in self.trees for each in tree.party], np.int64)
        split = np.array([each for tree in self.trees for each in tree.split], np.int64)
        gain = np.array([each for tree in self.trees for each in tree.gain])
        found = []
        for at in range(self.hosts + 1):
            mine = party == at
            if not at:
                place, size = self.splits.column[split[mine]], columns
            elif self.numbers:
                numbers = self.numbers[at - 1]
                place, size = numbers[split[mine]], int(numbers.max(initial=-1)) + 1
            else:
                place, size = np.zeros(int(mine.sum()), np.int64), 1
            counts = np.bincount(place, minlength=size).astype(np.int64)
            found.append((np.bincount(place, gain[mine], size).astype(np.float64), counts))
        return found

    def scores(self, inside: list[NDArray[np.bool_]]) -> FloatArray:
        """Scores [n, groups] of rows, given on which side of each split of each party they are: bool [splits, n]."""
        n = inside[0].shape[1]
        starts = np.cumsum([0, *(len(part) for part in inside)])
        sides = np.concatenate([*inside, np.zeros((1, n), bool)])  # the last for leaves
        score = np.tile(self.base, (n, 1))
        rows = np.arange(n)
        for number, tree in enumerate(self.trees):
            party, split = np.array(tree.party), np.array(tree.split)
            which = np.where(party < 0, len(sides) - 1, starts[party] + split)
            left, right = np.array(tree.left), np.array(tree.right)
            at = np.zeros(n, np.int64)
            while (party[at] >= 0).any():
                at = np.where(sides[which[at], rows], left[at], right[at])
            score[:, number % len(self.base)] += np.array(tree.value)[at]
        return score

    def record(self) -> Record:
        """As it is kept."""
        nodes = {name: [entry for tree in self.trees for entry in getattr(tree, name)] for name in _NODES}
        whole = {name: as_tensor(np.array(nodes[name], np.int64)) for name in _WHOLE}
        real = {name: as_tensor(np.array(nodes[name], np.float64)) for name in _REAL}
        return Record(
            base=as_tensor(self.base),
            hosts=self.hosts,
            sizes=as_tensor(np.array([len(tree.party) for tree in self.trees], np.int64)),
            **whole,
            **real,
            splits=self.splits.record(),
            numbers=Record({str(at): as_tensor(each) for at, each in enumerate(self.numbers)}),
        )

    @classmethod
    def of(cls, half: Record) -> Forest:
        """The forest that a half holds.  Raises DataError where its trees go nowhere."""
        numbers = [as_array(each) for each in half.numbers.values()]
        forest = cls(as_array(half.base), int(half.hosts), [], Splits.of(half.splits), numbers)
        starts = np.cumsum([0, *half.sizes.tolist()])
        nodes = {name: half[name].tolist() for name in _NODES}
        for a, b in pairwise(starts):
            tree = Tree(*(nodes[name][a:b] for name in _NODES))
            for at, (party, left, right) in enumerate(zip(tree.party, tree.left, tree.right, strict=True)):
                if party > forest.hosts or (party >= 0 and not at < left < b - a > right > at):
                    raise DataError("the guest's half of the model is damaged: a tree leads nowhere")
            forest.trees.append(tree)
        return forest
