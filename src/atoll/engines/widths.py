"""How wide the stack of unequal clients is at each step, so that few different steps need to be captured.

Clients are sorted, the longest first, so that those who are not done are the first rows of the stack. It is not cut to
them each time one finishes: a step works on as many rows as the next width of a short list, and what it does to rows of
clients that are done counts for nothing. A width is captured, with or without a mask for short batches, only where that
saves a round enough of this work; else its steps are taken at the next larger one. All of it follows from the clients'
numbers of steps, so that a round that is repeated has the same widths.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

__all__ = ["Stretch", "rungs", "stretches"]

_WORTH = 4e-3  # seconds that a capture must save a round, about: it takes some twenty-five times as long
_STEP, _ELEMENT = 1e-5, 5e-10  # seconds of a client's step, and of each element that it renews, about
_MASK = 0.25  # of a step, that a mask costs


class Stretch(NamedTuple):
    """Steps `begin` to `end` (one past the last), which are alike."""

    begin: int
    end: int
    active: int
    """Clients that are not done."""
    width: int
    """Rows of the stack that the steps work on: at least as many."""
    masked: bool
    """Whether a mask says which rows of a batch are real."""


def stretches(
    counts: Sequence[int], full: np.ndarray[tuple[int, int], np.dtype[np.bool_]], elements: int
) -> list[Stretch]:
    """The steps of a round of some clients, in order.

    Args:
        counts: steps of each client, falling.
        full: [steps, clients], whether a client's batch of a step has no row of mask 0.
        elements: of one client's working state, that a step renews.
    """
    total, size = full.shape
    ladder = rungs(size)
    active = (np.asarray(counts) > np.arange(total)[:, None]).sum(1).tolist()
    wanted = [
        (ladder[bisect_left(ladder, there)], not bool(row[:there].all()))
        for row, there in zip(full, active, strict=True)
    ]
    given = _kept(wanted, size, _WORTH / (_STEP + _ELEMENT * elements))
    found, begin = [], 0
    for (there, (width, masked)), run in groupby(zip(active, (given[each] for each in wanted), strict=True)):
        end = begin + sum(1 for _ in run)
        found.append(Stretch(begin, end, there, width, masked))
        begin = end
    return found


def rungs(size: int) -> list[int]:
    """The widths of a stack of so many clients, rising: all of it, and powers of two.

    The large ones, at which most of the work is, have one between them; of the small ones, every other one is left out.
    """
    power = 1 << (size - 1).bit_length() >> 1  # the largest below
    large = {
        width
        for width in (3 * power // 2, power, 3 * power // 4, power // 2, power // 4)
        if width <= 0.8 * size
    }
    small = {power >> 4 + 2 * at for at in range(power.bit_length() // 2)}
    return sorted({1, size, *large, *small} - {0})


def _kept(
    wanted: Sequence[tuple[int, bool]], size: int, worth: float
) -> dict[tuple[int, bool], tuple[int, bool]]:
    """The (width, masked) that is captured for each one that would suit some steps.

    Args:
        worth: steps of one client that a capture must save.
    """
    steps = Counter(wanted)
    given: dict[tuple[int, bool], tuple[int, bool]] = {}
    for masked in (True, False):
        kept = size
        for width in sorted((width for width, short in steps if short == masked), reverse=True):
            if width < kept and (kept - width) * steps[width, masked] >= worth:
                kept = width
            given[width, masked] = kept, masked
    taken: Counter[tuple[int, bool]] = Counter()
    for here, to in given.items():
        taken[to] += steps[here]
    for here, (width, masked) in given.items():  # a few full batches do with the mask that others need
        count = taken[width, False]
        some = taken[width, True] >= (count if width == size else 1)
        if not masked and some and _MASK * width * count < worth:
            given[here] = width, True
    return given
