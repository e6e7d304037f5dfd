"""Correlated noise by a binary tree over rounds: running sums get the noise of few nodes.

Every node of the tree, the sum of a block of 2^h rounds, has noise of its own, and a running sum is made of the
blocks in the binary digits of the round. A block can be estimated from its own node and from the blocks below,
too; the mean of both with the least variance is taken (Honaker 2015, "from below"), which halves the variance at
last.   Kairouz et al., ICML 2021, DP-FTRL.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from atoll.errors import ConfigError
from atoll.privacy.events import Correlated
from atoll.privacy.mechanisms.continuous import gaussian
from atoll.privacy.source import Source
from atoll.tensors import Tensors

__all__ = ["Tree", "check_round"]


class Tree:
    """A stream of noise for `rounds` rounds, from 1 on, in the shapes of `like`; `noise(t)` is for the sum of round t.

    `deviation` is that of a node, absolute. Holds as many tensors as the round has binary digits; all of it
    follows from the source, so that a stream goes on from its key alone (with as many draws as there were
    rounds).
    """

    def __init__(self, source: Source, like: Tensors, deviation: float, rounds: int) -> None:
        self.source = source
        self._like = like
        self._deviation = deviation
        self._rounds = rounds
        self._round = 0
        self._blocks: list[tuple[int, Tensors]] = []  # height, noise: the binary digits of the round

    def event(self, clip: float, separation: int) -> Correlated:
        """What all rounds of the stream are to accounting, where clients come once in `separation` rounds at most."""
        return Correlated(
            matrix="tree",
            noise=self._deviation / clip,
            rounds=self._rounds,
            separation=separation,
            stream=self.source.name,
        )

    def noise(self, round: int) -> Tensors:
        """What round `round` adds, float64: the noise of the running sum up to it less that up to the round before.

        Raises ConfigError for a round beyond those that were accounted for.
        """
        check_round(round, self._rounds)
        if round != self._round + 1:
            self._blocks = list(self._digits(round - 1))
        before = self._total()
        height, block = 0, self._node(0, round - 1)
        while self._blocks and self._blocks[-1][0] == height:
            _, left = self._blocks.pop()
            height += 1
            block = self._estimate(height, (round - 1) >> height, left + block)
        self._blocks.append((height, block))
        self._round = round
        return self._total() - before

    def _total(self) -> Tensors:
        total = self._like.map(lambda value: torch.zeros_like(value, dtype=torch.float64))
        for _, block in self._blocks:
            total = total + block
        return total

    def _digits(self, round: int) -> Iterator[tuple[int, Tensors]]:
        start = 0
        for height in reversed(range(round.bit_length())):
            if round >> height & 1:
                yield height, self._block(height, start >> height)
                start += 1 << height

    def _block(self, height: int, index: int) -> Tensors:
        if height == 0:
            return self._node(0, index)
        return self._estimate(
            height, index, self._block(height - 1, 2 * index) + self._block(height - 1, 2 * index + 1)
        )

    def _estimate(self, height: int, index: int, below: Tensors) -> Tensors:
        """The mean of a node's own noise and of that of the two blocks below."""
        own = _own_share(height)
        return self._node(height, index) * own + below * (1 - own)

    def _node(self, height: int, index: int) -> Tensors:
        return gaussian(self._like, self._deviation, self.source.at("tree", height, index))


def _own_share(height: int) -> float:
    """What a node's own noise counts for: variances of blocks are v_0 = 1, v_h = 2 v_(h-1) / (1 + 2 v_(h-1))."""
    below = 2.0 / (2.0 - 2.0 ** (1 - height))  # 2 v_(h-1), v_h = 1 / (2 - 2^-h)
    return below / (1 + below)


def check_round(round: int, rounds: int) -> None:
    """Raise ConfigError for a round that a stream has no noise for."""
    if not 1 <= round <= rounds:
        raise ConfigError(
            f"round {round} is not one of the {rounds} that the noise was made for",
            hint="say at the beginning how many rounds there may be: the promise rests on it",
        )
