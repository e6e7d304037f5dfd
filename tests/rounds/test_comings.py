"""Clients that come and go by the clock: at times, in streams, out of a file; and what is kept of those that left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import atoll
from atoll.callbacks import Callback
from atoll.data import FederatedData
from atoll.errors import ConfigError, DataError, PausedError
from atoll.rounds.comings import Comings, Rate
from atoll.rounds.durations import seconds
from atoll.rounds.membership import Membership
from atoll.rounds.memories import MemoryStore
from atoll.tensors import Record
from tests.network.commands import command
from tests.rounds import small
from tests.rounds.small import model, of_digits


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return atoll.data.load("digits").partition(atoll.data.IID(clients=20), seed=0)


def made(data: FederatedData, method: Any = "fedavg", **settings: Any) -> atoll.Federation:
    return of_digits(
        data, method, **{"rounds": 8, "cohort": 6, "batch_size": 16, "devices": "equal", **settings}
    )


def played(data: FederatedData, method: Any = "fedavg", **settings: Any) -> atoll.Federation:
    return small.played(made(data, method, **settings))


# --- who is there when ----------------------------------------------------------------------------------------------


def test_times_are_numbers_with_units() -> None:
    assert [seconds(text) for text in ("90s", " 2 min", "1.5h", "7", "soon")] == [
        90.0,
        120.0,
        5400.0,
        None,
        None,
    ]
    for wrong in ("xs", "north", "-1s", "nans", "infh", "s"):
        with pytest.raises(ValueError):  # noqa: PT011 - its caller says what was wrong
            seconds(wrong)


def test_named_and_drawn_clients_come_and_go_at_times(data: FederatedData) -> None:
    here = Membership(data, 0, joins={data.names[2]: "1min", 3: 4}, leaves="2@90s, 1@5")
    assert here.joins == {3: 4} and len(here.leaves) == 1
    gone = here.leaving(1, 0.0, 90.0)
    assert len(gone) == 2 and not {2, 3, *here.leaves} & {*gone}
    assert here.leaving(1, 90.0, 1e9) == here.leaving(1, 0.0, 89.9) == []
    assert here.leaving(5, 0.0, 95.0) == sorted([*here.leaves, *gone])
    for round, time in ((1, 0.0), (4, 59.0), (4, 60.0), (5, 89.0), (9, 90.0)):
        expected = [k for k in range(20) if here.there(k, round, time)]
        absent = {2} if time < 60 else set()
        absent |= {3} if round < 4 else set()
        absent |= {*gone} if time >= 90 else set()
        absent |= {*here.leaves} if round >= 5 else set()
        present = here.present(round, time)
        assert ([*range(20)] if isinstance(present, int) else present.tolist()) == expected
        assert expected == sorted({*range(20)} - absent)
    assert [here.arrival(0.0), here.arrival(59.9), here.arrival(60.0)] == [60.0, 60.0, math.inf]


def test_everybody_is_a_number(data: FederatedData) -> None:
    here = Membership(data, 0, joins="3@10s")
    assert len(np.atleast_1d(here.present(1, 9.0))) == 17
    assert here.present(1, 10.0) == 20


def test_rounds_as_units_draw_as_they_did(data: FederatedData) -> None:
    alone, beside = Membership(data, 7, joins="3@5"), Membership(data, 7, joins="3@5, 2@60s")
    assert alone.joins == beside.joins


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ((Rate(0.5), None), (200, 0)),
        ((None, Rate(2.0)), (0, 800)),
        ((Rate(0.5, 100), Rate(0.2, 0.02)), (100, 80)),
    ],
)
def test_streams_have_their_rates(
    streams: tuple[Rate | None, Rate | None], expected: tuple[int, int]
) -> None:
    found = Comings(4000, 3, {}, {}, *streams, np.arange(4000))
    found.era(400.0)
    came = int(np.sum((found.comes > 0) & (found.comes <= 400)))
    left = int(np.sum(found.goes <= 400))
    for many, wanted in zip((came, left), expected, strict=True):
        assert abs(many - wanted) <= 3 * math.sqrt(wanted)
    if streams[0] is not None:  # the gaps are exponential: as wide as their mean
        gaps = np.diff(np.sort(found.comes[np.isfinite(found.comes) & (found.comes > 0)]))
        assert np.mean(gaps) == pytest.approx(2.0, rel=0.25) and np.std(gaps) == pytest.approx(2.0, rel=0.25)


def test_streams_do_not_depend_on_what_was_asked() -> None:
    def fresh() -> Comings:
        return Comings(500, 1, {}, {}, Rate(1.0, 300), Rate(0.7), np.arange(500))

    at_once, bit_by_bit, ahead = fresh(), fresh(), fresh()
    at_once.era(200.0)
    for moment in range(201):
        bit_by_bit.era(float(moment))
        bit_by_bit.departs(np.arange(5), moment + 3.5)
    assert ahead.next(100.0) > 100
    ahead.era(400.0)
    for time in (0.0, 17.0, 50.0, 199.0, 200.0):
        there = at_once.there(time)
        assert np.array_equal(there, bit_by_bit.there(time)) and np.array_equal(there, ahead.there(time))
        assert at_once.left(time / 2, time) == ahead.left(time / 2, time)
    left = np.isfinite(at_once.goes)
    assert left.any() and np.all(at_once.goes[left] > at_once.comes[left])  # nobody leaves before it has come


def test_the_next_one_is_the_next_one() -> None:
    found = Comings(50, 1, {}, {}, Rate(0.1), Rate(5.0), np.arange(50))
    assert not found.there(0.0).any()
    times: list[float] = []
    time = 0.0
    while (time := found.next(time)) < math.inf:
        times.append(time)
    assert times == sorted(found.comes.tolist()) and len(times) == 50


def test_a_million_clients_cost_flat_arrays() -> None:
    import tracemalloc

    tracemalloc.start()
    found = Comings(1_000_000, 0, {}, {}, Rate(0.01, 1000), Rate(0.01), np.arange(1_000_000))
    held = tracemalloc.get_traced_memory()[0]
    for time in range(0, 50_000, 1000):
        found.left(time - 1000.0, float(time))
    assert tracemalloc.get_traced_memory()[0] - held < 2_000_000
    assert held < 60_000_000
    tracemalloc.stop()


def test_a_file_says_when(data: FederatedData, tmp_path: Path) -> None:
    trace = tmp_path / "who.csv"
    rows = [
        f"{name},{10 * at if at < 3 else ''},{'1h' if at == 5 else ''}" for at, name in enumerate(data.names)
    ]
    trace.write_text("client,joins,leaves\n" + "\n".join(rows) + "\n")
    here = Membership(data, 0, joins=str(trace), leaves=str(trace))
    assert here.comings is not None
    assert here.comings.comes[:4].tolist() == [0, 10, 20, 0]
    assert {k: t for k, t in enumerate(here.comings.goes.tolist()) if t < math.inf} == {5: 3600.0}
    fields = [f"{row},{50 + at}" for at, row in enumerate(rows)]
    trace.write_text("client,joins,leaves,speed\n" + "\n".join(fields) + "\n")
    both = made(
        data, devices=str(trace), joins=str(trace), rounds=1
    )  # one file for devices and for who comes
    assert both.membership.arrival(0.0) == 10.0 and both.membership.leaving(2, 0.0, 1e6) == []
    trace.write_text("client,joins\nnobody,5\n")
    with pytest.raises(DataError, match="there is no client 'nobody'"):
        Membership(data, 0, joins=str(trace))
    trace.write_text(f"client,joins\n{data.names[0]},soon\n")
    with pytest.raises(DataError, match="joins = 'soon' is not a time"):
        Membership(data, 0, joins=str(trace))
    with pytest.raises(DataError, match="column 'leaves' is missing"):
        Membership(data, 0, leaves=str(trace))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"joins": "3@60s", "devices": None},
            "joins = '3@60s' is about time, and without devices there is none",
        ),
        ({"leaves": "rate:0.1", "devices": None}, "leaves = 'rate:0.1' is about time"),
        ({"leaves": {0: "5min"}, "devices": None}, "is about time"),
        ({"leaves": "3@0s"}, "'3@0s' is not possible"),
        ({"leaves": {0: "soon"}}, "is no time"),
        ({"leaves": "3@xs"}, "round = 'xs' is not a whole number"),
        ({"joins": {0: "2min"}, "leaves": {0: "60s"}}, "leaves after 60 s, before it joins after 120 s"),
        ({"joins": "rate:0"}, "rate = '0' is not a number above 0"),
        ({"joins": "rate"}, "rate needs rate"),
    ],
)
def test_what_cannot_be_is_said_at_once(data: FederatedData, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(data, **settings)


# --- rounds ---------------------------------------------------------------------------------------------------------


def test_cohorts_and_judgements_follow_the_clock(data: FederatedData) -> None:
    plain = played(data, cohort=20, eval_every=1)
    length = plain.history[0].clock.ended  # type: ignore[union-attr]
    run = played(data, cohort=20, joins={1: f"{1.5 * length}s"}, leaves={8: f"{3.5 * length}s"}, eval_every=1)
    present = [{*range(20)} - {*gone} for gone in ([1], [1], [], [], [8], [8], [8], [8])]
    for record, here in zip(run.history, present, strict=True):
        assert {*record.cohort} == here
        assert record.evaluation is not None and {*record.evaluation.each["clients"]["accuracy"]} == here
    fourth = run.history[3].clock
    assert (
        fourth is not None and fourth.failed == (8,) and fourth.used == 19
    )  # it left in the middle of its work
    assert {*run.evaluate().each["clients"]["accuracy"]} == present[-1]


@pytest.mark.parametrize("pace", [{}, {"pace": "buffered:3", "concurrency": 6}], ids=["sync", "buffered"])
def test_the_method_is_told_and_nothing_is_kept(data: FederatedData, pace: dict[str, Any]) -> None:
    run = played(data, "fedamp", cohort=20, leaves="5@3s", rounds=12, batch_size=4) if not pace else None
    run = run or played(data, "scaffold", leaves="5@3s", rounds=25, **pace)
    here = run.membership.comings
    assert here is not None
    gone = set(np.flatnonzero(here.goes <= run.simulation.progress.began).tolist())
    assert len(gone) == 5
    assert not gone & set(run.memories.clients())
    if not pace:
        assert not {str(k) for k in gone} & set(run.state.models)
    else:
        assert run.state.clients == 15


@pytest.mark.parametrize("pace", [{}, {"pace": "buffered:3", "concurrency": 6}], ids=["sync", "buffered"])
def test_the_events_tell_who_came_and_left(data: FederatedData, pace: dict[str, Any]) -> None:
    run = played(data, joins="rate:1.5,8", leaves="rate:0.8", rounds=40 if pace else 9, **pace)
    here, clocks = (
        run.membership.comings,
        [each["clock"] for each in run.events() if each["event"] == "round"],
    )
    assert here is not None
    told = {name: [client for clock in clocks for client in clock.get(name, ())] for name in ("came", "left")}
    for name, times in (("came", here.comes), ("left", here.goes)):
        due = np.flatnonzero((times > 0) & (times <= clocks[-1]["ended"])).tolist()
        assert sorted(told[name]) == due and due
    assert all(clock.get(name) != [] for clock in clocks for name in told)


def test_a_round_waits_for_those_that_are_to_come(data: FederatedData) -> None:
    for pace in ({}, {"pace": "buffered:2", "concurrency": 3}):
        run = played(data, joins={k: f"{10 + k}s" for k in range(20)}, rounds=3, cohort=3, **pace)
        first = run.history[0]
        assert first.clock is not None and first.clock.ended > 10
        assert first.cohort[0] == 0


class _Stop(Callback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_round_end(self, federation: atoll.Federation, record: Any) -> None:
        if record.number == self.after:
            federation.stop()


@pytest.mark.parametrize(
    "engine", ["batched", *(pytest.param(each, marks=pytest.mark.slow) for each in ("loop", "processes"))]
)
@pytest.mark.parametrize("pace", [{}, {"pace": "buffered:3", "concurrency": 6}], ids=["sync", "buffered"])
def test_a_run_that_stopped_goes_on_to_the_bit(
    data: FederatedData, tmp_path: Path, engine: str, pace: dict[str, Any]
) -> None:
    settings = {
        "method": "scaffold", "engine": engine, "rounds": 9, "devices": "lognormal:0.5", "joins": "rate:1.5,8",
        "leaves": "rate:0.8", **pace,
    }  # fmt: skip
    whole = played(data, **settings)
    assert whole.state.clients < 20
    for stop in (3, 6):
        place = str(tmp_path / str(stop))
        played(data, runs=place, checkpoint=2, callbacks=[_Stop(stop)], **settings)
        rest = made(data, runs=place, **settings).resume()
        rest.fit(progress=False)
        assert torch.equal(model(rest), model(whole)) and rest.state.clients == whole.state.clients
        assert [r.clock for r in rest.history] == [r.clock for r in whole.history]
        assert rest.memories.clients() == whole.memories.clients()
    with pytest.raises(ConfigError, match="leaves by the clock is"):
        made(data, runs=place, **{**settings, "leaves": "rate:0.9"}).resume()


# --- sums over memories ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [True, False], ids=["times", "rounds"])
@pytest.mark.parametrize(("method", "field"), [("scaffold", "control"), ("feddyn", "h")])
def test_what_the_server_sums_up_is_the_mean_of_those_that_remain(
    data: FederatedData, method: str, field: str, timed: bool
) -> None:
    more = {"leaves": "4@2s"} if timed else {"leaves": "4@4, 2@6", "devices": None}
    federation = made(data, method, rounds=9, **more)
    left = set()
    for _ in range(9):
        federation.round()
        state, kept = federation.state, federation.memories
        own = [kept.get(k) for k in kept.clients()]
        for name, value in state[field].items():
            total = torch.stack([each[field][name].double() for each in own if each is not None]).sum(0)
            assert torch.allclose(value.double(), total / state.clients, rtol=1e-4, atol=1e-7)
        left.add(20 - state.clients)
    assert left == ({0, 4} if timed else {0, 4, 6})


# --- memories -------------------------------------------------------------------------------------------------------


def test_what_is_forgotten_frees_its_memory() -> None:
    store = MemoryStore(budget=3 * 4000)
    for client in range(6):
        store.put(client, Record(weights=torch.full((1000,), float(client))))
    store.commit()
    assert store.held == 12_000 and store.clients() == [*range(6)]
    store.forget(5)
    store.forget(0)  # it lies in the file
    assert store.get(5) is store.get(0) is None and store.clients() == [1, 2, 3, 4]
    store.rollback()
    assert store.clients() == [*range(6)] and store.get(0) is not None
    for client in (0, 5, 17):
        store.forget(client)
    store.commit()
    assert store.held == 8_000 and store.clients() == [1, 2, 3, 4]
    assert store.get(0) is None and 5 not in store.changed


def test_clients_that_left_are_in_no_checkpoint(data: FederatedData, tmp_path: Path) -> None:
    settings = {"method": "scaffold", "cohort": 20, "devices": None, "leaves": "15@4", "runs": str(tmp_path)}
    held = []
    federation = made(data, rounds=6, checkpoint=1, keep="all", **settings)
    federation.keeper.session.runs = None
    for record in federation.play():
        held.append(federation.memories.held)
        assert len(federation.memories.clients()) == (20 if record.number < 4 else 5)
    assert held[2] == 4 * held[3] == 4 * held[5]
    played(data, rounds=6, checkpoint=1, keep="all", **settings)
    again = made(data, rounds=7, **settings).resume()
    assert again.memories.clients() == federation.memories.clients() and again.memories.held == held[5]
    again.fit(progress=False)
    assert torch.equal(model(again), model(played(data, **{**settings, "rounds": 7, "runs": None})))


# --- nobody is left -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", [{}, {"pace": "buffered:3", "concurrency": 6}], ids=["sync", "buffered"])
def test_a_population_that_empties_pauses(data: FederatedData, pace: dict[str, Any]) -> None:
    federation = made(data, leaves="20@3s", rounds=100, **pace)
    with pytest.raises(PausedError, match="everybody has left, and nobody else will come") as caught:
        federation.fit(progress=False)
    assert caught.value.exit_code == 5 and federation.number > 1
    whole = federation.number
    with pytest.raises(PausedError):
        federation.fit(progress=False)
    assert federation.number == whole


def test_the_command_line_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    words = [
        "data=digits",
        "clients=6",
        "cohort=3",
        "rounds=50",
        "devices=equal",
        "leaves=6@5s",
        f"runs={tmp_path}",
    ]
    sets = [part for word in [*words, "engine=loop"] for part in ("--set", word)]
    code, _, said = command("run", *sets)
    assert code == 5, said
    assert "everybody has left" in said and "go on with: atoll run --resume" in said
