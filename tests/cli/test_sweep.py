"""`atoll sweep`: real sweeps, skipped and resumed, killed and interrupted, with points that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.errors import ConfigError
from atoll.runs.folder import RunFolder
from atoll.trials.points import Point, digest, fingerprint, parse_grid, points
from atoll.trials.sweeping import Sweep, prepare, sweep
from tests.forked import Forked

from .conftest import COMMAND, Atoll, environment


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of runs are forked from the sweep's."""
    stand = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr("atoll.trials.trial.subprocess", stand)


SMALL = ["--set", "clients=4", "--set", "model=logistic", "--set", "engine=loop"]
LONG = [*SMALL, "--set", "rounds=50", "--set", "checkpoint=3", "--grid", "lr=0.01,0.1", "--jobs", "2"]


def table(place: Path) -> list[dict[str, Any]]:
    """The points of the only sweep in a directory."""
    [folder] = place.glob("sweep-*")
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["points"]
    return found


def rounds(place: Path) -> dict[str, list[int]]:
    """Which rounds each run has, by the name of its folder."""
    return {
        folder.name: [e["round"] for e in folder.log().events if e["event"] == "round"]
        for folder in RunFolder.all(place)
    }


def start(place: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "sweep", *LONG, *more, "--runs", str(place)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)  # asking reads all events, and the runs need the processor


def underway(place: Path) -> bool:
    """Whether two runs have played some rounds."""
    found = rounds(place)
    return len(found) == 2 and all(len(each) > 4 for each in found.values())


# --- real sweeps --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_forked")
def test_a_sweep_is_run_once_and_goes_on_past_a_failed_point(atoll: Atoll, tmp_path: Path) -> None:
    command = ["sweep", *SMALL, "--set", "rounds=2", "--grid", "lr=1e30,0.1", "--runs", str(tmp_path)]
    command += ["--jobs", "2"]
    done = atoll(*command)
    assert done.code == 1
    [folder] = tmp_path.iterdir()
    assert f"2 runs, 2 at once, in {folder}" in done.out
    assert "[2/2] finished  lr=0.1, seed=0: client mean" in done.out
    assert "failed    lr=1e+30, seed=0: round 1: the run diverged" in done.out
    assert "Left out: lr=1e+30, seed=0: round 1" in done.out and "1 of 2 runs failed" in done.err
    assert "Traceback" not in done.out + done.err
    found = table(tmp_path)
    assert [(each["changes"], each["seed"], each["status"]) for each in found] == [
        ({"lr": 1e30}, 0, "failed"),
        ({"lr": 0.1}, 0, "finished"),
    ]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/events.jsonl")}
    assert {path.parent.name for path in before} == {each["run"] for each in found}

    done = atoll(*command)  # nothing is left to do: what diverged would diverge again
    assert done.code == 1 and "running" not in done.out and "Left out: lr=1e+30" in done.out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/events.jsonl")} == before
    assert {path.stem for path in (folder / "points").glob("*.txt")} == {"001", "002"}


def test_killed_sweep_goes_on_with_every_point_once(atoll: Atoll, tmp_path: Path) -> None:
    """The sweep is killed; one of its runs is killed too, the other one plays on and is waited for."""
    running = start(tmp_path)
    wait(lambda: underway(tmp_path))
    running.kill()
    running.communicate()
    held = [folder for folder in RunFolder.all(tmp_path) if folder.held()]
    assert held  # the runs outlive the sweep
    os.kill(int((held[0].path / "lock").read_text().split()[1]), signal.SIGKILL)
    wait(lambda: not held[0].held())
    assert held[0].status(held[0].log().events[-1]) == "cut off"
    names = set(rounds(tmp_path))

    done = atoll("sweep", *LONG, "--runs", str(tmp_path), "--target", "accuracy:0.05")
    assert done.code == 0, done.err + done.out
    for word in ("fedavg lr=0.01", "fedavg lr=0.1", "to accuracy:0.05", "1 of 1", "comparison.html"):
        assert word in done.out
    [page] = tmp_path.glob("*/comparison.html")
    assert "fedavg lr=0.01" in page.read_text()
    assert rounds(tmp_path) == {name: list(range(1, 51)) for name in names}
    assert {each["run"] for each in table(tmp_path)} == names
    for folder in RunFolder.all(tmp_path):
        kinds = [event["event"] for event in folder.log().events]
        assert (kinds.count("start"), kinds.count("result")) == (1, 1)
        assert kinds.count("resume") == (folder.name == held[0].name)


def test_interrupted_sweep_stops_its_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    running = start(tmp_path, "--set", "rounds=9000", "--grid", "momentum=0.5", "--jobs", "1")
    wait(lambda: any(len(each) > 4 for each in rounds(tmp_path).values()))
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted: 0 of 2 runs are finished" in err and "Traceback" not in err
    assert "go on with: atoll sweep --grid lr=0.01,0.1 --grid momentum=0.5 --set clients=4" in err
    assert "stopped   lr=0.01, momentum=0.5, seed=0: after round" in out
    [folder] = RunFolder.all(tmp_path)
    last = folder.log().events[-1]
    assert (folder.status(last), last["kind"]) == ("stopped", "Interrupted")
    assert [each["status"] for each in table(tmp_path)] == ["stopped", "waiting"]


def test_two_sweeps_at_once_are_one_too_many(atoll: Atoll, tmp_path: Path) -> None:
    ready = prepare(
        None, [text for text in LONG if "=" in text and "lr" not in text], {"lr": [0.01, 0.1]}, runs=tmp_path
    )
    ready.folder.path.mkdir()
    ready.folder.hold()
    try:
        done = atoll("sweep", *LONG, "--runs", str(tmp_path))
        assert done.code == 1 and "is being written by" in done.err
    finally:
        ready.folder.release()
    assert rounds(tmp_path) == {}


# --- the points ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "lr=0.1,high"], ["lr cannot be 'high' (lr=high)", "lr takes a number"]),
        (["--grid", "lrr=1"], ["unknown key 'lrr'", "did you mean 'lr'?"]),
        (
            ["--grid", "method=fedavg,fedprox", "--grid", "lam=0,1"],
            ["unknown key 'lam'", "(method=fedavg, lam=0)"],
        ),
        (["--grid", "method=fedavg,fedprox", "--set", "lam=1"], ["unknown key 'lam'", "(--set lam=1)"]),
        (["--set", "lam=1", "--baselines"], ["unknown key 'lam'", "(--set lam=1)"]),
        (
            ["--grid", "method=fedavg,fedprox", "--grid", "lr=0.1,0.10"],
            ["the grid has", "lr=0.1, seed=0 twice"],
        ),
        (["--grid", "method=fedavg,fedproxx"], ["unknown method 'fedproxx'", "did you mean 'fedprox'"]),
        (["--grid", "partition=iid,foo"], ["unknown partition 'foo'", "partition=foo"]),
        (["--set", "clients=5", "--grid", "cohort=2,9"], ["cohort = 9", "(cohort=9, seed=0)"]),
        (["--grid", "lr=0.1,0.10"], ["the grid has lr=0.1, seed=0 twice"]),
        (["--grid", "lr=0.1", "--grid", "lr=0.2"], ["--grid has lr twice"]),
        (["--grid", "seed=1,2"], ["seed is nothing to sweep", "--seeds N"]),
        (["--grid", "workers=1,2"], ["workers is nothing to sweep"]),
        (["--grid", "lr"], ["is not KEY=VALUE,VALUE"]),
        (["--grid", 'model=["mlp:64"'], ["is not an array"]),
        (["--target", "speed:3"], ["do not measure 'speed'"]),
        (["--target", "fast"], ["value = 'fast' is not a number"]),
        (["--set", "rounds=none"], ["rounds cannot be 'none'"]),
        (["no-such-file.toml"], ["cannot read no-such-file.toml"]),
    ],
)
def test_wrong_points_are_errors_before_anything_starts(
    arguments: list[str], words: list[str], atoll: Atoll, tmp_path: Path
) -> None:
    done = atoll("sweep", *arguments, "--runs", str(tmp_path / "runs"))
    assert done.code == 2, done.err
    assert all(word in done.err for word in words), done.err
    assert "Traceback" not in done.err and not (tmp_path / "runs").exists()


def test_points_are_the_grid_times_the_seeds(tmp_path: Path) -> None:
    file = tmp_path / "base.toml"
    file.write_text('method = "fedprox"\nseed = 5\nworkers = 2\n')
    grid = parse_grid(["lr=0.01, 0.1", 'model=["mlp:64,32", "2nn"]'])
    found = points(file, ["rounds=7"], grid, 2, {"epochs": 3})
    assert [point.number for point in found] == list(range(1, 9))
    assert [point.label for point in found[:3]] == [
        "lr=0.01, model=mlp:64,32, seed=5",
        "lr=0.01, model=mlp:64,32, seed=6",
        "lr=0.01, model=2nn, seed=5",
    ]
    whole = found[-1].experiment.to_dict()
    assert (whole["lr"], whole["model"], whole["seed"]) == (0.1, "2nn", 6)
    assert (whole["rounds"], whole["epochs"], whole["method"], whole["workers"]) == (7, 3, "fedprox", 2)
    assert points(None, [], {}, 1, {})[0].experiment.workers == 1
    assert digest(found) == digest(
        points(file, ["rounds=7"], grid, 3, {"epochs": 3})
    )  # more seeds: the same sweep
    assert digest(found) != digest(points(file, ["rounds=8"], grid, 2, {"epochs": 3}))
    config = json.loads(json.dumps(whole))  # as it stands in events
    assert fingerprint({**config, "workers": 9, "runs": "x"}) == found[-1].key
    assert fingerprint({**config, "seed": 5}) != found[-1].key


def facts(found: list[Point], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(point.experiment.to_dict().get(key, "-") for key in ("method", *keys)) for point in found]


def test_every_method_takes_the_settings_that_it_knows(tmp_path: Path) -> None:
    file = tmp_path / "base.toml"
    file.write_text('lam = 0.5\nlr = 0.2\nmethod = "ditto"\n[about]\nrun = "x"\n')
    methods = {"method": ["fedavg", "fedprox", "ditto"]}
    found = points(file, ["mu=0.1"], methods, 1, {})
    assert facts(found, "mu", "lam", "lr") == [
        ("fedavg", "-", "-", 0.2),
        ("fedprox", 0.1, "-", 0.2),
        ("ditto", "-", 0.5, 0.2),
    ]
    found = points(
        file, ["lr=0.3"], {**methods, "mu": [0, 1]}, 2, {"lam": 0.7}
    )  # fedavg and ditto are the same twice
    assert facts(found[::2], "mu", "lam", "lr") == [
        ("fedavg", "-", "-", 0.3),
        ("fedprox", 0.0, "-", 0.3),
        ("fedprox", 1.0, "-", 0.3),
        ("ditto", "-", 0.7, 0.3),
    ]
    assert [point.label for point in found[1:4]] == [
        "method=fedavg, seed=1",
        "method=fedprox, mu=0, seed=0",
        "method=fedprox, mu=0, seed=1",
    ]
    with pytest.raises(ConfigError, match=r"unknown key 'mu'"):
        points(file, ["mu=0.1"], {}, 1, {})  # ditto alone does not know it
    with pytest.raises(ConfigError, match=r"unknown key 'nu'.*\(method=fedavg\)"):
        points(file, [], methods, 1, {"nu": 1})


def test_methods_have_tables_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "field.toml"
    file.write_text("lr = 0.1\nfinetune_epochs = 3\n[ditto]\nlam = 0.5\n[fedprox]\nlr = 0.2\n")
    found = points(file, [], {"method": ["ditto", "fedprox", "fedavg-ft"]}, 1, {})
    chosen = [(p.experiment.method, p.experiment.settings["lr"]) for p in found]
    assert chosen == [("ditto", 0.1), ("fedprox", 0.2), ("fedavg-ft", 0.1)]
    assert found[0].experiment.settings["lam"] == 0.5
    assert found[2].experiment.settings["finetune_epochs"] == 3


def test_baselines_follow_the_points_once(tmp_path: Path) -> None:
    sets = ["partial_work=true", "finetune_epochs=3"]
    grid = {"method": ["ditto", "local"], "lr": [0.1, 0.2], "lam": [0.1, 1]}
    plain = points(None, sets[:1], grid, 1, {})
    found = points(None, sets, grid, 1, {}, baselines=True)
    assert facts(found[: len(plain)], "lr", "lam") == facts(plain, "lr", "lam")
    assert facts(found[len(plain) :], "lr", "partial_work", "finetune_epochs") == [
        ("fedavg", 0.1, True, "-"),
        ("fedavg-ft", 0.1, True, 3),
        ("fedavg", 0.2, True, "-"),
        ("fedavg-ft", 0.2, True, 3),
    ]
    assert [point.baseline for point in found] == [False] * len(plain) + [True] * 4
    assert found[-1].label == "method=fedavg-ft, lr=0.2, seed=0"
    assert digest(found) == digest(plain)  # the same sweep goes on
    assert len({point.key for point in found}) == len(found)
    different = points(None, ["model=logistic + mlp:8", "method=local"], {}, 1, {}, baselines=True)
    assert facts(different) == [("local",)]  # there is no average of different architectures


@pytest.mark.slow
def test_a_sweep_with_baselines_says_who_is_worse_off(atoll: Atoll, tmp_path: Path) -> None:
    command = ["sweep", *SMALL, "--set", "rounds=2", "--set", "method=ditto", "--set", "lam=0.5"]
    command += ["--runs", str(tmp_path), "--jobs", "1"]
    assert atoll(*command).code == 0
    [first] = table(tmp_path)
    done = atoll(*command, "--baselines")
    assert done.code == 0, done.err
    assert "[4/4] finished" in done.out and "worse off" in done.out
    found = table(tmp_path)
    assert [each["changes"].get("method", "ditto") for each in found] == [
        "ditto",
        "local",
        "fedavg",
        "fedavg-ft",
    ]
    assert found[0] == first  # it is not run again
    [folder] = tmp_path.iterdir()
    again = json.loads(atoll("compare", str(folder), "--json").out)
    known = {group["label"].split()[0]: group["table"]["gain"] for group in again["groups"]}
    assert known.pop("local") is None and len(known) == 3 and None not in known.values()
    lines = atoll("compare", str(folder), "--csv").out.splitlines()
    assert lines == (folder / "comparison.csv").read_text().splitlines()
    assert "worse_off" in lines[0].split(",") and len(lines) == 5
    assert atoll("compare", str(folder), "--csv", "--json").code == 2


def test_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.trials.sweeping.cores", lambda: 8)
    few, many = points(None, [], {"lr": [0.1, 0.2]}, 1, {}), points(None, ["workers=3"], {}, 20, {})
    assert Sweep(few, tmp_path, None, None).jobs == 2
    assert Sweep(many, tmp_path, None, None).jobs == 2  # of three cores each
    assert Sweep(many, tmp_path, 5, None).jobs == 5


def test_python_function_refuses_like_the_command() -> None:
    with pytest.raises(ConfigError, match="unknown key 'lrr'"):
        sweep(grid={"lrr": [1]})
    with pytest.raises(ConfigError, match="no values for lr"):
        sweep(grid={"lr": []})
