"""Comparisons: figures worked out by hand, groups and their names, and federations that are run to be compared."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import atoll
from atoll.errors import ConfigError, RunError
from atoll.results import Run
from atoll.runs.compare import Comparison, Curve
from atoll.runs.events import Event
from atoll.runs.folder import RunFolder
from atoll.runs.story import Goal, Story
from atoll.trials import compare

SMALL: dict[str, Any] = {"clients": 4, "model": "logistic", "rounds": 3, "engine": "loop"}


def told(
    name: str,
    values: Mapping[int, float] | Sequence[float],
    seed: int = 0,
    measure: str = "accuracy",
    personal: float | None = None,
    **config: Any,
) -> list[Event]:
    """The events of a made-up run: `values` of the global model by round (other rounds are not evaluated).

    A client is 0.1 worse than that on average, 0.2 at p10 and 0.3 at worst; every round takes 2 s, 30 bytes up and
    70 down.
    """
    given = dict(enumerate(values, start=1)) if isinstance(values, Sequence) else dict(values)
    last = max(given, default=0)
    known = {"method": "fedavg", "lr": 0.1, "seed": seed, "rounds": last, **config}
    start = {
        "run": name,
        "method": known["method"],
        "data": known.get("data", "digits"),
        "seed": seed,
        "rounds": last,
    }
    events: list[Event] = [
        {"event": "start", "measure": measure, "target": None, **start, "config": known},
        {"event": "partition", "judged": [0, 1]},
    ]

    def spread(mean: float) -> dict[str, float]:
        low, high = mean - 0.2, mean + 0.2
        return {"mean": mean, "p10": mean - 0.1, "p90": mean + 0.1, "min": low, "max": high}

    for number in range(1, last + 1):
        evaluation = None
        if number in given:
            clients = {measure: spread(given[number] - 0.1)}
            own = {} if personal is None else {measure: spread(personal)}
            evaluation = {
                "overall": {measure: given[number], "extra": 7.0},
                "clients": clients,
                "personal": own,
            }
        events.append(
            {
                "event": "round",
                "round": number,
                "bytes_up": 30,
                "bytes_down": 70,
                "seconds": 2.0,
                "evaluation": evaluation,
            }
        )
    return events


# --- figures worked out by hand -----------------------------------------------------------------------------


def test_three_seeds_by_hand() -> None:
    runs = [
        told("a", [0.2, 0.4, 0.6], seed=0),
        told("b", [0.3, 0.6, 0.7], seed=1),
        told("c", [0.4, 0.5, 0.5], seed=2),
    ]
    found = Comparison.of(runs, "accuracy:0.6").to_dict()
    assert (found["measure"], found["target"]) == ("accuracy", 0.6)
    [group] = found["groups"]
    assert (group["label"], group["runs"], group["seeds"]) == ("fedavg", ["a", "b", "c"], [0, 1, 2])
    curve = group["curve"]
    assert curve["rounds"] == [1, 2, 3]
    assert curve["mean"] == pytest.approx([0.3, 0.5, 0.6])
    assert curve["low"] == pytest.approx([0.2, 0.4, 0.5])  # the sample standard deviation is 0.1 each time
    assert curve["high"] == pytest.approx([0.4, 0.6, 0.7])
    assert curve["each"] == [[0.2, 0.4, 0.6], [0.3, 0.6, 0.7], [0.4, 0.5, 0.5]]
    table = group["table"]
    for key, mean in {"global": 0.6, "client_mean": 0.5, "p10": 0.4, "worst": 0.3}.items():
        assert table[key] == {"mean": pytest.approx(mean), "std": pytest.approx(0.1)}, key
    assert table["personal"] is None
    # the first seed arrives in round 3, the second in round 2, the third never
    assert table["reached"] == 2
    assert table["rounds_to_target"] == {"mean": 2.5, "std": pytest.approx(0.5**0.5)}
    assert table["bytes_to_target"]["mean"] == 250
    assert table["seconds_to_target"] == {"mean": 5.0, "std": pytest.approx(2 * 0.5**0.5)}
    assert [table[key]["mean"] for key in ("rounds", "bytes", "seconds")] == [3, 300, 6.0]
    assert json.loads(json.dumps(found)) == found


def test_bands_of_one_and_two_seeds() -> None:
    one = Comparison.of([told("a", [0.2, 0.4])]).groups[0].curve()
    assert (one.low, one.mean, one.high) == ([0.2, 0.4],) * 3
    two = Comparison.of([told("a", [0.2, 0.4]), told("b", [0.4, 0.3], seed=1)]).groups[0]
    curve = two.curve()
    assert (curve.low, curve.high) == ([0.2, 0.3], [0.4, 0.4])
    assert curve.mean == pytest.approx([0.3, 0.35])
    assert Comparison.of([told("a", [0.2])]).groups[0].to_dict()["table"]["global"] == {
        "mean": 0.2,
        "std": None,
    }


def test_rounds_that_some_seed_lacks_are_left_out() -> None:
    runs = [told("a", {2: 0.5, 4: 0.7, 6: 0.8}), told("b", {2: 0.4, 3: 0.5, 4: 0.5}, seed=1, rounds=6)]
    curve = Comparison.of(runs).groups[0].curve()
    assert curve.rounds == [2, 4]
    assert curve.each == [[0.5, 0.7], [0.4, 0.5]]
    runs.append(told("c", [], seed=2, rounds=6))  # cut off before its first round
    group = Comparison.of(runs).groups[0]
    assert group.curve().rounds == [2, 4]
    assert group.curve().each[2] == []


def test_personal_models_are_what_their_clients_use() -> None:
    plain, own = told("a", [0.6]), told("b", [0.6], personal=0.9, method="finetune")
    tables = [group.to_dict()["table"] for group in Comparison.of([plain, own]).groups]
    assert [table["client_mean"]["mean"] for table in tables] == [0.5, 0.5]
    assert tables[0]["personal"] is None and tables[1]["personal"]["mean"] == 0.9
    assert [table["worst"]["mean"] for table in tables] == pytest.approx([0.3, 0.7])
    assert [table["p10"]["mean"] for table in tables] == pytest.approx([0.4, 0.8])


def test_losses_fall_to_their_target() -> None:
    comparison = Comparison.of([told("a", [3.0, 2.0, 1.0], measure="loss")], "2.5")
    table = comparison.groups[0].to_dict()["table"]
    assert table["rounds_to_target"]["mean"] == 2
    assert table["worst"]["mean"] == pytest.approx(1.1)  # the highest
    worst = Comparison.of([told("a", [3.0, 2.0, 1.0], measure="loss")], "worst:2.2")
    assert worst.groups[0].to_dict()["table"]["rounds_to_target"]["mean"] == 2
    assert worst.to_dict()["target"] is None


def test_target_of_the_runs() -> None:
    runs = [told("a", [0.2, 0.8]), told("b", [0.2, 0.8], lr=1.0)]
    runs[0][0]["target"] = "accuracy:0.7"
    assert Comparison.of(runs).goal == Goal("accuracy", 0.7)
    runs[1][0]["target"] = "accuracy:0.8"
    assert Comparison.of(runs).goal is None  # they do not agree
    table = Comparison.of(runs).groups[0].to_dict()["table"]
    assert (table["rounds_to_target"], table["reached"]) == (None, None)


def test_any_measure_has_a_curve() -> None:
    group = Comparison.of([told("a", [0.2, 0.4])]).groups[0]
    assert group.curve("extra").mean == [7.0, 7.0]
    assert group.curve("clients").mean == pytest.approx([0.1, 0.3])
    assert group.curve("nothing").rounds == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.integers(1, 12), st.floats(0, 1), min_size=1, max_size=8), min_size=1, max_size=5
    ),
    st.floats(0, 1),
)
def test_against_numpy(seeds: list[dict[int, float]], target: float) -> None:
    stories = [Story(told(str(k), values, seed=k)) for k, values in enumerate(seeds)]
    curve = Curve.of(stories, "accuracy")
    common = sorted(set.intersection(*(set(values) for values in seeds)))
    assert curve.rounds == common
    values = np.array([[each[number] for number in common] for each in seeds]).reshape(len(seeds), -1)
    mean = values.mean(0)
    reach = values.std(0, ddof=1) if len(seeds) > 2 else None
    np.testing.assert_allclose(curve.mean, mean, atol=1e-12)
    np.testing.assert_allclose(curve.low, values.min(0) if reach is None else mean - reach, atol=1e-7)
    np.testing.assert_allclose(curve.high, values.max(0) if reach is None else mean + reach, atol=1e-7)
    for story, given_values in zip(stories, seeds, strict=True):
        first = [number for number in sorted(given_values) if given_values[number] >= target]
        assert Goal("accuracy", target).reached(story) == (first[0] if first else None)


# --- groups and their names ---------------------------------------------------------------------------------


def labels(*runs: list[Event]) -> list[str]:
    return [group.label for group in Comparison.of(runs).groups]


def test_only_the_seed_and_how_it_was_run_may_differ_in_a_group() -> None:
    same = told(
        "b", [0.1], seed=1, engine="loop", workers=3, runs="elsewhere", checkpoint=1, keep="all", log="mlflow"
    )
    groups = Comparison.of([told("a", [0.1]), told("c", [0.1], lr=0.5), same]).groups
    assert [[story.name for story in group.stories] for group in groups] == [["a", "b"], ["c"]]
    assert [group.label for group in groups] == ["fedavg lr=0.1", "fedavg lr=0.5"]


def test_the_same_seed_twice_is_no_replicate() -> None:
    groups = Comparison.of([told("a", [0.1]), told("b", [0.2]), told("c", [0.3], seed=1)]).groups
    assert [[story.name for story in group.stories] for group in groups] == [["a", "c"], ["b"]]
    assert [group.label for group in groups] == ["fedavg (a)", "fedavg (b)"]


def test_names_say_what_differs() -> None:
    avg, prox = (
        told("a", [0.1], partial_work=False),
        told("b", [0.1], method="fedprox", mu=0.1, partial_work=True),
    )
    assert labels(avg, prox) == ["fedavg", "fedprox mu=0.1"]  # partial_work follows from the method
    slow = told("c", [0.1], method="fedprox", mu=0.1, partial_work=True, lr=0.01)
    assert labels(avg, prox, slow) == ["fedavg lr=0.1", "fedprox lr=0.1, mu=0.1", "fedprox lr=0.01, mu=0.1"]
    full, batch = told("d", [0.1], batch_size=None), told("e", [0.1], batch_size=32)
    assert labels(full, batch) == ["fedavg batch_size=full", "fedavg batch_size=32"]
    many = told("f", [0.1], method="fedadam", beta1=0.9, beta2=0.99, tau=0.001)
    assert labels(avg, many) == ["fedavg", "fedadam"]  # three settings of its own: its name will do
    assert labels(avg) == ["fedavg"]
    assert labels(told("g", [0.1], lr=0.1 + 1e-9), avg) == ["fedavg lr=0.100000001", "fedavg lr=0.1"]


# --- how it is shown ----------------------------------------------------------------------------------------


def test_text_and_html() -> None:
    runs = [told("a", [0.5, 0.61]), told("b", [0.5, 0.65], seed=1), told("c", [0.1, 0.2], data="<script>&")]
    comparison = Comparison.of(runs, "accuracy:0.6")
    text = str(comparison)
    assert "63.0 ± 2.8" in text and "2 of 2" in text and "0 of 1" in text and "\x1b" not in text
    html = comparison._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;&amp;" in html
    assert html.count("<polyline") == 2
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")
    empty = Comparison.of([told("a", [])])
    assert "fedavg" in str(empty) and "<svg" not in empty._repr_html_()


@pytest.mark.parametrize(
    ("runs", "target", "word"),
    [
        ([], None, "no runs"),
        ([[]], None, "run 1 has not begun"),
        ([told("a", [0.1]), told("b", [1.0], measure="loss")], None, "no measure in common"),
        ([told("a", [0.1])], "accuracy:high", "not MEASURE:VALUE"),
        ([told("a", [0.1])], "f1:0.5", "no run measures 'f1'"),
    ],
)
def test_what_cannot_be_compared(runs: list[list[Event]], target: str | None, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Comparison.of(runs, target)


# --- runs made to be compared -------------------------------------------------------------------------------


def test_compare_runs_federations_and_takes_finished_runs(tmp_path: Path) -> None:
    experiment = atoll.Experiment.read(**SMALL, runs=None)
    federation = experiment.build()
    done = atoll.run(**SMALL, lr=0.01, runs=str(tmp_path))
    assert done.folder is not None
    items: list[Any] = [federation, {**SMALL, "method": "fedprox"}, done, done.folder.path]
    comparison = compare(items, seeds=2, runs=tmp_path, target="accuracy:0.99")
    assert [(group.label, len(group.stories)) for group in comparison.groups[:3]] == [
        ("fedavg lr=0.1", 2),
        ("fedprox lr=0.1, mu=0.01", 2),
        (f"fedavg lr=0.01 ({done.folder.name})", 1),
    ]
    results = [run for run in comparison.runs if isinstance(run, Run)]
    assert len(results) == 5 and isinstance(comparison.runs[5], RunFolder)
    assert results[0].accuracy == experiment.build().fit().accuracy
    assert results[0].accuracy != results[1].accuracy
    assert len(RunFolder.all(tmp_path)) == 5
    assert comparison.groups[0].score("accuracy") is not None
    assert federation.history == []  # the given one is left as it was


def test_compare_leaves_out_what_diverges(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = {**SMALL, "runs": "none"}, {**SMALL, "runs": "none", "lr": 1e30}
    with caplog.at_level(logging.WARNING, "atoll.trials"):
        comparison = compare([good, bad])
    assert len(comparison.groups) == len(comparison.runs) == 1
    assert len(comparison.failed) == 1 and "diverged" in comparison.failed[0]
    assert "Left out: fedavg, seed 0" in str(comparison) and "Left out" in comparison._repr_html_()
    assert "left out" in caplog.text
    with (
        caplog.at_level(logging.CRITICAL, "atoll.trials"),
        pytest.raises(RunError, match="all 1 runs failed"),
    ):
        compare([bad])


def test_compare_refuses_before_it_runs() -> None:
    with pytest.raises(ConfigError, match="int cannot be compared"):
        compare([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="seeds = 0"):
        compare([SMALL], seeds=0)
    with pytest.raises(ConfigError, match="do not measure 'speed'"):
        compare([SMALL], target="speed:3")
    with pytest.raises(ConfigError, match="unknown key"):
        compare([SMALL, {"lrr": 1}])


def test_mean_of_seeds_is_their_mean() -> None:
    comparison = compare([{**SMALL, "runs": "none"}], seeds=3)
    accuracies = [run.accuracy for run in comparison.runs]
    found = comparison.groups[0].score("accuracy")
    assert found is not None
    assert found.mean == pytest.approx(statistics.fmean(accuracies))
    assert found.std == pytest.approx(statistics.stdev(accuracies))
