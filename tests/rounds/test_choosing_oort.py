"""Oort: its figures by hand, what its pacer does, and two bugs of the code that it comes with."""

from __future__ import annotations

from collections import Counter
from math import log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.rounds.choosing import Oort
from atoll.rounds.choosing.oort import admitted, at_share, paced
from atoll.tensors import Record

from .choosing import ask, learned, played


def taught(kind: Oort, utilities: list[float], seconds: float = 1.0, number: int = 1) -> Record:
    """A state in which the first clients have these utilities: samples times a loss that all samples have."""
    k = len(utilities)
    state = kind.draw(kind.begin(20), ask(number, duration=lambda c: np.full(len(c), seconds))).state
    news = learned(number, range(k), utilities, samples=np.ones(k, np.int64), seconds=np.full(k, seconds))
    return kind.learn(state, news)


# --- the two bugs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("population", [7, 10, 11, 20])
def test_a_blacklist_that_is_too_long_is_cut_at_a_whole_client(population: int) -> None:
    """FedScale slices it with 0.3 times the number of clients, which is no index."""
    kind = Oort(blacklist=1)
    state = kind.begin(population)
    asked = torch.arange(population) // 2  # all but four were asked more than once
    barred = kind.barred(state.replace(asked=asked))
    assert barred.tolist() == sorted(barred, key=lambda k: (-int(asked[k]), k))
    assert len(barred) == int(0.3 * population) < int((asked > 1).sum())
    assert min(asked[barred]) >= max(np.delete(asked.numpy(), barred))  # those asked most
    drawn = kind.draw(state.replace(asked=asked), ask(9, present=population, count=4))
    assert not {*drawn.clients} & {*barred.tolist()}


def test_a_cohort_may_take_all_clients_that_are_explored() -> None:
    """FedScale looks for the score of one more, beyond the end of the list."""
    kind = Oort(exploration=0.0)
    state = taught(kind, [3.0, 2.0, 1.0, 4.0, 5.0])
    assert kind.draw(state, ask(2, count=5)).clients == [0, 1, 2, 3, 4]
    assert kind.draw(state, ask(2, count=5, away=[1])).clients[:4] == [0, 2, 3, 4]
    assert {0, 1, 2, 3, 4} < {*kind.draw(state, ask(2, count=9)).clients}
    assert admitted(np.array([5.0, 0.1, 1.0]), 3).all()


@given(st.lists(st.floats(1e-9, 1e6), max_size=30), st.integers(0, 30))
def test_at_least_as_many_compete_as_there_are_places(scores: list[float], places: int) -> None:
    places = min(places, len(scores))
    assert int(admitted(np.array(scores), places).sum()) >= places


# --- utilities and scores ---------------------------------------------------------------------------------------------


def test_utility_is_of_the_samples_and_the_mean_square_of_their_losses() -> None:
    kind = Oort()
    news = learned(
        4,
        [2, 3, 5, 7],
        [1.0, 2.0, 2.0, np.nan],
        samples=np.array([10, 10, 10, 10]),
        squares=np.array([9.0, np.nan, 4.0, 4.0]),
        answered=np.array([True, True, False, True]),
        seconds=np.array([1.5, np.nan, 2.5, np.inf]),
    )
    state = kind.learn(kind.begin(8), news)
    assert torch.nan_to_num(state.utility, -1).tolist() == [-1, -1, 30, 20, -1, -1, -1, -1]
    assert state.seen.tolist() == [0, 0, 4, 4, 0, 0, 0, 0]
    assert state.asked.tolist() == [0, 0, 1, 1, 0, 1, 0, 1]
    assert torch.nan_to_num(state.seconds, -1).tolist() == [-1, -1, 1.5, -1, -1, 2.5, -1, -1]


def test_scores_by_hand() -> None:
    """Ten clients: the ninth utility is the clip, half of T is a quarter of the score."""
    kind = Oort(threshold=50)
    utility = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100])
    seen = np.array([1, 2, 3, 4, 4, 4, 4, 4, 4, 4])
    seconds = np.array([1.0, 1, 1, 1, 1, 2, 2, 4, 4, 4])
    state = kind.begin(10).replace(
        utility=torch.from_numpy(utility), seen=torch.from_numpy(seen), seconds=torch.from_numpy(seconds)
    )
    assert kind.limit(state) == 2.0
    found = kind.scores(state, np.arange(10), 5)
    for k in range(10):
        due = (utility[k] - 0.999) / (100 - 0.999) + sqrt(0.1 * log(5) / seen[k])
        assert found[k] == pytest.approx(due * (0.25 if seconds[k] == 4 else 1.0))
    clipped = kind.scores(
        state, np.arange(9), 5
    )  # of 1 to 9, the quantile is 9; with one more 9 it would be 100
    assert clipped[8] == pytest.approx((1 + sqrt(0.1 * log(5) / 4)) / 4)
    many = kind.begin(20).replace(
        utility=torch.cat([torch.ones(17), torch.tensor([5.0, 7.0, 9.0])]).double(),
        seen=torch.ones(20, dtype=torch.int64),
        seconds=torch.ones(20).double(),
    )
    top = kind.scores(many, np.arange(20), 1)
    assert top[19] == top[18] == pytest.approx((7 - 0.999) / (9 - 0.999))  # clipped at the 0.9 quantile


def test_alpha_zero_and_the_hundredth_percentile_penalise_nobody() -> None:
    seconds = torch.arange(1.0, 21.0).double()
    for kind in (Oort(alpha=0.0), Oort(threshold=100)):
        state = taught(kind, [2.0] * 20).replace(seconds=seconds)
        assert np.ptp(kind.scores(state, np.arange(20), 3)) == 0
    kind = Oort()
    state = taught(kind, [2.0] * 20).replace(seconds=seconds)
    assert kind.scores(state, np.arange(20), 3)[19] == pytest.approx(
        kind.scores(state, np.arange(20), 3)[0] * (7 / 20) ** 2
    )


def test_shares_of_a_list() -> None:
    values = np.array([3.0, 1, 2, 5, 4])
    assert [at_share(values, share) for share in (0.0, 0.2, 0.39, 0.9, 1.0)] == [1, 2, 2, 5, 5]


# --- who is asked -----------------------------------------------------------------------------------------------------


def test_exploited_clients_are_drawn_in_proportion_to_their_scores() -> None:
    """One place, no penalty; the last client is below 5 % of the score of the first that gets none."""
    kind = Oort(exploration=0.0)
    state = taught(kind, [10.0, 6.0, 2.0, 0.001])
    draws = 1500
    found = Counter(kind.draw(state, ask(1, nth=nth, count=1)).clients[0] for nth in range(draws))
    score = kind.scores(state, np.arange(4), 1)
    assert score[3] < 0.05 * score[1]
    for k in range(4):
        due = 0 if k == 3 else draws * score[k] / score[:3].sum()
        assert abs(found[k] - due) <= 5 * sqrt(due)


def test_a_share_of_the_cohort_is_new_and_it_shrinks() -> None:
    kind = Oort()
    assert kind.explored(1) == pytest.approx(0.9 * 0.98)
    assert kind.explored(54) > 0.3 == kind.explored(55)
    assert Oort(exploration=0.1).explored(99) == pytest.approx(0.1)
    state = taught(kind, [1.0] * 10)
    for number, share in ((1, 0.882), (60, 0.3)):
        new = [
            sum(k >= 10 for k in kind.draw(state, ask(number, nth=n, count=5)).clients) for n in range(300)
        ]
        assert abs(np.mean(new) / 5 - share) < 5 * 0.5 / 5 / 300**0.5
        assert {*new} <= {int(5 * share), int(5 * share) + 1}  # rounded by chance
        one = [kind.draw(state, ask(number, nth=n, count=1)).clients[0] >= 10 for n in range(300)]
        assert abs(np.mean(one) - share) < 5 * 0.5 / 300**0.5


def test_new_clients_are_drawn_by_their_speed() -> None:
    kind = Oort()
    slow = lambda clients: np.where(clients < 10, 1.0, 4.0)  # noqa: E731
    state = kind.begin(20)
    found = [kind.draw(state, ask(1, nth=nth, count=1, duration=slow)).clients[0] < 10 for nth in range(1000)]
    assert abs(np.mean(found) - 0.8) < 5 * 0.4 / 1000**0.5
    never = lambda clients: np.where(clients < 10, 1.0, np.inf)  # noqa: E731
    assert max(kind.draw(state, ask(count=10, duration=never)).clients) == 9
    assert len(kind.draw(state, ask(count=12, duration=never)).clients) == 12


def test_all_places_go_to_known_clients_where_no_new_one_is_there() -> None:
    kind = Oort()
    state = taught(kind, [1.0] * 10)
    assert max(kind.draw(state, ask(2, away=[*range(10, 20)])).clients) < 10


def test_clients_asked_too_often_are_the_last() -> None:
    kind = Oort(blacklist=2)
    state = kind.begin(10).replace(asked=torch.tensor([3, 0, 0, 9, 0, 0, 1, 2, 0, 5]))
    assert kind.barred(state).tolist() == [3, 9, 0]
    for number in range(1, 20):
        drawn = kind.draw(state, ask(number, present=10, count=8)).clients
        assert len({*drawn} & {0, 3, 9}) == 1 and {1, 2, 4, 5, 6, 7, 8} < {*drawn}
        endless = ask(number, present=10, count=5, duration=lambda clients: np.full(len(clients), np.inf))
        assert not {*kind.draw(state, endless).clients} & {0, 3, 9}  # who is never done comes before them


def test_expected_seconds_are_asked_once_and_measured_ones_count() -> None:
    kind = Oort()
    looked = []

    def expected(clients: np.ndarray) -> np.ndarray:
        looked.extend(clients.tolist())
        return np.full(len(clients), 9.0)

    state = played(kind, 6, duration=expected)[0]
    assert sorted(looked) == [*range(20)]
    asked = np.flatnonzero(state.asked.numpy())
    assert (state.seconds.numpy()[asked] == 1.0 + (asked * 7) % 11).all()


# --- the pacer --------------------------------------------------------------------------------------------------------


def test_the_pacer_welcomes_slower_clients_where_utilities_are_flat() -> None:
    flat, rising = np.ones(40), np.r_[np.ones(20), np.full(20, 1.11)]
    assert [paced(30.0, flat, rounds) for rounds in (20, 39, 40, 41, 60)] == [30, 30, 35, 30, 35]
    assert paced(30.0, rising, 40) == 30 and paced(30.0, 1.09 * flat, 40) == 35
    assert paced(98.0, flat, 40) == 100


def test_the_pacer_looks_at_clients_whose_utility_was_known() -> None:
    kind = Oort()
    state = taught(kind, [4.0, 6.0])
    assert float(state.gained[-1]) == 0.0  # both were explored
    ones = np.ones(3, np.int64)
    state = kind.learn(state, learned(2, [0, 1, 2], [3.0, 5.0, 90.0], samples=ones))
    assert float(state.gained[-1]) == 4.0 and state.gained.shape == (40,)
    for number in range(3, 62):
        state = kind.learn(state, learned(number, [0, 1], 2.0))
    assert state.rounds == 61 and state.threshold == 40.0  # after rounds 40 and 60
