"""What a model that predicts token after token is measured by: the figures of each token, and their sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atoll.errors import ConfigError

__all__ = ["class_last", "exponential", "of_tokens", "right", "surprise"]


def class_last(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits with classes on the last axis. Accepts [b, ..., classes] and torch's [b, classes, ...]."""
    if outputs.ndim == targets.ndim + 1:
        if outputs.shape[:-1] == targets.shape:
            return outputs
        if outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            return outputs.movedim(1, -1)
    raise ConfigError(
        f"the model gives outputs of shape {tuple(outputs.shape)} for labels of shape {tuple(targets.shape)}",
        hint='several yes-or-no labels a sample are for loss="bce"'
        if outputs.shape == targets.shape and targets.ndim > 1
        else "cross_entropy wants one row of logits a label: [batch, classes] for labels [batch]",
    )


def of_tokens(values: Tensor) -> Tensor:
    """What tokens [b, t] come to for each sample: the sum of those that count, and how many they are [b, 2]."""
    real = ~torch.isnan(values)
    return torch.stack([values.nan_to_num(0.0, math.inf, -math.inf).sum(1), real.sum(1).to(values.dtype)], -1)


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether labels are predicted, 1 or 0: [b]; of texts [b, t], NaN for labels below 0; of pictures the mean [b]."""
    found = (class_last(outputs, targets).argmax(-1) == targets).to(torch.float32)
    if targets.ndim == 2:
        return torch.where(targets < 0, torch.full_like(found, torch.nan), found)
    real = (targets >= 0).to(torch.float32)
    return found if targets.ndim == 1 else found.flatten(1).sum(1) / real.flatten(1).sum(1).clamp(min=1)


def surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the logarithm of each label's probability, in the shape of the targets; NaN for labels that do not count.

    What a model without a number gives (NaN) surprises without bound: no token is left out because a model failed.
    """
    logits = torch.log_softmax(class_last(outputs, targets).to(torch.float32), -1)
    found = -logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    found = torch.where(torch.isnan(found), torch.full_like(found, torch.inf), found)
    return torch.where(targets < 0, torch.full_like(found, torch.nan), found)


def exponential(value: float) -> float:
    """The exponential, infinite where it has no number."""
    return math.exp(value) if not value > 700 else math.inf
