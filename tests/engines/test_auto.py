"""Choosing an engine costs little beside the run: what is short is not captured, what is long is tried."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import atoll.data
from atoll.engines import Auto, Processes, auto, loop, steps, widths
from atoll.engines.auto import decide
from atoll.engines.remembered import Found
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
    monkeypatch.setattr(auto, "_SHARE", 0)
    monkeypatch.setattr(auto, "_TINY", 1e9)  # but where clients have next to nothing to do
    assert "a round: batched about" in chosen(10**7).describe()
    monkeypatch.setattr(auto, "_TINY", 0)
    monkeypatch.setattr(auto, "_QUICK", 0)  # nor are their steps quick, whatever this machine makes of them
    found = chosen(10**7)
    assert found.describe().startswith("processes") and "trying batched would take" in found.describe()
    assert isinstance(found.chosen, Processes)
    assert found.chosen.steps.known  # workers need not capture what the trial has captured


def test_what_cannot_be_captured_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*given: Any) -> Any:
        raise EngineError("no such step")

    monkeypatch.setattr(steps, "capture", cannot)
    assert "nothing faster can: " in chosen(10**7).describe()


def test_choosing_takes_no_more_than_some_rounds_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_LONG", 0.0)
    monkeypatch.setattr(auto, "_ROUNDS", 1e-9)
    assert "trying batched would take" in chosen(10**7).describe()


FOUND = Found(loop=1.0, alone=0.2, together=0.1, threads=2, capture=0.5, captures=6)


def test_captures_count_where_the_run_is_short() -> None:
    assert decide(FOUND, 1)[0] == "processes"
    assert decide(FOUND, 1000)[0] == "batched"
    assert decide(FOUND, 20)[0] == "processes"  # 20 rounds save 2 s, five captures take 2.5
    assert decide(FOUND, 20, captured=4)[0] == "batched"
    assert decide(replace(FOUND, loop=0.3), 2) == ("loop", "")


def test_what_narrow_stacks_take_lies_between_one_client_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (4, 4, 4, 80)
    generator = torch.Generator().manual_seed(0)
    made = {
        f"c{k}": (torch.randn(n, 6, generator=generator), torch.arange(n) % 3) for k, n in enumerate(sizes)
    }
    data = atoll.data.from_clients(made, classes=3, test=None)
    running = Federation(
        nn.Linear(6, 3),
        data,
        "fedavg",
        rounds=9,
        cohort=4,
        batch_size=4,
        eval_every=0,
        device="cpu",
        workers=1,
    )
    engine: Any = running.engine
    seen: list[Any] = []

    def run(job: Any, memories: Any) -> tuple[Any, Any]:
        seen.append(job)
        return loop.Loop(engine.task, engine.data, engine.device).run(job, memories)

    monkeypatch.setattr(engine, "_choose", lambda job: (SimpleNamespace(run=run, close=lambda: None), ""))
    monkeypatch.setattr(engine.trials, "_time", lambda *given: (1.0, 0.5, 0.0))  # 2 s a step of all four
    monkeypatch.setattr(widths, "_WORTH", 0.0)
    running.round()
    assert [each[2:4] for each in engine.trials.plan(seen[0])] == [(4, 4), (1, 1)]
    assert engine.trials.batched(None, seen[0], None, 0.1) == (pytest.approx(1 + 2 + 19 * 0.1), "")
    assert engine.trials.batched(None, seen[0], None) == (pytest.approx(1 + 20 * 2), "")
