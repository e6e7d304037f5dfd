"""`atoll run`: the summary, the events, the saved model, and how a run ends early."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from atoll.cli import main
from atoll.runs.checkpoint import list_checkpoints
from atoll.runs.folder import RunFolder
from tests.forked import fork

from .conftest import Atoll, environment

SMALL = ("--set", "rounds=3", "--set", "engine=loop", "--set", "clients=5", "--set", "model=logistic")
RESULT = {
    "method", "data", "partition", "engine", "rounds", "seconds", "seconds_per_round", "bytes_up",
    "bytes_down", "accuracy", "loss", "target_round", "clients",
}  # fmt: skip


def events(text: str) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_plain_run_learns_the_digits(process: Atoll) -> None:
    done = process("run", "--quiet")
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.out.startswith("fedavg on digits, dirichlet:0.3\n")
    row = next(line for line in done.out.splitlines() if line.strip().startswith("global model"))
    assert float(row.split()[2]) > 90
    for word in ("client mean", "p10", "median", "worst", "traffic", "MB up", "a round", "engine", "█"):
        assert word in done.out


def test_json_events_of_a_process(process: Atoll) -> None:
    done = process("run", "--json", "--set", "partition=iid", "--set", "target=accuracy:0.05", *SMALL)
    assert done.code == 0, done.err
    found = events(done.out)
    start, result = found[0], found[-1]
    rounds = [each for each in found if each["event"] == "round"]
    assert (start["event"], result["event"]) == ("start", "result")
    kept = RunFolder.find(start["run"]).events_file.read_text().splitlines()
    assert [json.loads(line) for line in kept] == found
    assert start["config"]["partition"] == "iid"
    assert start["config"]["lr"] == 0.1
    assert (start["clients"], start["parameters"]) == (5, 650)
    assert [each["round"] for each in rounds] == list(range(1, len(rounds) + 1))
    assert {"loss", "bytes_up", "bytes_down", "seconds", "clients"} <= rounds[0].keys()
    assert {"accuracy", "loss"} <= rounds[0]["evaluation"]["overall"].keys()
    assert result.keys() >= RESULT
    assert {"mean", "std", "min", "p10", "median"} <= result["clients"].keys()
    assert (result["method"], result["data"], result["partition"]) == ("fedavg", "digits", "iid")
    assert result["target_round"] == len(rounds)
    assert "global model" in done.err


def test_a_line_a_round_where_nobody_watches(atoll: Atoll) -> None:
    done = atoll("run", *SMALL)
    lines = [line for line in done.out.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all(
        word in lines[-1] for word in ("clients 5", "loss ", "accuracy ", "p10 ", "worst ", "up ", "down ")
    )
    assert "\x1b" not in done.out


def test_numbers_json_does_not_have_become_null(atoll: Atoll) -> None:
    done = atoll("run", "--json", "--quiet", "--set", "stragglers=1", "--set", "epochs=2", *SMALL)
    assert done.code == 0, done.err
    first = next(each for each in events(done.out) if each["event"] == "round")
    assert first["loss"] is None
    assert len(first["dropped"]) == 5


def test_saved_model_is_the_final_one(atoll: Atoll, tmp_path: Path) -> None:
    place = tmp_path / "model.safetensors"
    assert atoll("run", "--quiet", "--save", str(place), *SMALL).code == 0
    tensors = load_file(place)
    assert sorted(tuple(t.shape) for t in tensors.values()) == [(10,), (10, 64)]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_same_settings_same_model(atoll: Atoll, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('rounds = 3\nengine = "loop"\nclients = 5\nmodel = "logistic"\n')
    atoll("run", str(config), "-q", "--save", str(tmp_path / "a"))
    atoll("run", "-q", "--save", str(tmp_path / "b"), *SMALL)
    one, other = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_personal_models_have_a_row(atoll: Atoll) -> None:
    done = atoll("run", "--set", "method=fedavg-ft", *SMALL)
    assert "personal models" in done.out
    assert "  client mean " in done.out.splitlines()[2]


# --- runs that end early ------------------------------------------------------------------------------------


def test_divergence_ends_with_6_and_keeps_a_model(atoll: Atoll, tmp_path: Path) -> None:
    place = tmp_path / "model.safetensors"
    small = ("--set", "rounds=5", "--set", "engine=loop", "--set", "clients=5")
    done = atoll("run", "--json", "-q", "--set", "lr=1e30", "--save", str(place), *small)
    assert done.code == 6
    assert "diverged" in done.err
    assert "the last finite model is kept" in done.err
    assert "Traceback" not in done.err
    last = events(done.out)[-1]
    assert (last["event"], last["kind"], last["exit_code"]) == ("error", "DivergedError", 6)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(place).values())


@pytest.mark.parametrize(
    ("sent", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("engine", ["loop", "processes"])
def test_signals_end_a_run_in_order(sent: int, code: int, word: str, engine: str, tmp_path: Path) -> None:
    place = tmp_path / "model.safetensors"
    arguments = [
        "run",
        "--json",
        "-q",
        "--save",
        str(place),
        *SMALL,
        "--set",
        "rounds=1000000",
        "--set",
        f"engine={engine}",
    ]
    ours, theirs = os.pipe()
    said = tmp_path / "stderr.txt"
    with open(said, "wb") as errors:
        running = fork(lambda: (os.setpgrp(), main(arguments)), theirs, errors.fileno(), environment())  # type: ignore[func-returns-value]
    os.close(theirs)
    late = Timer(60, os.kill, (running, signal.SIGKILL))
    late.start()
    try:
        with open(ours) as lines:
            while '"event":"round"' not in (line := lines.readline()):
                assert line
            os.killpg(running, sent)  # as a terminal does it, or `timeout`
            out = lines.read()
    finally:
        late.cancel()
        os.kill(running, signal.SIGKILL)  # or it would play on; one that has ended does not mind
        ended = os.waitstatus_to_exitcode(os.waitpid(running, 0)[1])
    err = said.read_text()
    assert ended == code, err
    assert f"{word} after round" in err
    assert "Traceback" not in err
    last = events(out)[-1]
    assert last["exit_code"] == code
    assert place.is_file()
    path = Path(shlex.split(err.splitlines()[-1].partition("--resume ")[2])[0])
    assert list_checkpoints(path)[-1][0] == last["round"]
