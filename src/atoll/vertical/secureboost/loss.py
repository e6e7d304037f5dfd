"""What trees are grown for: gradients of a loss at scores, and their whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.vertical.protocol import Case, Task
from atoll.vertical.side import FloatArray

__all__ = ["Whole", "begin", "gradients", "predicted", "sample"]


def begin(case: Case, y: FloatArray, exposure: FloatArray | None = None) -> FloatArray:
    """The score of every row before the first tree, [groups]: log-odds of the mean, the mean, the logarithm of the mean
    count over a span of 1, or zeros for classes."""
    if case.task == "poisson":
        spans = np.ones(len(y)) if exposure is None else exposure
        return np.array([np.log(max(float(y.sum()), 1e-6) / spans.sum())])
    if case.task == "binary":
        share = float(np.clip(y.mean(), 1e-6, 1 - 1e-6))
        return np.array([np.log(share / (1 - share))])
    return np.zeros(case.classes) if case.task == "multiclass" else np.array([y.mean()])


def predicted(task: Task, score: FloatArray, exposure: FloatArray | None = None) -> FloatArray:
    """Scores [n, groups] -> probabilities [n] or [n, classes], or expected values [n]."""
    if task == "poisson":
        mean: FloatArray = np.exp(score[:, 0]) * (1.0 if exposure is None else exposure)
        return mean
    if task == "binary":
        return _sigmoid(score[:, 0])
    if task == "multiclass":
        raised = np.exp(score - score.max(1, keepdims=True))
        shares: FloatArray = raised / raised.sum(1, keepdims=True)
        return shares
    return score[:, 0].copy()


def gradients(
    case: Case, y: FloatArray, score: FloatArray, exposure: FloatArray | None = None, limit: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """First and second derivatives of the loss by the scores, each [n, groups].

    Cross-entropy: g = p - y, h = p(1-p), and 2p(1-p) for several classes; squared error: g = s - y, h = 1. Counts with
    the mean m = exp(s) exposure: g = m - y, and h = m exp(limit), which m'' does not exceed within the limit of a step.
    """
    if case.task == "regression":
        return score - y[:, None], np.ones_like(score)
    p = predicted(case.task, score, exposure).reshape(len(y), -1)
    if case.task == "poisson":
        return p - y[:, None], p * np.exp(limit)
    if case.task == "binary":
        return p - y[:, None], p * (1 - p)
    hit = np.arange(case.classes) == y[:, None]
    return p - hit, 2 * p * (1 - p)


def sample(
    g: FloatArray, top: float, rest: float, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], FloatArray]:
    """GOSS: all rows with the largest gradients, some of the others, and what each row counts for.

    Ke et al., NeurIPS 2017, Algorithm 2.
    """
    size = np.abs(g).sum(1)
    count = round(top * len(size))
    order = np.argsort(-size, kind="stable")
    drawn = rng.choice(order[count:], round(rest * len(size)), replace=False)
    weight = np.zeros(len(size))
    weight[order[:count]] = 1
    weight[drawn] = (1 - top) / rest
    return weight > 0, weight


@dataclass(frozen=True)
class Whole:
    """Numbers as whole ones: round(x * scale), a power of two, so that the largest has about `bits` bits."""

    whole: NDArray[np.int64]
    scale: float

    @classmethod
    def of(cls, x: FloatArray, bits: int) -> Whole:
        """The finest scale at which none is above 2^bits."""
        largest = float(np.abs(x).max(initial=0.0))
        scale = 2.0 ** (bits - (np.frexp(largest)[1] if largest else 0))
        return cls(np.rint(x * scale).astype(np.int64), scale)


def _sigmoid(x: FloatArray) -> FloatArray:
    small = np.exp(-np.abs(x))
    found: FloatArray = np.where(x >= 0, 1 / (1 + small), small / (1 + small))
    return found
