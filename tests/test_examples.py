"""The examples: each runs as a program, prints what it claims, and draws its picture."""

from __future__ import annotations

import os
import re
import runpy
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch

import atoll
from tests.forked import fork

EXAMPLES = Path(__file__).parents[1] / "examples"
HAR = Path(os.environ.get("ATOLL_DATA", "absent")) / "har"

pytest.importorskip("matplotlib", reason="pictures need the extra plots")


def start(name: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """The program's exit code, output and errors."""
    program = str(EXAMPLES / f"{name}.py")

    def play() -> None:
        with (
            mock.patch("sys.argv", [program, *arguments]),
            mock.patch("sys.path", [str(Path(program).parent), *sys.path]),
        ):
            runpy.run_path(program, run_name="__main__")

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        ended = os.waitpid(fork(play, out.fileno(), err.fileno(), env), 0)[1]
        out.seek(0)
        err.seek(0)
        return os.waitstatus_to_exitcode(ended), out.read(), err.read()


def output(name: str, out: Path, *arguments: str) -> str:
    """What the example prints; it must succeed and end in its picture."""
    code, text, err = start(name, "--out", str(out), *arguments)
    assert code == 0, err
    picture = out / f"{name}.png"
    assert text.strip().endswith(str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    return text


def test_hospitals_prints_gains_and_advice(tmp_path: Path) -> None:
    text = output("hospitals", tmp_path, "--rounds", "1", "--seeds", "2")
    gains = re.findall(r"^(\w+) .*% \( *([-+]\d+\.\d)±", text, re.MULTILINE)
    assert [name for name, _ in gains] == ["cleveland", "hungarian", "switzerland", "va"]
    assert re.search(r"^advice: cleveland .*, va ", text, re.MULTILINE)


def test_what_a_clinic_knows_is_of_use_to_a_laboratory(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    code, text, err = start(
        "two_hospitals_transfer", "--common", "20", "--sealed", "0", "--picture", str(picture)
    )
    assert code == 0, err
    found = re.search(r"^ +20 +([\d.]+) ", text, re.MULTILINE)
    assert found is not None
    assert float(found[1]) > 0.95
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "options"), [("fedavg_from_scratch", ["--rounds", "3"]), ("ddp_from_scratch", ["--epochs", "1"])]
)
def test_what_is_written_by_hand_is_what_atoll_does(name: str, options: list[str]) -> None:
    code, text, err = start(name, *options)
    assert code == 0, err
    assert not err
    hand, ours = (re.search(rf"^{who} +([\d.]+%)", text, re.MULTILINE) for who in ("by hand", "in Atoll"))
    assert hand and ours and hand[1] == ours[1]
    apart = re.search(r"two parameters: (\S+)$", text.strip())
    assert apart and float(apart[1]) < 1e-5


def _equally(models: list[torch.nn.Module], samples: list[int]) -> dict[str, torch.Tensor]:
    """The commonest mistake: clients count the same, however many samples they have."""
    states = [model.state_dict() for model in models]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def test_a_mistake_by_hand_would_be_seen() -> None:
    listing = runpy.run_path(str(EXAMPLES / "fedavg_from_scratch.py"))
    data = atoll.data.load("digits").partition("dirichlet:0.3", clients=30, seed=0)
    torch.manual_seed(0)
    first = listing["net"]()
    right = listing["by_hand"](first, data, 1, 0).state_dict()
    listing["by_hand"].__globals__["average"] = _equally
    wrong = listing["by_hand"](first, data, 1, 0).state_dict()
    assert max(float((right[name] - wrong[name]).abs().max()) for name in right) > 1e-3


def test_neighbours_prints_every_way_to_learn(tmp_path: Path) -> None:
    text = output("neighbours", tmp_path, "--rounds", "3", "--liars", "1")
    rows = re.findall(
        r"^(alone|ring|exponential|a server|exponential, clipped) +[\d.]+ %", text, re.MULTILINE
    )
    assert rows == ["alone", "ring", "exponential", "a server", "exponential, clipped"]
    assert "ring: 2 neighbours, models come 5% closer" in text


@pytest.mark.slow
@pytest.mark.skipif(not (HAR.parent / "tinyshakespeare").is_dir(), reason="ATOLL_DATA has no tinyshakespeare")
def test_federated_gpt_prints_every_way_and_writes(tmp_path: Path) -> None:
    text = output("federated_gpt", tmp_path, "--rounds", "1", "--steps", "1", "--epochs", "1")
    rows = dict(
        re.findall(r"^(alone, adapters|FedAvg, all of it|FedIT|FedEx-LoRA|FedSA-LoRA) +([\d.]+) ", text, re.M)
    )
    assert len(rows) == 5
    assert all(4 < float(value) < 30 for value in rows.values())  # of 256 bytes
    assert text.count("KING RICHARD:") == 2
