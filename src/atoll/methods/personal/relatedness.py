"""Who is like whom, from small sketches of clients' data; and passing models along the likeness.

Sketches are orthonormal bases [D, q]. Relations are kept sparse: for each of n clients its k nearest, by position, and
their weights. Nothing here is n x n but the closed form, which is for small n and for tests. All of it is on the CPU,
where models are found by their clients; only the models themselves may be elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atoll.tensors import Record, Tensors

__all__ = [
    "closed_form", "likeness", "nearest", "nowhere", "placed", "propagate", "transition", "truncated", "walk",
]  # fmt: skip

_CHUNK = 1 << 24  # pairs of coordinates of sketches that are compared at a time
_STEPS = 80  # of the random walk; what is cut off is alpha ** steps


def likeness(some: Tensor, others: Tensor) -> Tensor:
    """Sum of the cosines of the principal angles between sketches [m, D, q] and [n, D, q]: [m, n], from 0 to q.

    The nuclear norm of U_i^T U_j, in pieces of bounded memory.
    """
    m, n, q = len(some), len(others), some.shape[2]
    rows = []
    for part in torch.split(some, max(1, _CHUNK // max(1, n * q * q))):
        inner = torch.einsum("mdp,ndq->mnpq", part, others)
        rows.append(inner.abs()[..., 0, 0] if q == 1 else torch.linalg.svdvals(inner).sum(-1))
    return torch.cat(rows) if rows else some.new_zeros(m, n)


def nearest(values: Tensor, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of each row of `values` [m, n] and whose they are, filled up with -inf and 0 where n < k."""
    k_here = min(k, values.shape[1])
    best, at = values.topk(k_here, dim=1)
    whose = positions.expand_as(values).gather(1, at)
    if k_here < k:
        best = torch.nn.functional.pad(best, (0, k - k_here), value=-torch.inf)
        whose = torch.nn.functional.pad(whose, (0, k - k_here))
    return best, whose


def nowhere(rank: int, k: int) -> Record:
    """No clients yet: their `ids` [n], `sketches` [n, D, rank], and the `scores` and `neighbours` [n, k] of each, by
    position."""
    return Record(
        ids=torch.zeros(0, dtype=torch.int64),
        sketches=torch.zeros(0, 0, rank),
        scores=torch.zeros(0, k),
        neighbours=torch.zeros(0, k, dtype=torch.int64),
    )


def placed(near: Record, ids: Sequence[int], sketches: Tensor, k: int) -> Record:
    """The clients of `near` and new ones with these sketches: the k nearest of the new, and the new among those of
    the others. Nobody is a neighbour of themselves."""
    if not len(ids):
        return near
    old = near.sketches if len(near.ids) else sketches[:0]
    count, total = len(old), len(old) + len(sketches)
    joined = torch.cat([old, sketches])
    everyone, newcomers = torch.arange(total), torch.arange(count, total)
    values = likeness(sketches, joined)
    values[newcomers - count, newcomers] = -torch.inf
    scores, neighbours = nearest(values, everyone, k)
    pooled = torch.cat([near.scores, values[:, :count].T], dim=1)
    whose = torch.cat([near.neighbours, newcomers.expand(count, -1)], dim=1)
    before, before_whose = nearest(pooled, whose, k)
    return Record(
        ids=torch.cat([near.ids, torch.tensor(ids)]),
        sketches=joined,
        scores=torch.cat([before, scores]),
        neighbours=torch.cat([before_whose, neighbours]),
    )


def transition(scores: Tensor, temperature: float) -> Tensor:
    """Row weights exp(temperature * score) / sum, [n, k]. Rows without a neighbour (-inf throughout) are zero.

    The row maximum is taken off first: only ratios inside a row matter, and exp(10 q) overflows for q from 9 on.
    """
    top = scores.amax(1, keepdim=True)
    weights = torch.exp(temperature * (scores - torch.where(torch.isfinite(top), top, 0.0)))
    total: Tensor = weights.sum(1, keepdim=True)
    return weights / total.clamp(min=1e-30)


def closed_form(weights: Tensor, neighbours: Tensor, alpha: float) -> Tensor:
    """P = (1 - alpha) (I - alpha S)^-1 as a dense [n, n] matrix whose rows sum to 1.

    A row of S without neighbours makes its row of P sum to 1 - alpha; it is scaled to a whole.
    """
    n = len(weights)
    walk = torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, neighbours, weights.double())
    found = (1 - alpha) * torch.linalg.inv(torch.eye(n, dtype=torch.float64) - alpha * walk)
    whole: Tensor = found / found.sum(1, keepdim=True)
    return whole


def propagate(weights: Tensor, neighbours: Tensor, alpha: float, models: Tensors, wanted: Tensor) -> Tensors:
    """Rows `wanted` [m] of P @ models, for models [n, ...] tensor by tensor: [m, ...].

    Either the walk is taken by the rows of P, some at a time, or by the numbers of the models, whichever are fewer.
    """
    count = len(weights)
    if len(wanted) * count > models.size():
        weights, neighbours, wanted = (
            t.to(next(iter(models.values())).device) for t in (weights, neighbours, wanted)
        )
        flat = {name: torch.split(value.flatten(1), 64, dim=1) for name, value in models.items()}
        found = {
            name: torch.cat([_along(weights, neighbours, alpha, part)[wanted] for part in parts], dim=1)
            for name, parts in flat.items()
        }
    else:
        rows = [walk(weights, neighbours, alpha, some) for some in torch.split(wanted, 512)]
        found = {
            name: torch.cat([row.to(value) @ value.flatten(1) for row in rows])
            for name, value in models.items()
        }
    return Tensors({name: found[name].view(-1, *value.shape[1:]) for name, value in models.items()})


def walk(weights: Tensor, neighbours: Tensor, alpha: float, wanted: Tensor) -> Tensor:
    """Rows of P [m, n] by a random walk that stops at each step with probability 1 - alpha; they sum to 1."""
    start = torch.zeros(len(weights), len(wanted), dtype=torch.float64)
    start[wanted, torch.arange(len(wanted))] = 1.0
    share = (alpha * weights.double()).unsqueeze(-1)
    at = start
    for _ in range(_STEPS):
        step = start * (1 - alpha)
        for k in range(neighbours.shape[1]):
            step.index_add_(0, neighbours[:, k], share[:, k] * at)
        at = step
    whole: Tensor = at.T / at.sum(0).unsqueeze(1)
    return whole


def _along(weights: Tensor, neighbours: Tensor, alpha: float, models: Tensor) -> Tensor:
    """P @ models by Z <- alpha S Z + (1 - alpha) W."""
    ones = torch.ones(len(models), 1, dtype=models.dtype, device=models.device)
    start = torch.cat([models, ones], dim=1)  # the last column finds the sums of the rows of P
    share = (alpha * weights).to(start).unsqueeze(-1)
    moved = start
    for _ in range(_STEPS):
        step = start * (1 - alpha)
        for k in range(neighbours.shape[1]):
            step += share[:, k] * moved[neighbours[:, k]]
        moved = step
    whole: Tensor = moved[:, :-1] / moved[:, -1:]
    return whole


def truncated(sketches: Tensor, coordinates: int) -> Tensor:
    """Sketches [n, D, q] cut to their first coordinates and made orthonormal again."""
    basis: Tensor = torch.linalg.qr(sketches[:, :coordinates])[0]
    return basis
