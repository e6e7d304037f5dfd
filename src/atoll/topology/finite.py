"""Graphs that change from round to round, or have weights of their own: they reach consensus fast, some exactly.

Each function gives the exchanges of one period, in order; round t plays the one with the number t modulo the period.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from atoll import seeds
from atoll.errors import ConfigError
from atoll.topology.weights import Weights

__all__ = ["base", "epidemic", "equitopo", "exponential", "grid", "hypercube", "one_peer", "star"]


def _circulant(peers: int, steps: Sequence[int], own: float, each: float) -> Weights:
    """Everybody hears those that stand so many steps on."""
    return Weights.of(
        ([at, *((at + step) % peers for step in steps)], [own, *[each] * len(steps)]) for at in range(peers)
    )


def _powers(peers: int) -> list[int]:
    return [1 << at for at in range((peers - 1).bit_length())]


def exponential(peers: int) -> Weights:
    """Everybody hears those 1, 2, 4 ... steps on, with equal weights.   Ying et al., NeurIPS 2021

    The spectral gap is 2 / (1 + ceil(log2 n)) for even n.
    """
    steps = _powers(peers)
    return _circulant(peers, steps, 1 / (len(steps) + 1), 1 / (len(steps) + 1))


def one_peer(peers: int) -> list[Weights]:
    """Everybody hears one, in turn the one 1, 2, 4 ... steps on.   Ying et al., NeurIPS 2021

    After log2 n rounds all have the mean exactly where n is a power of two.
    """
    return [_circulant(peers, [step], 0.5, 0.5) for step in _powers(peers)]


def equitopo(peers: int, most: int | None, seed: int) -> Weights:
    """The mean of `most` random circulants (by default ceil(log2 n)): a gap that does not depend on n.

    W = (1/M) sum_m ((n-1)/n P^{u_m} + I/n),  u_m uniform in 1 .. n-1.   Song et al., NeurIPS 2022 (D-EquiStatic)
    """
    most = most or max(1, (peers - 1).bit_length())
    steps = seeds.rng(seed, "topology equitopo").integers(1, peers, most).tolist()
    share = (peers - 1) / peers / most
    rows = []
    for at in range(peers):
        counts = {at: 1 / peers}
        for step in steps:
            other = (at + step) % peers
            counts[other] = counts.get(other, 0.0) + share
        rows.append((list(counts), list(counts.values())))
    return Weights.of(rows)


def star(peers: int) -> list[Weights]:
    """Two exchanges of one round: the hub, peer 0, takes the mean of all; then all take the hub's. So W = 11^T / n.

    This is how a federation with a server works, with a hub that trains as well.
    """
    mean = tuple(range(peers)), (1 / peers,) * peers
    gather = Weights.of([mean, *(((at,), (1.0,)) for at in range(1, peers))])
    scatter = Weights.of([((0,), (1.0,)), *(((0, at), (1.0, 0.0)) for at in range(1, peers))])
    return [gather, scatter]


def grid(peers: int, dimensions: int) -> list[Weights]:
    """Peers stand on a grid; along each axis in turn all of one line take their mean.   Ryabinin et al., NeurIPS 2021

    Exact after `dimensions` exchanges where the grid is full. Its sides are as equal as may be, and the last places
    stay free where n does not fill it.
    """
    side = max(1, math.ceil(peers ** (1 / dimensions) - 1e-9))
    sizes = [side] * dimensions
    for at in range(dimensions):  # no longer than they must be
        while sizes[at] > 1 and math.prod(sizes) // sizes[at] * (sizes[at] - 1) >= peers:
            sizes[at] -= 1
    return _lines(list(range(peers)), sizes, peers)


def hypercube(members: Sequence[int], k: int) -> list[list[list[int]]]:
    """Groups of at most k + 1, step by step, after which all members have their mean.  Raises ValueError where their
    number has a prime factor above k + 1."""
    sizes, rest = [], len(members)
    for factor in range(k + 1, 1, -1):
        while rest % factor == 0:
            sizes.append(factor)
            rest //= factor
    if rest > 1:
        raise ValueError(f"{len(members)} has a prime factor above {k + 1}")
    return [_groups(members, sizes, axis) for axis in range(len(sizes))]


def _groups(members: Sequence[int], sizes: Sequence[int], axis: int) -> list[list[int]]:
    """The lines along one axis of a grid that members fill place by place, row-major."""
    stride = math.prod(sizes[axis + 1 :])
    lines: dict[int, list[int]] = {}
    for place, member in enumerate(members):
        lines.setdefault(place - place // stride % sizes[axis] * stride, []).append(member)
    return [line for line in lines.values() if len(line) > 1]


def _lines(members: Sequence[int], sizes: Sequence[int], peers: int) -> list[Weights]:
    return [
        Weights.means(_groups(members, sizes, axis), peers) for axis in range(len(sizes)) if sizes[axis] > 1
    ]


def base(peers: int, k: int) -> list[Weights]:
    """Everybody hears at most k in a round, and after one period all have the mean exactly, whatever n is.

    Takezawa et al., NeurIPS 2023, the simple Base-(k+1) graph. n is written with the base k + 1,
    n = sum_l a_l (k+1)^p_l, and the peers are divided into parts of these sizes. Each part takes its mean (in steps
    of groups of k + 1 or a_l). Then part after part meets those behind it: each of these hears one of each of the a_j
    blocks of part j, with weights after which both sides have the mean of all from j on as their mean. The blocks of
    the part, which are alike, then take their means again.
    """
    if all(peers % prime or prime <= k + 1 for prime in _primes(peers)):
        return [Weights.means(groups, peers) for groups in hypercube(range(peers), k)] or [
            Weights.means([], peers)
        ]
    parts, start = [], 0
    power = int(math.log(peers, k + 1) + 1e-9)
    for p in range(power, -1, -1):
        a = (peers - start) // (k + 1) ** p
        if a:
            size = a * (k + 1) ** p
            parts.append((list(range(start, start + size)), a))
            start += size
    steps = [hypercube(part, k) for part, _ in parts]
    first = max(map(len, steps))
    found = [Weights.means(_at_once(steps, at), peers) for at in range(first)]
    again = [_blocks(part, a, k) for part, a in parts[:-1]]
    length = max(j + 1 + len(step) for j, step in enumerate(again))
    for at in range(length):
        links: dict[tuple[int, int], float] = {}
        groups: list[list[int]] = []
        if at < len(parts) - 1:
            part, a = parts[at]
            behind = [peer for later, _ in parts[at + 1 :] for peer in later]
            weight = len(part) / (a * (len(part) + len(behind)))
            block = len(part) // a
            links = {
                (part[b * block + place], peer): weight for place, peer in enumerate(behind) for b in range(a)
            }
        for j, step in enumerate(again):
            if 0 <= (since := at - j - 1) < len(step):
                groups += step[since]
        found.append(_joined(links, groups, peers))
    return found


def _blocks(part: list[int], a: int, k: int) -> list[list[list[int]]]:
    """The steps in which the `a` blocks of a part take their means, all at once."""
    size = len(part) // a
    steps = [hypercube(part[b * size : (b + 1) * size], k) for b in range(a)]
    return [_at_once(steps, at) for at in range(len(steps[0]))]


def _at_once(steps: Sequence[list[list[list[int]]]], at: int) -> list[list[int]]:
    """The groups of all parts in one of their steps."""
    return [group for step in steps if at < len(step) for group in step[at]]


def _joined(links: dict[tuple[int, int], float], groups: list[list[int]], peers: int) -> Weights:
    """Groups that take their means, and weighted links among others."""
    rows: dict[int, dict[int, float]] = {peer: {} for peer in range(peers)}
    for (one, other), weight in links.items():
        rows[one][other] = rows[other][one] = weight
    for group in groups:
        for peer in group:
            rows[peer] = dict.fromkeys(group, 1 / len(group))
    for peer, row in rows.items():
        if peer not in row:
            row[peer] = 1 - sum(row.values())
    return Weights.of((list(row), list(row.values())) for row in rows.values())


def _primes(number: int) -> list[int]:
    found, at = [], 2
    while number > 1:
        while number % at == 0:
            found.append(at)
            number //= at
        at += 1
    return found


def epidemic(peers: int, k: int, seed: int, round: int) -> list[list[int]]:
    """To whom each sends in a round: k others at random.   De Vos et al., NeurIPS 2023 (epidemic learning)"""
    if k >= peers:
        raise ConfigError(
            f"topology = epidemic:{k}: there are only {peers - 1} others", hint="take a smaller k"
        )
    found = []
    for at in range(peers):
        others = seeds.rng(seed, "topology epidemic", round, at).choice(peers - 1, k, replace=False)
        found.append(sorted((at + 1 + int(other)) % peers for other in others))
    return found
