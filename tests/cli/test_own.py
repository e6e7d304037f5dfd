"""Code of the user's own, from the command line and from files; and that nothing else is ever imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll import own
from atoll.cli.main import main
from atoll.errors import ConfigError
from atoll.experiment import Experiment, prepare, run

CODE = '''
import dataclasses
import torch
from torch import nn
from atoll import FedAvg

(__import__("pathlib").Path(__file__).parent / "imported").touch()

class Net(nn.Sequential):
    def __init__(self, width=7):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

class Needs(nn.Module):
    def __init__(self, width):
        super().__init__()

@dataclasses.dataclass(frozen=True, kw_only=True)
class Halved(FedAvg):
    """Half of every step.

    Args:
        share: of the step.
    """
    share: float = 0.5

    def gradient(self, task, local, batch):
        gradient, local = super().gradient(task, local, batch)
        return gradient * self.share, local

def smooth(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)

def top3(outputs, targets):
    return (outputs.topk(3).indices == targets[:, None]).any(1).float()
'''
SHORT: dict[str, Any] = {"rounds": 2, "clients": 4, "eval_every": 0, "engine": "loop", "device": "cpu"}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory that nobody has imported."""
    name = f"mine_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(own, "_admitted", {})
    return name


def forget(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(own, "_admitted", {})
    sys.modules.pop(module, None)
    Path("imported").unlink(missing_ok=True)


def parts(code: str) -> dict[str, str]:
    return {
        "model": f"{code}:Net",
        "method": f"{code}:Halved",
        "loss": f"{code}:smooth",
        "metrics": f"{code}:top3",
    }


def test_model_method_loss_and_metrics_of_ones_own(code: str) -> None:
    found = run(runs="none", share=0.25, **parts(code), **SHORT)
    assert found.model[1].out_features == 7  # type: ignore[index,union-attr]
    assert found.method == "Halved"
    assert found.evaluation is not None and {"loss", "top3"} <= found.evaluation.overall.keys()
    federation = prepare(runs="none", **parts(code), **SHORT)
    assert federation.task.loss_name == "smooth" and federation.method.share == 0.5  # type: ignore[attr-defined]


def test_the_command_line_and_a_file_name_code(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f'model = "{code}:Net"', f'method = "{code}:Halved"', "share = 0.3", "rounds = 1", "clients = 3"]
    Path("exp.toml").write_text("\n".join(lines))
    sets = [f"metrics={code}:top3", "runs=none", "engine=loop"]
    main_ok(["run", "exp.toml", "--json", *(part for text in sets for part in ("--set", text))])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["config"]["share"] == 0.3 and events[0]["method"] == "Halved"
    main_ok(["methods", f"{code}:Halved"])
    shown = capsys.readouterr().out
    assert "settings of Halved" in shown and "share" in shown


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (0, None)


def test_a_run_folder_imports_nothing(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder may come from anybody: showing, comparing and resuming it, and its file, run no code that it names."""
    first = run(runs="runs", **{**parts(code), **SHORT, "rounds": 1})
    assert first.folder is not None
    path = str(first.folder.path)
    forget(code, monkeypatch)
    for arguments in (["show", path], ["ls", "runs"], ["compare", path, path]):
        main_ok(arguments)
    again = f"loss = '{code}:smooth' is code, and code is imported only where you name it yourself"
    for named, words in (({}, "is code"), ({"method": f"{code}:Halved"}, again)):
        forget(code, monkeypatch)
        if not named:
            for attempt in (
                lambda: prepare(resume=path, rounds=2),
                lambda: Experiment.read(Path(path) / "config.toml"),
                lambda: Experiment(method=f"{code}:Halved"),
            ):
                with pytest.raises(ConfigError, match=words):
                    attempt()
            assert not Path("imported").exists() and code not in sys.modules
        else:
            with pytest.raises(ConfigError, match=words):
                prepare(resume=path, rounds=2, **named)
    forget(code, monkeypatch)
    with pytest.raises(ConfigError, match="model cannot change when a run is resumed"):
        prepare(resume=path, rounds=2, model=f"{code}:Needs")
    assert not Path("imported").exists()
    on = prepare(resume=path, rounds=2, **parts(code)).fit()
    whole = run(runs="none", **parts(code), **SHORT)
    for name, value in whole.model.state_dict().items():
        assert (value == on.model.state_dict()[name]).all()


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("model", "nowhere_at_all:Net", "model = 'nowhere_at_all:Net': there is no module nowhere_at_all"),
        ("model", "mlp:early", "widths = 'early' is not a whole number at least 1"),
        ("model", "{}:Nett", "model = '{}:Nett': {} has no Nett"),
        ("model", "{}:Needs", "model = '{}:Needs' cannot be made: missing a required argument: 'width'"),
        ("model", "{}:top3", "cannot be made"),
        ("method", "{}:Net", "method = '{}:Net' is no method"),
        ("loss", "entropy", "unknown loss 'entropy'"),
        ("metrics", "accurac", "metrics: there is no metric 'accurac'"),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_said(code: str, key: str, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.format(code, code)):
        prepare(runs="none", **{key: name.format(code)}, **SHORT)


def test_settings_of_models_are_no_code() -> None:
    assert own.named("mlp:128,64") == own.named("vgg:8") == own.named("mlp-bn:64") == []
    assert own.named("cnn + nets.small:Net + mlp:64") == ["nets.small:Net"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("models", ["mlp[:WIDTHS,...]", "two hidden layers of 200 units", "vgg[:WIDTH]"]),
        ("partitions", ["dirichlet:ALPHA[,MIN_SIZE,BALANCE]", "shards[:PER_CLIENT]", "natural"]),
    ],
)
def test_models_and_partitions_are_listed(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main_ok([command])
    shown = capsys.readouterr().out
    assert all(word in shown for word in words)
