"""Rounds on the virtual clock: the plain run where nobody is lost, closed forms, runs that stop and go on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import atoll
from atoll.callbacks import Callback
from atoll.data import FederatedData
from atoll.errors import ConfigError, PausedError
from atoll.rounds.timed import Timed
from tests.rounds import small
from tests.rounds.small import model, of_digits

ENGINES = ("loop", "batched", "processes")
SLOW = "lognormal:1.5"


@pytest.fixture(scope="module")
def equal() -> FederatedData:
    """Thirty clients with forty images each."""
    pool = atoll.data.load("digits").partition(atoll.data.IID(clients=1), seed=0).pool()
    assert pool is not None
    parts = [(pool.inputs[at : at + 40], pool.targets[at : at + 40]) for at in range(0, 1200, 40)]
    return atoll.data.as_federated(parts)


@pytest.fixture(scope="module")
def unequal() -> FederatedData:
    return atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=40, alpha=0.3), seed=0)


def made(data: FederatedData, method: Any = "fedavg", **settings: Any) -> atoll.Federation:
    return of_digits(data, method, **{"rounds": 5, **settings})


def played(data: FederatedData, method: Any = "fedavg", **settings: Any) -> atoll.Federation:
    return small.played(made(data, method, **settings))


# --- nobody is lost: the plain run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "settings",
    [
        {"devices": SLOW},
        {"devices": SLOW, "deadline": 1e9, "late": "keep"},
        {"devices": SLOW, "deadline": 1e9, "late": "partial"},
        {"devices": SLOW, "deadline": "share:1", "quorum": 8},
        {"devices": SLOW, "adaptive": "deadline:1"},
        {"devices": "equal", "choose": "tifl:1"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_a_clock_that_loses_nobody_changes_nothing(
    unequal: FederatedData, engine: str, settings: dict[str, Any]
) -> None:
    plain, timed = played(unequal, engine=engine), played(unequal, engine=engine, **settings)
    assert torch.equal(model(plain), model(timed))
    assert [r.cohort for r in plain.history] == [r.cohort for r in timed.history]
    assert all(r.clock is not None and r.clock.ended > r.clock.began for r in timed.history)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedadam", "fednova"])
def test_a_full_buffer_without_staleness_is_the_unweighted_round(
    equal: FederatedData, engine: str, method: str
) -> None:
    plain = played(equal.weigh("equal"), method, engine=engine)
    timed = played(equal, method, engine=engine, devices="equal", pace="buffered:8", concurrency=8)
    assert torch.equal(model(plain), model(timed))
    assert [r.cohort for r in plain.history] == [r.cohort for r in timed.history]


def test_the_events_do_not_depend_on_the_engine_nor_on_workers(unequal: FederatedData) -> None:
    settings = {
        "devices": f"{SLOW} + failing:0.1 + markov:40,20",
        "pace": "buffered:4",
        "concurrency": 9,
        "rounds": 12,
    }
    runs = [
        played(unequal, engine=engine, workers=workers, **settings)
        for engine, workers in (("loop", None), ("batched", 1), ("processes", 1), ("processes", 2))
    ]
    first = [(r.cohort, r.clock, r.bytes_up, r.bytes_down) for r in runs[0].history]
    for other in runs[1:]:
        assert [(r.cohort, r.clock, r.bytes_up, r.bytes_down) for r in other.history] == first


# --- closed forms ---------------------------------------------------------------------------------------------------


def _lengths(federation: atoll.Federation, rounds: int) -> float:
    """Mean seconds of so many rounds, without their work."""
    timed = federation.simulation
    assert isinstance(timed, Timed)
    total = 0.0
    for number in range(1, rounds + 1):
        size, asked = timed.cohorts.size, math.ceil(timed.cohorts.size * timed.schedule.over_select - 1e-9)
        job = _job(timed, number, asked)
        spans = timed.timing.spans(job, job.clients, 0.0)
        end, used = timed._ending(timed.sent(job, spans, 0.0), size, 0.0, math.inf)
        assert len(used) == size
        total += end
    return total / rounds


def _job(timed: Timed, number: int, asked: int) -> Any:
    from dataclasses import replace

    from atoll.rounds.cohort import Cohort

    known = timed.__dict__.setdefault("_a_job", timed.opened(timed.state, Cohort(list(range(asked))), 1).job)
    return replace(known, round=number)


@pytest.mark.parametrize(
    ("rounds", "within"), [(1_500, 0.06), pytest.param(20_000, 0.02, marks=pytest.mark.slow)]
)
def test_waiting_for_all_of_ten_takes_the_tenth_harmonic_number_of_mean_times(
    equal: FederatedData, rounds: int, within: float
) -> None:
    plain = _lengths(made(equal, cohort=10, devices="exponential:1"), rounds)
    early = _lengths(made(equal, cohort=10, devices="exponential:1", over_select=1.3), rounds)
    assert plain == pytest.approx(sum(1 / k for k in range(1, 11)), rel=within)  # 2.929
    assert early == pytest.approx(sum(1 / k for k in range(4, 14)), rel=within)  # 1.347
    assert plain / early == pytest.approx(2.17, rel=within)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        pytest.param("exponential:1", (20 - 1) / 5, marks=pytest.mark.slow, id="one by one"),
        pytest.param("equal", 20 / 5 - 1, id="in step"),
    ],
)
def test_mean_staleness_follows_from_concurrency_and_the_buffer(
    equal: FederatedData, devices: str, expected: float
) -> None:
    """(C - 1) / K where replies come one by one; where they come five at a time, those five see the same model."""
    run = played(
        equal,
        cohort=5,
        engine="batched",
        devices=devices,
        pace="buffered:5",
        concurrency=20,
        rounds=100 if devices == "equal" else 600,
        steps=1,
    )
    settled = [r.clock.staleness for r in run.history[20:] if r.clock is not None]
    assert np.mean(settled) == pytest.approx(expected, rel=0.02)


def test_asynchronous_throughput_is_the_sum_of_the_clients_own(equal: FederatedData, tmp_path: Path) -> None:
    """Four devices that take 1, 2, 3 and 4 seconds, always at work: 1 + 1/2 + 1/3 + 1/4 replies a second."""
    data = equal.choose([0, 1, 2, 3])
    trace = tmp_path / "devices.csv"
    lines = [f"{name},{data.size(k) / (k + 1)},1e12,1e12,0" for k, name in enumerate(data.names)]
    trace.write_text("client,speed,download,upload,latency\n" + "\n".join(lines) + "\n")
    run = played(data, cohort=1, devices=str(trace), pace="buffered:1", concurrency=4, rounds=250)
    assert run.history[-1].clock is not None
    assert 250 / run.history[-1].clock.ended == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4, rel=0.02)
    counts = np.bincount([r.cohort[0] for r in run.history], minlength=4)
    assert counts == pytest.approx(250 * np.array([12, 6, 4, 3]) / 25, abs=2)


def test_what_is_under_way_from_one_step_of_the_server_is_one_job(
    equal: FederatedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five replies a step, ten at work: a job of five a step; the first has ten, and four in places that got free."""
    federation = made(equal, devices=SLOW, pace="buffered:5", concurrency=10, rounds=20, steps=1)
    engine, sizes = federation.engine, list[int]()
    run = engine.run
    monkeypatch.setattr(
        engine, "run", lambda job, memories: (sizes.append(len(job.clients)), run(job, memories))[1]
    )
    federation.fit(progress=False)
    assert sizes[0] == 14 and len(sizes) <= 21
    assert set(sizes[1:]) == {5}


def test_who_has_too_little_memory_for_the_model_is_never_asked(equal: FederatedData, tmp_path: Path) -> None:
    data, trace = equal.choose([0, 1, 2, 3]), tmp_path / "devices.csv"
    model_bytes = 4 * 1_210
    rows = [f"{name},100,1e6,1e6,{3 * model_bytes - (k < 2)}" for k, name in enumerate(data.names)]
    trace.write_text("client,speed,download,upload,memory\n" + "\n".join(rows) + "\n")
    run = played(data, cohort=4, devices=str(trace), rounds=3)
    assert [list(r.cohort) for r in run.history] == [[2, 3]] * 3


# --- late, failing, absent ------------------------------------------------------------------------------------------


def _trace(path: Path, data: FederatedData, seconds: list[float]) -> str:
    """Devices on which an order takes so many seconds, whatever is sent."""
    lines = [f"{data.names[k]},{data.size(k) / each},1e15,1e15,0" for k, each in enumerate(seconds)]
    path.write_text("client,speed,download,upload,latency\n" + "\n".join(lines) + "\n")
    return str(path)


def test_who_comes_late_is_dropped_and_its_time_was_wasted(equal: FederatedData, tmp_path: Path) -> None:
    data = equal.choose([0, 1, 2])
    devices = _trace(tmp_path / "d.csv", data, [1.0, 2.0, 9.0])
    run = played(data, cohort=3, devices=devices, deadline=5, rounds=1)
    clock = run.history[0].clock
    assert clock is not None and (clock.late, clock.used) == ((2,), 2)
    assert (clock.ended, clock.spent, clock.wasted) == pytest.approx((5.0, 8.0, 5.0))
    alone = played(data.choose([0, 1]), cohort=2, rounds=1)
    assert torch.equal(model(run), model(alone))


def test_who_comes_late_and_is_kept_counts_less_in_the_round_in_which_it_comes(
    equal: FederatedData, tmp_path: Path
) -> None:
    """The second round averages two replies to its own model and one to the first, which counts half."""
    data = equal.choose([0, 1, 2])
    devices = _trace(tmp_path / "d.csv", data, [1.0, 2.0, 6.0])
    run = played(data, cohort=3, devices=devices, deadline=5, late="keep:1", rounds=2)
    first, second = (r.clock for r in run.history)
    assert first is not None and second is not None
    assert (first.late, first.used, first.wasted) == ((2,), 2, 0.0)
    assert (second.used, second.ended, second.staleness) == (3, pytest.approx(7.0), pytest.approx(1 / 3))
    begun, two = made(data, cohort=3, rounds=1), played(data.choose([0, 1]), cohort=2, rounds=2)
    moved = model(two) - model(played(data.choose([0, 1]), cohort=2, rounds=1))
    late = _alone(data, 2, begun)
    expected = model(played(data.choose([0, 1]), cohort=2, rounds=1)) + (2 * moved + 0.5 * late) / 2.5
    assert torch.allclose(model(run), expected, atol=1e-6)


def _alone(data: FederatedData, client: int, federation: atoll.Federation) -> torch.Tensor:
    """How far one client moves the first model."""
    simulation = federation.simulation
    from atoll.rounds.cohort import Cohort

    round = simulation.opened(simulation.state, Cohort([client]), 1)
    before = model(federation)
    round.settle(*simulation.engine.run(round.job, simulation.memories))
    params, _ = federation.method.model(round.state)
    return torch.cat([value.flatten() for value in params.values()]) - before


@pytest.mark.parametrize(
    "pace", ["buffered:1", "fedasync:poly,0.5", "fedasync:hinge,3,0", "fedasync:constant"]
)
def test_what_a_stale_reply_counts_for(equal: FederatedData, tmp_path: Path, pace: str) -> None:
    """Client 0 is done after a second; client 1, which was sent the same model, after the server took that step."""
    data = equal.choose([0, 1])
    devices = _trace(tmp_path / "d.csv", data, [1.0, 1.5])
    run = played(data, cohort=2, devices=devices, pace=pace, concurrency=2, rounds=2)
    assert [r.cohort for r in run.history] == [[0], [1]]
    first = model(made(data, cohort=2))
    one, other = (_alone(data, client, made(data, cohort=2)) for client in (0, 1))
    if pace == "buffered:1":
        expected = first + one + 2**-0.5 * other
    else:
        after = first + 0.6 * one
        by = (
            0.6 * {"poly": 2**-0.5, "hinge": 1 / 4, "constant": 1.0}[pace.partition(":")[2].partition(",")[0]]
        )
        expected = (1 - by) * after + by * (first + other)
    assert torch.allclose(model(run), expected, atol=1e-6)


def test_partial_work_is_as_many_steps_as_there_is_time_for(equal: FederatedData, tmp_path: Path) -> None:
    data = equal.choose([0, 1, 2])
    devices = _trace(
        tmp_path / "d.csv", data, [1.0, 2.0, 10.0]
    )  # four steps each: 2.5 seconds a step at worst
    run = played(data, cohort=3, devices=devices, deadline=5, late="partial", rounds=1)
    clock = run.history[0].clock
    assert clock is not None and (clock.late, clock.used, clock.wasted) == ((), 3, 0.0)
    assert run.history[0].clients["samples"] == [32, 32, 16]
    assert clock.ended == pytest.approx(5.0)


def test_a_quorum_that_is_missed_teaches_nothing(equal: FederatedData, tmp_path: Path) -> None:
    data = equal.choose([0, 1, 2])
    devices = _trace(tmp_path / "d.csv", data, [1.0, 9.0, 9.0])
    federation = made(data, cohort=3, devices=devices, deadline=5, quorum=2, rounds=3)
    before = model(federation).clone()
    federation.fit(progress=False)
    assert torch.equal(model(federation), before)
    assert [r.clock.used for r in federation.history if r.clock] == [0, 0, 0]
    again = made(data, cohort=3, devices=devices, deadline=5, quorum=2, rounds=100)
    with pytest.raises(PausedError, match="too few replies came in time, for 20 rounds"):
        again.fit(progress=False)
    assert again.number == 19


def test_who_fails_too_often_is_left_in_peace(equal: FederatedData) -> None:
    run = played(equal, cohort=30, devices="equal + failing:0.999999", exclude="2@3", rounds=2)
    assert [len(r.clock.failed) for r in run.history if r.clock] == [30, 30]
    with pytest.raises(PausedError, match="30 clients have failed too often") as caught:
        played(equal, cohort=30, devices="equal + failing:0.999999", exclude="2@3", rounds=3)
    assert caught.value.exit_code == 5


def test_an_order_that_broke_off_is_given_again(equal: FederatedData) -> None:
    """Half of the orders fail: with three more chances one in sixteen client rounds is lost, and takes longer."""
    never = played(equal, cohort=30, devices="equal + failing:0.5", rounds=40, steps=1)
    again = played(equal, cohort=30, devices="equal + failing:0.5", retry=3, rounds=40, steps=1)
    lost, rest = (sum(len(r.clock.failed) for r in run.history if r.clock) / 1200 for run in (never, again))
    assert lost == pytest.approx(1 / 2, abs=0.05) and rest == pytest.approx(1 / 16, abs=0.025)
    assert never.history[-1].clock is not None and again.history[-1].clock is not None
    assert again.history[-1].clock.ended > never.history[-1].clock.ended


def test_a_round_waits_until_somebody_is_there(equal: FederatedData, tmp_path: Path) -> None:
    data = equal.choose([0])
    trace, fields = tmp_path / "d.json", {"speed": 32, "download": 1e15, "upload": 1e15, "latency": 0}
    trace.write_text(
        json.dumps({str(data.names[0]): {**fields, "active": [10], "inactive": [12], "finish_time": 100}})
    )
    run = played(data, cohort=1, devices=str(trace), rounds=2)
    assert [(r.clock.began, r.clock.ended) for r in run.history if r.clock] == [
        (10.0, pytest.approx(11.0)),
        (pytest.approx(11.0), pytest.approx(12.0)),
    ]


# --- to stop and to go on -------------------------------------------------------------------------------------------

HARD = {
    "kept": {"devices": SLOW, "deadline": "share:0.7", "late": "keep", "choose": "oort"},
    "buffered": {
        "devices": f"{SLOW} + failing:0.1 + markov:30,10",
        "exclude": "2@2",
        "pace": "buffered:3",
        "concurrency": 10,
    },
    "fedasync": {"devices": SLOW, "pace": "fedasync:hinge,1,2", "concurrency": 5, "method": "scaffold"},
    "tiers": {"devices": SLOW, "choose": "tifl:3", "eval_every": 1},
}


class _Stop(Callback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_round_end(self, federation: atoll.Federation, record: Any) -> None:
        if record.number == self.after:
            federation.stop()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", HARD)
def test_a_run_that_stopped_in_mid_air_goes_on_to_the_bit(
    unequal: FederatedData, tmp_path: Path, engine: str, name: str
) -> None:
    settings = {"rounds": 8, "engine": engine, **HARD[name]}
    whole = played(unequal, **settings)
    for stop in (2, 5):
        place = str(tmp_path / str(stop))
        played(unequal, runs=place, checkpoint=3, callbacks=[_Stop(stop)], **settings)
        rest = made(unequal, runs=place, **settings).resume()
        rest.fit(progress=False)
        assert torch.equal(model(rest), model(whole))
        assert [r.clock for r in rest.history] == [r.clock for r in whole.history]


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pace": "buffered:5"}, "without devices there is none"),
        ({"deadline": 5}, "without devices there is none"),
        ({"devices": SLOW, "deadline": 1e-6}, "too short for everybody"),
        ({"devices": SLOW, "deadline": -1}, "no number of seconds above 0"),
        ({"devices": SLOW, "deadline": "share:2"}, "share = '2'"),
        ({"devices": SLOW, "pace": "buffered:0"}, "size = '0'"),
        ({"devices": SLOW, "pace": "fedasync:line"}, "unknown pace"),
        ({"devices": SLOW, "pace": "buffered:999"}, "there are only 40 clients"),
        ({"devices": SLOW, "pace": "buffered:2", "deadline": 5}, "is for synchronous rounds"),
        ({"devices": SLOW, "late": "partial"}, "there is none"),
        ({"devices": SLOW, "late": "perhaps"}, "unknown late 'perhaps'"),
        ({"devices": SLOW, "quorum": 9}, "a cohort has only 8"),
        ({"devices": SLOW, "exclude": "3"}, "is not TIMES@ROUNDS"),
        ({"devices": SLOW, "adaptive": "magic"}, "unknown adaptive 'magic'"),
        ({"devices": "quick"}, "quick"),
        ({"devices": SLOW, "pace": "buffered:2", "method": "fedma"}, "FedMA cannot go at pace"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    unequal: FederatedData, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        made(unequal, **settings)
