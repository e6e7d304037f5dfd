"""Rules that fit work to devices and to learning: steps, cohorts and deadlines, and runs that go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import atoll
from atoll import own
from atoll.callbacks import Callback
from atoll.data import FederatedData
from atoll.errors import ConfigError
from atoll.rounds.adapting import Rule, Seen, Wish, rule
from atoll.rounds.adapting.adacomm import AdaComm
from atoll.rounds.adapting.cohort import Growing
from atoll.rounds.adapting.joined import Joined
from atoll.rounds.adapting.pacer import Pacer
from atoll.rounds.choosing import Learned
from atoll.rounds.timed import Timed
from atoll.tensors import Record
from tests.rounds import small
from tests.rounds.small import model, of_digits

SLOW = "lognormal:1.5"


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=40, alpha=0.3), seed=0)


def made(data: FederatedData, method: Any = "fedavg", **settings: Any) -> atoll.Federation:
    return of_digits(data, method, **{"rounds": 6, "lr": 0.1, **settings})


def played(data: FederatedData, method: Any = "fedavg", **settings: Any) -> atoll.Federation:
    return small.played(made(data, method, **settings))


def taught(number: int, loss: float, clients: int = 4, samples: int = 10) -> Learned:
    each = np.full(clients, loss)
    return Learned(
        number,
        np.arange(clients),
        each,
        np.full(clients, float(samples)),
        each,
        np.ones(clients, bool),
        each**2,
    )


def view(steps: list[int], step: list[float] | None = None, deadline: float = math.inf) -> Seen:
    count = len(steps)
    return Seen(
        1,
        np.arange(count),
        np.ones(count),
        np.array(step or [1.0] * count),
        np.array(steps),
        np.array(steps),
        deadline,
    )


# --- adacomm --------------------------------------------------------------------------------------------------------


def test_steps_fall_with_the_root_of_the_loss() -> None:
    known = AdaComm(every=2)
    state = known.begin()
    assert known.plan(state, view([10, 7])).steps == {}
    asked = []
    for number, loss in enumerate([4.0, 3.0, 2.0, 1.0, 9.0, 16.0], start=1):
        state = known.learn(state, taught(number, loss), 0.0)
        asked.append(dict(known.plan(state, view([10, 7])).steps))
    root = math.sqrt(3 / 4)
    first = {0: math.ceil(root * 10), 1: math.ceil(root * 7)}
    assert first == {0: 9} | {1: 7} and asked[0] == {}
    assert asked[1] == asked[2] == {0: 9}  # seven steps stay seven
    assert asked[3] == asked[4] == {0: 5, 1: 4}
    assert asked[5] == {}  # never more than planned


def test_blocks_may_be_virtual_seconds() -> None:
    known = rule("adacomm:2min")
    assert known == AdaComm(seconds=120.0) and known.clocked and not rule("adacomm:5").clocked
    state = known.begin()
    shares = []
    for number, time in enumerate([50.0, 119.0, 121.0, 130.0, 500.0], start=1):
        state = known.learn(state, taught(number, 1.0 / number), time)
        shares.append(float(state.share))
    assert shares == pytest.approx([1, 1, math.sqrt(1 / 3), math.sqrt(1 / 3), math.sqrt(1 / 5)])


def test_a_round_that_taught_nothing_moves_nothing() -> None:
    known = AdaComm(every=1)
    state = known.learn(known.begin(), taught(1, 4.0), 0.0)
    nothing = taught(2, 1.0)._replace(answered=np.zeros(4, bool))
    assert known.learn(state, nothing, 0.0) is state


def test_the_least_loss_is_one_step() -> None:
    known = AdaComm(every=1)
    state = known.learn(known.learn(known.begin(), taught(1, 1.0), 0.0), taught(2, 1e-12), 0.0)
    assert known.plan(state, view([10])).steps == {0: 1}


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
def test_adacomm_is_the_same_with_a_clock_and_without(data: FederatedData, engine: str) -> None:
    plain = played(data, adaptive="adacomm:2", engine=engine, epochs=3)
    timed = played(data, adaptive="adacomm:2", engine=engine, epochs=3, devices=SLOW)
    assert torch.equal(model(plain), model(timed))
    assert not torch.equal(model(plain), model(played(data, engine=engine, epochs=3)))
    done = [sum(r.clients["samples"]) / sum(3 * data.size(k) for k in r.cohort) for r in plain.history]
    assert done[:1] == [1.0] and done[-1] < 0.95
    state = plain.simulation.progress.rule
    assert float(state.share) < 1


def test_no_step_is_saved_before_the_loss_falls(data: FederatedData) -> None:
    assert torch.equal(model(played(data, adaptive="adacomm:7")), model(played(data)))


# --- deadline -------------------------------------------------------------------------------------------------------


def test_a_share_of_those_asked_does_all_and_the_others_what_fits() -> None:
    wish = rule("deadline:0.5").plan(
        rule("deadline:0.5").begin(), view([10, 10, 10, 10], [1.0, 2.0, 5.0, 50.0])
    )
    assert wish.steps == {2: 4, 3: 1}  # 21 seconds, of which one is fixed


def test_who_has_fewer_steps_is_in_time_for_a_deadline_that_is_a_share(data: FederatedData) -> None:
    """The deadline is that of the work as planned: what was cut short to fit does not shorten it once more."""
    for settings in ({"late": "partial"}, {"adaptive": "deadline"}):
        run = played(data, devices=SLOW, deadline="share:0.5", epochs=3, **settings)
        for record in run.history:
            assert record.clock is not None
            fast = sum(not lost for lost in (k in record.clock.late for k in record.cohort))
            assert record.clock.used == fast >= 6


def test_fitting_to_the_devices_makes_rounds_short(data: FederatedData) -> None:
    plain, fitted = (
        played(data, devices=SLOW, epochs=3),
        played(data, devices=SLOW, epochs=3, adaptive="deadline"),
    )
    ends = [run.history[-1].clock.ended for run in (plain, fitted) if run.history[-1].clock]
    assert ends[1] < ends[0] / 1.5
    assert [r.cohort for r in plain.history] == [r.cohort for r in fitted.history]
    assert all(r.clock is not None and r.clock.used == 8 for r in fitted.history)


# --- cohort ---------------------------------------------------------------------------------------------------------


def test_the_cohort_doubles_where_the_loss_gets_flat() -> None:
    known = Growing(start=2, window=2, flat=0.1)
    state, sizes = known.begin(), []
    for number, loss in enumerate([4.0, 3.0, 2.0, 1.5, 1.5, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4], start=1):
        state = known.learn(state, taught(number, loss), 0.0)
        sizes.append(known.size(state, 5))
    assert sizes == [2] * 6 + [4] * 4 + [5]  # 1.4 against 1.5 is flat; then a stage of its own


def test_the_fastest_of_those_drawn_go_first(data: FederatedData) -> None:
    plain = played(data, devices=SLOW, rounds=3)
    few = played(data, devices=SLOW, rounds=3, adaptive="cohort:2")
    timed = few.simulation
    assert isinstance(timed, Timed)
    for whole, record in zip(plain.history, few.history, strict=True):
        drawn = np.array(whole.cohort)
        first = drawn[np.argsort(timed.expected(drawn), kind="stable")[:2]]
        assert record.cohort == sorted(first.tolist())
        assert record.clock is not None and whole.clock is not None and record.clock.used == 2
        length, longest = record.clock.ended - record.clock.began, whole.clock.ended - whole.clock.began
        assert length < longest


def test_more_than_the_few_are_asked_where_that_is_wanted(data: FederatedData) -> None:
    run = played(data, devices=SLOW, rounds=2, adaptive="cohort:4", over_select=1.5)
    assert [len(r.cohort) for r in run.history] == [6, 6]
    assert [r.clock.used for r in run.history if r.clock] == [4, 4]


# --- pacer ----------------------------------------------------------------------------------------------------------


def test_the_deadline_follows_the_utility_of_replies() -> None:
    known = Pacer(share=0.3, step=0.2, window=2, flat=0.1)
    expected = np.array([10.0, 2.0, 1.0, 5.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0])
    state, deadlines = known.begin(), []
    for number, loss in enumerate([4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], start=1):
        state = known.learn(state, taught(number, loss), 0.0)
        deadlines.append(known.deadline(state, expected, math.inf))
    assert deadlines == [3, 3, 3, 3, 3, 3, 3, 5, 5, 7]
    for number in range(11, 21):
        state = known.learn(state, taught(number, 1.0), 0.0)
    assert known.deadline(state, expected, math.inf) == 10


def test_rounds_end_when_the_pacer_says_so(data: FederatedData) -> None:
    run = played(data, devices=SLOW, adaptive="pacer:0.5,window=1,flat=0.9,step=0.25", rounds=6)
    assert [r.clock.used for r in run.history if r.clock] == [4, 4, 6, 8, 8, 8]
    both = played(data, devices=SLOW, adaptive="deadline + pacer:0.5", epochs=3, rounds=2)
    assert all(r.clock is not None and r.clock.used >= 6 for r in both.history)


# --- several, and runs that go on -----------------------------------------------------------------------------------


def test_of_several_the_least_number_of_steps_counts() -> None:
    joined = rule("adacomm:1 + deadline:0.5")
    assert isinstance(joined, Joined) and joined.name == "adacomm + deadline" and joined.clocked
    state = joined.begin()
    for number, loss in enumerate([4.0, 1.0], start=1):
        state = joined.learn(state, taught(number, loss), 0.0)
    seen = view([10, 10, 10, 10], [1.0, 2.0, 5.0, 50.0])
    assert joined.plan(state, seen).steps == {0: 5, 1: 5, 2: 4, 3: 1}
    assert [joined.size(state, 9), joined.deadline(state, seen.step, 3.0)] == [9, 3.0]


class _Stop(Callback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_round_end(self, federation: atoll.Federation, record: Any) -> None:
        if record.number == self.after:
            federation.stop()


@pytest.mark.parametrize(
    "engine", ["batched", *(pytest.param(each, marks=pytest.mark.slow) for each in ("loop", "processes"))]
)
@pytest.mark.parametrize(
    "settings",
    [
        {"adaptive": "adacomm:2", "epochs": 3},
        {"adaptive": "adacomm:4 + drift", "epochs": 3},
        {"adaptive": "compass", "devices": SLOW, "pace": "buffered:3", "epochs": 3},
        {"adaptive": "adacomm:20s + deadline", "devices": SLOW, "pace": "buffered:3", "epochs": 3},
        {
            "adaptive": "cohort:1,2,0.9 + pacer:0.4,window=2,flat=0.9 + deadline",
            "devices": SLOW,
            "late": "keep",
        },
    ],
    ids=lambda settings: settings["adaptive"],
)
def test_what_a_rule_has_learned_outlives_a_stop(
    data: FederatedData, tmp_path: Path, engine: str, settings: dict[str, Any]
) -> None:
    settings = {"rounds": 8, "engine": engine, **settings}
    whole = played(data, **settings)
    for stop in (2, 5):
        place = str(tmp_path / str(stop))
        played(data, runs=place, checkpoint=3, callbacks=[_Stop(stop)], **settings)
        rest = made(data, runs=place, **settings).resume()
        rest.fit(progress=False)
        assert torch.equal(model(rest), model(whole))
        assert [r.cohort for r in rest.history] == [r.cohort for r in whole.history]
        assert repr(rest.simulation.progress.rule) == repr(whole.simulation.progress.rule)


def test_a_rule_that_wishes_for_nothing_changes_nothing(data: FederatedData) -> None:
    class Quiet(Rule):
        name = "quiet"

    quiet = made(data)
    quiet.simulation.rule = Quiet()
    quiet.fit(progress=False)
    assert torch.equal(model(quiet), model(played(data)))


class Halved(Rule):
    """Everybody does half of what is planned."""

    name = "halved"

    def plan(self, state: Record, seen: Seen) -> Wish:
        return Wish({int(k): int(n) for k, n in zip(seen.clients, -(-seen.steps // 2), strict=True)})


def test_a_rule_of_ones_own_is_named(data: FederatedData) -> None:
    code = f"{__name__}:Halved"
    with pytest.raises(ConfigError, match="code is imported only where you name it"):
        rule(code)
    own.admit(code, "adaptive")
    run = played(data, adaptive=f"adacomm:99 + {code}", batch_size=None, epochs=4, rounds=1)
    assert run.history[0].clients["samples"] == [2 * data.size(k) for k in run.history[0].cohort]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adaptive": "deadline"}, "without devices there is none"),
        ({"adaptive": "adacomm:60s"}, "without devices there is none"),
        ({"adaptive": "adacomm + cohort"}, "without devices there is none"),
        ({"adaptive": "adacomm:0"}, "every = '0' is not a number of rounds, or a time"),
        ({"adaptive": "adacomm:2 + adacomm:3"}, "adacomm is there twice"),
        ({"adaptive": "pacer", "devices": SLOW, "deadline": 5}, "sets the deadline itself"),
        ({"adaptive": "pacer", "devices": SLOW, "pace": "buffered:2"}, "is for synchronous rounds"),
        ({"adaptive": "cohort", "devices": SLOW, "pace": "buffered:2"}, "is for synchronous rounds"),
        ({"adaptive": "slower"}, "unknown adaptive 'slower'"),
    ],
)
def test_what_cannot_be_is_said_at_once(data: FederatedData, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(data, **settings)
