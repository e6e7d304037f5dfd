"""Figures: which ones a run has, that files repeat themselves, and that the surroundings are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import atoll
from atoll.errors import ConfigError, MissingExtraError, RunError
from atoll.runs.compare import Comparison
from atoll.runs.events import Event
from atoll.runs.figures import write
from atoll.runs.plots import seriated

from .test_compare import told

ONE_RUN = {"accuracy", "loss", "clients", "participation", "traffic", "labels", "affinity"}
SEVERAL = {"comparison-accuracy", "comparison-loss", "comparison-scores"}


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """A real run that has everything there is to draw."""
    place = tmp_path_factory.mktemp("runs")
    run = atoll.run(
        clients=6, model="logistic", rounds=3, cohort=3, engine="loop", method="fedavg-ft", runs=str(place)
    )
    return run.events()


def names(paths: list[Path]) -> set[str]:
    assert {path.suffix for path in paths} == {".svg", ".png"}
    assert all(path.stat().st_size > 1000 for path in paths)
    return {path.stem for path in paths}


def test_a_run_as_svg_and_png(events: list[Event], tmp_path: Path) -> None:
    assert names(write(events, tmp_path / "new" / "place")) == ONE_RUN
    with Image.open(tmp_path / "new" / "place" / "accuracy.png") as image:
        assert image.width == 3.4 * 300  # a column at 300 dots an inch
    with Image.open(tmp_path / "new" / "place" / "participation.png") as image:
        assert image.width == 7 * 300
    text = (tmp_path / "new" / "place" / "accuracy.svg").read_text()
    assert "personal models, mean" in text  # outlines, with what they say as a comment
    assert "<image" not in text and "<text" not in text


def test_several_runs_and_any_number_of_them(tmp_path: Path) -> None:
    runs = [
        told(f"{lr}-{seed}", [0.2, 0.4 + lr], seed, lr=lr, personal=0.9 if lr > 0.1 else None)
        for lr in np.linspace(0.01, 0.3, 9).round(3).tolist()
        for seed in range(2)
    ]
    assert names(Comparison.of(runs).figures(tmp_path)) == SEVERAL - {"comparison-loss"} | {
        "comparison-own"
    }  # these have no loss
    found = names(Comparison.of(runs[:4], "accuracy:0.3").figures(tmp_path))
    assert found == SEVERAL - {"comparison-loss"} | {"comparison-own"}
    losses = [told("a", [3.0, 2.0], measure="loss"), told("b", [3.0, 1.0], measure="loss", lr=1.0)]
    assert names(Comparison.of(losses).figures(tmp_path)) == {
        "comparison-loss",
        "comparison-own",
        "comparison-scores",
    }


def test_the_same_events_give_the_same_bytes(events: list[Event], tmp_path: Path) -> None:
    """Also in another process, with another seed for hashes, and with a style of the user's own."""
    few = [each for each in events if each["event"] in ("start", "affinity")]
    once = {path.name: path.read_bytes() for path in write(few, tmp_path / "a")}
    program = (
        "import sys, json, atoll.runs.figures as f\n"
        "import matplotlib; matplotlib.rcParams['font.size'] = 20\n"
        "f.write(json.load(sys.stdin), sys.argv[1])\n"
        "assert matplotlib.rcParams['font.size'] == 20\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "b")],
        input=json.dumps(few), text=True, check=True, timeout=100,
    )  # fmt: skip
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == once


def test_what_a_run_does_not_know_is_left_out(tmp_path: Path) -> None:
    assert names(write(told("a", [0.2, 0.3]), tmp_path)) == {"accuracy", "traffic"}
    assert write([{"event": "start", "config": {}}], tmp_path) == []
    with pytest.raises(ConfigError, match="no events"):
        write([], tmp_path)


def many(clients: int) -> list[Event]:
    rng = np.random.default_rng(0)
    events: list[Event] = [{"event": "start", "clients": clients, "measure": "accuracy"}]
    report = {"sizes": rng.integers(1, 90, 40).tolist(), "counts": None}
    events.append({"event": "partition", "report": report})
    for number in range(1, 12):
        cohort = rng.choice(clients, 40, replace=False).tolist()
        fields: dict[str, Any] = {
            "cohort": cohort[3:],
            "dropped": cohort[:3],
            "refused": {str(cohort[4]): "late"},
        }
        events.append({"event": "round", "round": number, "bytes_up": 5, "bytes_down": 9, **fields})
    matrix: Any = np.corrcoef(rng.normal(size=(60, 20))).tolist()
    matrix[0][1] = matrix[1][0] = None
    events.append({"event": "affinity", "round": 29, "clients": list(range(60)), "matrix": matrix})
    return events


@pytest.mark.parametrize("clients", [50, 5000])
def test_many_clients_and_a_regression(clients: int, tmp_path: Path) -> None:
    assert names(write(many(clients), tmp_path)) == {"participation", "traffic", "labels", "affinity"}


def test_similar_clients_stand_beside_each_other() -> None:
    groups = np.arange(12) % 3
    matrix = np.where(groups[:, None] == groups, 0.9, -0.2) + 0.001 * np.arange(12)
    order = seriated((matrix + matrix.T) / 2)
    assert sorted(order) == list(range(12))
    assert np.count_nonzero(np.diff(groups[order])) == 2


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="matplotlib") as caught:
        write(told("a", [0.2, 0.3]), tmp_path)
    assert caught.value.exit_code == 3 and caught.value.hint == 'pip install "atoll[plots]"'
    with pytest.raises(MissingExtraError):
        Comparison.of([told("a", [0.1])]).figures(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write figures"):
        write(told("a", [0.2, 0.3]), tmp_path / "file")
