"""Channels around methods of adapters: each does what it says, or is refused before the first round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atoll.adapters import apply
from atoll.data import FederatedData, from_clients
from atoll.errors import ConfigError
from atoll.federation import Federation


def clients(names: str = "abc") -> FederatedData:
    generator = torch.Generator().manual_seed(0)
    held = {
        name: (torch.randn(n, 16, generator=generator), torch.randint(8, (n,), generator=generator))
        for name, n in zip(names, (9, 6, 7), strict=False)
    }
    return from_clients(held, test=None, classes=8)


def network(adapter: str | None = "lora:8,16,*") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 8))
    return module if adapter is None else apply(module, adapter)


def made(method: str, channel: str | None, names: str = "abc", **more: Any) -> Federation:
    adapter = None if method == "fedkseed" else "lora:8,16,*"
    usual = {"rounds": 2, "seed": 1, "engine": "loop", "eval_every": 0, "device": "cpu"}
    return Federation(network(adapter), clients(names), method, channel=channel, **{**usual, **more})


@pytest.mark.parametrize(
    ("method", "channel", "says", "hint"),
    [
        (
            "rolora",
            "topk:0.1 + feedback",
            "RoLoRA sends no differences that add up",
            "leave the feedback out",
        ),
        ("rolora", "momentum:0.9", "RoLoRA sends no differences that add up", "leave momentum:0.9 out"),
        ("rolora", "fetchsgd:4", "RoLoRA does not average replies of one form", "name a codec"),
        ("rolora", "auto:0.25", "RoLoRA does not average replies of one form", "name a codec"),
        ("rolora", "clip:0.5 | noise:1,matrix=tree", "other tensors in one round", "write noise:1 "),
        ("fedkseed", "int8", "fields of fewer than 256 numbers", "leave int8 out"),
        ("fedkseed", "topk:0.1 + feedback", "FedKSeed sends", "leave"),
        ("fedkseed", "momentum:0.9", "FedKSeed sends no differences that add up", "leave momentum:0.9 out"),
        ("fedkseed", "clip:0.5 | secagg:16", "needs each client's reply", "fedavg"),
    ],
)
def test_what_would_fail_later_or_do_nothing_is_refused_at_once(
    method: str, channel: str, says: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        made(method, channel)
    assert hint in str(error.value.hint)


def scalars(channel: str | None, steps: int) -> tuple[Tensor, int]:
    """What a round of FedKSeed, of one client, adds to its sums, and bytes up."""
    run = made("fedkseed", channel, "a", steps=steps, seeds=16, lr=0.001, rounds=1)
    run.fit(progress=False)
    return run.state.sums, run.history[0].bytes_up


def test_seeds_and_scalars_are_bounded_and_packed() -> None:
    bounded, whole = scalars("clip:0.0001", 4)
    assert 0 < float(bounded.norm()) <= 0.0002  # a seed may be drawn again
    assert whole == 4 * 6
    _, fewer = scalars("int8", 256)
    assert fewer == 256 * 3 + 4


@pytest.mark.parametrize("channel", ["int8", "clip:0.5", "topk:0.2"])
def test_factors_in_turn_go_through_what_remembers_nothing(channel: str) -> None:
    run = made("rolora", channel, rounds=3)
    run.fit(progress=False)
    assert len(run.history) == 3 and bool(run.state.params.flat().isfinite().all())
