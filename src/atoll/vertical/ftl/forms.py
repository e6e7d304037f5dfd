"""The loss and its gradients as linear functions of what the other party sends.

With y in {-1, 1}, Phi = (1 / N_A) sum_l y_l u_l^A over all rows of the guest, n the rows in common and phi_i = Phi
u_i^B', what is minimised is

    L = (1 / n) sum_i [log 2 - y_i phi_i / 2 + phi_i^2 / 8] + gamma / (n d) sum_i a(u_i^A, u_i^B) + l2 / 2 ||W||^2

where a(u, v) = -u v' ("dot") or ||u - v||^2 ("distance").   Liu, Kang, Xing, Chen and Yang, IEEE Intelligent Systems
2020, equations 1 to 7; sums over rows are means here, so that a step's size does not depend on n.

Since y^2 = 1, all that the host needs of the guest are Phi'Phi / 4 [d, d], once and not for each row, and rows
-y_i Phi / 2 - c u_i^A [n, d]; the guest needs U'U / 4 [d, d] and U [n, d] of the host. Each row of a gradient of W is
a sum of these, each number times a weight that the receiver knows: so it can be taken of ciphertexts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Align", "Guest", "Host", "Row", "Terms", "summed"]

Align = Literal["dot", "distance"]


class Terms(NamedTuple):
    """What a party sends of itself: `square` float64 [d, d] and `rows` float64 [n, d]."""

    square: Tensor
    rows: Tensor


class Row(NamedTuple):
    """Weights of the other's terms, of the same shapes; their products, summed over all rows, are [d] numbers."""

    square: Tensor
    rows: Tensor


def summed(row: Row, terms: Terms) -> Tensor:
    """What a row of weights makes of terms, [d]."""
    return (row.square * terms.square).sum(0) + (row.rows * terms.rows).sum(0)


@dataclass(frozen=True)
class _Form:
    """One party's side of it at its present weights.

    Attributes:
        inputs: [N, D + 1], the common rows first.
        u: [N, d], and `slope` its derivative 1 - u^2.
        common: n.
        weight: W.
    """

    inputs: Tensor
    u: Tensor
    common: int
    weight: Tensor
    gamma: float
    l2: float
    align: Align

    @property
    def slope(self) -> Tensor:
        return 1 - self.u.square()

    @property
    def pull(self) -> float:
        """c, what the other's hidden numbers count for in the gradient of this one's; over a row, not a mean."""
        return self.gamma * (1.0 if self.align == "dot" else 2.0) / self.u.shape[1]

    def own(self) -> Tensor:
        """The part of the gradient that needs nobody else, [D + 1, d]."""
        found = self.l2 * self.weight
        if self.align == "distance":
            u = self.u[: self.common]
            kept = self.slope[: self.common] * u * (self.pull / self.common)
            found = found + self.inputs[: self.common].T @ kept
        return found


@dataclass(frozen=True)
class Guest(_Form):
    """The side with labels `y`, float64 [N_A] of -1 and 1."""

    y: Tensor

    @property
    def phi(self) -> Tensor:
        """Phi, [d]."""
        return self.y @ self.u / len(self.y)

    def terms(self, phi: Tensor | None = None, u: Tensor | None = None) -> Terms:
        """What the host needs; of another Phi and other common hidden numbers where they are given."""
        phi, u = self.phi if phi is None else phi, self.u[: self.common] if u is None else u
        y = self.y[: self.common, None]
        return Terms(torch.outer(phi, phi) / 4, -y * phi / 2 - self.pull * u)

    def rows(self) -> Iterator[Row]:
        """Weights for each row of the gradient of W; then those of the loss."""
        n, phi, y = self.common, self.phi, self.y[: self.common, None]
        turned = self.inputs.T @ (self.slope * self.y[:, None]) / len(self.y)  # dPhi / dW, [D + 1, d]
        near = self.slope[:n] * (self.pull / n)
        for a, each in enumerate(turned):
            yield Row(phi[:, None] * each / n, -y * each / (2 * n) - self.inputs[:n, a, None] * near)
        square = torch.outer(phi, phi) / (2 * n)
        if self.align == "distance":
            square = square + torch.eye(len(phi), dtype=phi.dtype) * (2 * self.pull / n)
        yield Row(square, -y * phi / (2 * n) - self.u[:n] * (self.pull / n))

    def loss(self, theirs: Tensor) -> float:
        """L without the host's l2, from what the last row of `rows` came to, [d]."""
        found = math.log(2) + float(theirs.sum()) + self.l2 / 2 * float(self.weight.square().sum())
        if self.align == "distance":
            found += self.pull / (2 * self.common) * float(self.u[: self.common].square().sum())
        return found


@dataclass(frozen=True)
class Host(_Form):
    """The side without labels."""

    def terms(self, u: Tensor | None = None, surplus: float = 0.0) -> Terms:
        """What the guest needs; of other hidden numbers where they are given.

        Args:
            surplus: what U'U has too much on its diagonal, by noise.
        """
        u = self.u[: self.common] if u is None else u
        return Terms((u.T @ u - surplus * torch.eye(u.shape[1], dtype=u.dtype)) / 4, u)

    def rows(self) -> Iterator[Row]:
        """Weights for each row of the gradient of W."""
        n = self.common
        u, slope = self.u[:n], self.slope[:n] / n
        for a in range(self.inputs.shape[1]):
            near = self.inputs[:n, a, None] * slope
            yield Row(u.T @ near, near)
