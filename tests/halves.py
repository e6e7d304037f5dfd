"""Samples of one tensor as samples of two parts, of which some lack one, for methods that are for these."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atoll.data import FederatedData
from atoll.modalities import told
from atoll.models import Fused
from atoll.parts import Parts

OF_PARTS = ("crossmodal",)
"""Methods that refuse samples of one tensor."""


def halved(inputs: Tensor, lack: bool = True) -> Parts:
    """Inputs [n, 2 d] as two parts of d; every third sample lacks the right one."""
    left, right = inputs.chunk(2, 1)
    gone = torch.arange(len(inputs)) % 3 == 1
    return told({"left": left, "right": right}, {"right": gone} if lack else {})


def halves(width: int = 6, classes: int = 3) -> nn.Module:
    """A model for them."""

    def encoder(shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[0], 5), nn.Tanh(), nn.Linear(5, outputs))

    return Fused(dict.fromkeys(("left", "right"), (width // 2,)), classes, encoder, "attention", 4)


def fitting(name: str, model: Callable[[], nn.Module], data: Any, lack: bool = True) -> tuple[Any, Any]:
    """The model and the data, or those that a method of several parts can take in their place."""
    if name not in OF_PARTS:
        return model, data
    assert isinstance(data, FederatedData)
    made: Any = copy.copy(data)
    made.__dict__.pop("_union", None)
    made._pools = {
        split: pool._replace(inputs=halved(pool.inputs, lack)) for split, pool in made._pools.items()
    }
    if made.public is not None:
        made.public = made.public._replace(inputs=halved(made.public.inputs, lack))
    return halves, made
