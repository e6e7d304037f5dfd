"""Graphs whose links go both ways, as lists of neighbours, and the weights that follow from degrees.

A graph is a list of neighbours for each peer, ascending, without the peer itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from atoll import seeds
from atoll.errors import ConfigError
from atoll.topology.weights import Weights

__all__ = [
    "Graph", "by_degree", "by_links", "components", "connected", "erdos", "joined", "matching", "metropolis", "regular",
    "ring", "sides", "smallworld", "torus",
]  # fmt: skip

Graph = list[list[int]]

_TRIES = 100


def joined(pairs: Iterable[tuple[int, int]], peers: int) -> Graph:
    """The graph with these links, each once, whichever way it is written."""
    found: list[set[int]] = [set() for _ in range(peers)]
    for one, other in pairs:
        if one != other:
            found[one].add(other)
            found[other].add(one)
    return [sorted(each) for each in found]


def ring(peers: int) -> Graph:
    """Everybody has the one before and the one behind."""
    return joined(((at, (at + 1) % peers) for at in range(peers)), peers)


def sides(peers: int) -> tuple[int, int]:
    """The sides of the torus of so many peers that is nearest to a square.  Raises ConfigError for primes."""
    rows = next(rows for rows in range(int(peers**0.5), 0, -1) if peers % rows == 0)
    if rows == 1 and peers > 3:
        raise ConfigError(
            f"topology = torus: {peers} peers fill no rectangle but a line",
            hint="take ring, or another number of peers",
        )
    return rows, peers // rows


def torus(rows: int, columns: int) -> Graph:
    """Rows and columns that close to rings; peer r * columns + c stands in row r and column c."""
    pairs = []
    for at in range(rows * columns):
        r, c = divmod(at, columns)
        pairs += [(at, r * columns + (c + 1) % columns), (at, (r + 1) % rows * columns + c)]
    return joined(pairs, rows * columns)


def erdos(peers: int, p: float, seed: int) -> Graph:
    """Every pair is linked with the chance p (Erdos and Renyi 1959), drawn anew until all are connected.

    Raises ConfigError where that does not come about.
    """
    for attempt in range(_TRIES):
        rng = seeds.rng(seed, "topology erdos", attempt)
        pairs = []
        for one in range(peers - 1):
            rest = peers - 1 - one
            chosen = rng.choice(rest, rng.binomial(rest, p), replace=False)
            pairs += [(one, one + 1 + int(other)) for other in chosen]
        found = joined(pairs, peers)
        if connected(found):
            return found
    raise ConfigError(
        f"topology = erdos:{p:g}: {_TRIES} graphs of {peers} peers were drawn, and none is connected",
        hint=f"take p above ln(n) / n, here {np.log(peers) / peers:.3f}",
    )


def smallworld(peers: int, k: int, p: float, seed: int) -> Graph:
    """A ring with the k nearest (k even), each link led elsewhere with the chance p (Watts and Strogatz 1998).

    Raises ConfigError where k does not fit, and where no draw is connected.
    """
    if k % 2 or k >= peers:
        raise ConfigError(
            f"topology = smallworld:{k},{p:g}: {k} of {peers} peers cannot be the nearest on both sides",
            hint="k is an even number below the number of peers",
        )
    for attempt in range(_TRIES):
        rng = seeds.rng(seed, "topology smallworld", attempt)
        found = [set[int]() for _ in range(peers)]
        for step in range(1, k // 2 + 1):
            for one in range(peers):
                other = (one + step) % peers
                if rng.random() < p:
                    free = np.setdiff1d(np.arange(peers), [one, *found[one]])
                    other = int(rng.choice(free)) if len(free) else other
                found[one].add(other)
                found[other].add(one)
        graph = [sorted(each) for each in found]
        if connected(graph):
            return graph
    raise ConfigError(
        f"topology = smallworld:{k},{p:g}: {_TRIES} graphs of {peers} peers were drawn, and none is connected",
        hint="take a larger k, or a smaller p",
    )


def regular(peers: int, k: int, seed: int) -> Graph:
    """Everybody has k neighbours, at random: stubs are paired, and paired again where a link is there already or leads
    back (Steger and Wormald 1999)."""
    if k >= peers or k * peers % 2:
        raise ConfigError(
            f"topology = regular:{k}: {peers} peers cannot have {k} neighbours each",
            hint="k is below the number of peers, and one of the two is even",
        )
    for attempt in range(_TRIES):
        rng = seeds.rng(seed, "topology regular", attempt)
        stubs, links = np.repeat(np.arange(peers), k), set[tuple[int, int]]()
        while len(stubs):
            left = []
            for one, other in rng.permutation(stubs).reshape(-1, 2).tolist():
                link = (min(one, other), max(one, other))
                if one == other or link in links:
                    left += [one, other]
                else:
                    links.add(link)
            if len(left) == len(stubs) and not _fits(left, links):
                break
            stubs = np.array(left, np.int64)
        found = joined(links, peers)
        if not len(stubs) and connected(found):
            return found
    raise ConfigError(
        f"topology = regular:{k}: {_TRIES} graphs of {peers} peers were drawn, and none is connected",
        hint="take a larger k",
    )


def _fits(stubs: Sequence[int], links: set[tuple[int, int]]) -> bool:
    """Whether two of these can still be linked."""
    ends = sorted(set(stubs))
    return any((one, other) not in links for at, one in enumerate(ends) for other in ends[at + 1 :])


def matching(graph: Graph, seed: int, round: int) -> list[tuple[int, int]]:
    """Pairs of neighbours at random, nobody in two of them, and no two left who could be one."""
    free = [True] * len(graph)
    found = []
    for one in seeds.rng(seed, "matching", round).permutation(len(graph)).tolist():
        if free[one]:
            others = [other for other in graph[one] if free[other]]
            if others:
                other = others[int(seeds.rng(seed, "matching partner", round, one).integers(len(others)))]
                free[one] = free[other] = False
                found.append((min(one, other), max(one, other)))
    return sorted(found)


def components(graph: Graph) -> list[list[int]]:
    """The parts between which there is no link, each ascending."""
    seen, found = [False] * len(graph), []
    for start in range(len(graph)):
        if not seen[start]:
            seen[start], part = True, [start]
            for one in part:
                for other in graph[one]:
                    if not seen[other]:
                        seen[other] = True
                        part.append(other)
            found.append(sorted(part))
    return found


def connected(graph: Graph) -> bool:
    """Whether there is a way from everybody to everybody."""
    return len(components(graph)) <= 1


# --- weights --------------------------------------------------------------------------------------------------------


def metropolis(graph: Graph) -> Weights:
    """Metropolis-Hastings weights, doubly stochastic and symmetric: W_ij = 1 / (1 + max(degree i, degree j))."""
    rows = []
    for one, others in enumerate(graph):
        most = [max(len(others), len(graph[other])) for other in others]
        alike = all(degree == len(others) for degree in most)
        weights = [1 / (1 + degree) for degree in most]
        mine = 1 / (1 + len(others)) if alike else 1 - sum(weights)
        rows.append(([one, *others], [mine, *weights]))
    return Weights.of(rows)


def by_degree(sends: Graph) -> Weights:
    """Column-stochastic weights where links go one way: who sends to d others gives each 1 / (1 + d), and keeps one.

    `sends` lists to whom each peer sends.
    """
    rows: list[tuple[list[int], list[float]]] = [([one], [1 / (1 + len(to))]) for one, to in enumerate(sends)]
    for one, to in enumerate(sends):
        for other in to:
            rows[other][0].append(one)
            rows[other][1].append(1 / (1 + len(to)))
    return Weights.of(rows)


def by_links(sends: Graph) -> Weights:
    """Row-stochastic weights where links go one way: what is heard and the peer's own count alike."""
    hears: list[list[int]] = [[one] for one in range(len(sends))]
    for one, to in enumerate(sends):
        for other in to:
            hears[other].append(one)
    return Weights.of((whose, [1 / len(whose)] * len(whose)) for whose in hears)
