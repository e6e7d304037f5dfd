"""What scores are held against, and what is made of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll.vertical.protocol import Case
from atoll.vertical.side import FloatArray

__all__ = ["losses", "outputs", "predicted"]


def outputs(case: Case) -> int:
    """Scores of a row."""
    return case.classes if case.task == "multiclass" else 1


def losses(case: Case, score: Tensor, y: Tensor, exposure: Tensor | None) -> Tensor:
    """The loss of each row, [b].

    Args:
        score: [b, outputs].
        y: as in `Side`, numbers on the scale of the scores, float32 [b].
        exposure: for counts, [b].
    """
    if case.task == "multiclass":
        return F.cross_entropy(score, y.long(), reduction="none")
    z = score.squeeze(1)
    if case.task == "binary":
        return F.binary_cross_entropy_with_logits(z, y, reduction="none")
    if case.task == "regression":
        return (z - y).square() / 2
    return (
        z.exp() * (1 if exposure is None else exposure) - y * z
    )  # -log of Poisson's density, less a constant


def predicted(
    case: Case, score: Tensor, scale: tuple[float, float], exposure: FloatArray | None
) -> FloatArray:
    """Probabilities [n] or [n, classes], or expected values [n].

    Args:
        scale: mean and deviation of a number to predict.
    """
    wide = score.detach().double()
    if case.task == "multiclass":
        return torch.softmax(wide, 1).numpy()
    z = wide.squeeze(1)
    if case.task == "binary":
        return torch.sigmoid(z).numpy()
    if case.task == "regression":
        return (z * scale[1] + scale[0]).numpy()
    return z.exp().numpy() * (1 if exposure is None else exposure)
