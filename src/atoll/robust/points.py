"""Points known by their inner products: all that a rule of distances needs of updates, however long they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from atoll.robust.rows import Matrix, Rows

__all__ = ["Points"]

_ALIKE = 1e-3
"""Squared distances below this share of squared norms lose digits, and are taken about one of the points instead."""


class Points:
    """Updates, perhaps points of reference behind them, and the origin, by the inner products between them.

    Whatever a rule makes of updates is then found in coefficients: a mix of points has the inner products
    A G A^T. About which point products are taken makes no difference to distances, so the origin is a point as any
    other, and whoever needs norms asks for `dots`.

    Args:
        gram: inner products about any one point, float64 [p, p], the origin last.
        count: how many of the points are updates.
    """

    def __init__(self, gram: Matrix, count: int) -> None:
        self.gram, self.count = gram, count

    @staticmethod
    def of(rows: Rows, references: int = 0) -> Points:
        """The points of these rows, the last `references` of which are no updates.

        One pass over the numbers, O(n^2 d) products in their own precision, summed in float64; a second one about the
        point in the middle where updates are nearly alike, or with rows scaled where squares leave float32.
        """
        count = len(rows) - references
        gram = _products(rows, lambda piece: piece)
        top = np.diag(gram).max()
        if not 1e-24 < top < 1e24:  # nor where squares are no numbers any more
            norms = _lengths(rows)
            scale = np.where(norms > 0, 2.0 ** -np.round(np.log2(np.where(norms > 0, norms, 1.0))), 1.0)
            by = np.append(scale, 1.0)
            gram = _products(rows, lambda piece: (piece.double() * _column(by, piece)).float()) / np.outer(
                by, by
            )
        found = Points(gram, count)
        squares = found.squares[:count, :count]
        middle = int(np.argmin(np.median(squares, axis=1)))
        if np.median(squares[middle]) < _ALIKE * gram[middle, middle]:
            # whoever is nearest to most of them is among the many, so that a liar far away blurs nobody's distances
            gram = _products(rows, lambda piece: piece - piece[middle])
            if np.isfinite(gram).all():
                found = Points(gram, count)
        return found

    @cached_property
    def squares(self) -> Matrix:
        """Squared distances between all points, [p, p]."""
        lengths = np.diag(self.gram)
        found: Matrix = np.maximum(lengths[:, None] + lengths[None, :] - 2 * self.gram, 0.0)
        return found

    @cached_property
    def dots(self) -> Matrix:
        """Inner products about the origin, of all points but it, [p - 1, p - 1]."""
        gram, origin = self.gram, self.gram[-1]
        found: Matrix = (gram - origin[:, None] - origin[None, :] + gram[-1, -1])[:-1, :-1]
        return found

    @property
    def near(self) -> Matrix:
        """Squared distances between updates, [n, n]."""
        return self.squares[: self.count, : self.count]

    @property
    def norms(self) -> Matrix:
        """Lengths of the updates, [n]."""
        found: Matrix = np.sqrt(self.squares[: self.count, -1])
        return found

    def mixed(self, mix: Matrix) -> Points:
        """The points with mixes in the place of the updates: `mix` [m, n]; references and origin stay."""
        rest = len(self.gram) - self.count
        whole = np.zeros((len(mix) + rest, len(self.gram)))
        whole[: len(mix), : self.count] = mix
        whole[: len(mix), -1] += 1.0 - mix.sum(1)  # what is missing to 1 is the origin's
        whole[len(mix) :, self.count :] = np.eye(rest)
        return Points(whole @ self.gram @ whole.T, len(mix))

    def away(self, weights: Matrix) -> Matrix:
        """Distances of the updates from the point with these coefficients, [p - 1], the rest the origin's; [n]."""
        whole = np.append(weights, 1.0 - weights.sum())
        dots = self.gram @ whole
        squares = np.diag(self.gram) - 2 * dots + whole @ dots
        found: Matrix = np.sqrt(np.maximum(squares, 0.0))[: self.count]
        return found


def _products(rows: Rows, changed: Callable[[Tensor], Tensor]) -> Matrix:
    """Inner products of the rows and the origin, each piece `changed`, [n + 1, n + 1]."""
    found = np.zeros((len(rows) + 1, len(rows) + 1))
    for piece in rows.pieces(extra=1):
        part = changed(piece)
        if part.device.type == "cpu":
            array = part.numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                found += array @ array.T  # BLAS sees that it is symmetric, and does half
        else:
            found += (part @ part.T).double().cpu().numpy()
    return found


def _lengths(rows: Rows) -> Matrix:
    """Norms of the rows, whatever their size, [n]."""
    total = np.zeros(len(rows))
    for piece in rows.pieces():
        total += piece.double().square().sum(1).cpu().numpy()
    found: Matrix = np.sqrt(total)
    return found


def _column(values: Matrix, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)[:, None]
