"""What user code draws comes from addresses in every engine, and no global random state moves."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll.data
from atoll.contract import ClientData, Population, Replies, Reply
from atoll.draws import Drawn, states, touched
from atoll.errors import AtollError, EngineError
from atoll.federation import Federation
from atoll.methods import FedAvg
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors

ENGINES = ("loop", "batched", "processes")


def data() -> Any:
    rng = np.random.default_rng(3)
    made = {
        f"c{k}": (rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 3, n))
        for k, n in enumerate((8, 8, 4, 8))
    }
    return atoll.data.from_clients(made, classes=3, test=None)


def plain() -> nn.Module:
    return nn.Linear(6, 3)


def learnt(
    engine: str, method: Any, model: Callable[[], nn.Module] = plain, seed: int = 0, **given: Any
) -> Tensor:
    """The model after two rounds; global states must be where they were."""
    before = states()
    federation = Federation(
        model, data(), method, rounds=2, cohort=4, engine=engine, seed=seed, eval_every=0, device="cpu", workers=1,
        **given,
    )  # fmt: skip
    try:
        federation.round()
        federation.round()
    finally:
        federation.engine.close()
    assert touched(before) is None
    return federation.state.params.flat()


@dataclass(frozen=True, kw_only=True)
class Noisy(FedAvg):
    """Draws in every client half, with whatever torch has."""

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        return local.replace(params=local.params.map(lambda p: p + 0.01 * torch.randn(p.shape)))

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        kept = torch.multinomial(torch.tensor([1.0, 2.0, 3.0]), 1) + torch.randint(0, 5, (1,))
        return gradient.map(lambda g: g + 0.1 * torch.randn_like(g) + 0.01 * kept * torch.rand(1)), local

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        flip = torch.normal(0.0, 1.0, (1,)) + torch.bernoulli(torch.full((1,), 0.5)) + torch.randperm(4)[:1]
        update = reply.values.update.map(lambda u: u + 0.01 * flip)
        return reply._replace(values=reply.values.replace(update=update)), memory


@dataclass(frozen=True, kw_only=True)
class Server(FedAvg):
    """Draws in every server half, from all three global generators."""

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        return state.replace(params=state.params + torch.rand(1))

    def update(self, state: Record, replies: Replies) -> Record:
        state = super().update(state, replies)
        return state.replace(
            params=state.params.map(lambda p: p + 0.1 * torch.randn_like(p) * random.random())
        )

    def refine(self, state: Record, population: Population) -> Record:
        return state.replace(params=state.params * float(np.random.rand()))  # noqa: NPY002


class Blurred(nn.Module):
    """Adds noise in training, made in place and anew."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.empty_like(x).normal_(0, 0.2) + 0.1 * torch.randn(x.shape[-1])
        return self.line(x)  # type: ignore[no-any-return]


def gently(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss with noise in it."""
    return F.cross_entropy(outputs, targets, reduction="none") * (0.5 + torch.rand(len(targets)))


@pytest.mark.parametrize(
    ("method", "model", "loss"),
    [
        (Noisy(lr=0.1, batch_size=4), plain, None),
        (Server(lr=0.1, batch_size=4), plain, None),
        (FedAvg(lr=0.1, batch_size=4), Blurred, None),
        (FedAvg(lr=0.1, batch_size=4), plain, gently),
    ],
    ids=["client", "server", "model", "loss"],
)
def test_what_is_drawn_follows_from_the_seed_in_every_engine(method: Any, model: Any, loss: Any) -> None:
    given = {} if loss is None else {"loss": loss}
    found = []
    for engine in ENGINES:
        torch.manual_seed(len(found))  # of no consequence
        found.append(learnt(engine, method, model, **given))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0], learnt("loop", method, model, **given))
    assert not torch.allclose(found[0], learnt("loop", method, model, seed=1, **given), atol=1e-3)


def noise_from(draw: Callable[[], Any]) -> Any:
    @dataclass(frozen=True, kw_only=True)
    class Draws(FedAvg):
        def step(self, task: Task, local: Record, batch: Batch) -> Record:
            local = super().step(task, local, batch)
            return local.replace(params=local.params + 0.01 * draw())

    return Draws(batch_size=4)


GENERATOR = torch.Generator()
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "numpy": (lambda: float(np.random.rand()), "draws from NumPy's global random state"),  # noqa: NPY002
    "python": (random.random, "draws from Python's global random state"),
    "init": (lambda: nn.init.kaiming_uniform_(torch.zeros(3, 3)).sum(), "global random state"),
    "poisson": (lambda: torch.poisson(torch.ones(1)), r"calls torch\.poisson"),
    "generator": (lambda: torch.rand(1, generator=GENERATOR), r"gives torch\.rand a generator"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", REFUSED)
def test_draws_without_a_stream_are_refused_by_name(name: str, engine: str) -> None:
    draw, said = REFUSED[name]
    with pytest.raises(AtollError, match=said) as caught:
        learnt(engine, noise_from(draw))
    assert "round 1, client" in str(caught.value) and caught.value.hint


def test_a_client_that_alone_draws_is_found_among_the_others() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sometimes(FedAvg):
        def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
            if int(data.count) == 4:  # the third client has so many
                nn.init.kaiming_uniform_(torch.zeros(3, 3))
            return super().finish(task, local, data)

    with pytest.raises(EngineError, match=r"client c2: .* draws from torch's global random state"):
        learnt("loop", Sometimes(batch_size=4))


def test_a_thread_that_draws_meanwhile_is_no_fault_of_the_clients() -> None:
    once = iter([True])
    method = noise_from(lambda: random.random() if next(once, False) else 0.0)
    assert torch.equal(learnt("loop", method), learnt("loop", FedAvg(batch_size=4)))


DRAWS: dict[str, tuple[Callable[[], Tensor], float, float]] = {
    "rand": (lambda: torch.rand(100, 100), 0.5, 12**-0.5),
    "randn": (lambda: torch.randn((100, 100)), 0.0, 1.0),
    "size": (lambda: torch.randn(size=(100, 100), dtype=torch.float64), 0.0, 1.0),
    "randint": (lambda: torch.randint(10, (100, 100)), 4.5, 8.25**0.5),
    "randint bounds": (lambda: torch.randint(-2, 3, (100, 100)), 0.0, 2**0.5),
    "randint_like": (lambda: torch.randint_like(torch.zeros(100, 100), 2, 4), 2.5, 0.5),
    "randperm": (lambda: torch.randperm(10_000), 4999.5, 2886.75),
    "normal": (lambda: torch.normal(torch.full((100, 100), 2.0), 3.0), 2.0, 3.0),
    "bernoulli": (lambda: torch.bernoulli(torch.full((100, 100), 0.2)), 0.2, 0.4),
    "multinomial": (lambda: torch.multinomial(torch.tensor([1.0, 0, 3]), 10_000, replacement=True), 1.5, 0.75**0.5),
    "normal_": (lambda: torch.empty(100, 100).normal_(1, 2), 1.0, 2.0),
    "uniform_": (lambda: torch.empty(100, 100).uniform_(-1, 1), 0.0, 3**-0.5),
    "bernoulli_": (lambda: torch.empty(100, 100).bernoulli_(0.5), 0.5, 0.5),
    "exponential_": (lambda: torch.empty(100, 100).exponential_(2), 0.5, 0.5),
    "init": (lambda: nn.init.uniform_(torch.empty(100, 100), a=0, b=2), 1.0, 3**-0.5),
    "distribution": (lambda: torch.distributions.Normal(0.0, 2.0).sample((100, 100)), 0.0, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_streams_have_the_distributions_that_were_asked_for(name: str) -> None:
    draw, mean, deviation = DRAWS[name]
    before = states()
    with Drawn(torch.tensor(5), "it"):
        first, second = draw(), draw()
    with Drawn(torch.tensor(5), "it"):
        again = draw()
    plainly = draw()
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert first.dtype == plainly.dtype and first.shape == plainly.shape
    torch.set_rng_state(before["torch's"])
    assert touched(before) is None
    assert float(first.double().mean()) == pytest.approx(mean, abs=0.06 * deviation)
    assert float(first.double().std()) == pytest.approx(deviation, rel=0.05)


def test_what_is_drawn_without_replacement_is_drawn_once() -> None:
    with Drawn(torch.tensor(5), "it"):
        chosen = torch.multinomial(torch.tensor([[1.0, 1, 1, 0]] * 50), 3)
        assert sorted(torch.randperm(9).tolist()) == list(range(9))
    assert (chosen.sort(1).values == torch.tensor([0, 1, 2])).all()
    assert len(set(chosen[:, 0].tolist())) == 3


def test_what_is_remembered_first_is_not_drawn() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Remembers(FedAvg):
        def remember(self, task: Task, received: Record) -> Record:
            return Record(start=torch.rand(2))

    with pytest.raises(EngineError, match="a client program calls rand, and has no random stream here"):
        learnt("loop", Remembers())
