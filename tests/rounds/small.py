"""Small federations on digits for the tests of rounds, and what they come to."""

from __future__ import annotations

from typing import Any

import torch

import atoll
from atoll.data import FederatedData

__all__ = ["model", "of_digits", "played"]


def of_digits(data: FederatedData, method: Any = "fedavg", **settings: Any) -> atoll.Federation:
    """A federation of a small network that judges nobody, in the loop unless another engine is asked for."""
    usual = {"cohort": 8, "engine": "loop", "eval_every": 0, "batch_size": 8}
    return atoll.Federation(lambda: atoll.models.mlp(64, 16, 10), data, method, **{**usual, **settings})


def played(federation: atoll.Federation) -> atoll.Federation:
    federation.fit(progress=False)
    return federation


def model(federation: atoll.Federation) -> torch.Tensor:
    """The parameters of the global model in a row."""
    params, _ = federation.method.model(federation.state)
    return torch.cat([value.flatten() for value in params.values()])
