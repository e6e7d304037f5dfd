"""A run that was stopped and resumed ends as the undisturbed one does, to the bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import atoll
from atoll import facts
from atoll.callbacks import Callback
from atoll.codec import Form
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import METHODS
from atoll.rounds.history import Round
from atoll.runs.checkpoint import list_checkpoints
from atoll.runs.events import read
from atoll.runs.folder import RunFolder
from atoll.runs.story import Story
from tests.halves import fitting

ENGINES = ("loop", "batched", "processes")


class Net(nn.Module):
    """Every kind of state: weights, BatchNorm statistics and counters, dropout that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def data(sizes: tuple[int, ...] = (9, 30, 14, 22, 5, 17)) -> Any:
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(6, 3))
    made = {}
    for at, n in enumerate(sizes):
        x = rng.normal(size=(n, 6)).astype(np.float32)
        made[f"site{at}"] = {"train": (x, (x @ weights).argmax(1)), "test": (x, (x @ weights).argmax(1))}
    public = torch.from_numpy(rng.normal(size=(10, 6)).astype(np.float32))
    return atoll.data.from_clients(made, classes=3, validation=2).publish(public)


BATCH = 8
EQUAL = (
    18,
) * 6  # two full batches each beside validation: the batched engine has one form of step to capture


def federation(
    method: str = "fedavg", engine: str = "loop", equal: bool = False, **settings: Any
) -> Federation:
    settings = {
        "rounds": 6,
        "cohort": 3,
        "seed": 5,
        "checkpoint": 2,
        "engine": engine,
        "device": "cpu",
        **settings,
    }
    batch = {} if method == "fedsgd" else {"batch_size": BATCH}
    steps: dict[str, Any] = {"distill_steps": 4} if method == "feddf" else {}
    steps |= {"steps": 6} if method.startswith("pfedhn") else {}  # of their default, 50
    steps |= {"finetune_epochs": 1} if method == "fedbabu" else {}  # of 5
    steps |= {"head_epochs": 2} if method == "fedrep" else {}  # of 10
    steps |= {"steps": 6, "seeds": 64} if method == "fedkseed" else {}  # of 200 and 4096
    steps |= {"adapter": "lora:2"} if METHODS[method].low_rank else {}
    model, clients = fitting(method, Net, data(EQUAL) if equal else data())
    return Federation(model, clients, method, **batch, **steps, **settings)


class StopAfter(Callback):
    def __init__(self, number: int) -> None:
        self.number = number

    def on_round_end(self, federation: Federation, record: Round) -> None:
        if record.number == self.number:
            federation.stop()


def everything(federation: Federation) -> dict[str, bytes]:
    """All tensors and numbers that a federation holds, as bytes."""
    found: dict[str, bytes] = {}
    records = {"state": federation.state}
    records |= {f"memory {k}": federation.memories.get(k) for k in federation.memories.clients()}
    for name, record in records.items():
        found[f"{name}: form"] = repr(Form.of(record)).encode()
        for path, leaf in pytree.tree_flatten_with_path(record)[0]:
            value = leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode()
            found[name + pytree.keystr(path)] = value
    return found


FEW = {
    "batched": (
        "fedavg", "scaffold", "fedavg-ft", "fedbn", "fedmd", "fedora", "ifca", "pfedhn-pc",
    ),
    "processes": ("fedavg", "scaffold", "fedora"),
}  # fmt: skip
"""Methods that span what an engine is given back on resume: means and single replies; nothing, a control variate,
buffers, outputs and models remembered; steps of "personal"; `enrol`; own payloads; what `begin` reads. The loop plays
every method, and the long run (`slow`) all of them in both engines."""

PAIRS = [
    pytest.param(method, engine, marks=() if method in FEW.get(engine, METHODS) else pytest.mark.slow)
    for method in sorted(METHODS)
    for engine in ENGINES
    if engine != "processes"
    or method in ("fedavg", "fedadam", "scaffold", "fedavg-ft", "fedora", "pfedhn-pc")
]
"""Every method where the work is done in one process; worker processes only carry records to and fro."""


@pytest.mark.parametrize(("method", "engine"), PAIRS)
def test_stop_and_resume_is_the_undisturbed_run(method: str, engine: str, tmp_path: Path) -> None:
    equal = engine == "batched"
    settings: dict[str, Any] = {"rounds": 5, "joins": {"site1": 3}, "leaves": {"site4": 5}}
    whole = federation(method, engine, equal, **settings)
    run = whole.fit()
    part = federation(method, engine, equal, runs=tmp_path, callbacks=[StopAfter(3)], **settings)
    part.fit()
    assert part.number == 3
    again = federation(method, "auto", equal, runs=tmp_path, **settings).resume("last")
    assert again.number == 3
    resumed = again.fit()
    assert everything(again) == everything(whole)
    assert [r.evaluation.to_dict() for r in resumed.rounds if r.evaluation] == [
        r.evaluation.to_dict() for r in run.rounds if r.evaluation
    ]
    assert [r.number for r in resumed.rounds] == [1, 2, 3, 4, 5]


def test_an_engine_that_was_chosen_is_chosen_again(tmp_path: Path) -> None:
    part = federation("fedavg", "auto", runs=tmp_path, callbacks=[StopAfter(2)])
    part.fit()
    again = federation("fedavg", "auto", runs=tmp_path).resume()
    assert again.engine.settled()[0] == part.engine.settled()[0] != "auto"
    again.fit()


def test_more_rounds_may_be_asked_for(tmp_path: Path) -> None:
    federation(rounds=4, runs=tmp_path).fit()
    longer = federation(rounds=6, runs=tmp_path).resume()
    longer.fit()
    whole = federation(rounds=6)
    whole.fit()
    assert everything(longer) == everything(whole)
    kinds = [e["event"] for e in read(longer.folder.events_file).events]  # type: ignore[union-attr]
    assert kinds.count("resume") == 1
    assert kinds.count("result") == 1
    assert (
        longer.folder is not None
    )  # who looks at the run, or plays it again, has the settings that it ended with
    assert longer.folder.config()["rounds"] == Story(longer.folder.log().events).config["rounds"] == 6
    assert longer.folder.config()["about"]["custom"] is True
    assert kinds[-1] == "result"
    assert "problem" not in kinds


def test_a_resume_after_rounds_that_no_checkpoint_holds_voids_their_events(tmp_path: Path) -> None:
    class Crash(Callback):
        def on_round_start(self, federation: Federation, number: int) -> None:
            if number == 6:
                os.kill(os.getpid(), signal.SIGKILL)

    if (pid := os.fork()) == 0:
        federation(runs=tmp_path, callbacks=[Crash()], checkpoint=4).fit()
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    folder = RunFolder.find("last", tmp_path)
    assert [e["round"] for e in folder.log().events if e["event"] == "round"] == [1, 2, 3, 4, 5]
    assert folder.status(folder.log().events[-1]) == "cut off"
    again = federation(runs=tmp_path, checkpoint=4).resume()
    assert again.number == 4
    run = again.fit()
    assert [e["round"] for e in folder.log().events if e["event"] == "round"] == [1, 2, 3, 4, 5, 6]
    assert len(run.rounds) == 6


class Wider(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def absolute(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.softmax(1) - nn.functional.one_hot(targets, 3)).abs().sum(1)


def test_what_decides_the_bits_of_a_round_is_what_runs_must_agree_in() -> None:
    made = federation()
    first = made.keeper._identity()
    changes: dict[str, dict[str, Any]] = {
        "method": {"method": "fedprox"},
        "seed": {"seed": 6},
        "cohort": {"cohort": 2},
        "stragglers": {"stragglers": 0.4},
        "loss": {"loss": absolute},
        "number of clients": {"data": data((9, 30, 14, 22, 5))},
        "clients' sizes": {"data": data((9, 30, 14, 22, 5, 18))},
        "model": {"model": Wider},
        "epochs": {"epochs": 2},
        "newcomers": {"newcomers": 1},
        "joins": {"joins": {"site1": 3}},
        "leaves": {"leaves": {"site1": 3}},
        "choose": {"choose": "fair"},
        "devices": {"devices": "equal"},
        "pace": {"devices": "equal", "pace": "buffered:2"},
        "deadline": {"devices": "equal", "deadline": 50},
        "public data": {"data": data().publish(torch.ones(10, 6))},
    }
    for name, change in changes.items():
        other = made.replace(**change).keeper._identity()
        assert other.get(name) != first.get(name), name
    here = made.simulation
    there = facts.identity(made.method, made.tasks, made.data, here.cohorts, "cuda", made.settings)
    assert there["device"] != first["device"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "seed is 5 there, 6 here"),
        ({"lr": 0.5}, "lr is 0.1 there, 0.5 here"),
        ({"cohort": 2}, "cohort"),
    ],
)
def test_another_federation_does_not_go_on_with_a_run(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    federation(runs=tmp_path, rounds=2).fit()
    with pytest.raises(ConfigError, match=named):
        federation(runs=tmp_path, **change).resume()
    federation(runs=tmp_path, rounds=3).resume().fit()  # the refusal has let go of the folder


def test_which_checkpoints_stay(tmp_path: Path) -> None:
    fed = federation(runs=tmp_path, rounds=9, checkpoint=1, keep="last, every:4")
    fed.fit()
    assert fed.folder is not None
    assert [round for round, _ in list_checkpoints(fed.folder.path)] == [4, 8, 9]


def test_the_best_checkpoint_is_the_best_for_what_clients_would_use(tmp_path: Path) -> None:
    """Local's global model is the initial one in every round; its clients' models are not."""
    fed = federation("local", runs=tmp_path, rounds=6, checkpoint=1, keep="best")
    run = fed.fit()
    scores = {r.number: r.evaluation.personal["accuracy"].mean for r in run.rounds if r.evaluation}
    assert run.rounds[-1].evaluation.score == scores[6] != run.rounds[-1].evaluation.overall["accuracy"]  # type: ignore[union-attr]
    assert fed.folder is not None
    kept = [number for number, _ in list_checkpoints(fed.folder.path)]
    assert max(scores, key=lambda number: (scores[number], number)) in kept
