"""Steps on fixed memory, as a CUDA graph takes them: what is recorded is done here by the CPU, once more each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atoll.data
from atoll.engines import replay
from atoll.engines.replay import Replayed, Replays, in_turn
from atoll.federation import Federation
from atoll.methods import METHODS, FedAvg
from atoll.tensors import leaves
from tests.engines.test_engines import RAGGED, clients
from tests.halves import fitting


class OnTheCPU(Replays):
    """What is recorded is done once, as a graph does, and then whenever it is asked for."""

    made = 0

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        self.made += 1
        return work


def played(name: str, fixed: bool, recurrent: bool = False) -> tuple[Any, ...]:
    """All that three rounds leave behind."""
    settings: dict[str, Any] = {"lr": 0.05}
    if "batch_size" in set(METHODS[name].__dataclass_fields__):
        settings["batch_size"] = 4
    if name == "fedkseed":  # of their defaults, 200 and 4096
        settings |= {"steps": 6, "seeds": 64}
    if METHODS[name].low_rank:
        settings["adapter"] = "lora:2"
    if name == "feddf":
        settings["distill_steps"] = 5
    if recurrent:
        x = torch.arange(60).remainder(7).view(20, 3)
        made = {f"c{at}": (x[:n], x[:n].roll(-1, 1)) for at, n in enumerate((13, 5, 20, 9))}
        data = atoll.data.from_clients(made, test=None, classes=7)
        model: Callable[[], nn.Module] = lambda: atoll.models.lstm(7, 4, 6, 1)  # noqa: E731
    else:
        norm = [nn.BatchNorm1d(8)] if name == "fedbn" else []
        model = lambda: nn.Sequential(nn.Linear(6, 8), *norm, nn.Tanh(), nn.Linear(8, 3))  # noqa: E731
        data = clients(sizes=RAGGED, validation=0.25)
        data = data.publish(torch.randn(12, 6, generator=torch.Generator().manual_seed(2)))
        model, data = fitting(name, model, data)
    running = Federation(
        model, data, name, rounds=3, cohort=4, engine="batched", eval_every=0, device="cpu", **settings
    )
    engine: Any = running.engine
    engine = getattr(engine, "engines", [engine])[0]
    if fixed:
        engine.replays = OnTheCPU(torch.device("cpu"))
    for _ in range(3):
        running.round()
    if fixed:
        assert engine.replays.made
    kept = [running.memories.get(client) for client in running.memories.clients()]
    return leaves((running.state, kept))


FEW = ("fedavg", "scaffold", "ditto", "fedora", "fedbn", "apfl")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in METHODS]
)
def test_a_round_on_fixed_memory_is_the_same_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_PLAIN", 0)
    _same(played(name, fixed=True), played(name, fixed=False))


def test_recurrent_models_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_PLAIN", 0)
    _same(played("fedavg", True, recurrent=True), played("fedavg", False, recurrent=True))


def _same(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def swap(state: list[Any], batch: list[Tensor]) -> list[Any]:
    """Old leaves in each other's places, one written over, one that stays."""
    a, b, c, d = state
    return [b, a, c.add_(a) + batch[0], d]


@pytest.mark.parametrize("plain", [0, 1, 3, 9])
def test_steps_before_and_after_the_recording_follow_each_other(
    plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_PLAIN", plain)
    start = [torch.tensor([float(at)]) for at in range(4)]
    step = Replayed(swap, {0, 1, 2}, OnTheCPU(torch.device("cpu")).graph)
    for first in (0, 3):  # the second time it starts from another state, and what does not change is another
        batches = [[torch.tensor([float(first + at)])] for at in range(3)]
        wanted = in_turn(swap)([leaf.clone() for leaf in start], batches)
        own = [leaf.clone() for leaf in start]
        found = step(own, iter(batches))
        _same(found, wanted)
        fixed = {id(leaf) for leaf in step.state}
        assert not any(id(leaf) in fixed for leaf in found), (
            "the next steps would write over what was returned"
        )
        start = [leaf + 1 for leaf in wanted]


def test_graphs_are_bounded_and_can_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_PLAIN", 0)
    monkeypatch.setattr(replay, "_MOST", 2)
    known = OnTheCPU(torch.device("cpu"))
    add: replay.Step = lambda state, batch: [state[0] + batch[0]]  # noqa: E731
    for key in ("a", "b", "a", "c", "a"):  # b is the one that was asked for longest ago
        known.find(key, lambda: add, {0})([torch.zeros(1)], [[torch.ones(1)]])
    assert known.made == 3
    known.find("b", lambda: add, {0})([torch.zeros(1)], [[torch.ones(1)]])
    assert known.made == 4
    assert known.recorded and known.forget() and not known.recorded and not known.forget()


@dataclass(frozen=True, kw_only=True)
class Full(FedAvg):
    """A device whose memory is full as long as graphs are held."""

    def begin(self, task: Any, received: Any, memory: Any, data: Any) -> Any:
        if held is not None and held.recorded:
            raise torch.cuda.OutOfMemoryError("no memory")
        return super().begin(task, received, memory, data)


held: OnTheCPU | None = None


@pytest.mark.parametrize("cohort", [1, 4])
def test_memory_that_graphs_hold_is_given_back_before_groups_are_made_smaller(
    cohort: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    global held
    monkeypatch.setattr(replay, "_PLAIN", 0)
    running = Federation(
        nn.Linear(6, 3), clients(), Full(batch_size=4), rounds=3, cohort=cohort, engine="batched",
        eval_every=0, device="cpu",
    )  # fmt: skip
    engine: Any = running.engine
    held = engine.replays = OnTheCPU(torch.device("cpu"))
    try:
        running.round()
        made = held.made
        running.round()
    finally:
        held = None
    assert engine.room.most is None and made and engine.replays.made > made
