"""What was meant by a command line, help that is whole, completion, and commands that need no torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.synthetic import log, write

from .conftest import COMMAND, Atoll, environment


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        ("run lr=0.1", "there is no file lr=0.1", "settings follow --set: --set lr=0.1"),
        ("sweep lr=0.1", "there is no file lr=0.1", "settings follow --set: --set lr=0.1"),
        ("run a.toml lr=0.1 mu=1", "lr=0.1 mu=1", "settings follow --set: --set lr=0.1 --set mu=1"),
        ("run --lr 0.1", "there is no option --lr", "settings follow --set: --set lr=0.1"),
        (
            "run --batch-size=5",
            "there is no option --batch-size",
            "settings follow --set: --set batch_size=5",
        ),
        (
            "vertical run --trees 5",
            "there is no option --trees",
            "settings follow --set: --set secureboost.trees=5",
        ),
        ("vertical run --seed=3", "there is no option --seed", "settings follow --set: --set seed=3"),
        ("run --epochz 3", "there is no option --epochz", "did you mean 'epochs'"),
        ("run --set model=resnet", "unknown model 'resnet'", "a module of your own is package.module:Name"),
        ("run --set model=xyz", "unknown model 'xyz'", "known: 2nn, auto, cnn"),
        ("run --set cohrt=5", "unknown key 'cohrt'", "did you mean 'cohort'"),
    ],
)
def test_what_was_meant(atoll: Atoll, command: str, message: str, hint: str) -> None:
    done = atoll(*command.split())
    assert done.code == 2
    first, second = done.err.splitlines()
    assert first.startswith("error: ") and message in first
    assert second.startswith(" hint: ") and hint in second


def test_an_option_like_no_setting_is_an_error_of_usage(atoll: Atoll) -> None:
    done = atoll("run", "--qqqqqq")
    assert done.code == 2
    assert re.search(r"No such option:? '?--qqqqqq", done.err)


@pytest.mark.parametrize("command", ["", "data"])
def test_lines_of_help_are_whole(atoll: Atoll, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((80, 40)))
    done = atoll(*command.split(), "--help")
    commands = done.out.partition("Commands:")[2].strip().splitlines()
    assert len(commands) >= 3
    assert [line for line in commands if line.endswith("...")] == []


def test_the_shell_completes_commands_and_runs(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "2026-a", log(clients=4, rounds=2, cohort=2))
    found = {}
    for words in ("atoll sw", "atoll show 2026"):
        asked = {"_ATOLL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            COMMAND, capture_output=True, text=True, env=environment() | asked | {"ATOLL_RUNS": "runs"}, cwd=tmp_path,
            timeout=60, check=False,
        )  # fmt: skip
        found[words] = done.stdout.split()
    assert found == {"atoll sw": ["sweep"], "atoll show 2026": ["2026-a"]}


def test_looking_at_runs_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "2026-a", log(clients=4, rounds=2, cohort=2))
    code = """
import sys
from atoll.cli import main
for command in ("--help", "run --help", "ls", "show", "log", "compare 2026-a", "ls --json", "rm --help", "privacy -h"):
    try:
        main(command.split())
    except SystemExit as ended:
        assert not ended.code, command
    assert "torch" not in sys.modules, command
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment() | {"ATOLL_RUNS": "runs"},
        cwd=tmp_path, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2026-a" in done.stdout


def test_settings_that_are_not_the_usual_ones(atoll: Atoll, tmp_path: Path) -> None:
    old = list(log(clients=4, rounds=2, cohort=2))
    write(tmp_path / "older", old)
    assert "epochs=2" in atoll("show", str(tmp_path / "older")).out  # it does not say which: all are shown
    old[0] |= {"changed": ["lr"]}
    write(tmp_path / "newer", old)
    line = next(
        line
        for line in atoll("show", str(tmp_path / "newer")).out.splitlines()
        if line.startswith("settings")
    )
    assert line.split() == ["settings", "lr=0.1"]


def test_doctor_lists_every_extra(atoll: Atoll) -> None:
    from atoll.cli.doctor import extras

    wanted = {"images", "frames", "plots", "tensorboard", "mlflow", "dash", "matched", "dp"}
    assert wanted <= set(extras())
    assert extras()["frames"] == ["pandas", "polars", "pyarrow"]
    done = atoll("doctor")
    for name in wanted:
        assert f"[{name}]" in done.out


def test_doctor_says_how_to_get_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from atoll.cli import doctor

    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["nowhere-to-be>=1; extra == 'plots'"])
    assert ("[plots]", 'nowhere-to-be not installed; pip install "atoll[plots]"') in doctor.lines()


def test_a_comparison_says_which_runs_ended_early(atoll: Atoll, tmp_path: Path) -> None:
    write(tmp_path / "a", log(clients=4, rounds=3, cohort=2, name="a"))
    write(
        tmp_path / "b",
        log(clients=4, rounds=2, cohort=2, name="b", seed=1, planned=3, ending="DivergedError"),
    )
    done = atoll("compare", str(tmp_path))
    assert done.code == 0
    assert done.err == "b: failed after 2 of 3 rounds: the model left the numbers\n"
    write(tmp_path / "sub" / "c", list(log(clients=4, rounds=2, cohort=2, name="c", ending=None))[:2])
    done = atoll("compare", str(tmp_path / "sub" / "c"))
    assert done.code == 2
    assert "no round was evaluated in c (cut off)" in done.err
    assert "atoll show c tells how it ended" in done.err


def test_the_live_page_opens_at_the_run(
    atoll: Atoll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("atoll.cli.run.seen_here", lambda: True)
    monkeypatch.setattr("atoll.runs.serve.PORT", 0)  # others may be at the usual one
    done = atoll(
        "run", "--dash", "--set", "rounds=1", "--set", "clients=4", "--set", "model=logistic", "--set", "engine=loop",
        "--runs", str(tmp_path),
    )  # fmt: skip
    assert done.code == 0, done.err
    (run,) = tmp_path.iterdir()
    (url,) = opened
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith(f"/#run={run.name}")
    assert f"live page: {url}" in done.out
