"""TiFL: tiers of clients of one speed, their credits and their probabilities."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from atoll.rounds.choosing import TiFL
from atoll.tensors import Record

from .choosing import ask, learned, played, seconds

SLOW = lambda clients: np.asarray(clients) + 1.0  # noqa: E731  tiers of 20: 0-4, 5-9, ...


def tier_of(clients: list[int]) -> int:
    (tier,) = {k // 5 for k in clients}
    return tier


def test_tiers_are_equally_large_and_sorted_by_seconds() -> None:
    kind = TiFL(3)
    state = kind.draw(kind.begin(20), ask()).state
    assert torch.bincount(state.tier).tolist() == [6, 7, 7]
    tier = state.tier.numpy()
    for k in range(2):
        assert seconds(np.flatnonzero(tier == k)).max() <= seconds(np.flatnonzero(tier == k + 1)).min()


def test_a_round_is_one_tiers_and_every_member_of_it_has_the_same_chance() -> None:
    kind = TiFL(4)
    state = kind.draw(kind.begin(20), ask(duration=SLOW)).state
    cohorts = [kind.draw(state, ask(number, count=2, duration=SLOW)).clients for number in range(1, 801)]
    tiers, clients = Counter(map(tier_of, cohorts)), Counter(k for each in cohorts for k in each)
    assert all(abs(tiers[t] - 200) < 5 * (200 * 0.75) ** 0.5 for t in range(4))
    assert all(abs(clients[k] - 80) < 5 * 80**0.5 for k in range(20))


def test_a_tier_with_too_few_is_filled_from_faster_ones_first() -> None:
    kind = TiFL(4)
    state = kind.begin(20).replace(chance=torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64))
    away = [10, 11, 12, 5, 6]
    drawn = kind.draw(state, ask(duration=SLOW, away=away)).clients
    assert drawn == [7, 8, 9, 13, 14]
    drawn = kind.draw(state, ask(duration=SLOW, away=[*range(13)])).clients
    assert drawn[:2] == [13, 14] and len(drawn) == 5


def test_who_comes_later_goes_where_its_seconds_belong() -> None:
    kind = TiFL(2)
    early = np.array([0, 1, 2, 10, 11, 12])
    state = kind.draw(kind.begin(20), ask(present=early, duration=SLOW)).state
    assert state.tier[early].tolist() == [0, 0, 0, 1, 1, 1] and int((state.tier < 0).sum()) == 14
    state = kind.draw(state, ask(2, duration=SLOW)).state
    assert state.tier.tolist() == [0] * 10 + [1] * 10
    fewer = TiFL(5).draw(TiFL(5).begin(20), ask(present=np.array([4, 7]), duration=SLOW))
    assert fewer.clients == [4, 7]


def test_credits_are_spent_and_given_anew() -> None:
    kind = TiFL(4, credits=3)
    state, tiers = kind.begin(20), []
    for number in range(1, 25):
        drawn = kind.draw(state, ask(number, count=2, duration=SLOW))
        state = drawn.state
        tiers.append(tier_of(drawn.clients))
    for start in (0, 12):  # every tier three times in twelve rounds
        assert Counter(tiers[start : start + 12]) == dict.fromkeys(range(4), 3)


def told(kind: TiFL, state: Record, number: int, accuracy: Any = None, loss: Any = 1.0) -> Record:
    return kind.learn(state, learned(number, [0, 1], loss, accuracy=accuracy))


def test_probabilities_follow_the_accuracy_of_tiers_every_few_rounds() -> None:
    kind = TiFL(4, every=2)
    state = kind.draw(kind.begin(20), ask(duration=SLOW)).state
    by_client = {k: (0.8, 0.4, 0.4, 0.2)[k // 5] + (0.05 if k % 2 else -0.05) for k in range(20) if k % 5 < 4}
    state = told(kind, state, 1, by_client)
    assert state.chance.tolist() == [0.25] * 4
    state = told(kind, state, 2)  # nothing new: the last accuracies count, and not the loss
    weights = np.array([1 / 0.8, 1 / 0.4, 1 / 0.4, 1 / 0.2])
    assert np.allclose(state.chance.numpy(), weights / weights.sum())


def test_probabilities_stay_while_the_tier_drawn_last_gets_better() -> None:
    kind = TiFL(2, every=1)
    state = kind.draw(kind.begin(20), ask(duration=SLOW)).state.replace(current=0)
    accuracy = lambda fast, slow: {0: fast, 19: slow}  # noqa: E731
    first = told(kind, state, 1, accuracy(0.5, 0.5))
    assert first.chance.tolist() == [0.5, 0.5]
    better = told(kind, first, 2, accuracy(0.6, 0.2))
    assert better.chance.tolist() == [0.5, 0.5]
    flat = told(kind, better, 3, accuracy(0.6, 0.2))
    assert np.allclose(flat.chance.numpy(), [0.25, 0.75])


def test_without_accuracies_losses_count_and_an_unknown_tier_is_the_worst() -> None:
    kind = TiFL(4, every=1)
    state = kind.draw(kind.begin(20), ask(duration=SLOW)).state.replace(current=0)
    state = kind.learn(state, learned(1, [0, 1, 5], [1.0, 3.0, 4.0]))
    assert np.allclose(state.chance.numpy(), np.array([2, 4, 4, 4]) / 14)


def test_a_tier_without_any_loss_is_still_drawn_when_it_alone_has_credits() -> None:
    kind = TiFL(2, credits=1, every=1)
    state = kind.draw(kind.begin(20), ask(duration=SLOW)).state
    state = kind.learn(state.replace(current=0), learned(1, [0, 19], [0.0, 1.0]))
    state = state.replace(credits=torch.tensor([1, 0]))
    assert max(kind.draw(state, ask(2, duration=SLOW)).clients) < 10


@pytest.mark.parametrize("rounds", [1, 40])
def test_one_tier_learns_nothing_and_asks_for_no_seconds(rounds: int) -> None:
    def never(clients: Any) -> Any:
        raise AssertionError

    state = played(TiFL(1), rounds, duration=never)[0]
    assert state.rounds == 0 and state.tier.numel() == 0
