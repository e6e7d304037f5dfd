"""The engine does not change the result: what looks across the rows of a batch is never given padded ones."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll.data
from atoll.contract import ClientData, Job, Reply, Work
from atoll.data import FederatedData
from atoll.engines.padding import Padding
from atoll.federation import Federation
from atoll.methods import METHODS, FedAvg
from atoll.rounds.memories import MemoryStore
from atoll.task import Task
from atoll.tensors import Record
from tests.halves import fitting

ENGINES = ("loop", "batched", "processes")
SAYS = "batches are not padded"


def data(sizes: tuple[int, ...] = (11, 6, 4, 9)) -> FederatedData:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for at, n in enumerate(sizes):
        x = torch.randn(n, 6, generator=generator)
        made[f"c{at}"] = {"train": (x, (x[:, 0] > 0).long()), "test": (x, (x[:, 0] > 0).long())}
    return atoll.data.from_clients(made, classes=2)


def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
    """Supervised contrast: one value a sample, out of all samples of the batch."""
    z = F.normalize(outputs, dim=1)
    others = 1 - torch.eye(len(z))
    alike = (targets[:, None] == targets[None]).to(z.dtype) * others
    scores = torch.log_softmax(z @ z.T * 2 - 1e9 * torch.eye(len(z)), 1)
    return -(scores * alike).sum(1) / alike.sum(1).clamp(min=1)


class Follows(nn.Module):
    """Keeps a moving mean of its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 3)
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.line(x)
        if self.training:
            self.centre = self.centre * 0.9 + outputs.mean(0).detach() * 0.1
        return outputs - self.centre


class Instances(nn.Module):
    """Normalises each sample, and keeps the statistics of all."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
        self.line = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.norm(x.reshape(-1, 2, 3)).flatten(1))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Spread(FedAvg):
    """Looks across all of a client's rows at the end, without their mask."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("train",)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        assert data.train is not None
        update = reply.values.update * data.train.inputs.std(0).mean()
        return reply._replace(values=reply.values.replace(update=update)), memory


def plain() -> nn.Module:
    return nn.Linear(6, 3)


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "loss": (plain, FedAvg(lr=0.5, batch_size=4, epochs=2), {"loss": contrast}),
    "loss of all": (plain, FedAvg(lr=0.5, batch_size=None, epochs=2), {"loss": contrast}),
    "buffer": (Follows, FedAvg(lr=0.5, batch_size=4), {}),
    "instances": (Instances, FedAvg(lr=0.5, batch_size=4), {}),
    "method": (plain, Spread(lr=0.5, batch_size=4), {}),
    "adam": (plain, FedAvg(lr=0.05, batch_size=4, optimizer="adam"), {"loss": contrast}),
}


@functools.cache
def learnt(name: str, engine: str) -> tuple[Record, list[float], str]:
    model, method, given = CASES[name]
    federation = Federation(
        model,
        data(),
        method,
        rounds=2,
        cohort=4,
        engine=engine,
        eval_every=0,
        workers=1,
        device="cpu",
        **given,
    )
    run = federation.fit()
    return federation.state, [each.loss for each in run.rounds], run.engine


@pytest.mark.parametrize("engine", ["batched", "processes"])
@pytest.mark.parametrize("name", CASES)
def test_engines_that_pad_do_what_the_loop_does(name: str, engine: str) -> None:
    (wanted, losses, _), (state, found, said) = learnt(name, "loop"), learnt(name, engine)
    torch.testing.assert_close(state.params.flat(), wanted.params.flat(), rtol=1e-4, atol=1e-5)
    for key, value in wanted.buffers.items():
        torch.testing.assert_close(state.buffers[key], value, rtol=1e-4, atol=1e-5)
    assert found == pytest.approx(losses, rel=1e-4)
    assert SAYS in said


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_is_given_the_rows_of_the_batch_and_no_more(engine: str) -> None:
    rows = lambda o, t: o.reshape(len(t)) * 0 + float(len(t))  # noqa: E731
    one = atoll.data.from_clients(
        {"a": (torch.randn(20, 3), torch.zeros(20))}, test=None, classes="regression"
    )
    run = Federation(
        nn.Linear(3, 1), one, "fedavg", rounds=1, batch_size=16, loss=rows, engine=engine, workers=1
    ).fit()
    assert run.rounds[0].loss == pytest.approx((16 * 16 + 4 * 4) / 20)


def seen(name: str, model: nn.Module, known: FederatedData, **given: Any) -> set[str]:
    """The programs of a method that see padding."""
    federation = Federation(model, known, name, device="cpu", cohort=4, **given)
    method, state = federation.method, federation.state
    padding, found = Padding(federation.task, federation.data, torch.device("cpu")), set()
    sent = method.broadcast(state, range(4))
    for program in {"train", "personal", *method.programs()}:
        job = Job(method, Work(sent.shared, sent.own, program), range(4), 1, 0, method.expects(state))
        if padding.seen(job, MemoryStore()):
            found.add(program)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_what_atoll_brings_is_padded(name: str) -> None:
    norm = nn.BatchNorm1d(8) if name in ("fedbn", "fedavg", "scaffold") else nn.Identity()
    model = nn.Sequential(nn.Linear(6, 8), norm, nn.Tanh(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(2)
    made = {
        f"c{k}": (torch.randn(n, 6, generator=generator), torch.arange(n) % 3)
        for k, n in enumerate((12, 9, 14, 8))
    }
    known = atoll.data.from_clients(made, classes=3, validation=0.25)
    network, known = fitting(name, lambda: model, known.publish(torch.randn(12, 6, generator=generator)))
    adapter: dict[str, Any] = {"adapter": "lora:2"} if METHODS[name].low_rank else {}
    adapter |= {"steps": 6, "seeds": 64} if name == "fedkseed" else {}
    assert not seen(name, network(), known, **adapter)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Dropout(0.4), nn.Linear(6, 3)],
        [nn.LayerNorm(6), nn.Linear(6, 3)],
        [nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(8, 3)],
        [
            nn.Unflatten(1, (3, 2)), nn.Linear(2, 8),  # of two numbers LayerNorm leaves no gradient but rounding
            nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(24, 3),
        ],
    ],
    ids=["dropout", "layernorm", "convolution", "attention"],
)  # fmt: skip
@pytest.mark.parametrize("solver", [{}, {"optimizer": "adam", "lr": 0.001}, {"lr": 1e-6}])
def test_layers_of_single_samples_are_padded(layers: list[nn.Module], solver: dict[str, Any]) -> None:
    assert not seen("fedavg", nn.Sequential(*layers), data(), **solver)
