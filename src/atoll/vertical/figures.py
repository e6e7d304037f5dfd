"""How good scores are: AUC, KS and lift of probabilities, accuracy, RMSE, deviance explained."""

from __future__ import annotations

import numpy as np

from atoll.vertical.protocol import Task
from atoll.vertical.side import FloatArray

__all__ = ["auc", "figures", "ks", "lift"]


def auc(y: FloatArray, score: FloatArray) -> float:
    """The share of pairs of a positive and a negative row that scores put in order, ties half; NaN with one class.

    Args:
        y: 0 or 1, [n].
        score: [n].
    """
    positive = y > 0
    count, rest = int(positive.sum()), int((~positive).sum())
    if not count or not rest:
        return float("nan")
    values, place = np.unique(score, return_inverse=True)
    sizes = np.bincount(place, minlength=len(values))
    rank = np.cumsum(sizes) - (sizes - 1) / 2  # the mean rank of each value
    return float((rank[place][positive].sum() - count * (count + 1) / 2) / (count * rest))


def ks(y: FloatArray, score: FloatArray) -> float:
    """The largest difference between the shares of positive and of negative rows above a threshold."""
    values, place = np.unique(score, return_inverse=True)
    positive = np.bincount(place, weights=y, minlength=len(values))
    negative = np.bincount(place, minlength=len(values)) - positive
    if not positive.sum() or not negative.sum():
        return float("nan")
    return float(np.abs(np.cumsum(positive) / positive.sum() - np.cumsum(negative) / negative.sum()).max())


def lift(y: FloatArray, score: FloatArray, share: float = 0.1) -> float:
    """How many times more positive rows than on average there are among the `share` with the highest scores."""
    count = max(1, round(share * len(y)))
    top = np.argsort(-score, kind="stable")[:count]
    return float(y[top].mean() / y.mean()) if y.any() else float("nan")


def figures(task: Task, y: FloatArray, score: FloatArray) -> dict[str, float]:
    """All figures of a task, by name.

    Args:
        y: [n], as in `Side`.
        score: as `Protocol.score` gives them.
    """
    if task == "binary":
        return {
            "auc": auc(y, score),
            "ks": ks(y, score),
            "lift": lift(y, score),
            "accuracy": float(((score > 0.5) == (y > 0.5)).mean()),
        }
    if task == "multiclass":
        return {"accuracy": float((score.argmax(1) == y).mean())}
    rmse = float(np.sqrt(np.mean((score - y) ** 2)))
    if task == "poisson":
        return {"rmse": rmse, "d2": 1 - _deviance(y, score) / _deviance(y, np.full_like(y, y.mean()))}
    return {"rmse": rmse, "r2": 1 - rmse**2 / max(float(np.var(y)), 1e-300)}


def _deviance(y: FloatArray, mean: FloatArray) -> float:
    """Twice the log-likelihood that a Poisson model leaves out."""
    ratio = np.where(y > 0, y, 1.0) / mean
    return float(2 * np.sum(np.where(y > 0, y * np.log(ratio), 0.0) - (y - mean)))
