"""Bad input: one screen that says what is wrong and what to do, and exit code 2."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from torch import nn

import atoll as library

from .conftest import Atoll

TABLE = "age,weight,sick\n40,70.5,0\n41,{value},1\n42,72.5,0\n43,73.5,1\n"


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("lrr=0.1", "unknown key 'lrr' (--set lrr=0.1)", "did you mean 'lr'"),
        ("rouns=3", "unknown key 'rouns'", "did you mean 'rounds'"),
        ("mu=0.1", "mu is a setting of fedprox", "choose one of these methods"),
        ("muu=0.1", "unknown key 'muu'", "did you mean 'mu', a setting of fedprox"),
        ("zzzz=1", "unknown key 'zzzz'", "atoll methods fedavg lists all keys"),
        ("lr", "--set 'lr' is not KEY=VALUE", "--set lr=0.05"),
        ("lr=fast", "lr cannot be 'fast' (--set lr=fast)", "lr takes a number"),
        ("lr=-1", "lr = -1.0, but it must be above 0", "atoll methods fedavg"),
        ("batch_size=x", "batch_size cannot be 'x'", "a whole number or full"),
        ("rounds=0", "rounds cannot be '0'", "a whole number at least 1"),
        ("cohort=1.5", "cohort cannot be '1.5'", "a number above 0 and below 1"),
        ("engine=fast", "engine cannot be 'fast'", "auto, batched, processes, loop"),
        ("method=fedpox", "unknown method 'fedpox'", "did you mean 'fedprox'"),
        ("model=lenett", "unknown model 'lenett'", "did you mean 'lenet'"),
        ("data=digts", "unknown dataset 'digts'", "did you mean 'digits'"),
        ("partition=dirichle:1", "unknown partition 'dirichle'", "did you mean 'dirichlet'"),
        ("partition=dirichlet:0", "alpha", "uneven"),
        ("partition=dirichlet:-1", "alpha", "uneven"),
        ("clients=5000", "5000 clients", "fewer clients"),
        ("cohort=31", "there are only 30", "30 or fewer"),
        ("attackers=0.2", "attackers = '0.2', and nothing says what they do", 'attack="signflip"'),
        ("attack=signflip", "attack = 'signflip', and nobody is there to do it", "attackers=0.2"),
        ("target=high", "target 'high' is not MEASURE:VALUE", "write MEASURE:VALUE"),
        ("label=y", "label is for data files", "leave label out"),
        ("data=none.csv", "there is no file none.csv", "paths start"),
    ],
)
def test_bad_settings(atoll: Atoll, setting: str, message: str, hint: str) -> None:
    done = atoll("run", "--set", setting)
    assert done.code == 2
    assert done.out == ""
    first, second, *more = done.err.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert second.startswith(" hint: ")
    assert hint in second
    assert not more
    assert len(done.err) < 800


@pytest.mark.parametrize(
    "content", ["lr = = 1", "lr = 0.1\nlrr = 2\n", "[method]\nname = 1\n", "lr = 'x'\n", "lr = [1]\n"]
)
def test_bad_files(atoll: Atoll, tmp_path: Path, content: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    done = atoll("run", str(file))
    assert done.code == 2
    assert "run.toml" in done.err
    assert "\n hint: " in done.err


@pytest.mark.parametrize("name", ["absent.toml", "folder", "noise.toml"])
def test_unreadable_files(atoll: Atoll, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "noise.toml").write_bytes(bytes(range(128, 256)))
    done = atoll("run", str(tmp_path / name))
    assert done.code == 2
    assert "cannot read" in done.err
    assert "\n hint: " in done.err


def test_missing_value_in_a_table(atoll: Atoll, tmp_path: Path) -> None:
    file = tmp_path / "patients.csv"
    file.write_text(TABLE.format(value="nan"))
    done = atoll("run", "--set", f"data={file}", "--set", "label=sick")
    assert done.code == 2
    assert "'weight'" in done.err
    assert "\n hint: " in done.err


@pytest.mark.parametrize("name", ["noise.npz", "noise.csv"])
def test_unreadable_data(atoll: Atoll, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(bytes(range(256)))
    done = atoll("run", "--set", f"data={file}", "--set", "label=y")
    assert done.code == 2
    assert name in done.err
    assert "\n hint: " in done.err


def test_a_place_that_cannot_be_saved_to(atoll: Atoll, tmp_path: Path) -> None:
    done = atoll("run", "--save", str(tmp_path / "nowhere" / "model.safetensors"))
    assert done.code == 2
    assert "no folder to write to" in done.err


def test_a_model_that_does_not_fit_its_labels() -> None:
    data = library.data.load("digits").partition("iid", clients=4)
    with pytest.raises(library.ConfigError) as caught:
        library.Federation(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), data)
    assert caught.value.exit_code == 2
    assert "7" in caught.value.message
    assert caught.value.hint


def test_errors_are_events_too(process: Atoll) -> None:
    done = process("run", "--json", "--set", "lrr=1")
    assert done.code == 2
    event = json.loads(done.out)
    assert event.pop("time") > 0
    assert event == {
        "event": "error",
        "kind": "ConfigError",
        "message": "unknown key 'lrr' (--set lrr=1)",
        "hint": "did you mean 'lr'?",
        "exit_code": 2,
        "round": 0,
    }
    assert done.err.startswith("error: unknown key")


@pytest.mark.parametrize(
    "arguments", [("run", "--bogus"), ("rnu",), ("data", "describe"), ("run", "a.toml", "b.toml")]
)
def test_usage(atoll: Atoll, arguments: tuple[str, ...]) -> None:
    assert atoll(*arguments).code == 2


def test_surprises_are_short_unless_asked(atoll: Atoll, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the roof is leaking\nand more")

    monkeypatch.setattr("atoll.experiment.Experiment.load", fail)
    done = atoll("run")
    assert done.code == 1
    assert "RuntimeError: the roof is leaking (in test_errors.py" in done.err
    assert "Traceback" not in done.err
    monkeypatch.setenv("ATOLL_LOG_LEVEL", "debug")
    assert "Traceback" in atoll("run").err


def test_help_needs_no_torch(process: Atoll) -> None:
    start = time.perf_counter()
    done = process("--help")
    assert time.perf_counter() - start < 1.5  # a fifth of that on an idle machine
    assert done.code == 0
    assert "run" in done.out


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"adapter": "lora:0"}, "rank = '0' is not a whole number at least 1", "lora:RANK"),
        ({"adapter": "lora:2,4,query"}, "no layer of Sequential is called 'query'", "known: 1"),
        (
            {"adapter": "lora:9"},
            "rank 9 is above what 1 has, a weight of 64 inputs and 8 outputs",
            "at most 8",
        ),
        ({}, "FedIT averages adapters, and the model has none", 'adapter="lora:8,16"'),
        ({"adapter": "lora:2 / lora:4"}, "FedIT gives all clients one adapter", "flora"),
        ({"adapter": "lora:2 / lora:4", "method": "fedex"}, "FedEx gives all clients one adapter", "hetlora"),
        (
            {"adapter": "lora:2 / lora:4", "method": "flora", "model": "mlp:8 + mlp:4"},
            "names 2 adapters, and there are 2 models",
            "several for one",
        ),
        ({"adapter": "lora:2,4,1 / lora:2,4,3", "method": "flora"}, "unequal layers", "same targets"),
        ({"adapter": "prompt:2"}, "is no chain that begins with an embedding", "lora"),
        (
            {"adapter": "lora:2", "method": "rolora", "pace": "buffered:2", "devices": "equal"},
            "RoLoRA",
            "sync",
        ),
    ],
)
def test_adapters_that_do_not_fit(atoll: Atoll, settings: dict[str, str], says: str, hint: str) -> None:
    given = {"data": "digits", "model": "mlp:8", "method": "fedit", "rounds": "1", "runs": "none", **settings}
    done = atoll("run", *(word for key, value in given.items() for word in ("--set", f"{key}={value}")))
    assert done.code == 2
    told = " ".join(done.err.split())
    assert says in told and hint in told and "Traceback" not in done.err
    assert len(done.err.splitlines()) < 24
