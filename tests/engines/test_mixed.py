"""Clients of several architectures, replies of several forms, and data that everybody knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from torch import nn

from atoll.contract import ClientData, Population, Replies, Reply, Work
from atoll.errors import ConfigError, DataError
from atoll.federation import Federation
from atoll.methods import FedAvg, Local
from atoll.task import Task
from atoll.tensors import Record, Tensors

from .test_engines import clients

ENGINES = ("loop", "batched", "processes")


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3))


def large() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def fitted(engine: str, method: FedAvg, model: object, rounds: int = 2, **settings: object) -> Federation:
    federation = Federation(
        model, clients(), method, rounds=rounds, cohort=5, engine=engine, device="cpu", eval_every=0,
        workers=2, **settings,
    )  # type: ignore[arg-type]  # fmt: skip
    federation.fit()
    return federation


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_clients_take_turns_in_architecture(engine: str) -> None:
    method = Local(lr=0.1, batch_size=4)
    mixed = fitted(engine, method, [small, large])
    alone = [fitted("loop", method, each) for each in (small, large)]
    for k in range(5):
        memory, wanted = mixed.memories.get(k), alone[k % 2].memories.get(k)
        assert memory is not None
        assert wanted is not None
        assert memory.params.keys() == wanted.params.keys()
        torch.testing.assert_close(memory.params.flat(), wanted.params.flat(), rtol=1e-4, atol=1e-6)
    judged = mixed.history[-1].evaluation
    assert judged is not None
    assert judged.each["personal"]["accuracy"].keys() == set(range(5))


def test_methods_with_one_architecture_say_which_can_have_more() -> None:
    with pytest.raises(ConfigError, match=r"one architecture, and there are 2 models\n.*local"):
        Federation([small, large], clients(), "fedavg")
    with pytest.raises(ConfigError, match="empty list"):
        Federation([], clients(), "local")


@dataclass(frozen=True, kw_only=True)
class Narrow(FedAvg):
    """Sends odd clients the first half of the hidden units, to see whether forms may differ."""

    reduction: ClassVar[Literal["mean", "each"]] = "each"

    @staticmethod
    def cut(params: Tensors) -> Tensors:
        return Tensors({"0.weight": params["0.weight"][:4], "0.bias": params["0.bias"][:4],
                        "2.weight": params["2.weight"][:, :4], "2.bias": params["2.bias"]})  # fmt: skip

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        own = {
            k: Record(params=self.cut(state.params)) if k % 2 else Record(params=state.params) for k in cohort
        }
        forms = {k: Record(update=each.params) for k, each in own.items()}
        return Work(Record(buffers=state.buffers, lr=work.shared.lr), own, forms=forms)

    def update(self, state: Record, replies: Replies) -> Record:
        wide = [
            reply.values["update"] for reply in replies.each if len(reply.values["update"]["0.bias"]) == 8
        ]
        assert len(wide) == 3
        assert len(replies.each) == 5
        return state.replace(params=state.params + wide[0], round=state.round + 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_replies_may_have_several_forms(engine: str) -> None:
    one, two = fitted("loop", Narrow(lr=0.1), large), fitted(engine, Narrow(lr=0.1), large)
    torch.testing.assert_close(two.state.params.flat(), one.state.params.flat(), rtol=1e-4, atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Wrong(Narrow):
    """Expects of everybody what only odd clients send."""

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        work = super().broadcast(state, cohort)
        return Work(work.shared, work.own, forms={k: Record(update=self.cut(state.params)) for k in cohort})

    def update(self, state: Record, replies: Replies) -> Record:
        assert replies.clients == [1, 3]
        return state.replace(round=state.round + 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_replies_of_another_form_than_theirs_are_refused(engine: str) -> None:
    federation = fitted(engine, Wrong(lr=0.1), large, rounds=1)
    assert federation.history[0].refused.keys() == {0, 2, 4}
    assert "has shape (8, 6), not (4, 6)" in federation.history[0].refused[0]


@dataclass(frozen=True, kw_only=True)
class Shouter(FedAvg):
    """Sends what its model makes of the public data; the server adds up what it knows itself."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("public",)

    def setup(self, task: Task, population: Population) -> Record:
        assert population.public is not None
        return super().setup(task, population).replace(heard=population.public.sum())

    def update(self, state: Record, replies: Replies) -> Record:
        return super().update(state, replies).replace(heard=replies.mean.heard)

    def refine(self, state: Record, population: Population) -> Record:
        assert population.public is not None
        return state.replace(refined=population.public.mean() + state.round)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        assert data.public is not None
        outputs, _ = task.predict(local.params, local.buffers, data.public.inputs)
        return reply._replace(values=reply.values.replace(heard=outputs.mean(0))), memory


@pytest.mark.parametrize("engine", ENGINES)
def test_everybody_knows_the_public_data(engine: str) -> None:
    public = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    one = fitted("loop", Shouter(lr=0.1), large, public=public)
    two = fitted(engine, Shouter(lr=0.1), large, public=public)
    torch.testing.assert_close(two.state.heard, one.state.heard, rtol=1e-4, atol=1e-6)
    assert float(two.state.refined) == pytest.approx(float(public.mean()) + 2)


def test_public_data_must_be_there_and_fit() -> None:
    with pytest.raises(
        ConfigError, match=r"Shouter distils on public data, and there are none\n.*public=500"
    ):
        Federation(large, clients(), Shouter())
    with pytest.raises(DataError, match="3 public inputs are of shape 5"):
        Federation(large, clients(), Shouter(), public=torch.zeros(3, 5))
