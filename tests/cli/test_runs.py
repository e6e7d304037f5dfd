"""`atoll ls`, `show`, `log`, `rm`, `compare` and `report`, on runs in every state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

import atoll
from atoll.runs.folder import RunFolder

from .conftest import Atoll


class Runs(NamedTuple):
    place: Path
    good: str
    other: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two finished runs that differ in seed and learning rate."""
    place = tmp_path_factory.mktemp("made")
    small = {"clients": 5, "model": "logistic", "rounds": 4, "engine": "loop", "runs": str(place)}
    names = []
    for changes in ({}, {"seed": 1, "lr": 0.02}):
        run = atoll.run(**small, **changes)  # type: ignore[arg-type]
        assert run.folder is not None
        names.append(run.folder.name)
    return Runs(place, *names)


@pytest.fixture
def runs(made: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A copy of them, where atoll looks for runs."""
    shutil.copytree(made.place, tmp_path / "runs")
    monkeypatch.setenv("ATOLL_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return Runs(tmp_path / "runs", made.good, made.other)


def rewrite(runs: Runs, name: str, keep: int, more: str = "") -> Path:
    """A run with only its first lines (and more), under a name of its own; the path of its events."""
    shutil.copytree(runs.place / runs.good, runs.place / name)
    file = runs.place / name / "events.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:keep]) + more)
    return file


def lines_until(runs: Runs, kind: str, count: int) -> int:
    """How many lines there are up to the so-manyth event of a kind."""
    lines = (runs.place / runs.good / "events.jsonl").read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if f'"event":"{kind}"' in line]
    return found[count - 1]


def states(runs: Runs) -> None:
    """Runs that were cut off, stopped, failed, damaged, or never begun, beside the finished ones."""
    two = lines_until(runs, "round", 2)
    error = '{"event":"error","time":1,"kind":"%s","message":"it %s","hint":null,"exit_code":1,"round":2}\n'
    rewrite(runs, "2001-cut-off", two, '{"event":"round","ti')
    rewrite(runs, "2002-stopped", two, error % ("Interrupted", "stopped"))
    rewrite(runs, "2003-failed", two, error % ("DivergedError", "diverged"))
    rewrite(runs, "2004-damaged", two, "### not JSON ###\n")
    rewrite(runs, "2005-empty", 0)
    late = '{"event":"problem","time":1,"where":"report.html","message":"no space"}\n'
    rewrite(runs, "2006-late-problem", 10_000, late)


# --- ls -----------------------------------------------------------------------------------------------------


def test_ls_tells_the_states_apart(atoll: Atoll, runs: Runs) -> None:
    states(runs)
    done = atoll("ls", "--json")
    assert (done.code, done.err) == (0, "")
    found = [json.loads(line) for line in done.out.splitlines()]
    seen = {each["run"]: (each["status"], each["round"], each["damaged"]) for each in found}
    assert seen == {
        "2001-cut-off": ("cut off", 2, 0),
        "2002-stopped": ("stopped", 2, 0),
        "2003-failed": ("failed", 2, 0),
        "2004-damaged": ("cut off", 2, 1),
        "2005-empty": ("cut off", 0, 0),
        "2006-late-problem": ("finished", 4, 0),
        runs.good: ("finished", 4, 0),
        runs.other: ("finished", 4, 0),
    }
    assert found[-1]["run"] == runs.other  # the newest last
    last = next(each for each in found if each["run"] == runs.good)
    assert (last["method"], last["data"], last["partition"]) == ("fedavg", "digits", "dirichlet:0.3")
    assert (
        last["rounds"] == 4
        and 0.3 < last["score"] < 1
        and last["worst"] <= last["score"]
        and last["seconds"] > 0
    )

    table = atoll("ls", str(runs.place)).out
    row = next(line for line in table.splitlines() if runs.good in line)
    assert all(word in row for word in ("finished", "fedavg", "dirichlet:0.3", "4/4", " %"))
    assert "cut off !" in next(line for line in table.splitlines() if "2004" in line)
    assert "cannot be read" in table
    assert "0/?" in next(line for line in table.splitlines() if "2005" in line)


def test_ls_of_nothing_and_of_a_running_one(atoll: Atoll, runs: Runs, tmp_path: Path) -> None:
    assert (
        "there are no runs" in atoll("ls", str(tmp_path)).out or "finished" in atoll("ls", str(tmp_path)).out
    )
    (tmp_path / "none").mkdir()
    done = atoll("ls", str(tmp_path / "none"))
    assert (done.code, "there are no runs" in done.out) == (0, True)
    assert atoll("ls", str(tmp_path / "none"), "--json").out == ""
    done = atoll("ls", str(tmp_path / "missing"))
    assert done.code == 2 and "there is no directory" in done.err
    folder = RunFolder(runs.place / runs.good)
    folder.hold()
    try:
        assert "running" in atoll("ls").out
        done = atoll("rm", runs.good, "--yes")
        assert done.code == 1 and "still running" in done.err and folder.path.is_dir()
    finally:
        folder.release()


# --- show ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["last", "name", "beginning", "end", "path"])
def test_show_finds_a_run(atoll: Atoll, runs: Runs, how: str) -> None:
    newest = runs.other
    name = {
        "last": "last",
        "name": newest,
        "beginning": newest[:-1],
        "end": newest[-4:],
        "path": str(runs.place / newest),
    }[how]
    done = atoll("show", name)
    assert done.code == 0, done.err
    assert newest in done.out and "fedavg on digits, dirichlet:0.3  finished" in done.out


def test_show_says_what_was_run_and_how_it_went(atoll: Atoll, runs: Runs) -> None:
    done = atoll("show", runs.other)
    settings = next(line for line in done.out.splitlines() if line.startswith("settings"))
    assert all(word in settings for word in ("lr=0.02", "seed=1", "clients=5", "model=logistic", "rounds=4"))
    assert "momentum" not in settings and "batch_size" not in settings  # as usual
    for word in ("global model", "client mean by round", "█", "4 of 4", " kB up", "650 parameters"):
        assert word in done.out
    assert "go on with" not in done.out


def test_show_has_a_confusion_matrix_and_the_best_round(atoll: Atoll, runs: Runs) -> None:
    file = rewrite(runs, "2010-confused", 10**6)
    events = [json.loads(line) for line in file.read_text().splitlines()]
    last = [event for event in events if event["event"] == "round"][-1]

    def shown(classes: int) -> str:
        """With so many classes, of which the last one is always taken for the first."""
        counts = [[7 * (k == j) for j in range(classes)] for k in range(classes)]
        counts[-1] = [5, *[0] * (classes - 1)]
        last["evaluation"]["confusion"] = {"overall": [[1]], "own": counts}
        events[-1] |= {"reason": "patience", "best_round": 3}
        file.write_text("".join(f"{json.dumps(event)}\n" for event in events))
        return atoll("show", "2010-confused").out

    lines = [line.split() for line in shown(3).splitlines()]
    assert ["label", "\\", "predicted", "0", "1", "2", "right"] in lines
    assert ["0", "7", "0", "0", "100.0", "%"] in lines and ["2", "5", "0", "0", "0.0", "%"] in lines
    assert "4 of 4, best on validation data in round 3" in shown(13)
    assert "confusion of 13 classes: on the run's page" in shown(13)
    assert (
        "over (patience) after 4 rounds, best on validation data in round 3"
        in atoll("log", "2010-confused").out
    )


def test_show_says_what_went_wrong_and_how_to_go_on(atoll: Atoll, runs: Runs) -> None:
    states(runs)
    resume = f"go on with: atoll run --resume {runs.place}"
    done = atoll("show", "2001")
    assert f"{resume}/2001-cut-off" in done.out and "without a word" in done.out and "2 of 4" in done.out
    done = atoll("show", "2003")
    assert "it diverged" in done.out and "go on with" not in done.out  # it would diverge again
    assert "1 lines of events.jsonl cannot be read" in atoll("show", "2004").out
    done = atoll("show", "2005")
    assert done.code == 0 and "cut off" in done.out and "go on with" not in done.out  # nothing to go on from
    assert "report.html: no space" in atoll("show", "2006").out


def test_show_of_no_run(atoll: Atoll, runs: Runs) -> None:
    done = atoll("show", "2024-02-30")
    assert done.code == 2 and "there is no run 2024-02-30" in done.err and "Traceback" not in done.err
    done = atoll("show", "20")
    assert done.code == 2 and "2 runs in" in done.err


# --- log ----------------------------------------------------------------------------------------------------


def test_log_prints_the_events(atoll: Atoll, runs: Runs) -> None:
    states(runs)
    done = atoll("log", "2004")
    assert [line.split()[1:3] for line in done.out.splitlines() if "  round " in line] == [
        ["round", "1"],
        ["round", "2"],
    ]
    assert done.err == "a damaged line\n"
    kinds = [
        json.loads(line)["event"] for line in atoll("log", runs.good, "--json", "--follow").out.splitlines()
    ]
    assert kinds[0] == "start" and kinds.count("round") == 4 and "result" in kinds


# --- rm -----------------------------------------------------------------------------------------------------


def test_rm_asks_first(atoll: Atoll, runs: Runs) -> None:
    done = atoll("rm", runs.good)
    assert done.code == 2 and "--yes" in done.err and (runs.place / runs.good).is_dir()
    done = atoll("rm", runs.good, runs.good, "--yes")
    assert done.code == 0 and done.out.count("deleted") == 1
    assert not (runs.place / runs.good).exists() and (runs.place / runs.other).is_dir()


def test_rm_deletes_no_folder_that_is_not_its_own(atoll: Atoll, runs: Runs, tmp_path: Path) -> None:
    for place in (".", str(runs.place), "..", "/"):
        assert atoll("rm", place, "--yes").code == 2, place
    assert atoll("rm", runs.good, "nothing-like-it", "--yes").code == 2
    assert (runs.place / runs.good).is_dir()
    sweep = runs.place / "sweep-x"
    shutil.copytree(runs.place / runs.good, sweep / "2007-a")
    (sweep / "sweep.json").write_text("{}")
    assert "  x" in next(line for line in atoll("ls").out.splitlines() if "2007-a" in line)
    assert atoll("rm", "sweep-x", "--yes").code == 0
    assert not sweep.exists()


# --- compare and report -------------------------------------------------------------------------------------


def test_compare(atoll: Atoll, runs: Runs) -> None:
    done = atoll("compare", runs.good, runs.other, "--target", "accuracy:0.1")
    assert done.code == 0, done.err
    assert "fedavg lr=0.1" in done.out and "fedavg lr=0.02" in done.out and "to accuracy:0.1" in done.out
    found = json.loads(atoll("compare", str(runs.place), "--json").out)
    assert sorted(group["seeds"] for group in found["groups"]) == [[0], [1]]
    assert {"label", "runs", "seeds", "curve", "table", "own", "ground"} == found["groups"][0].keys()
    again = json.loads(atoll("compare", str(runs.place), runs.good, "--json").out)
    assert again == found  # a run that is named twice is compared once


def test_compare_passes_over_what_has_not_begun(atoll: Atoll, runs: Runs) -> None:
    rewrite(runs, "2005-empty", 0)
    assert atoll("compare", str(runs.place)).code == 0
    done = atoll("compare", "2005", runs.good)
    assert done.code == 2 and "2005-empty has not begun" in done.err
    done = atoll("compare", runs.good, "--target", "accuracy")
    assert done.code == 2 and "MEASURE:VALUE" in done.err


def test_report_of_one_and_of_several(atoll: Atoll, runs: Runs, tmp_path: Path) -> None:
    (runs.place / runs.good / "report.html").unlink(missing_ok=True)
    done = atoll("report", runs.good, "--figures", str(tmp_path / "figures"))
    assert done.code == 0, done.err
    assert (runs.place / runs.good / "report.html").stat().st_size > 10_000
    assert "accuracy.svg" in done.out and (tmp_path / "figures" / "accuracy.png").is_file()
    done = atoll("report", str(runs.place))
    assert done.out == "comparison.html\n" and "fedavg lr=0.02" in (tmp_path / "comparison.html").read_text()
    done = atoll("report", str(runs.place), "-o", str(tmp_path / "no" / "such" / "place.html"))
    assert done.code == 1 and "Traceback" not in done.err
