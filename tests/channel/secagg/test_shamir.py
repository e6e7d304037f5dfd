"""Secret sharing: any t shares give the secret, fewer say nothing, and the arithmetic is that of the book."""

from __future__ import annotations

import secrets
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.channel.secagg.shamir import P, below, combine, lagrange, split
from atoll.errors import ConfigError


def test_p_is_prime_and_fits() -> None:
    assert P == 2**256 - 189
    assert all(pow(a, P - 1, P) == 1 for a in (2, 3, 5, 7, 11, 13))  # Fermat


def test_shares_by_hand() -> None:
    """f(x) = 5 x^2 + 3 x + 42."""
    draws = iter([5, 3])
    shares = split(42, 3, 4, lambda n: next(draws).to_bytes(n, "big"))
    assert shares == [50, 68, 96, 134]
    assert lagrange((1, 2, 3)) == (3, P - 3, 1)
    assert combine({1: 50, 2: 68, 3: 96}) == combine([(4, 134), (1, 50), (3, 96)]) == 42


@given(st.integers(0, P - 1), st.data())
def test_any_threshold_of_shares_give_the_secret(secret: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    threshold = data.draw(st.integers(1, count))
    shares = split(secret, threshold, count, secrets.token_bytes)
    some = data.draw(st.permutations(range(1, count + 1)))[:threshold]
    assert combine({x: shares[x - 1] for x in some}) == secret


def test_fewer_shares_say_nothing() -> None:
    """With t - 1 shares every secret is possible: for each there is a last share that gives it."""
    shares = split(7, 3, 5, secrets.token_bytes)
    for pair in combinations(range(1, 6), 2):
        rest = next(x for x in range(1, 6) if x not in pair)
        weights = dict(zip(sorted((*pair, rest)), lagrange(tuple(sorted((*pair, rest)))), strict=True))
        known = sum(weights[x] * shares[x - 1] for x in pair)
        for other in (0, 8, P - 1):
            last = (other - known) * pow(weights[rest], -1, P) % P
            assert combine({**{x: shares[x - 1] for x in pair}, rest: last}) == other
    assert combine({1: shares[0], 2: shares[1]}) != 7


def test_coefficients_are_drawn_until_they_are_below_p() -> None:
    draws = iter([P.to_bytes(32, "big"), (2**256 - 1).to_bytes(32, "big"), (P - 1).to_bytes(32, "big")])
    assert below(lambda n: next(draws)) == P - 1


@pytest.mark.parametrize(("secret", "threshold", "count"), [(P, 2, 3), (-1, 2, 3), (1, 4, 3), (1, 0, 3)])
def test_what_cannot_be_shared(secret: int, threshold: int, count: int) -> None:
    with pytest.raises(ConfigError, match="cannot share"):
        split(secret, threshold, count, secrets.token_bytes)


@pytest.mark.parametrize("xs", [(), (0, 1), (1, 1)])
def test_numbers_of_shares(xs: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="different numbers"):
        lagrange(xs)
