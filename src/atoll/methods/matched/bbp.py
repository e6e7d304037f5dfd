"""Which hidden units of several networks are the same one: a beta-Bernoulli process, solved by assignments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll import seeds
from atoll.errors import ConfigError, MissingExtraError

__all__ = ["Matching", "match_units"]

Array = NDArray[np.float64]
Ids = NDArray[np.int64]


class Matching(NamedTuple):
    """`assignments[j][l]` is the global unit that unit l of client j is; `means` [units, D] are the global rows."""

    assignments: list[Ids]
    units: int
    means: Array


def match_units(
    rows: Sequence[Array],
    *,
    gamma: float = 7.0,
    sigma: float = 1.0,
    sigma0: float = 1.0,
    relative: bool = False,
    prior: Array | float = 0.0,
    weights: Sequence[float] | None = None,
    shrink: bool = False,
    sweeps: int = 5,
    cap: int = 700,
    popularity: int = 10,
    seed: int = 0,
    round: int = 0,
    stream: int = 0,
) -> Matching:
    """Match the hidden units of a layer.   Yurochkin et al., ICML 2019; Wang et al., ICLR 2020

    v_jl = W_jl / sigma^2 is unit l of client j. A global unit i sums up what is matched to it, m_i = mu / sigma0^2 +
    sum v, S_i = 1 / sigma0^2 + sum 1 / sigma^2, and c_i counts it. With the others held, client j maximises, over
    assignments of its units to different global ones,

        old unit i:  |v + m_i|^2 / (s_j + S_i) - |m_i|^2 / S_i + log(c_i / (J - c_i)),    c_i at most `popularity`
        new unit r:  |v + m_0|^2 / (s_j + s_0) - |m_0|^2 / s_0 + 2 log(gamma / J) - 2 log r

    The client with most units goes first, and defines the order of the global ones; then each in turn, then `sweeps`
    times all of them, taken out and matched anew, in random order.

    Args:
        rows: for every client a matrix [L_j, D]: a row is all that flows into a unit.
        gamma: how readily units are found new. 0 (the limit) never has more than the largest client.
        sigma, sigma0: deviation of a client's unit from the global one, and of global units from `prior`.
        relative: whether both are in units of the standard deviation of all `rows`, or plain numbers, as the authors
            have them. Plain sigma = 1 is wide for trained weights, which deviate by 0.1 or less: layers that only
            differ by noise get some units too many. Relative to the weights, networks that were trained apart share
            hardly any unit, and all are kept side by side.
        prior: the mean of global units, a number or one for each column, in the units of `rows`.
        weights: precision of each client relative to the others; by default all count 1.
        shrink: whether `means` are the posterior mode, drawn to the prior (identical clients then give J / (J + 1) of
            what they have, for sigma = sigma0), or the plain mean of what was matched.
        sweeps: how often each client is matched anew; it stops where nothing changes any more.
        cap: global units above which a client may add only one at a time.
        popularity: the count above which a unit attracts no more than that.
        seed, round, stream: the address of the random order.

    Raises ConfigError for rows that do not fit, MissingExtraError without scipy.
    """
    solve = assignment_solver()
    if not rows:
        raise ConfigError("there is no network to match")
    clients, width = len(rows), rows[0].shape[1]
    if any(each.ndim != 2 or each.shape[1] != width for each in rows):
        shapes = ", ".join(str(each.shape) for each in rows)
        raise ConfigError(f"units to be matched must be rows of the same width, not {shapes}")
    if gamma < 0 or sigma <= 0 or sigma0 <= 0:
        raise ConfigError(f"gamma = {gamma}, sigma = {sigma}, sigma0 = {sigma0}: they are positive")
    scale = float(np.concatenate([each.ravel() for each in rows]).std()) if relative else 1.0
    scale = scale or 1.0
    trust = np.ones(clients) if weights is None else np.asarray(weights, dtype=np.float64)
    trust = trust * (clients / trust.sum()) / sigma**2
    values = [each.astype(np.float64) * (s / scale) for each, s in zip(rows, trust, strict=True)]
    s0 = 1 / sigma0**2
    m0 = np.broadcast_to(np.asarray(prior, dtype=np.float64) / scale * s0, (width,))
    most = max(len(each) for each in rows)
    pool = _Pool(m0, s0, clients, gamma, max(cap, most), popularity, solve)
    order = sorted(range(clients), key=lambda j: -len(rows[j]))
    found: list[Ids] = [np.zeros(0, dtype=np.int64)] * clients
    found[order[0]] = pool.append(values[order[0]], float(trust[order[0]]))
    for j in order[1:]:
        found[j] = pool.match(values[j], float(trust[j]))
    rng = seeds.rng(seed, "matching", round, stream)
    for _ in range(sweeps if clients > 1 else 0):
        before = list(found)
        for j in rng.permutation(clients):
            keep = pool.remove(found[j], values[j], float(trust[j]))
            shifted = np.cumsum(keep) - 1
            found = [each if k == j else shifted[each] for k, each in enumerate(found)]
            found[j] = pool.match(values[j], float(trust[j]))
        if all(np.array_equal(a, b) for a, b in zip(before, found, strict=True)):
            break
    base_m, base_s = (0.0, 0.0) if shrink else (m0, s0)
    means = (pool.m - base_m) / (pool.s - base_s)[:, None] * scale
    return Matching(found, len(pool.m), means)


class _Pool:
    """The global units as far as they are known: sums m [L, D], precisions s [L], counts c [L]."""

    def __init__(
        self,
        m0: Array,
        s0: float,
        clients: int,
        gamma: float,
        cap: int,
        popularity: int,
        solve: Callable[[Array], tuple[Ids, Ids]],
    ) -> None:
        self.m0, self.s0, self.clients, self.gamma = m0, s0, clients, gamma
        self.cap, self.popularity, self.solve = cap, popularity, solve
        self.m, self.s, self.c = np.zeros((0, len(m0))), np.zeros(0), np.zeros(0)

    def append(self, v: Array, s: float) -> Ids:
        """Make each of these a global unit; their numbers."""
        first = len(self.m)
        self.m = np.concatenate([self.m, self.m0 + v])
        self.s = np.concatenate([self.s, np.full(len(v), self.s0 + s)])
        self.c = np.concatenate([self.c, np.ones(len(v))])
        return np.arange(first, len(self.m), dtype=np.int64)

    def remove(self, ids: Ids, v: Array, s: float) -> NDArray[np.bool_]:
        """Take a client out; which units are left."""
        self.m[ids] -= v
        self.s[ids] -= s
        self.c[ids] -= 1
        keep = self.c > 0
        self.m, self.s, self.c = self.m[keep], self.s[keep], self.c[keep]
        return keep

    def match(self, v: Array, s: float) -> Ids:
        """Match one client's units, and add them to the global ones; their numbers."""
        known = len(self.m)
        rows, columns = self.solve(np.concatenate([self.old(v, s), self.new(v, s)], axis=1))
        ids = np.zeros(len(v), dtype=np.int64)
        ids[rows] = columns
        old = ids < known
        self.m[ids[old]] += v[old]
        self.s[ids[old]] += s
        self.c[ids[old]] += 1
        ids[~old] = self.append(v[~old], s)
        return ids

    def old(self, v: Array, s: float) -> Array:
        """What each unit gains by being each of the known ones [l, L]."""
        square = (self.m**2).sum(1)
        joint = (v**2).sum(1)[:, None] + 2 * v @ self.m.T + square
        count = np.minimum(self.c, self.popularity)
        gain: Array = joint / (self.s + s) - square / self.s + np.log(count / (self.clients - count))
        return gain

    def new(self, v: Array, s: float) -> Array:
        """What each unit gains by being the first, second, ... new one [l, r]."""
        known, wanted = len(self.m), len(v)
        count = min(wanted, max(self.cap - known, 1)) if self.gamma else 0
        count = max(count, wanted - known)
        bonus = 2 * np.log(self.gamma / self.clients) if self.gamma else 0.0
        gain = ((v + self.m0) ** 2).sum(1) / (self.s0 + s) - (self.m0**2).sum() / self.s0
        table: Array = gain[:, None] + bonus - 2 * np.log(np.arange(1, count + 1))
        return table


def assignment_solver() -> Callable[[Array], tuple[Ids, Ids]]:
    """The assignment of rows to different columns with the greatest sum.  Raises MissingExtraError without scipy."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MissingExtraError("scipy", "matched", "matching neurons") from None
    solve: Any = linear_sum_assignment
    return lambda gains: solve(gains, maximize=True)
