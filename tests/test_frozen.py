"""Parameters that are not trained are the same everywhere: nobody sends them, and nobody remembers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import atoll.data
from atoll.errors import AtollError
from atoll.federation import Federation
from atoll.tensors import Record, named_tensors


def adapted(base: float = 1.0) -> nn.Module:
    """A small adapter, 27 numbers that are trained, beside a frozen layer of 48 and behind a frozen one of 72."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
    model[0].weight.requires_grad_(False)
    model[3].requires_grad_(False)
    with torch.no_grad():
        model[3].weight.mul_(base)
    return model


def three(engine: str, method: Any = "fedavg", model: Any = adapted, **settings: Any) -> Federation:
    generator = torch.Generator().manual_seed(1)
    made = {
        f"c{k}": (torch.randn(n, 6, generator=generator), torch.arange(n) % 3)
        for k, n in enumerate((9, 8, 12))
    }
    data = atoll.data.from_clients(made, classes=3, test=0.25)
    kept = {"rounds": 3, "engine": engine, "device": "cpu", "batch_size": 4, "lr": 0.1, **settings}
    return Federation(model, data, method, **kept)


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
def test_frozen_parameters_stay_at_home(engine: str) -> None:
    federation = three(engine)
    run = federation.fit()
    trained = sum(p.numel() for p in adapted().parameters() if p.requires_grad) * 4
    moving = 2 * 8 * 4 + 8  # statistics of the BatchNorm: two means and a counter
    assert run.to_dict()["bytes_up"] == 9 * (trained + moving)
    assert run.to_dict()["bytes_down"] == 9 * (trained + moving + 4)  # and the learning rate
    assert not {"0.weight", "3.weight", "3.bias"} & {*federation.state.params, *federation.state.buffers}
    model, start = run.model.state_dict(), adapted().state_dict()
    for name in ("0.weight", "3.weight", "3.bias"):
        assert torch.equal(model[name], start[name])
    assert not torch.equal(model["4.weight"], start["4.weight"])
    for name, value in three("loop").fit().model.state_dict().items():
        torch.testing.assert_close(model[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["local", "ditto", "fedper", "fedbabu", "fedala", "fedamp", "scaffold"])
def test_no_client_remembers_frozen_parameters(method: str) -> None:
    federation = three("loop", method)
    run = federation.fit()
    held = [name for k in range(3) for name, _ in named_tensors(federation.memories.get(k) or Record())]
    assert not [name for name in held if name.endswith(("0.weight", "3.weight", "3.bias"))]
    if federation.method.personalised:
        own, start = federation.personal("c1").state_dict(), adapted().state_dict()
        assert torch.equal(own["3.weight"], start["3.weight"])
    assert run.evaluation is not None


def bottleneck() -> nn.Module:
    """Hidden units before and behind a frozen layer, and some between trained ones."""
    model = nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    )
    model[2].requires_grad_(False)
    return model


@pytest.mark.parametrize("method", ["heterofl", "fedma"])
def test_methods_that_cut_or_match_units_leave_frozen_layers_whole(method: str) -> None:
    federation = three("loop", method, bottleneck, rounds=2)
    run = federation.fit()
    assert torch.equal(run.model.state_dict()["2.weight"], federation.task.frozen["2.weight"])
    assert not torch.equal(run.model.state_dict()["3.weight"], federation.task.initial()[0]["3.weight"])


def test_a_run_goes_on_with_the_same_frozen_parameters_or_not_at_all(tmp_path: Path) -> None:
    whole = three("loop", rounds=4, runs=str(tmp_path / "whole")).fit()
    half = three("loop", rounds=2, runs=str(tmp_path / "half")).fit()
    assert half.folder is not None
    again = three("loop", rounds=4).resume(half.folder.path).fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    other = three("loop", rounds=4).replace(model=lambda: adapted(2.0))
    with pytest.raises(AtollError, match="frozen parameters"):
        other.resume(half.folder.path)
