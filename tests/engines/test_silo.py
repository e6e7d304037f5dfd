"""A silo that is a job: several processes train a client, and nobody can tell from the result."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atoll
from atoll.engines.shared import Shared
from atoll.engines.silo import Silos
from atoll.task import Batch, Task


@cache
def data(shape: tuple[int, ...] = (6,)) -> atoll.FederatedData:
    """Three clients of 31 samples or so: the last batch of an epoch has fewer rows than there are processes."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(0, 4, (93,), generator=generator)
    x = torch.randn(93, *shape, generator=generator) + y.view(-1, *(1,) * len(shape)) * 0.3
    return atoll.data.from_arrays(x, y).partition("iid", clients=3, seed=0)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4)
    )


def federation(
    method: str = "fedavg", model: Any = mlp, shape: tuple[int, ...] = (6,), **settings: Any
) -> Any:
    usual = {"rounds": 2, "engine": "loop", "lr": 0.1, "epochs": 2, "batch_size": 5}
    return atoll.Federation(model, data(shape), method, **{**usual, **settings})


def params(federation: Any) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in federation.fit(progress=False).model.parameters()])


CASES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"method": "fedprox", "mu": 0.1},
    "scaffold": {"method": "scaffold"},
    "ditto": {"method": "ditto"},
    "cnn": {"model": cnn, "shape": (1, 8, 8)},
    "clip": {"channel": "clip:0.5"},
}


@pytest.mark.parametrize("case", CASES)
def test_is_one_process_with_the_whole_batch(case: str) -> None:
    alone, together = params(federation(**CASES[case])), params(federation(silo="ddp:2", **CASES[case]))
    assert float((together - alone).abs().max()) < 1e-5
    assert float((together - params(federation(rounds=1, **CASES[case]))).abs().max()) > 1e-3


def test_three_processes_come_to_the_same_bits_again() -> None:
    one, other = (params(federation(silo="ddp:3")) for _ in range(2))
    assert torch.equal(one, other)
    assert float((one - params(federation())).abs().max()) < 1e-5


def test_each_process_takes_its_part_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = atoll.Task.gradient

    def watched(self: atoll.Task, params: Any, buffers: Any, batch: Any) -> Any:
        seen.append(len(batch.mask))
        return plain(self, params, buffers, batch)

    made = federation(silo="ddp:2", rounds=1, epochs=1, batch_size=4)
    steps = sum(-(-made.data.size(client) // 4) for client in range(3))
    assert any(made.data.size(client) % 4 == 1 for client in range(3))
    made.engine.silo._tried = True
    monkeypatch.setattr(atoll.Task, "gradient", watched)
    made.fit(progress=False)
    assert set(seen) == {1, 2}  # of four rows, and of one, which the other process has
    assert len(seen) == steps


SLOW = [pytest.param(each, marks=pytest.mark.slow) for each in ("fedsgd", "per-fedavg", "fedala")]


@pytest.mark.parametrize("method", ["moon", *SLOW])
def test_gradients_of_other_kinds_are_right_too(method: str) -> None:
    own = {} if method != "fedsgd" else {"epochs": None, "batch_size": None}
    given = {key: value for key, value in own.items() if value is not None}
    usual = {"rounds": 2, "engine": "loop", "lr": 0.1, **given}
    alone, together = (
        params(atoll.Federation(mlp, data(), method, **usual, **more)) for more in ({}, {"silo": "ddp:2"})
    )
    assert float((together - alone).abs().max()) < 1e-5


def test_a_process_that_is_killed_fails_the_task_and_the_next_one_is_done() -> None:
    made = federation(silo="ddp:2", rounds=1, epochs=2000)
    engine = made.engine
    assert isinstance(engine, Silos)

    def kill() -> None:
        while engine.silo._group is None or not engine.silo._group.alive:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(engine.silo._group._helpers[0][0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(atoll.RunError, match="process 1 of the silo's 2 was ended by SIGKILL"):
        made.fit(progress=False)
    killer.join()
    group = engine.silo._group
    assert group is None or not group.alive
    again = federation(silo="ddp:2")
    again.simulation.engine = engine
    again.simulation.judge.engine = engine
    assert float((params(again) - params(federation())).abs().max()) < 1e-5


class Broken(nn.Module):
    """Fails in every process but the one that it was made in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.home = nn.Linear(6, 4), os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.home:
            raise ValueError("no such luck")
        return self.layer(x)


def test_what_a_process_says_is_told() -> None:
    with pytest.raises(atoll.RunError, match=r"process 1 of the silo's 2 failed: .*ValueError: no such luck"):
        federation(silo="ddp:2", model=Broken).fit(progress=False)


def test_parts_of_a_batch_draw_apart() -> None:
    """Rows that are alike, in two processes, lose other units to dropout."""
    task = Task(nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2)))
    params, buffers = task.initial()
    batch = Batch(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64), torch.ones(8), torch.tensor(7))
    seen: list[Tensor] = []
    for rank in (0, 1):
        Shared(task, rank, 2, lambda value: seen.append(value.clone())).gradient(params, buffers, batch)
    assert not torch.allclose(*seen)


def test_user_errors_are_told_once_and_nobody_is_left() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(6, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            if self.calls > 20:
                raise ValueError("enough")
            return self.layer(x)

    made = federation(silo="ddp:2", model=Wrong)
    with pytest.raises(atoll.RunError, match="enough"):
        made.fit(progress=False)
    assert made.engine.silo._group is None


class Centred(nn.Module):
    """Looks at the mean of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"silo": "ddp"}, "silo 'ddp'"),
        ({"silo": "ddp:0"}, "whole number at least 1"),
        ({"silo": "fsdp:2"}, "unknown silo 'fsdp'"),
        ({"silo": "ddp:2", "engine": "processes"}, "engine = .processes. has its own"),
        ({"silo": "ddp:2", "dp_sgd": "1.0,1.0"}, "dp_sgd takes another one"),
        (
            {"silo": "ddp:2", "model": lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))},
            "BatchNorm needs all samples",
        ),
        ({"silo": "ddp:2", "model": Centred}, "looks across the samples"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(atoll.ConfigError, match=message):
        federation(**settings).fit(progress=False)
