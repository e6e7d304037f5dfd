"""Losses by name, and the accuracies that go with them: functions (outputs, targets) -> one value per sample [b]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll.ranking import listwise, rated
from atoll.sequences import class_last, right

__all__ = ["ACCURACIES", "LOSSES", "Loss"]

Loss = Callable[[Any, Tensor], Tensor]
"""(outputs, targets [b, ...]) -> [b]."""


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    logits = torch.log_softmax(class_last(outputs, targets), -1)
    if targets.ndim == 1:
        return -logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    real = (targets >= 0).to(logits.dtype)  # negative labels are padding inside a sequence
    losses = -logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * real
    return losses.flatten(1).sum(1) / real.flatten(1).sum(1).clamp(min=1)


def _flat(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.reshape(targets.shape[0], -1), targets.reshape(targets.shape[0], -1).to(outputs.dtype)


def _bce(outputs: Tensor, targets: Tensor) -> Tensor:
    logits, labels = _flat(outputs, targets)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def _binary_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    logits, labels = _flat(outputs, targets)
    return ((logits > 0) == (labels > 0.5)).to(torch.float32).mean(1)


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    predicted, wanted = _flat(outputs, targets)
    return (predicted - wanted).square().mean(1)


def _l1(outputs: Tensor, targets: Tensor) -> Tensor:
    predicted, wanted = _flat(outputs, targets)
    return (predicted - wanted).abs().mean(1)


LOSSES: dict[str, Loss] = {
    "cross_entropy": _cross_entropy,
    "bce": _bce,
    "mse": _mse,
    "l1": _l1,
    "listwise": listwise,
    "rated": rated,
}
ACCURACIES: dict[str, Loss] = {"cross_entropy": right, "bce": _binary_accuracy}
