"""Every rule as its paper has it: rows [n, d] in float64, no inner products, no order that is shared."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def distances(x: Rows) -> Rows:
    found: Rows = np.linalg.norm(x[:, None] - x[None, :], axis=2)
    return found


def trimmed(x: Rows, f: int) -> Rows:
    found: Rows = np.sort(x, axis=0)[f : len(x) - f].mean(0)
    return found


def meamed(x: Rows, f: int) -> Rows:
    near = np.abs(x - np.median(x, axis=0)).argsort(axis=0)[: len(x) - f]
    found: Rows = np.take_along_axis(x, near, axis=0).mean(0)
    return found


def krum_scores(x: Rows, f: int) -> list[float]:
    many = max(len(x) - f - 2, 1)
    return [float(np.sort(np.sum((x - row) ** 2, axis=1))[1 : many + 1].sum()) for row in x]


def krum(x: Rows, f: int) -> Rows:
    found: Rows = x[int(np.argmin(krum_scores(x, f)))]
    return found


def multikrum(x: Rows, f: int, m: int | None = None) -> Rows:
    best = np.argsort(krum_scores(x, f))[: m or len(x) - f]
    found: Rows = x[best].mean(0)
    return found


def bulyan(x: Rows, f: int) -> Rows:
    rest, chosen = list(x), []
    while len(chosen) < len(x) - 2 * f:
        scores, all_ = krum_scores(np.array(rest), f), (distances(np.array(rest)) ** 2).sum(1)
        best = min(range(len(rest)), key=lambda at: (round(scores[at], 9), all_[at]))
        chosen.append(rest.pop(best))
    return meamed(np.array(chosen), 2 * f)


def mda(x: Rows, f: int) -> list[Rows]:
    """The means of all sets with the smallest diameter."""
    apart = distances(x)
    sets = list(itertools.combinations(range(len(x)), len(x) - f))
    sizes = [apart[np.ix_(each, each)].max() for each in sets]
    return [
        x[list(each)].mean(0)
        for each, size in zip(sets, sizes, strict=True)
        if size <= min(sizes) * (1 + 1e-9)
    ]


def caf(x: Rows, f: int) -> Rows:
    c, best, smallest = np.ones(len(x)), x.mean(0), np.inf
    while c.sum() > len(x) - 2 * f:
        mean = (c[:, None] * x).sum(0) / c.sum()
        values, vectors = np.linalg.eigh((c[:, None] * (x - mean)).T @ (x - mean) / c.sum())
        if values[-1] < smallest:
            best, smallest = mean, values[-1]
        t = ((x - mean) @ vectors[:, -1]) ** 2
        c = c * (1 - np.minimum(t / t[c > 0].max(), 1))
    return best


def dnc(x: Rows, f: int) -> Rows:
    _, _, v = np.linalg.svd(x - x.mean(0), full_matrices=False)
    found: Rows = x[np.argsort(((x - x.mean(0)) @ v[0]) ** 2)[: len(x) - f]].mean(0)
    return found


def geometric(x: Rows) -> Rows:
    z = np.median(x, axis=0)
    for _ in range(3000):
        inverse = 1 / np.maximum(np.linalg.norm(x - z, axis=1), 1e-12)
        before, z = z, inverse @ x / inverse.sum()
        if np.abs(z - before).max() < 1e-9:
            break
    return z


def rfa(x: Rows, times: int, nu: float) -> Rows:
    z = np.zeros(x.shape[1])
    for _ in range(times):
        inverse = 1 / np.maximum(nu, np.linalg.norm(x - z, axis=1))
        z = inverse @ x / inverse.sum()
    return z


def cclip(x: Rows, tau: float, times: int, v: Rows) -> Rows:
    for _ in range(times):
        away = x - v
        v = v + (away * np.minimum(1, tau / np.linalg.norm(away, axis=1))[:, None]).mean(0)
    return v


def clipped(x: Rows, tau: float) -> Rows:
    found: Rows = x * np.minimum(1, tau / np.linalg.norm(x, axis=1))[:, None]
    return found


def fltrust(x: Rows, root: Rows) -> Rows:
    norms, own = np.linalg.norm(x, axis=1), np.linalg.norm(root)
    trust = np.maximum(x @ root / norms / own, 0)
    found: Rows = (trust[:, None] * x * (own / norms)[:, None]).sum(0) / trust.sum()
    return found


def foolsgold(x: Rows) -> Rows:
    n, unit = len(x), x / np.linalg.norm(x, axis=1)[:, None]
    cs = unit @ unit.T
    v = [max(cs[i, j] for j in range(n) if j != i) for i in range(n)]
    a = np.zeros(n)
    for i in range(n):
        rows = [cs[i, j] * (v[i] / v[j] if 0 < v[i] < v[j] else 1) for j in range(n) if j != i]
        a[i] = min(max(1 - max(rows), 0), 1)
    a = np.clip(a / a.max(), 1e-5, 1 - 1e-5)
    a = np.clip(np.log(a / (1 - a)) + 0.5, 0, 1)
    found: Rows = a @ x / a.sum()
    return found


def flame(x: Rows) -> Rows:
    """Without its noise. Clusters grow by the nearest pair that lies in two of them."""
    n, norms = len(x), np.linalg.norm(x, axis=1)
    apart = 1 - x @ x.T / np.outer(norms, norms)
    clusters = [{i} for i in range(n)]
    while max(map(len, clusters)) <= n / 2:
        a, b = min(
            itertools.combinations(range(len(clusters)), 2),
            key=lambda pair: min(apart[i, j] for i in clusters[pair[0]] for j in clusters[pair[1]]),
        )
        clusters[a] |= clusters.pop(b)
    found: Rows = clipped(x, float(np.median(norms)))[sorted(max(clusters, key=len))].mean(0)
    return found


def nnm(x: Rows, f: int) -> Rows:
    apart = distances(x)
    return np.array([x[np.argsort(row)[: len(x) - f]].mean(0) for row in apart])


def arc(x: Rows, f: int) -> Rows:
    norms = np.linalg.norm(x, axis=1)
    cut = int(np.floor(2 * f * (len(x) - f) / len(x)))
    return clipped(x, float(np.sort(norms)[len(x) - cut - 1]))


RULES: dict[str, Callable[[Rows], Rows]] = {
    "mean": lambda x: x.mean(0),
    "median": lambda x: np.median(x, axis=0),
    "trimmed:2": lambda x: trimmed(x, 2),
    "meamed:2": lambda x: meamed(x, 2),
    "geometric": geometric,
    "rfa": lambda x: rfa(x, 3, 1e-6),
    "rfa:5,0.1": lambda x: rfa(x, 5, 0.1),
    "krum:2": lambda x: krum(x, 2),
    "multikrum:2": lambda x: multikrum(x, 2),
    "multikrum:2,3": lambda x: multikrum(x, 2, 3),
    "bulyan:2": lambda x: bulyan(x, 2),
    "bulyan:1": lambda x: bulyan(x, 1),
    "caf:2": lambda x: caf(x, 2),
    "dnc:2": lambda x: dnc(x, 2),
    "cclip:1.5,3": lambda x: cclip(x, 1.5, 3, np.zeros(x.shape[1])),
    "bound:2": lambda x: clipped(x, 2).mean(0),
    "foolsgold": foolsgold,
    "flame:0": flame,
    "nnm:2 + mean": lambda x: nnm(x, 2).mean(0),
    "nnm + trimmed:2": lambda x: trimmed(nnm(x, 2), 2),
    "nnm + krum:2": lambda x: krum(nnm(x, 2), 2),
    "arc:2 + median": lambda x: np.median(arc(x, 2), axis=0),
    "arc:2 + geometric": lambda x: geometric(arc(x, 2)),
    "clip:1 + meamed:2": lambda x: meamed(clipped(x, 1), 2),
    "clip:2 + arc + nnm + caf:2": lambda x: caf(nnm(arc(clipped(x, 2), 2), 2), 2),
}
"""By their texts: what each makes of rows."""
