"""The small problem that methods are checked on: unequal clients, one of them with a single sample."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from atoll.contract import Method
from atoll.data import FederatedData, from_clients

__all__ = ["data", "model", "splits"]

_SIZES = {"north": 13, "east": 6, "south": 22, "single": 1, "west": 9}
_FEATURES, _CLASSES = 6, 3


def model() -> nn.Module:
    """6 inputs, 3 classes; BatchNorm and dropout, so that buffers and draws are in play.

    No bias before BatchNorm, which takes it out again: its gradient would be rounding alone, of which Adam makes steps
    of full length, so that two ways to compute the same would end far apart.
    """
    return nn.Sequential(
        nn.Linear(_FEATURES, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(8, _CLASSES),
    )


def splits(method: Method) -> set[str]:
    """The splits that any of a method's programs reads as a whole."""
    return {split for program in (method, *method.programs().values()) for split in program.reads}


def data(method: Method) -> FederatedData:
    """Learnable classes, shifted from client to client; public inputs, and validation data for methods that read it."""
    rng = np.random.default_rng(7)
    weights = rng.normal(size=(_FEATURES, _CLASSES))
    clients = {}
    for at, (name, count) in enumerate(_SIZES.items()):
        inputs = (rng.normal(size=(count + 4, _FEATURES)) + 0.3 * at).astype(np.float32)
        targets = (inputs @ weights).argmax(1)
        clients[name] = {
            "train": (inputs[:count], targets[:count]),
            "test": (inputs[count:], targets[count:]),
        }
    made = from_clients(clients, classes=_CLASSES, validation=0.25 if "validation" in splits(method) else 0)
    return made.publish(torch.from_numpy(rng.normal(size=(10, _FEATURES)).astype(np.float32)))
