"""Audits: what a party can make of what it was sent, in figures.

A host has its gradients and its own network, the guest the embeddings of every epoch. Each function takes what such a
party has seen, beside what it wants to know, and says how near it comes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from atoll.errors import DataError
from atoll.vertical.figures import auc
from atoll.vertical.side import FloatArray

__all__ = ["completion", "direction_attack", "explained", "gram", "inversion", "leak", "norm_attack"]

_GUESSED = 32  # positive rows that the direction attack takes for known, in turn


def leak(y: FloatArray, score: FloatArray) -> float:
    """max(AUC, 1 - AUC): whoever guesses finds out which end is which.   Li et al., ICLR 2022, section 3

    Args:
        y: 0 or 1, [n].
        score: [n].
    """
    value = auc(y, score)
    return max(value, 1 - value)


# --- a host after labels --------------------------------------------------------------------------------------------


def norm_attack(g: Tensor, y: FloatArray) -> float:
    """The leak by the lengths of gradients [n, d]: the rarer class has the longer ones.   Li et al., section 3.1"""
    return leak(y, g.double().norm(dim=1).numpy())


def direction_attack(g: Tensor, y: FloatArray) -> float:
    """The leak by directions: rows whose gradients point as a known positive row's do.   Li et al., section 3.1

    The mean over up to 32 positive rows, each known in its turn, of the leak among the others.
    """
    unit = torch.nn.functional.normalize(g.double(), dim=1)
    found = []
    for row in np.flatnonzero(y > 0)[:_GUESSED]:
        others = np.arange(len(y)) != row
        found.append(leak(y[others], (unit @ unit[row]).numpy()[others]))
    return float(np.mean(found)) if found else float("nan")


def completion(h: Tensor, y: FloatArray, known: Sequence[int], ridge: float = 1.0) -> float:
    """The leak by model completion: a head on the host's embeddings, learned from a few known labels.   Fu et al. 2022

    Logistic regression (Newton's method, an L2 term of `ridge`) stands for the guest's top.   "Label inference attacks
    against vertical federated learning", USENIX Security 2022

    Args:
        h: the trained bottom's embeddings, [n, d].
        known: rows whose labels the host has.
    """
    values = h.double().numpy()
    mine = np.zeros(len(y), dtype=bool)
    mine[list(known)] = True
    if mine.all() or len(np.unique(y[mine])) < 2:
        raise DataError("model completion needs known rows of both classes, and rows that are not known")
    unit = np.maximum(values.std(0), 1e-12)
    x = np.hstack([(values - values.mean(0)) / unit, np.ones((len(y), 1))])
    return leak(y[~mine], x[~mine] @ _logistic(x[mine], y[mine], ridge))


def _logistic(x: FloatArray, y: FloatArray, ridge: float) -> FloatArray:
    """Weights [d] of a logistic regression of 0 and 1."""
    w = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (p - y) + ridge * w
        bend = (x.T * (p * (1 - p))) @ x + ridge * np.eye(len(w))
        w -= np.linalg.solve(bend, slope)
    return np.asarray(w)


# --- the guest after columns ----------------------------------------------------------------------------------------


def gram(h: Tensor, g: Tensor, lr: float, cut: float = 1e-4) -> Tensor:
    """The inner products of hosts' rows, [n, n], by how embeddings of a linear bottom move in steps of plain SGD.

    h(t+1) - h(t) = -lr K g(t) with K = X X' + 1 where the layer has a bias: as many equations for a row of K as there
    are steps times d, solved by least squares. What is found are the rows up to a rotation, without knowing any; no
    clipping or noise on gradients that the guest itself sends is against it, noise on embeddings is.

    Args:
        h: embeddings of the same n rows before each of T steps and after the last, [T + 1, n, d].
        g: gradients that were sent for them, [T, n, d].
        lr: the host's step size.
        cut: singular values below this share of the largest are left out.
    """
    moved = (h[1:] - h[:-1]).double().permute(1, 0, 2).flatten(1)
    slope = g.double().permute(1, 0, 2).flatten(1)
    found: Tensor = -(moved @ torch.linalg.pinv(slope, rtol=cut)) / lr
    return (found + found.T) / 2


def inversion(h: Tensor, x: Tensor, known: Sequence[int], ridge: float = 1e-6) -> Tensor:
    """Columns [n, c] guessed by least squares from embeddings, learned from a few known rows.

    For a linear bottom it is exact once d, or the epochs seen times d, reach the columns, and known rows exceed them.

    Args:
        h: embeddings, [n, d], or of several epochs, [T, n, d].
        x: columns, of which only the known rows are read, [n, c].
        known: rows that the guest has.
    """
    seen = h.double() if h.ndim == 2 else h.double().permute(1, 0, 2).flatten(1)
    seen = torch.cat([seen, torch.ones(len(seen), 1, dtype=torch.float64)], 1)
    rows = list(known)
    one, other = seen[rows], x[rows].double()
    scale = float(one.square().sum()) / one.shape[1]
    bend = one.T @ one + ridge * scale * torch.eye(one.shape[1], dtype=torch.float64)
    guess: Tensor = seen @ torch.linalg.solve(bend, one.T @ other)
    return guess


def explained(x: Tensor, guess: Tensor, known: Sequence[int]) -> float:
    """The share of the variance of columns that a guess has right, over rows that were not known; 1 is all of it."""
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[list(known)] = False
    true, guessed = x[rest].double(), guess[rest].double()
    return float(1 - (true - guessed).square().sum() / (true - true.mean(0)).square().sum())
