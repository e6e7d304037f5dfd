"""Choosing an engine costs little beside the run: what is short is not captured, what is long is tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import atoll.data
from atoll.engines import Auto, Processes, auto, steps
from atoll.errors import EngineError
from atoll.federation import Federation


def federation(rounds: int, **given: Any) -> Federation:
    generator = torch.Generator().manual_seed(0)
    made = {f"c{k}": (torch.randn(8, 6, generator=generator), torch.arange(8) % 3) for k in range(4)}
    data = atoll.data.from_clients(made, classes=3, test=None)
    return Federation(
        nn.Linear(6, 3), data, "fedavg", rounds=rounds, cohort=4, batch_size=4, eval_every=0, device="cpu",
        workers=1, **given,
    )  # fmt: skip


def chosen(rounds: int, played: int = 0) -> Auto:
    made = federation(rounds)
    made.simulation.number = played
    try:
        made.round()
    finally:
        made.engine.close()
    assert isinstance(made.engine, Auto)
    return made.engine


def refused(*given: Any) -> Any:
    raise AssertionError("a step was captured")


def test_a_short_run_is_over_before_a_capture_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "capture", refused)
    monkeypatch.setattr(auto, "_CAPTURE", 1.0)  # a second an operation, however busy this machine is
    assert "before a capture pays" in chosen(3).describe()
    assert chosen(3).describe().startswith("loop (about ")


def test_what_counts_is_the_rounds_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "capture", refused)
    monkeypatch.setattr(auto, "_CAPTURE", 1.0)  # a second an operation, however busy this machine is
    assert chosen(10**7, played=10**7 - 2).describe().startswith("loop")


def test_a_long_run_is_worth_every_trial() -> None:
    assert "a round: batched about" in chosen(10**7).describe()


def test_what_would_take_too_long_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_TOGETHER", 1e12)
    monkeypatch.setattr(auto, "_TINY", 1e9)  # but where clients have next to nothing to do
    assert "a round: batched about" in chosen(10**7).describe()
    monkeypatch.setattr(auto, "_TINY", 0)
    found = chosen(10**7)
    assert found.describe().startswith("processes") and "trying batched would take" in found.describe()
    assert isinstance(found.chosen, Processes)
    assert found.chosen.steps.known  # workers need not capture what the trial has captured


def test_what_cannot_be_captured_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*given: Any) -> Any:
        raise EngineError("no such step")

    monkeypatch.setattr(steps, "capture", cannot)
    assert "nothing faster can: " in chosen(10**7).describe()
