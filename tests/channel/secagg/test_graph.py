"""The graph, and how many neighbours are enough."""

from __future__ import annotations

import math

import pytest
from scipy.stats import hypergeom

from atoll.channel.secagg import Graph, plan
from atoll.channel.secagg.graph import regular
from atoll.errors import ConfigError

BEACON = bytes(range(32))

TABLE = {  # the smallest degree and threshold for gamma = delta, by number of clients
    0.05: {50: (6, 3), 100: (12, 6), 500: (30, 16), 1000: (34, 18), 10_000: (38, 21), 100_000: (40, 22)},
    0.10: {50: (12, 6), 100: (22, 11), 500: (46, 25), 1000: (52, 28), 10_000: (60, 32), 100_000: (64, 34)},
    0.20: {
        50: (22, 11),
        100: (42, 21),
        500: (96, 50),
        1000: (112, 58),
        10_000: (134, 70),
        100_000: (146, 76),
    },
}


@pytest.mark.parametrize("share", TABLE)
def test_the_table(share: float) -> None:
    assert {n: tuple(regular(n, share, share)) for n in TABLE[share]} == TABLE[share]


@pytest.mark.parametrize(
    ("n", "share", "active"), [(200, 0.05, False), (1000, 0.1, True), (700, 1 / 3, False)]
)
def test_a_plan_is_the_smallest_that_keeps_its_promises(n: int, share: float, active: bool) -> None:
    def promises(degree: int, threshold: int) -> bool:
        marked = math.floor(share * n)
        enough = hypergeom(n - 1, marked, degree)
        private = n * enough.sf(threshold - 1) < 2**-40
        return bool(private and n * enough.sf(degree - threshold) < 2**-30) and (
            not active or 3 * threshold > 2 * (degree + 1)
        )

    degree, threshold = plan(n, share, share, active)
    assert promises(degree, threshold) and not promises(degree, threshold - 1)
    assert not any(promises(degree - 2, t) for t in range(2, degree - 1))


@pytest.mark.parametrize("n", [3, 10, 33, 64])
@pytest.mark.parametrize("active", [False, True])
def test_small_cohorts_are_complete(n: int, active: bool) -> None:
    degree, threshold = plan(n, 0.2, 0.2, active)
    assert degree == n - 1 and math.floor(0.2 * n) < threshold <= n - math.floor(0.2 * n)
    assert not active or 3 * threshold > 2 * n


def test_what_has_no_plan() -> None:
    for arguments in (
        (10, 0.6, 0.6),
        (10, 0.1, 0.4, True),
        (200, 0.5, 0.5),
        (1, 0.1, 0.1),
        (9, 1.0, 0.0),
        (9, -0.1, 0),
    ):
        with pytest.raises(ConfigError, match=r"no plan|no threshold"):
            plan(*arguments)


@pytest.mark.parametrize(("n", "degree"), [(5, 4), (64, 63), (100, 12), (101, 30), (7, 2)])
def test_neighbours_are_mutual_and_as_many_as_the_degree(n: int, degree: int) -> None:
    graph = Graph(n, degree, BEACON)
    around = [graph.neighbours(client) for client in range(n)]
    for client in range(n):
        assert len(set(around[client])) == degree and client not in around[client]
        assert all(client in around[other] for other in around[client])
        assert graph.holders(client) == tuple(sorted((*around[client], client)))


def test_the_graph_follows_from_the_beacon_alone() -> None:
    first = [Graph(100, 12, BEACON).neighbours(k) for k in range(100)]
    assert first == [Graph(100, 12, BEACON).neighbours(k) for k in range(100)]
    assert first != [Graph(100, 12, bytes(32)).neighbours(k) for k in range(100)]
    assert first[0] == (
        8,
        34,
        38,
        39,
        47,
        51,
        75,
        81,
        84,
        88,
        91,
        98,
    )  # a vector: all clients must find the same


def test_every_pair_is_as_likely() -> None:
    """Client 0 meets each other one with probability k / (n - 1)."""
    met = [0] * 10
    for k in range(4000):
        for other in Graph(10, 4, k.to_bytes(32, "big")).neighbours(0):
            met[other] += 1
    spread = math.sqrt(4000 * 4 / 9 * 5 / 9)
    assert met[0] == 0 and all(abs(count - 4000 * 4 / 9) < 5 * spread for count in met[1:])


def test_losses_must_not_cut_the_circle() -> None:
    """Where nobody is corrupt two shares would do; but 60 of 200 lost cut the circle where neighbours are few."""
    degree, threshold = regular(200, 0.0, 0.3)
    assert (degree, threshold) == (28, 2)

    def cut(k: int) -> float:
        return 200 * 200 / 2 * math.comb(60, k) / math.comb(200, k)

    assert cut(degree) < 2**-40 < cut(degree - 2)
