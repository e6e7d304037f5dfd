"""What right guesses say about epsilon: lower confidence bounds from one run."""

from __future__ import annotations

import math

__all__ = ["epsilon_lower", "tails"]

_MOST = 30.0  # more than any number of guesses can show


def epsilon_lower(
    canaries: int, guesses: int, right: int, *, delta: float = 0.0, confidence: float = 0.95
) -> float:
    """The largest epsilon that so many right guesses rule out, 0 where they rule out none.

    Each of `canaries` was in or out by a fair coin; of `guesses` of them, a number fixed beforehand, it was guessed
    which, and `right` of these are. Of a mechanism that is (epsilon, delta) private for adding or removing one of them,
    the number of right guesses is at least v with probability at most

    P[B >= v] + 2 m delta max_i (P[v > B >= v - i] / i),   B ~ Binomial(guesses, e^epsilon / (1 + e^epsilon)).

    Where this is at most 1 - confidence, the mechanism is not that private. With delta 0 it is the bound of Clopper and
    Pearson on the accuracy.   Steinke, Nasr, Jagielski, NeurIPS 2023, Theorem 5.2
    """
    if right == 0 or _chance(canaries, guesses, right, 0.0, delta) > 1 - confidence:
        return 0.0
    low, high = 0.0, _MOST
    for _ in range(60):
        middle = (low + high) / 2
        if _chance(canaries, guesses, right, middle, delta) > 1 - confidence:
            high = middle
        else:
            low = middle
    return low


def _chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are at most, where the mechanism is that private."""
    above = tails(guesses, 1 / (1 + math.exp(-epsilon)))
    gains = [(above[right - i] - above[right]) / i for i in range(1, right + 1)]
    return min(1.0, above[right] + 2 * canaries * delta * max(gains, default=0.0))


def tails(count: int, chance: float) -> list[float]:
    """P[B >= v] for v = 0 ... count, of B ~ Binomial(count, chance), 0 < chance < 1; summed from the small end."""
    yes, no = math.log(chance), math.log1p(-chance)
    whole = math.lgamma(count + 1)
    found, total = [0.0] * (count + 1), 0.0
    for v in range(count, -1, -1):
        ways = whole - math.lgamma(v + 1) - math.lgamma(count - v + 1)
        total += math.exp(ways + v * yes + (count - v) * no)
        found[v] = min(1.0, total)
    return found
