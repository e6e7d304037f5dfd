"""Clients that arrive together, and clients that do less as they drift apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import atoll
from atoll.clock import Devices, Part
from atoll.contract import Outcome
from atoll.data import FederatedData
from atoll.errors import ConfigError
from atoll.rounds.adapting import Away, Seen, rule
from atoll.rounds.adapting.compass import Compass
from atoll.rounds.adapting.drift import Drift
from atoll.rounds.choosing import Learned
from atoll.rounds.outcomes import apart
from atoll.tensors import Record
from tests.rounds import small
from tests.rounds.small import model, of_digits

SLOW = "lognormal:1"


@dataclass(frozen=True, kw_only=True)
class Silent(atoll.FedAvg):
    """Does not say which of its fields is the update."""

    change = None


def split(clients: int) -> FederatedData:
    return atoll.data.load("digits").partition(atoll.data.IID(clients=clients), seed=0)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return split(40)


def played(data: FederatedData, **settings: Any) -> atoll.Federation:
    return small.played(
        of_digits(data, **{"rounds": 12, "lr": 0.1, "steps": 10, "batch_size": 2, **settings})
    )


# --- compass: three clients by hand -----------------------------------------------------------------------------------


class Three(Part):
    """A step of two samples takes 1, 2 and 5 seconds, and a message none."""

    says = ("speed", "download", "upload", "latency")

    def values(self, seed: int, clients: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        network = np.full(len(clients), 1e18)
        speed = 2 / np.array([1.0, 2.0, 5.0])[clients]
        return {"speed": speed, "download": network, "upload": network, "latency": np.zeros(len(clients))}


def three(pace: str, rounds: int, adaptive: str | None = "compass:0.2") -> atoll.Federation:
    devices = Devices("three", 0, [Three()])
    return played(
        split(3), devices=devices, pace=pace, concurrency=3, cohort=3, rounds=rounds, adaptive=adaptive
    )


def orders(run: atoll.Federation) -> list[tuple[int, int, int]]:
    """(second, client, steps) of every reply, in the order in which they were used."""
    rows = []
    for record in run.history:
        told = record.clients
        for at, client in enumerate(record.cohort):
            rows.append((round(told["done"][at], 6), client, round(told["samples"][at] / 2)))
    return rows


def test_three_clients_by_hand() -> None:
    """Ten steps planned, at least two; a step of the server for every reply."""
    assert sorted(orders(three("buffered:1", rounds=17))) == [
        *[(2, 0, 2), (4, 1, 2), (10, 2, 2)],  # each is measured with two steps
        # At 2 nobody's arrival can be told: 0 founds a group with all ten, for 12. At 4, 1 joins it: 8 s are 4 steps.
        # At 10 the 2 s to 12 are no step of 2's. 0 may be back at 12 + 10, which 2 meets up to a step: two of 5 s.
        *[(12, 0, 10), (12, 1, 4)],
        *[(20, 0, 8), (20, 1, 4), (20, 2, 2)],  # at 12 they join 2, and from 20 on all come together
        *[(at, *who) for at in (30, 40, 50) for who in ((0, 10), (1, 5), (2, 2))],
    ]


def test_a_buffer_of_all_waits_for_nobody_once_they_are_known() -> None:
    run, plain = three("buffered:3", rounds=3), three("buffered:3", rounds=3, adaptive=None)
    assert orders(run) == [(2, 0, 2), (4, 1, 2), (10, 2, 2)] + [
        (at, *who) for at in (20, 30) for who in ((0, 10), (1, 5), (2, 2))
    ]
    assert [r.clock.ended for r in plain.history if r.clock] == pytest.approx([50, 100, 150])


def test_a_new_group_meets_the_fastest_of_another_when_it_is_back() -> None:
    known, view = Compass(least=0.1), Seen(
        9, np.array([2]), np.zeros(1), np.zeros(1), np.array([10]), np.array([10]), math.inf, 10.0
    )  # fmt: skip
    state = Record(clients=torch.arange(3), pace=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    both, slow = (Away(0, 2.0, 10, 10), Away(1, 4.0, 4, 10)), (Away(1, 4.0, 4, 10),)
    assert known.plan(state, view._replace(away=both)).steps == {2: 2}  # 12 + 10 x 1 s
    assert known.plan(state, view._replace(away=slow)).steps == {2: 4}  # 12 + 10 x 2 s
    assert (
        known.plan(state, view._replace(away=(Away(0, -5.0, 10, 10),))).steps == {}
    )  # overdue: it founds a group
    assert known.plan(state, view._replace(away=(Away(0, 0.0, 10, 10),))).steps == {
        2: 2
    }  # it comes any moment
    assert known.plan(known.begin(), view._replace(away=both)).steps == {2: 1}  # nobody was ever seen


@given(
    st.lists(st.tuples(st.floats(0.01, 50), st.floats(0, 99), st.integers(1, 40)), min_size=1, max_size=8),
    st.floats(0.01, 50),
    st.integers(1, 60),
)
def test_steps_lie_between_the_bounds_and_who_joins_is_in_time(
    others: list[tuple[float, float, int]], pace: float, planned: int
) -> None:
    paces = torch.tensor([pace, *(each for each, _, _ in others)], dtype=torch.float64)
    state = Record(clients=torch.arange(len(paces)), pace=paces)
    away = [Away(at, began, steps, 40) for at, (_, began, steps) in enumerate(others, start=1)]
    view = Seen(
        1, np.array([0]), np.zeros(1), np.zeros(1), np.array([planned]), np.array([1]), math.inf, 100.0, away
    )
    steps = Compass().plan(state, view).steps.get(0, planned)
    least = max(1, math.ceil(0.2 * planned - 1e-9))
    assert least <= steps <= planned
    due = [each.began + float(paces[each.client]) * each.steps for each in away]
    within = [t for t in due if t > 100 and least <= math.floor((t - 100) / pace + 1e-9) <= planned]
    if within:  # it is there less than a step before those that it can meet after the most steps
        left = max(within) - (100 + pace * steps)
        assert -1e-6 <= left < pace * (1 + 1e-6)


def test_only_replies_that_were_used_tell_how_fast_a_client_is() -> None:
    nan = np.full(3, math.nan)
    learned = Learned(
        1, np.array([4, 2, 7]), nan, nan, np.array([6.0, 8.0, 1.0]), np.array([True, True, False]), nan
    )
    known = Compass()
    assert not len(known.learn(known.begin(), learned, 0.0).clients)
    state = known.learn(known.begin(), learned._replace(steps=np.array([3, 2, 1])), 0.0)
    assert dict(zip(state.clients.tolist(), state.pace.tolist(), strict=True)) == {4: 2.0, 2: 4.0}
    again = learned._replace(steps=np.array([6, 0, 1]))
    assert known.learn(state, again, 0.0).pace.tolist() == [1.0, 4.0]


# --- compass: a run ---------------------------------------------------------------------------------------------------


def figures(run: atoll.Federation) -> tuple[float, float, float]:
    """(mean seconds that a reply waits for the server's step, deviation of staleness, its largest)."""
    waits, stale = [], []
    for record in run.history[4:]:
        assert record.clock is not None
        waits += [record.clock.ended - done for done in record.clients["done"]]
        stale += record.clients["staleness"]
    return float(np.mean(waits)), float(np.std(stale)), max(stale)


def test_replies_wait_less_and_are_less_stale(data: FederatedData) -> None:
    more = {"devices": SLOW, "pace": "buffered:5", "concurrency": 10, "rounds": 20, "batch_size": 8}
    plain, paced = (figures(played(data, adaptive=adaptive, **more)) for adaptive in (None, "compass"))
    assert paced[0] < 0.8 * plain[0]
    assert paced[1] < 0.8 * plain[1] and paced[2] < plain[2]


def test_every_engine_plays_the_same(data: FederatedData) -> None:
    more = {"devices": f"{SLOW} + failing:0.1", "pace": "buffered:3", "concurrency": 6, "adaptive": "compass"}
    runs = [played(data, engine=engine, **more) for engine in ("loop", "batched", "processes")]
    for run in runs[1:]:
        assert [r.clock for r in run.history] == [r.clock for r in runs[0].history]
        assert repr([r.clients["samples"] for r in run.history]) == repr(
            [r.clients["samples"] for r in runs[0].history]
        )
        assert torch.allclose(model(run), model(runs[0]), atol=1e-5)
    assert len({n for r in runs[0].history for n in r.clients["samples"] if n == n}) > 4


# --- drift ------------------------------------------------------------------------------------------------------------


def outcomes(*updates: tuple[float, list[float]]) -> list[Outcome]:
    return [Outcome(k, w, {}, 0, probe=torch.tensor(d)) for k, (w, d) in enumerate(updates)]


def test_how_far_updates_lie_apart() -> None:
    assert apart(outcomes((1, [2.0, 0.0]), (1, [2.0, 0.0]))) == pytest.approx(0.0, abs=1e-6)
    assert apart(outcomes((1, [1.0, 0.0]), (1, [0.0, 1.0]))) == pytest.approx(1.0)
    # the mean is (3/4, 1/4): squares of distances 1/8 and 9/8, of its norm 5/8
    assert apart(outcomes((3, [1.0, 0.0]), (1, [0.0, 1.0]))) == pytest.approx(math.sqrt(0.375 / 0.625))
    assert apart(outcomes((1, [1.0, 0.0]), (1, [-1.0, 0.0]))) == math.inf
    for few in (
        [],
        outcomes((1, [1.0])),
        outcomes((1, [1.0]), (1, [1.0, 2.0])),
        outcomes((1, [0.0]), (1, [0.0])),
    ):
        assert math.isnan(apart(few))


def test_steps_fall_as_updates_lie_apart() -> None:
    known, view = Drift(most=1.0, window=2), Seen(
        1, np.arange(2), np.zeros(2), np.zeros(2), np.array([10, 3]), np.array([10, 3]), math.inf
    )  # fmt: skip
    learned = Learned(1, *[np.zeros(0, np.int64)] * 6)  # type: ignore[arg-type]
    state, asked = known.begin(), []
    for value in (0.5, 2.0, 2.0, math.nan, math.inf, math.inf, 0.0, 0.0):
        state = known.learn(state, learned._replace(apart=value), 0.0)
        asked.append(dict(known.plan(state, view).steps))
    root = math.sqrt((0.25 + 4) / 2)
    first = {0: math.ceil(10 / root), 1: math.ceil(3 / root)}
    assert first == {0: 7} | {1: 3}
    assert asked == [{}, {0: 7}, {0: 5, 1: 2}, {0: 5, 1: 2}, *[{0: 1, 1: 1}] * 3, {}]


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
def test_clients_that_disagree_do_less(data: FederatedData, engine: str) -> None:
    shards = atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=40, alpha=0.1), seed=0)
    more = {"engine": engine, "rounds": 5, "batch_size": 8, "adaptive": "drift"}
    plain, timed = played(shards, **more), played(shards, devices=SLOW, **more)
    assert torch.equal(model(plain), model(timed))
    state = plain.simulation.progress.rule
    assert state.apart.tolist() == timed.simulation.progress.rule.apart.tolist() and len(state.apart) == 3
    done = [float(np.mean(r.clients["samples"])) for r in plain.history]
    assert done[-1] < 0.7 * done[0]
    if engine == "loop":
        alike = played(data, **{**more, "adaptive": "drift:5"})
        assert torch.equal(model(alike), model(played(data, **{**more, "adaptive": None})))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adaptive": "compass"}, "without devices there is none"),
        ({"adaptive": "compass", "devices": SLOW}, "is for asynchronous servers; pace = 'sync' has rounds"),
        ({"adaptive": "adacomm + compass:2", "devices": SLOW}, "least"),
        ({"adaptive": "drift:0"}, "most"),
        ({"adaptive": "drift", "method": Silent()}, "Silent sends none that could be compared"),
        ({"adaptive": "adacomm + drift", "cohort": 1}, "only one is there at a time"),
        ({"adaptive": "drift", "devices": SLOW, "pace": "fedasync:constant"}, "only one is there at a time"),
    ],
)
def test_what_cannot_be_is_said_at_once(data: FederatedData, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        of_digits(data, **settings)


def test_the_rules_are_read() -> None:
    assert rule("compass") == Compass(0.2) and rule("compass:0.1") == Compass(least=0.1)
    assert rule("drift:0.5,7") == Drift(most=0.5, window=7)
