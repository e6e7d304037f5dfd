"""How often whom: draws of clients against the probabilities that they are to have."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.rounds.choosing import Choice, Importance, Power, choice
from atoll.rounds.choosing.drawing import first
from atoll.tensors import Record

from .choosing import ask, learned, played, sizes


def counted(kind: Choice, draws: int, state: Record, **more: Any) -> Counter[tuple[int, ...]]:
    return Counter(tuple(kind.draw(state, ask(number, **more)).clients) for number in range(1, draws + 1))


def close(found: Counter[tuple[int, ...]], due: dict[tuple[int, ...], float]) -> None:
    """Pearson's statistic is below its mean and five standard deviations."""
    draws = sum(found.values())
    assert set(found) <= set(due)
    statistic = sum((found[key] - draws * p) ** 2 / (draws * p) for key, p in due.items())
    freedom = len(due) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def successive(weights: dict[int, float], count: int) -> dict[tuple[int, ...], float]:
    """The probability of each set, where one after the other is drawn in proportion to its weight."""
    due: Counter[tuple[int, ...]] = Counter()
    for order in permutations(weights, count):
        left, chance = sum(weights.values()), 1.0
        for k in order:
            chance, left = chance * weights[k] / left, left - weights[k]
        due[tuple(sorted(order))] += chance  # type: ignore[assignment]
    return dict(due)


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.booleans()), max_size=60), st.integers(0, 12), st.integers(0, 9)
)
def test_the_first_that_are_there_as_a_full_sort_has_them(
    given_: list[tuple[float, bool]], count: int, shift: int
) -> None:
    keys = np.array([key + 1e-6 * at for at, (key, _) in enumerate(given_)], float)
    clients, here = np.arange(len(keys)) + shift, np.array([there for _, there in given_], bool)
    due = [k for k in sorted(clients, key=lambda k: keys[k - shift]) if here[k - shift]][:count]
    assert first(clients, keys, count, lambda k: here[k - shift]).tolist() == due


@pytest.mark.parametrize("present", [20, np.array([1, 2, 4, 5, 7, 9, 10, 16])], ids=["number", "array"])
def test_uniform_prefers_nobody_where_some_are_away(present: Any) -> None:
    """Two of five are there: first draws are often too small, and larger ones follow."""
    here = [2, 5, 9, 10, 16]
    away = [k for k in range(20) if k not in here]
    found = counted(choice("uniform"), 1500, Record(), present=present, away=away, count=2)
    close(found, successive(dict.fromkeys(here, 1.0), 2))


@pytest.mark.parametrize("text", ["weighted", "weighted:20", "power:2"])
@pytest.mark.parametrize("present", [20, np.array([0, 1, 5, 6, 13, 14, 18])], ids=["number", "array"])
def test_weighted_is_successive_sampling_by_size_lazy_or_not(text: str, present: Any) -> None:
    here = [0, 5, 6, 13, 14]
    away = [k for k in range(20) if k not in here]
    kind = choice(text)
    found = counted(kind, 1500, kind.begin(20), present=present, away=away, count=2)
    close(found, successive({k: float(sizes(k)) for k in here}, 2))


def test_a_lazy_draw_of_nearly_all_has_the_same_chances() -> None:
    """Proposals run out, and the rest are drawn by a race: four of five, one of which is tiny."""
    size = lambda clients: np.array([1, 1, 40, 40, 40])[clients]  # noqa: E731
    found = counted(choice("weighted:1000"), 1500, Record(), present=5, count=4, size=size)
    close(found, successive(dict(enumerate((1.0, 1.0, 40.0, 40.0, 40.0))), 4))


# --- power ------------------------------------------------------------------------------------------------------------


def test_power_with_as_many_candidates_as_are_asked_is_weighted() -> None:
    state = played(Power(5), 3)[0]
    for number in range(1, 30):
        assert (
            Power(5).draw(state, ask(number)).clients
            == choice("weighted").draw(Record(), ask(number)).clients
        )


def test_power_with_everybody_as_candidates_asks_the_largest_losses() -> None:
    kind = Power(20)
    state = kind.learn(kind.begin(20), learned(1, range(20), np.arange(20) * 7 % 20))
    assert kind.draw(state, ask(2)).clients == sorted(sorted(range(20), key=lambda k: k * 7 % 20)[-5:])
    away = [k for k in range(20) if k * 7 % 20 > 17]
    due = sorted(sorted(range(20), key=lambda k: k * 7 % 20)[-7:-2])
    assert kind.draw(state, ask(2, away=away)).clients == due


def test_power_asks_those_it_knows_nothing_of_before_the_largest_loss() -> None:
    kind = Power(20)
    state = kind.learn(kind.begin(20), learned(1, [k for k in range(20) if k not in (3, 11)], 1e9))
    for number in range(2, 9):
        assert {3, 11} < set(kind.draw(state, ask(number)).clients)
    close(
        Counter(
            (k,)
            for number in range(1000)
            for k in kind.draw(kind.begin(20), ask(number + 1, count=2)).clients
        ),
        {(k,): 1 / 20 for k in range(20)},  # all unknown: by chance, not by size
    )


# --- importance -------------------------------------------------------------------------------------------------------

CHANGES = np.array([[1.0, -2.0], [0.3, 0.1], [5.0, 0.0], [-1.0, 4.0], [0.0, 0.0], [2.0, 2.0], [9.0, -7.0]])
SIZES = np.array([1, 8, 2, 5, 3, 0, 4])
LOSSES = np.array([0.1, 2.0, 9.0, 0.5, 0.0, 1.0, np.nan])


def estimates(kind: Importance, state: Record, draws: int, **more: Any) -> Any:
    found = []
    for number in range(1, draws + 1):
        drawn = kind.draw(state, ask(number, present=7, count=4, size=lambda k: SIZES[k], **more))
        assert drawn.factors is not None
        found.append(sum(drawn.factors[k] * CHANGES[k] for k in drawn.clients) / len(drawn.clients))
    return np.array(found)


@pytest.mark.parametrize(("even", "away"), [(0.1, ()), (0.5, (0, 3))])
def test_importance_estimates_the_mean_of_all_that_are_there(even: float, away: tuple[int, ...]) -> None:
    """Within four standard errors of 10,000 rounds, whatever losses say, one of them unknown and one 0."""
    kind = Importance(even)
    state = kind.begin(7).replace(loss=torch.from_numpy(LOSSES))
    share = np.where(np.isin(np.arange(7), away), 0, SIZES)
    due = share @ CHANGES / share.sum()
    found = estimates(kind, state, 10_000, away=away)
    error = found.std(0) / 100
    assert (np.abs(found.mean(0) - due) < 4 * error).all()
    assert (np.abs(due) > 8 * error).any()  # and 0 would not do


def test_importance_by_size_alone_has_factors_with_the_mean_one() -> None:
    kind = Importance(1.0)
    state = kind.begin(7).replace(loss=torch.from_numpy(LOSSES))
    for number in range(1, 50):
        drawn = kind.draw(state, ask(number, present=7, count=4, size=lambda k: SIZES[k]))
        factors = np.array([*(drawn.factors or {}).values()])
        times = factors * 4 / len(factors)  # how often each was drawn
        assert np.allclose(times, np.round(times)) and round(times.sum()) == 4


def test_importance_is_steadier_where_losses_tell_how_large_changes_are() -> None:
    losses = (CHANGES**2).sum(1)
    kind, even = Importance(), Importance(1.0)
    state = kind.begin(7).replace(loss=torch.from_numpy(losses))
    assert estimates(kind, state, 1000).var(0).sum() < 0.8 * estimates(even, state, 1000).var(0).sum()


def test_importance_with_nothing_but_zeros_goes_by_size() -> None:
    share = np.array([0.25, 0.75])
    assert Importance().chances(share, np.zeros(2)).tolist() == [0.25, 0.75]
    assert np.allclose(Importance().chances(share, np.full(2, np.nan)), share)
    assert np.allclose(Importance(0.5).chances(np.full(2, 0.5), np.array([9.0, 1.0])), [0.625, 0.375])


# --- fair -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 7, 19])
def test_fair_asks_nobody_twice_more_than_somebody_else(count: int) -> None:
    kind = choice("fair")
    state = kind.begin(20)
    for number in range(1, 60):
        state = kind.draw(state, ask(number, count=count)).state
        asked = state.asked
        assert int(asked.sum()) == number * count and int(asked.max() - asked.min()) <= 1


def test_fair_counts_further_draws_of_a_round_and_orders_every_time_anew() -> None:
    kind = choice("fair")
    state, order = kind.begin(6), []
    for nth in range(12):
        drawn = kind.draw(state, ask(1, nth=nth, present=6, count=1))
        state = drawn.state
        order += drawn.clients
    assert sorted(order[:6]) == sorted(order[6:]) == [*range(6)] and order[:6] != order[6:]


def test_fair_asks_those_that_were_away_when_they_are_back() -> None:
    kind = choice("fair")
    state = kind.begin(8)
    for number in range(1, 5):
        state = kind.draw(state, ask(number, present=8, count=3, away=[2, 5])).state
    assert {2, 5} < set(kind.draw(state, ask(5, present=8, count=3)).clients)
