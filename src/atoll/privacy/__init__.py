"""Differential privacy: what happened as typed events, what it comes to, and the ledger that is written before release.

Nothing here imports torch; the noise itself is in `atoll.privacy.mechanisms`.
"""

from __future__ import annotations

from .accounting import Epsilon, check_delta, epsilon, noise, step_for, usual_delta
from .costliest import costliest, noise_for_all
from .events import (
    Adjacency,
    Correlated,
    DiscreteGaussian,
    Event,
    Everyone,
    Fixed,
    Gaussian,
    Laplace,
    Poisson,
    Sampling,
    Skellam,
)
from .ledger import Charge, Ledger, Level, Terms, parallel

__all__ = [
    "Adjacency", "Charge", "Correlated", "DiscreteGaussian", "Epsilon", "Event", "Everyone", "Fixed", "Gaussian",
    "Laplace", "Ledger", "Level", "Poisson", "Sampling", "Skellam", "Terms", "check_delta", "costliest", "epsilon",
    "noise", "noise_for_all", "parallel", "step_for", "usual_delta",
]  # fmt: skip
