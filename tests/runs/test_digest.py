"""The thinned log: small, and true to the log in all that it keeps."""

from __future__ import annotations

import copy
import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.runs.digest import Digest, compact
from atoll.runs.events import Event, sound
from atoll.runs.packed import pack, quantiles, unpack

from .synthetic import log


def kinds(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def size(events: list[Event]) -> int:
    return len(msgspec.json.encode(events))


@given(st.sets(st.integers(0, 3000)))
def test_packed_clients_come_back(clients: set[int]) -> None:
    packed = pack(list(clients))
    assert unpack(msgspec.json.decode(msgspec.json.encode(packed))) == sorted(clients)
    assert size([packed]) <= 20 + min(5 * len(clients), 504)


@given(st.lists(st.none() | st.floats(-1e3, 1e3), max_size=40))
def test_quantiles_are_those_of_numpy(values: list[float | None]) -> None:
    found = quantiles(values)
    known = [value for value in values if value is not None]
    if not known:
        assert found is None
    else:
        np.testing.assert_allclose(found, np.percentile(known, [10, 50, 90]), rtol=1e-3, atol=1e-9)


def test_nothing_of_the_rounds_is_lost() -> None:
    raw = list(log(clients=40, rounds=90, cohort=12, personalised=True, refused=0.05))
    before = copy.deepcopy(raw)
    thin = compact(raw)
    assert raw == before
    rounds, thinned = kinds(raw, "round"), kinds(thin, "round")
    assert [e["round"] for e in thinned] == [e["round"] for e in rounds]
    for full, short in zip(rounds, thinned, strict=True):
        assert unpack(short["cohort"]) == full["cohort"]
        assert unpack(short.get("dropped", {"gaps": []})) == full["dropped"]
        assert {str(k): r for r, packed in short.get("refused", []) for k in unpack(packed)} == full[
            "refused"
        ]
        assert (short["bytes_up"], short["bytes_down"]) == (full["bytes_up"], full["bytes_down"])
        assert short["loss"] == pytest.approx(full["loss"], rel=1e-4)
        for kind in ("clients", "personal"):
            for measure, spread in full["evaluation"][kind].items():
                for name, value in short["evaluation"][kind][measure].items():
                    assert value == pytest.approx(spread[name], rel=1e-4, abs=1e-9)


def test_columns_of_the_last_rounds_and_quantiles_of_the_others() -> None:
    raw = list(log(clients=40, rounds=90, cohort=12))
    rounds, thinned = kinds(raw, "round"), kinds(compact(raw), "round")
    assert ["clients" in e for e in thinned] == [False] * 30 + [True] * 60
    assert ["quantiles" in e for e in thinned] == [True] * 30 + [False] * 60
    assert thinned[3]["quantiles"]["norm"] == quantiles(rounds[3]["clients"]["norm"])
    for name, values in rounds[-1]["clients"].items():
        assert thinned[-1]["clients"][name] == pytest.approx(values, rel=1e-3)


def test_the_latest_of_clients_that_no_kept_round_has() -> None:
    raw = list(log(clients=400, rounds=90, cohort=4))
    thin = compact(raw)
    (latest,) = kinds(thin, "latest")
    rounds = kinds(raw, "round")
    recent = {k for e in rounds[30:] for k in e["cohort"]}
    expected: dict[int, tuple[int, float]] = {}
    for e in rounds[:30]:
        expected |= {k: (e["round"], v) for k, v in zip(e["cohort"], e["clients"]["norm"], strict=True)}
    found = dict(
        zip(unpack(latest["clients"]), zip(latest["round"], latest["norm"], strict=True), strict=True)
    )
    assert found.keys() == expected.keys() - recent
    for client, (number, norm) in found.items():
        assert (number, pytest.approx(norm, rel=1e-3)) == expected[client]


@pytest.mark.parametrize("evaluations", [1, 2, 23, 25, 97])
def test_first_and_last_evaluation_and_evenly_spaced_ones(evaluations: int) -> None:
    raw = list(log(clients=30, rounds=evaluations, personalised=True))
    rounds, thinned = kinds(raw, "round"), kinds(compact(raw), "round")
    kept = [e["round"] for e in thinned if "each" in e["evaluation"]]
    assert (kept[0], kept[-1]) == (1, evaluations)
    assert min(evaluations, 12) <= len(kept) <= 25
    gaps = np.diff(kept)[:-1]
    assert len(set(gaps)) <= 1
    for number in kept:
        each = rounds[number - 1]["evaluation"]["each"]
        short = thinned[number - 1]["evaluation"]["each"]
        assert short.keys() == {"clients", "personal"}
        assert short["personal"].keys() == {"accuracy"}
        assert short["personal"]["accuracy"] == pytest.approx(each["personal"]["accuracy"], rel=1e-3)


@pytest.mark.parametrize(("clients", "cohort"), [(1000, 1000), (10_000, 100)])
def test_it_stays_small(clients: int, cohort: int) -> None:
    raw = list(log(clients=clients, rounds=60, cohort=cohort, eval_every=5, personalised=True, refused=0.1))
    thin = compact(raw)
    assert (
        sum(len(next(iter(e["clients"].values()))) for e in kinds(thin, "round") if "clients" in e) <= 20_000
    )
    assert sum("each" in (e["evaluation"] or {}) for e in map(_evaluated, kinds(thin, "round"))) <= 25
    assert size(thin) < 1_600_000
    assert size(compact(raw, share=20)) < 1_000_000


def _evaluated(event: Event) -> Event:
    return {"evaluation": None, **event}


def test_a_short_run_takes_no_time() -> None:
    raw = list(log(clients=30, rounds=60, cohort=10, personalised=True))
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        msgspec.json.encode(compact(raw))
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.1


# --- void rounds --------------------------------------------------------------------------------------------


def _resumed(parts: list[tuple[int, int]]) -> list[Event]:
    """Runs that go on after a round, each for some rounds."""
    full = {e["round"]: e for e in kinds(list(log(clients=20, rounds=80, cohort=5)), "round")}
    events: list[Event] = [{"event": "start", "time": 0.0, "measure": "accuracy"}]
    last = 0
    for after, more in parts:
        after = min(after, last)
        if len(events) > 1:
            events.append({"event": "resume", "time": 0.0, "round": after, "rounds": 80})
        for number in range(after + 1, min(80, after + more) + 1):
            events.append({**full[number], "time": float(len(events))})
            if number % 4 == 0:
                events.append(
                    {"event": "affinity", "time": 0.0, "round": number, "clients": [1], "matrix": [[1.0]]}
                )
            last = number
        events.append({"event": "error", "time": 0.0, "kind": "Interrupted", "message": "", "round": last})
    return events


def test_counts_of_classes_stay_for_the_last_evaluations() -> None:
    raw = list(log(clients=8, rounds=9, cohort=4))
    for event in kinds(raw, "round"):
        event["evaluation"] |= {
            "confusion": {"own": [[event["round"]]]},
            "validation": event["evaluation"]["clients"],
        }
    before = copy.deepcopy(raw)
    thinned = kinds(compact(raw), "round")
    assert raw == before
    assert [e["evaluation"].get("confusion") for e in thinned] == [None] * 6 + [
        {"own": [[k]]} for k in (7, 8, 9)
    ]
    assert all(e["evaluation"]["validation"] == e["evaluation"]["clients"] for e in thinned)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 75)), min_size=1, max_size=5))
def test_void_rounds_are_gone(parts: list[tuple[int, int]]) -> None:
    raw = _resumed(parts)
    thin = compact(raw)
    left = sound(raw)
    key = [(e["round"], e["time"]) for e in kinds(thin, "round")]
    assert key == [(e["round"], e["time"]) for e in kinds(left, "round")]
    assert len(kinds(thin, "error")) == len(kinds(left, "error")) == 1
    assert len(kinds(thin, "resume")) == len(kinds(left, "resume"))
    played = {e["round"] for e in kinds(thin, "round")}
    assert all(e["round"] in played for e in kinds(thin, "affinity"))
    for event in kinds(thin, "latest"):
        assert set(event["round"]) <= played


# --- odd logs -----------------------------------------------------------------------------------------------


def test_what_is_not_over_is_said() -> None:
    raw = list(log(rounds=3, ending=None))
    assert not kinds(compact(raw), "begin")
    assert kinds(compact([*raw, {"event": "begin", "time": 0.0, "round": 4, "cohort": [2, 5]}]), "begin") == [
        {"event": "begin", "time": 0.0, "round": 4, "cohort": {"gaps": [2, 3]}}
    ]
    cut = next(i for i, e in enumerate(raw) if e["event"] == "round" and e["round"] == 3)
    assert compact(raw[:cut])[-1]["event"] == "begin"


def test_it_grows_with_the_log() -> None:
    raw = list(log(clients=50, rounds=70, cohort=20, personalised=True))
    digest = Digest()
    for index, event in enumerate(raw):
        digest.add(event)
        if index % 17 == 0:
            digest.events()
    assert digest.events() == compact(raw)


def test_unknown_kinds_and_fields_and_holes() -> None:
    holes: dict[str, Any] = {"loss": None, "evaluation": {"overall": {}, "clients": {}, "personal": {}}}
    thin = compact(
        [
            {"event": "weather", "time": 0.0},
            {"event": "round", "time": 1.0, "round": 1, "cohort": [], "mood": "fine", **holes},
            {
                "event": "round",
                "time": 2.0,
                "round": 2,
                "cohort": [3],
                "clients": {"norm": [None], "mood": [1]},
            },
        ]
    )
    assert [e["event"] for e in thin] == ["round", "round"]
    assert thin[1]["clients"] == {"norm": [None]}
    assert compact([]) == []


def test_equal_problems_are_one_and_there_is_an_end_to_different_ones() -> None:
    same = [
        {"event": "problem", "time": float(i), "where": "mlflow", "message": "no answer"} for i in range(9)
    ]
    other = [
        {"event": "problem", "time": 0.0, "where": "csv", "message": f"{i} {'x' * 900}"} for i in range(900)
    ]
    (first, *rest) = kinds(compact([*same, *other]), "problem")
    assert (first["count"], first["time"]) == (9, 8.0)
    assert len(rest) == 200
    assert sum(e["count"] for e in rest) == 900
    assert max(len(e["message"]) for e in rest) == 500
