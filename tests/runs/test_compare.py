"""Comparisons: figures worked out by hand, groups and their names, and federations that are run to be compared."""

from __future__ import annotations

import csv
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
from atoll.measures import Target
from atoll.results import Run
from atoll.runs.averages import Curve
from atoll.runs.compare import Comparison
from atoll.runs.compare_view import text
from atoll.runs.events import Event
from atoll.runs.folder import RunFolder
from atoll.runs.story import Story
from atoll.trials import compare

SMALL: dict[str, Any] = {"clients": 4, "model": "logistic", "rounds": 3, "engine": "loop"}


def told(
    name: str,
    values: Mapping[int, float] | Sequence[float],
    seed: int = 0,
    measure: str = "accuracy",
    personal: float | None = None,
    each: Sequence[float | None] | None = None,
    **config: Any,
) -> list[Event]:
    """The events of a made-up run: `values` of the global model by round (other rounds are not evaluated).

    A client is 0.1 worse than that on average, 0.2 at p10 and 0.3 at worst, or 0.05 if its samples count; every round
    takes 2 s, 30 bytes up and 70 down. `each` are the values of the models that the clients would use.
    """
    given = dict(enumerate(values, start=1)) if isinstance(values, Sequence) else dict(values)
    last = max(given, default=0)
    known = {"method": "fedavg", "lr": 0.1, "seed": seed, "rounds": last, **config}
    start = {
        "run": name,
        "method": known["method"],
        "data": known.get("data", "digits"),
        "seed": seed,
        "rounds": known["rounds"],
    }
    events: list[Event] = [
        {"event": "start", "measure": measure, "target": None, **start, "config": known},
        {"event": "partition", "judged": list(range(len(each or [0, 1])))},
    ]

    def spread(mean: float) -> dict[str, float]:
        low, high = mean - 0.2, mean + 0.2
        tails = {"p10": mean - 0.1, "p90": mean + 0.1, "min": low, "max": high}
        return {"mean": mean, "pooled": mean + 0.05, "std": 0.125, **tails}

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
            if each is not None:
                evaluation["each"] = {"personal" if own else "clients": {measure: list(each)}}
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
    found = Comparison.of(runs, "0.499").to_dict()  # of what clients would use: 0.1 below the test set
    assert (found["measure"], found["shown"], found["target"]) == ("accuracy", "own", 0.499)
    [group] = found["groups"]
    assert (group["label"], group["runs"], group["seeds"]) == ("fedavg", ["a", "b", "c"], [0, 1, 2])
    curve = group["curve"]
    assert curve["rounds"] == [1, 2, 3]
    assert curve["bytes"] == [100, 200, 300]
    assert curve["seconds"] == [2, 4, 6]
    assert curve["mean"] == pytest.approx([0.2, 0.4, 0.5])
    assert curve["low"] == pytest.approx([0.1, 0.3, 0.4])  # the sample standard deviation is 0.1 each time
    assert curve["high"] == pytest.approx([0.3, 0.5, 0.6])
    assert curve["each"] == [
        pytest.approx(each) for each in ([0.1, 0.3, 0.5], [0.2, 0.5, 0.6], [0.3, 0.4, 0.4])
    ]
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
    assert [table["own"]["mean"] for table in tables] == [0.5, 0.9]
    assert [table["pooled"]["mean"] for table in tables] == pytest.approx([0.55, 0.95])
    assert [table["std"]["mean"] for table in tables] == [0.125, 0.125]
    assert [table["gain"] for table in tables] == [None, None]  # there is no run of Local
    found = Comparison.of([plain, own], "own:0.85").to_dict()
    assert (found["shown"], found["target"]) == ("own", 0.85)
    assert [group["curve"]["mean"] for group in found["groups"]] == [[0.5], [0.9]]
    assert [group["table"]["reached"] for group in found["groups"]] == [0, 1]
    assert Comparison.of([plain]).to_dict()["shown"] == "own"


def test_losses_fall_to_their_target() -> None:
    comparison = Comparison.of([told("a", [3.0, 2.0, 1.0], measure="loss")], "2.5")
    table = comparison.groups[0].to_dict()["table"]
    assert table["rounds_to_target"]["mean"] == 2
    assert table["worst"]["mean"] == pytest.approx(1.1)  # the highest
    assert table["p10"]["mean"] == pytest.approx(1.0)  # the 90th percentile: there clients do badly
    worst = Comparison.of([told("a", [3.0, 2.0, 1.0], measure="loss")], "worst:2.2")
    assert worst.groups[0].to_dict()["table"]["rounds_to_target"]["mean"] == 2
    assert worst.to_dict()["target"] is None


def test_target_of_the_runs() -> None:
    runs = [told("a", [0.2, 0.8]), told("b", [0.2, 0.8], lr=1.0)]
    runs[0][0]["target"] = "accuracy:0.7"
    assert Comparison.of(runs).goal == Target("accuracy", 0.7)
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
        assert story.arrival(Target("accuracy", target)) == (first[0] if first else None)


# --- beside Local -------------------------------------------------------------------------------------------


def test_negative_transfer_by_hand() -> None:
    runs = [
        told("a", [0.5], each=[0.5, 0.9, 0.4, 0.6, None], personal=0.6, method="ditto", lam=1.0),
        told("b", [0.5], each=[0.7, 0.5, 0.5, 0.5, 0.5], personal=0.6, method="ditto", lam=1.0, seed=1),
        told(
            "c", [0.5], each=[0.1] * 5, personal=0.6, method="ditto", lam=1.0, seed=2
        ),  # Local has no seed 2
        told("d", [0.5], each=[0.6, 0.8, 0.6, 0.6, 0.1], personal=0.5, method="local"),
        told("e", [0.5], each=[0.5, 0.5, 0.5, 0.5, 0.5], personal=0.5, method="Local", seed=1),
        told("f", [0.5], each=[0.6, 0.8, 0.6, 0.6, 0.1], method="fedavg", data="mnist"),  # of other data
    ]
    runs[4][0]["config"]["method"] = "local"
    ditto, local, other = Comparison.of(runs).groups
    # seed 0: -0.1, +0.1, -0.2 and 0, the last client is not known; seed 1: +0.2 and four times 0
    assert [each and each.name for each in ditto.alone] == ["d", "e", None]
    table = ditto.to_dict()["table"]
    assert table["gain"] == {"mean": pytest.approx((-0.05 + 0.04) / 2), "std": pytest.approx(0.09 / 2**0.5)}
    assert table["worse_off"] == {"mean": pytest.approx(0.25), "std": pytest.approx(0.5 / 2**0.5)}
    assert table["worse_by"] == {
        "mean": pytest.approx(0.15),
        "std": None,
    }  # in one seed somebody is worse off
    for group in (local, other):
        found = group.to_dict()["table"]
        assert found["gain"] is None and found["worse_off"] is None and found["worse_by"] is None
    shown = str(Comparison.of(runs))
    assert "25 ± 35 % (-15.0)" in shown and "-0.5 ± 6.4" in shown
    assert "worse off" not in str(Comparison.of([runs[0], runs[5]]))


def test_losses_gain_by_falling() -> None:
    runs = [
        told("a", [1.0], measure="loss", each=[0.5, 1.5], method="fedavg"),
        told("b", [1.0], measure="loss", each=[1.0, 1.25], personal=1.0, method="local"),
    ]
    table = Comparison.of(runs).groups[0].to_dict()["table"]
    assert (table["gain"]["mean"], table["worse_off"]["mean"], table["worse_by"]["mean"]) == (
        0.125,
        0.5,
        0.25,
    )
    assert "+0.125" in str(Comparison.of(runs)) and "50 % (-0.25)" in str(Comparison.of(runs))


def test_the_local_runs_with_the_nearest_settings_are_taken() -> None:
    runs = [
        told("a", [0.5], each=[0.5, 0.5], lr=0.1),
        told("b", [0.5], each=[0.5, 0.5], lr=0.2),
        told("c", [0.5], each=[0.4, 0.4], personal=0.4, method="local", lr=0.2),
        told("d", [0.5], each=[0.7, 0.7], personal=0.7, method="local", lr=0.1),
        told("e", [0.5], each=[0.5, 0.5], lr=0.1, partition="iid", test=0.5),
    ]
    runs[4][0]["partition"] = "iid"
    for run in runs[:4]:
        run[0]["partition"] = "shards:2"
    gains = [group.score("own") and group.to_dict()["table"]["gain"] for group in Comparison.of(runs).groups]
    assert [gain and gain["mean"] for gain in gains] == [
        pytest.approx(-0.2),
        pytest.approx(0.1),
        None,
        None,
        None,
    ]


def test_clients_with_other_samples_are_not_compared() -> None:
    runs = [
        told("a", [0.5], each=[0.5, 0.5]),
        told("b", [0.5], each=[0.5, 0.5], personal=0.5, method="local"),
    ]
    runs[0][1]["sizes"] = [3, 4]
    assert Comparison.of(runs).groups[0].table["gain"] is not None  # as far as both say
    runs[1][1]["sizes"] = [4, 3]
    assert Comparison.of(runs).groups[0].table["gain"] is None


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
    shown = str(comparison)
    assert "63.0 ± 2.8" in shown and "2 of 2" in shown and "0 of 1" in shown and "\x1b" not in shown
    html = comparison._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;&amp;" in html
    assert html.count("<polyline") == 2
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")
    empty = Comparison.of([told("a", [])])
    assert "fedavg" in str(empty) and "<svg" not in empty._repr_html_()


def test_every_width_has_a_table() -> None:
    """All in one where there is room; then Local apart; then the less important figures are left out, by name."""
    runs = [
        told(
            f"{method}{seed}",
            [0.5 + seed / 50],
            seed,
            each=[0.5, 0.6],
            personal=0.7,
            method=method,
            lam=0.12345,
        )
        for method in ("local", "a-method-of-some-length")
        for seed in range(2)
    ]
    comparison = Comparison.of(runs)
    every = ["test set", "client mean", "pooled", "std", "p10", "worst"]
    for width in (160, 100, 80, 60):
        lines = text(comparison, width).split("\n")
        assert max(map(len, lines)) <= width and "…" not in str(lines)
        [head] = [line for line in lines if line.startswith(" accuracy, %")]
        left = [title for title in every if title not in head]
        note = " ".join(line.strip() for line in lines[-8:])
        assert (f"no room here for {', '.join(left)}" in note) if left else ("no room" not in note)
        assert ("gain" in head) == (width == 160)
        assert any("worse off" in line and "gain" in line for line in lines)
        expected = {160: [], 100: [], 80: ["test set", "pooled"], 60: ["test set", "pooled", "std", "p10"]}
        assert left == expected[width]


def test_csv_has_every_figure() -> None:
    runs = [told("a", [0.5]), told("b", [0.7], seed=1), told("c", [0.2], personal=0.3, lr=0.5)]
    comparison = Comparison.of(runs, "accuracy:0.6")
    one, two = csv.DictReader(comparison.csv().splitlines())
    assert (one["setting"], one["runs"], one["reached"]) == ("fedavg lr=0.1", "2", "1")
    assert float(one["own"]) == pytest.approx(0.5) and float(one["own_std"]) == pytest.approx(0.02**0.5)
    assert (two["personal"], two["personal_std"], one["personal"], two["rounds_to_target"]) == (
        "0.3",
        "",
        "",
        "",
    )
    assert "gain" not in one


@pytest.mark.parametrize(
    ("runs", "target", "word"),
    [
        ([], None, "no runs"),
        ([[]], None, "run 1 has not begun"),
        ([told("a", [0.1]), told("b", [1.0], measure="loss")], None, "no measure in common"),
        ([told("a", [0.1])], "accuracy:high", "value = 'high' is not a number"),
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
        ("fedprox lr=0.1", 2),
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


def test_compare_refuses_a_later_item_before_the_first_runs() -> None:
    begun: list[int] = []

    class Watch(atoll.Callback):
        def on_start(self, federation: atoll.Federation) -> None:
            begun.append(federation.seed)

    first = atoll.Experiment.read(clients=4, rounds=2, engine="loop", runs=None).build([Watch()])
    with pytest.raises(ConfigError, match="Fedora looks at validation data"):
        compare([first, {"method": "fedora", "clients": 4, "validation": 0, "runs": None}])
    assert not begun


def test_mean_of_seeds_is_their_mean() -> None:
    comparison = compare([{**SMALL, "runs": "none"}], seeds=3)
    accuracies = [run.accuracy for run in comparison.runs]
    found = comparison.groups[0].score("accuracy")
    assert found is not None
    assert found.mean == pytest.approx(statistics.fmean(accuracies))
    assert found.std == pytest.approx(statistics.stdev(accuracies))


# --- baselines ----------------------------------------------------------------------------------------------


def seeds_by_method(comparison: Comparison) -> dict[str, list[int | None]]:
    return {group.stories[0].method: [story.seed for story in group.stories] for group in comparison.groups}


def test_baselines_are_run_beside_and_say_who_is_worse_off() -> None:
    item = {**SMALL, "runs": "none", "test": 0.3, "lr": 0.05, "epochs": 2, "method": "ditto", "lam": 0.5}
    comparison = compare([item], seeds=2, baselines=True)
    assert seeds_by_method(comparison) == {name: [0, 1] for name in ("ditto", "local", "fedavg", "fedavg-ft")}
    for group in comparison.groups:
        config = group.stories[0].config
        assert (config["lr"], config["epochs"], config["test"]) == (0.05, 2, 0.3)
        assert ("lam" in config) == (config["method"] == "ditto")
    runs: dict[tuple[str, int], Run] = {
        (story.method, story.seed or 0): run
        for story, run in zip(comparison.stories, comparison.runs, strict=True)
    }
    for group in comparison.groups:
        method = group.stories[0].method
        own = [group.table[key] for key in ("own", "pooled", "std", "gain", "worse_off")]
        assert all(own[:3])
        if method == "local":
            assert own[3] is own[4] is None
            continue
        shares, gains = [], []
        for seed in (0, 1):
            mine, alone = runs[method, seed].evaluation, runs["local", seed].evaluation
            assert mine is not None and alone is not None
            values = mine.each["personal" if mine.personal else "clients"]["accuracy"]
            gain = [value - alone.each["personal"]["accuracy"][client] for client, value in values.items()]
            shares.append(sum(each < -1e-4 for each in gain) / len(gain))
            gains.append(statistics.fmean(gain))
        assert own[3].mean == pytest.approx(statistics.fmean(gains), abs=1e-4)  # type: ignore[union-attr]
        assert own[4].mean == pytest.approx(statistics.fmean(shares))  # type: ignore[union-attr]
        assert own[0].mean == pytest.approx(  # type: ignore[union-attr]
            statistics.fmean(runs[method, s].evaluation.own["accuracy"].mean for s in (0, 1))  # type: ignore[union-attr]
        )
    assert "worse off" in str(comparison) and "worse off" in comparison._repr_html_()


def test_baselines_of_a_federation_keep_what_was_chosen() -> None:
    data = atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=4, alpha=0.3), seed=0)
    model = atoll.models.build("logistic", (1, 8, 8), 10)
    method = atoll.FedProx(mu=0.1, lr=0.03, momentum=0.5)  # partial_work is FedProx's own default, no choice
    federation = atoll.Federation(model, data, method, rounds=2, engine="loop")
    comparison = compare([federation, federation.replace(seed=1), federation.replace(method="fedavg", lr=0.03)],
                         baselines=True)  # fmt: skip
    found = {}
    for group in comparison.groups:
        for story in group.stories:
            config = story.config
            assert config["lr"] == 0.03
            found.setdefault((story.method, config["momentum"], config["partial_work"]), []).append(
                story.seed
            )
    assert found == {
        ("FedProx", 0.5, True): [0, 1],
        ("FedAvg", 0.0, False): [0],
        ("Local", 0.5, False): [0, 1],
        ("FedAvg", 0.5, False): [0, 1],
        ("FineTune", 0.5, False): [0, 1],
        ("Local", 0.0, False): [0],
        ("FineTune", 0.0, False): [0],
    }
    assert comparison.groups[0].table["worse_off"] is not None


def test_no_baseline_is_run_twice(tmp_path: Path) -> None:
    items = [{**SMALL, "method": method, "runs": str(tmp_path)} for method in ("fedprox", "local")]
    done = atoll.run(**SMALL, method="fedavg", runs=str(tmp_path))
    assert done.folder is not None
    comparison = compare([*items, done.folder.path], baselines=True)
    assert seeds_by_method(comparison) == {name: [0] for name in ("fedprox", "local", "fedavg", "fedavg-ft")}
    assert len(RunFolder.all(tmp_path)) == 4
    built = atoll.Experiment.read(**SMALL, runs=None).build()
    again = compare([built, built.replace(method="local").fit()], baselines=True)
    assert sorted(story.method.lower() for story in again.stories) == ["fedavg", "finetune", "local"]


def test_baselines_need_something_to_be_run_beside() -> None:
    with pytest.raises(ConfigError, match="only finished runs"):
        compare([atoll.run(**SMALL, runs=None)], baselines=True)


def test_clients_of_runs_with_the_same_data_stand_beside_each_other() -> None:
    runs = [
        told("a", [0.5], each=[0.4, None]), told("b", [0.5], each=[0.6, 0.7], method="fedprox"),
        told("c", [0.5], seed=1, each=[0.1, 0.2]),
    ]  # fmt: skip
    found = Comparison.of(runs).to_dict()
    one, two = found["groups"]
    assert one["own"] == [{"0": 0.4}, {"0": 0.1, "1": 0.2}]
    assert two["own"] == [{"0": 0.6, "1": 0.7}]
    assert one["ground"] == [0, 1]  # another seed divides the data in another way
    assert two["ground"] == [0]


def test_what_is_as_usual_or_not_set_is_no_name() -> None:
    """Settings that only one method has are named where they are a choice; what is not set is never named."""
    plain, other = told("a", [0.2]), told("b", [0.4])
    other[0]["config"] |= {
        "method": "scaffold",
        "option": 2,
        "server_lr": 1.0,
        "label": None,
        "schedule": None,
    }
    plain[0]["config"] |= {"label": "sick", "schedule": "cosine"}
    other[0]["changed"] = ["method"]
    labels = [group.label for group in Comparison.of([plain, other]).groups]
    assert labels == ["fedavg label=sick, schedule=cosine", "scaffold"]
    other[0]["changed"] = ["method", "option"]
    assert Comparison.of([plain, other]).groups[1].label == "scaffold option=2"
