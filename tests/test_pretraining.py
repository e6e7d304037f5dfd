"""Silos that train one language model together from scratch: DiLoCo with a server, and what belongs to it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import atoll
import atoll.clock
from atoll.data import Dataset, Samples
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.models import gpt
from atoll.runs.events import read

CONTEXT = 6
DILOCO: dict[str, Any] = {
    "method": "fedopt", "server_optimizer": "nesterov:0.9", "server_lr": 0.7, "keep_optimizer": True,
    "optimizer": "adamw", "weight_decay": 0.1, "lr": 3e-3, "clip": 1.0, "steps": 3, "batch_size": 4,
}  # fmt: skip


@cache
def text(natural: bool = True) -> atoll.FederatedData:
    """Four silos of 12 windows of 6 tokens; each counts in steps of its own."""
    start, step = torch.arange(48) % 11, torch.arange(48) // 12 + 1
    windows = (start[:, None] + step[:, None] * torch.arange(CONTEXT + 1)) % 11
    columns = {"silo": np.array([f"silo {int(each)}" for each in step])}
    samples = Samples(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
    data = Dataset("counting", samples, classes=11, columns=columns, natural="silo")
    return data.partition("natural" if natural else "iid", clients=None if natural else 4)


def net() -> nn.Module:
    return gpt(11, CONTEXT, layers=1, width=8, heads=2)


def federation(**given: Any) -> Federation:
    settings = {**DILOCO, "rounds": 4, "engine": "loop", **given}
    return Federation(net, text(), **settings)


def clock(silos: list[dict[str, Any]]) -> Any:
    """Silos that send in no time, each with what is said of its device."""
    quick = {"latency": 0.0, "download": 1e15, "upload": 1e15}
    named = {name: {**quick, **each} for name, each in zip(text().names, silos, strict=True)}
    return atoll.clock.devices(named, clients=4, names=text().names)


def params(run: Any) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in run.model.parameters()])


@pytest.mark.parametrize("engine", ["processes", pytest.param("batched", marks=pytest.mark.slow)])
def test_engines_come_to_the_same(engine: str) -> None:
    one, other = (params(federation(engine=each, workers=1, rounds=2).fit()) for each in (engine, "loop"))
    assert float((one - other).abs().max()) < 1e-4  # AdamW makes much of rounding


@pytest.mark.slow
def test_learns() -> None:
    losses = [value for _, value in federation(rounds=12).fit().history("loss")]
    assert losses[-1] < 0.9 * losses[0]


def test_a_silo_may_be_a_job_of_several_processes() -> None:
    alone, together = (params(federation(silo=silo, rounds=2).fit()) for silo in (None, "ddp:2"))
    assert float((together - alone).abs().max()) < 1e-4
    assert float((alone - params(federation(rounds=1).fit())).abs().max()) > 1e-2


# --- a budget of tokens ---------------------------------------------------------------------------------------------


def test_a_run_is_over_when_its_tokens_are_read(tmp_path: Path) -> None:
    """Of 10 windows of a silo 4, 4 and 2 are read in three steps: 60 tokens, and 240 a round of four silos."""
    run = federation(rounds=9, tokens=481, runs=tmp_path).fit()
    assert run.reason == "tokens" and len(run.rounds) == 3
    assert run.tokens == run.to_dict()["tokens"] == 720
    assert run.folder is not None
    events = read(run.folder.path / "events.jsonl").events
    rounds = [each for each in events if each["event"] == "round"]
    assert [each["tokens"] for each in rounds] == [240] * 3
    assert json.loads(json.dumps(events[-1]))["tokens"] == run.tokens
    assert "all tokens read" in str(run)


def test_goes_on_to_the_bit_with_more_tokens(tmp_path: Path) -> None:
    """Of the server's momentum and the silos' own moments nothing is lost."""
    whole = federation(tokens=960, rounds=20).fit()
    assert len(whole.rounds) == 4
    broken = federation(tokens=480, rounds=20, runs=tmp_path, checkpoint=1).fit()
    assert broken.folder is not None and len(broken.rounds) == 2
    again = federation(tokens=960, rounds=20).resume(broken.folder.path).fit()
    assert torch.equal(params(again), params(whole)) and again.tokens == whole.tokens == 960


def test_samples_that_are_no_sequences_have_no_tokens() -> None:
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    data = atoll.data.from_arrays(x, y).partition("iid", clients=2)
    made = lambda: nn.Linear(3, 2)  # noqa: E731
    assert "tokens" not in Federation(made, data, rounds=1).fit().to_dict()
    with pytest.raises(ConfigError, match="are no sequences"):
        Federation(made, data, rounds=1, tokens=100)


# --- silos of their own speed, that come and go ---------------------------------------------------------------------


def test_a_slow_silo_takes_fewer_steps() -> None:
    """A step of four windows takes it 0.4 s: two of them are done in time, and the server counts what they read."""
    devices = clock([{"speed": 40.0}] * 3 + [{"speed": 10.0}])
    run = federation(devices=devices, deadline=0.9, late="partial").fit()
    for each in run.rounds:
        assert list(each.clients["samples"]) == [10, 10, 10, 8] and each.tokens == 38 * CONTEXT


def test_a_silo_that_was_away_goes_on_with_its_own_moments() -> None:
    """A round takes a second. The fourth silo, which needs half of it, is not there when the third and fourth begin."""
    devices = clock([{"speed": 10.0}] * 3 + [{"speed": 20.0, "active": [0, 3.9], "inactive": [1.9, 99]}])
    made = federation(devices=devices, rounds=6)
    assert [3 in each.cohort for each in made.fit().rounds] == [True, True, False, False, True, True]
    steps = [made.memories.get(silo).optimizer.steps for silo in range(4)]  # type: ignore[union-attr]
    assert [int(each) for each in steps] == [18, 18, 18, 12]
