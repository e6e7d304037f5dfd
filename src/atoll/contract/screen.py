"""Whether a reply may be used: its form against what was asked for, and every number finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atoll.contract.messages import Reply
from atoll.tensors import Record, Tensors, finite, named_tensors

__all__ = ["misshapen", "screen"]


def screen(reply: Reply, expected: Record) -> str | None:
    """Why a reply must be refused, or None. Checks form against `expected`, and that every number is finite."""
    reason = misshapen(reply.values, expected)
    if reason is not None:
        return reason
    weight = float(reply.weight)
    if not math.isfinite(weight) or weight < 0:
        return f"its weight is {weight}"
    for name, value in named_tensors(reply.values):
        if value.is_floating_point() and not finite(value):
            bad = int((~torch.isfinite(value)).sum())
            return f"{name} has {bad} non-finite numbers of {value.numel()}"
    return None


def misshapen(values: Record, expected: Record) -> str | None:
    """How the form of a reply's values differs from `expected`, or None."""
    for name, wanted in expected.items():
        got = values.get(name)
        if got is None:
            return f"it has no {name!r}"
        reason = _misfit(name, got, wanted)
        if reason:
            return reason
    return None


def _misfit(name: str, got: object, wanted: object) -> str | None:
    if isinstance(wanted, Tensors):
        if not isinstance(got, Tensors) or got.keys() != wanted.keys():
            differ = sorted(set(got if isinstance(got, Tensors) else ()) ^ set(wanted))
            return f"{name} has other tensors: {', '.join(differ) or type(got).__name__}"
        for key, value in wanted.items():
            if got[key].shape != value.shape:
                return f"{name}.{key} has shape {tuple(got[key].shape)}, not {tuple(value.shape)}"
    elif isinstance(wanted, Tensor) and (not isinstance(got, Tensor) or got.shape != wanted.shape):
        return f"{name} is not a tensor of shape {tuple(wanted.shape)}"
    return None
