"""Differential privacy of what is sent open: hidden numbers are shortened to a norm, and noise is put on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atoll.privacy import Gaussian, epsilon
from atoll.vertical.ftl.draws import normal
from atoll.vertical.ftl.forms import Guest, Host, Terms

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise:
    """Normal noise of `multiplier` times the bound on what one row can change.   Liu et al. 2020, with the Gaussian

    mechanism. Neighbours differ by one row that is exchanged for another: whose rows are in common both know. One row
    of norm C at most, exchanged, changes what is sent by up to 2 C.

    This is about a row in what is sent of it, by weights that are given: one's own weights are learned from the same
    rows without noise, columns are scaled by their means, and what of a row gets by these into the hidden numbers of
    others is not counted. So epsilon is that of the releases, and no guarantee for all of learning.

    Args:
        clip: C, the norm to which a row's hidden numbers are shortened; infinity shortens nothing.
        multiplier: 0 for no noise.
        delta: what epsilon is told at.
    """

    clip: float
    multiplier: float
    delta: float

    def shortened(self, u: Tensor) -> Tensor:
        """Rows of a norm of at most C."""
        norm = torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp(min=1e-300)
        short: Tensor = u * (self.clip / norm).clamp(max=1)
        return short

    def guest(self, form: Guest) -> Terms:
        """The guest's terms: Phi with noise, all else made of that; then noise on the rows, which have the labels."""
        if not self.multiplier:
            return form.terms()
        u = self.shortened(form.u)
        deviation = self.multiplier * self.clip / len(u)
        phi = form.y @ u / len(u)
        phi = phi + deviation * torch.from_numpy(normal(phi.shape))
        square, rows = form.terms(phi, u[: form.common])
        most = float(phi.norm()) / 2 + form.pull * self.clip
        return Terms(square, rows + self.multiplier * most * torch.from_numpy(normal(rows.shape)))

    def host(self, form: Host) -> Terms:
        """The host's terms: hidden numbers with noise, and their square without what the noise adds to it."""
        if not self.multiplier:
            return form.terms()
        deviation = self.multiplier * self.clip
        u = self.shortened(form.u[: form.common])
        return form.terms(
            u + deviation * torch.from_numpy(normal(u.shape)), surplus=form.common * deviation**2
        )

    def spent(self, releases: int) -> float:
        """Epsilon of so many releases that one row is in; exchanging it moves each by twice its bound."""
        return epsilon([Gaussian(noise=self.multiplier / 2, count=releases)], self.delta).epsilon
