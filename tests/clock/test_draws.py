"""Numbers by address: those of a plain loop, whatever is asked together, and as random as they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.clock import draws

MASK = (1 << 64) - 1
CLIENTS = np.arange(100_000)


def mixed(h: int) -> int:
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK
    return h ^ (h >> 31)


def by_hand(stream: int, client: int, nth: int) -> float:
    """The slow twin: one number, in Python's whole numbers."""
    h = mixed((client * 0x9E3779B97F4A7C15 + stream) & MASK)
    h = mixed((h + (nth + 1) * 0xD1B54A32D192ED03) & MASK)
    return ((h >> 12) + 0.5) / 2**52


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 2**31)
)
def test_each_number_is_that_of_a_loop(stream: int, clients: list[int], nth: int) -> None:
    found = draws.uniform(stream, np.array(clients), nth)
    assert found.tolist() == [by_hand(stream, client, nth) for client in clients]
    assert ((found > 0) & (found < 1)).all()


def test_the_first_splitmix_number_is_the_published_one() -> None:
    """SplitMix64 seeded with 0 begins with 0xE220A8397B1DCDAF: the finaliser of its step."""
    step = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)
    assert int(draws._mixed(step)[0]) == 0xE220A8397B1DCDAF


def test_any_clients_in_any_order_get_what_all_get() -> None:
    stream = draws.start(3, "test", 5)
    some = np.random.default_rng(0).permutation(CLIENTS)[:500]
    for draw in (draws.uniform, draws.normal, draws.exponential):
        assert (draw(stream, some, 7) == draw(stream, CLIENTS, 7)[some]).all()
    counts = np.arange(4)
    table = draws.uniform(stream, some[:, None], counts[None])
    assert all((table[:, n] == draws.uniform(stream, some, n)).all() for n in counts)
    assert draws.uniform(stream, some[:0]).shape == (0,)


def distance(sample: np.ndarray, cdf: np.ndarray) -> float:
    """Kolmogorov's, times the root of the number of samples: above 1.95 once in a thousand times."""
    n = len(sample)
    return math.sqrt(n) * max((np.arange(1, n + 1) / n - cdf).max(), (cdf - np.arange(n) / n).max())


@pytest.mark.parametrize("seed", range(3))
def test_numbers_have_their_distributions(seed: int) -> None:
    stream = draws.start(seed, "test")
    uniform, normal, exponential = (
        np.sort(draw(stream, CLIENTS)) for draw in (draws.uniform, draws.normal, draws.exponential)
    )
    assert distance(uniform, uniform) < 1.95
    assert distance(normal, np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in normal])) < 1.95
    assert distance(exponential, -np.expm1(-exponential)) < 1.95
    over = np.sort(draws.uniform(stream, np.zeros(1, dtype=np.int64), CLIENTS))  # one client's, by count
    assert distance(over, over) < 1.95


def test_streams_clients_and_counts_are_independent() -> None:
    columns = [
        draws.uniform(draws.start(seed, purpose, number), CLIENTS + shift, nth)
        for seed, purpose, number, shift, nth in (
            (0, "a", 0, 0, 0), (1, "a", 0, 0, 0), (0, "b", 0, 0, 0), (0, "a", 1, 0, 0), (0, "a", 0, 1, 0),
            (0, "a", 0, 0, 1), (0, "a", 0, 0, 2), (0, "a", 0, 0, 1 << 20),
        )
    ]  # fmt: skip
    between = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(between).max() < 4.5 / math.sqrt(len(CLIENTS))
    pairs = np.histogram2d(columns[0], columns[4], bins=16, range=[[0, 1], [0, 1]])[0]  # neighbours
    expected = len(CLIENTS) / 256
    assert (
        (pairs - expected) ** 2 / expected
    ).sum() < 340  # chi squared, 255 degrees: mean 255, deviation 22.6
