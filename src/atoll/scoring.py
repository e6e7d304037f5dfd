"""Figures of a set of samples as a whole, of what each of them gives: rows of labels, predictions and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "auc",
    "balanced",
    "f1",
    "macro_f1",
    "positive",
    "precision",
    "recall",
    "root",
    "specificity",
    "tpr_at",
]

Rows = NDArray[np.float64]
"""What a set of samples gives to a figure of the whole: [n, columns]."""


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _against_the_rest(rows: Rows) -> Iterator[tuple[Rows, NDArray[np.bool_]]]:
    """Of each class that occurs, of two the second: the samples' scores, and which samples are of the class."""
    labels, scores = rows[:, 0], rows[:, 1:]
    two = scores.shape[1] == 1
    for each in [1] if two else np.unique(labels).astype(int):
        yield scores[:, 0 if two else each], labels == each


def tpr_at(rows: Rows, share: float) -> float:
    """How many samples of a class are found by the lowest threshold that flags at most this share of the others.

    A sample is flagged where its score is above the threshold, so that ties are flagged together. Of several classes
    the mean over those that occur, each against the rest.
    """
    found = []
    for scores, inside in _against_the_rest(rows):
        others = np.sort(scores[~inside])[::-1]
        flagged = int(share * len(others) + 1e-9)  # 0.29 * 100 is a little below 29
        hit = int((scores[inside] > others[flagged]).sum()) if flagged < len(others) else 0
        found.append(_ratio(hit, int(inside.sum())) if len(others) else float("nan"))
    return float(np.mean(found))


def auc(rows: Rows) -> float:
    """Area under the ROC curve: how often a sample of a class scores above one of another; ties count half.

    Of several classes the mean over those that occur, each against the rest.
    """
    found = []
    for column, inside in _against_the_rest(rows):
        _, place, many = np.unique(column, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(many) - (many - 1) / 2)[place]
        n, m = int(inside.sum()), int((~inside).sum())
        found.append(_ratio(float(ranks[inside].sum()) - n * (n + 1) / 2, n * m))
    return float(np.mean(found))


def precision(rows: Rows, of: float) -> float:
    picked = rows[:, 1] == of
    return _ratio(float((rows[picked, 0] == of).sum()), float(picked.sum()))


def recall(rows: Rows, of: float) -> float:
    there = rows[:, 0] == of
    return _ratio(float((rows[there, 1] == of).sum()), float(there.sum()))


def specificity(rows: Rows, of: float) -> float:
    others = rows[:, 0] != of
    return _ratio(float((rows[others, 1] != of).sum()), float(others.sum()))


def f1(rows: Rows, of: float) -> float:
    there, picked = rows[:, 0] == of, rows[:, 1] == of
    return _ratio(2 * float((there & picked).sum()), float(there.sum() + picked.sum()))


def positive(figure: Callable[[Rows, float], float]) -> Callable[[Rows], float]:
    """Of two classes the figure of the second; of more the mean over those where it is defined."""

    def whole(rows: Rows) -> float:
        if rows[0, 2] <= 2:
            return figure(rows, 1)
        found = [figure(rows, each) for each in np.unique(rows[:, :2])]
        known = [value for value in found if value == value]
        return float(np.mean(known)) if known else float("nan")

    return whole


def macro_f1(rows: Rows) -> float:
    return float(np.mean([f1(rows, each) for each in np.unique(rows)]))


def balanced(rows: Rows) -> float:
    return float(np.mean([recall(rows, each) for each in np.unique(rows[:, 0])]))


def root(rows: Rows) -> float:
    return float(np.sqrt(rows.mean()))
