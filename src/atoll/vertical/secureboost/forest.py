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

_NODES = ("party", "split", "left", "right", "value")


@dataclass
class Tree:
    """Nodes, the root first: whose split decides (0 the guest's, k the k-th host's, -1 a leaf) and which of theirs,
    where rows go that are inside and the others, and what a leaf adds to a score."""

    party: list[int] = field(default_factory=list)
    split: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def leaf(self, value: float) -> int:
        """A new leaf, by number."""
        at = len(self.party)
        for name, entry in zip(_NODES, (-1, -1, at, at, value), strict=True):
            getattr(self, name).append(entry)
        return at

    def cut(self, at: int, party: int, split: int, left: float, right: float) -> tuple[int, int]:
        """Make a leaf a node with two leaves, of these values."""
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
    """

    base: FloatArray
    hosts: int
    trees: list[Tree] = field(default_factory=list)
    splits: Splits = field(default_factory=Splits.none)

    @property
    def theirs(self) -> list[int]:
        """How many splits each host has."""
        found = [0] * self.hosts
        for tree in self.trees:
            for party in tree.party:
                if party > 0:
                    found[party - 1] += 1
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
        whole = {name: as_tensor(np.array(nodes[name], np.int64)) for name in _NODES[:-1]}
        return Record(
            base=as_tensor(self.base),
            hosts=self.hosts,
            sizes=as_tensor(np.array([len(tree.party) for tree in self.trees], np.int64)),
            **whole,
            value=as_tensor(np.array(nodes["value"], np.float64)),
            splits=self.splits.record(),
        )

    @classmethod
    def of(cls, half: Record) -> Forest:
        """The forest that a half holds.  Raises DataError where its trees go nowhere."""
        forest = cls(as_array(half.base), int(half.hosts), [], Splits.of(half.splits))
        starts = np.cumsum([0, *half.sizes.tolist()])
        nodes = {name: half[name].tolist() for name in _NODES}
        for a, b in pairwise(starts):
            tree = Tree(*(nodes[name][a:b] for name in _NODES))
            for at, (party, left, right) in enumerate(zip(tree.party, tree.left, tree.right, strict=True)):
                if party > forest.hosts or (party >= 0 and not at < left < b - a > right > at):
                    raise DataError("the guest's half of the model is damaged: a tree leads nowhere")
            forest.trees.append(tree)
        return forest
