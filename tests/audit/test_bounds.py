"""Lower bounds on epsilon: exact where they can be, and sound."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from atoll.audit import epsilon_lower
from atoll.audit.bounds import tails


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 300), chance=st.floats(0.01, 0.99))
def test_tails_are_those_of_the_binomial(count: int, chance: float) -> None:
    exact = stats.binom.sf([v - 1 for v in range(count + 1)], count, chance)
    assert tails(count, chance) == pytest.approx(exact, rel=1e-8, abs=1e-30)


@pytest.mark.parametrize(("guesses", "right"), [(10, 9), (100, 100), (100, 80), (80, 79), (64, 40)])
def test_without_delta_it_is_the_bound_of_clopper_and_pearson(guesses: int, right: int) -> None:
    accuracy = stats.beta.ppf(0.05, right, guesses - right + 1)
    assert epsilon_lower(200, guesses, right) == pytest.approx(math.log(accuracy / (1 - accuracy)), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(epsilon=st.floats(0.05, 4), guesses=st.integers(4, 60))
def test_the_bound_is_wrong_in_no_more_than_five_percent(epsilon: float, guesses: int) -> None:
    """Of the worst mechanism that is epsilon private, randomised response, exactly: no draws."""
    accuracy = 1 / (1 + math.exp(-epsilon))
    chances = stats.binom.pmf(range(guesses + 1), guesses, accuracy)
    wrong = sum(p for v, p in enumerate(chances) if epsilon_lower(guesses, guesses, v) > epsilon)
    assert wrong <= 0.05 + 1e-9


def test_a_delta_and_wrong_guesses_lower_it() -> None:
    bounds = [epsilon_lower(200, 100, 95, delta=delta) for delta in (0.0, 1e-5, 1e-3, 0.1)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == 0.0 < bounds[2] < bounds[0]
    assert epsilon_lower(200, 100, 50) == epsilon_lower(200, 100, 0) == 0.0
