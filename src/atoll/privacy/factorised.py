"""Factorisations of the running sum, A = B C: what correlated noise is made of, and how far one participant moves C x.

All entries of the matrices C here are 0 or more, so that the worst participant adds in one direction whenever its
turn comes.
"""

from __future__ import annotations

import math

import numpy as np

Vector = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

__all__ = ["banded_sensitivity", "column_norms", "root_coefficients", "tree_sensitivity", "turns"]


def turns(rounds: int, separation: int) -> int:
    """How often one participant takes part at most, if at most once in any `separation` consecutive rounds."""
    return -(-rounds // separation)


def tree_sensitivity(rounds: int, separation: int) -> float:
    """L2 sensitivity of all whole nodes of a binary tree over `rounds` leaves, in clips.

    A node of height h covers 2^h rounds. At each height the participant's k turns fall into nodes that hold at most
    c = ceil(2^h / separation) of them, and a sum of squares with a given sum is largest where nodes are full.
    With one turn it is sqrt(floor(log2 rounds) + 1).   Kairouz et al., ICML 2021, theorem 4.1 for one turn.
    """
    most, total = turns(rounds, separation), 0
    for height in range(rounds.bit_length()):
        nodes = rounds >> height
        held = min(most, turns(1 << height, separation))
        full, rest = divmod(most, held)
        total += nodes * held**2 if full >= nodes else full * held**2 + rest**2
    return math.sqrt(total)


def banded_sensitivity(rounds: int, separation: int) -> float:
    """L2 sensitivity of a banded C with columns of length one, in clips: turns do not overlap, so that squares add up.

    Holds for at most `separation` bands.   Choquette-Choo et al., NeurIPS 2023, theorem 2.
    """
    return math.sqrt(turns(rounds, separation))


def root_coefficients(bands: int) -> Vector:
    """The first coefficients of (1 - x)^(-1/2): the square root of the running sum as a Toeplitz matrix.

    f_0 = 1, f_k = f_(k-1) (2k - 1) / (2k).   Fichtenberger, Henzinger and Upadhyay, ICML 2023.

    >>> root_coefficients(4).tolist()
    [1.0, 0.5, 0.375, 0.3125]
    """
    k = np.arange(1, bands, dtype=np.float64)
    return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])


def column_norms(bands: int, rounds: int) -> Vector:
    """The lengths of the columns of the banded Toeplitz matrix, [rounds]: the last ones are cut off at the end."""
    length = np.sqrt(np.cumsum(root_coefficients(bands) ** 2))
    found: Vector = length[np.minimum(np.arange(rounds, 0, -1), bands) - 1]
    return found
