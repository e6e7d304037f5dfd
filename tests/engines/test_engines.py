"""Every engine against the readable loop: same seed, same model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import atoll.data
from atoll.contract import Job, Plan, chunks
from atoll.data import Samples
from atoll.engines import Batched, Loop, Processes
from atoll.engines.client import failed
from atoll.engines.reading import reading
from atoll.errors import ConfigError, EngineError
from atoll.federation import Federation
from atoll.methods import METHODS, FedAvg, FedProx, Local, Scaffold
from atoll.rounds.evaluation import Evaluation
from atoll.rounds.memories import MemoryStore
from atoll.task import Task
from atoll.tensors import Record, leaves
from tests.halves import fitting

CPU = torch.device("cpu")


def clients(
    shape: tuple[int, ...] = (6,),
    sizes: tuple[int, ...] = (13, 5, 24, 1, 9),
    classes: int = 3,
    validation: float = 0,
) -> Any:
    """Unequal clients with learnable labels; `validation` is the share of their samples that is kept for it."""
    rng = np.random.default_rng(7)
    weights = rng.normal(size=(int(np.prod(shape)), classes))
    made = {}
    for at, n in enumerate(sizes):
        x = rng.normal(size=(n, *shape)).astype(np.float32)
        y = (x.reshape(n, -1) @ weights).argmax(1).astype(np.int64)
        made[f"c{at}"] = {"train": (x, y), "test": (x, y)}
    return atoll.data.from_clients(made, classes=classes, validation=validation)


def trained(
    engine: str, model: Callable[[], nn.Module], data: Any, method: Any, rounds: int = 3, **kw: Any
) -> Record:
    federation = Federation(
        model,
        data,
        method,
        rounds=rounds,
        cohort=kw.pop("cohort", 4),
        engine=engine,
        eval_every=0,
        device="cpu",
        **kw,
    )
    try:
        for _ in range(rounds):
            federation.round()
    finally:
        federation.engine.close()
    return federation.state


def distance(a: Record, b: Record) -> float:
    """Largest relative distance between models: parameters and buffers."""
    worst = 0.0
    for part in ("params", "buffers"):
        for name, value in a[part].items():
            other = b[part][name]
            assert other.dtype == value.dtype
            gap = (value.double() - other.double()).norm() / value.double().norm().clamp(min=1e-3)
            worst = max(worst, float(gap))
    return worst


class Sequences(nn.Module):
    """A recurrent classifier with dropout between its layers."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, dropout: float = 0.3) -> None:
        super().__init__()
        self.rnn = kind(4, 8, num_layers=2, batch_first=True, dropout=dropout)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])  # type: ignore[no-any-return]


def tied() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(6, 3))


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].weight.requires_grad_(False)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), (6,)),
    "batchnorm": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)),
        (6,),
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 3)), (6,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
        (1, 6, 6),
    ),
    "groupnorm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)
        ),
        (2, 4, 4),
    ),
    "lstm": (Sequences, (5, 4)),
    "lstm-native": (lambda: Sequences(dropout=0.0), (5, 4)),
    "gru": (lambda: Sequences(nn.GRU), (5, 4)),
    "tied": (tied, (6,)),
    "frozen": (frozen, (6,)),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.2, batch_first=True),
            nn.Flatten(),
            nn.Linear(20, 3),
        ),
        (5, 4),
    ),
}


RAGGED = (13, 5, 24, 1, 9)
"""Other numbers of steps for everybody: the batched engine captures a step for each size of its stack."""

ALIKE = (9, 8, 9, 8, 9)
"""Two steps each beside validation, the second on a padded batch: two captures."""

UNROLLED = ("lstm", "lstm-native", "gru", "attention")
"""Long steps in the batched engine: an epoch and a round less of them."""

PLAIN = ("lstm-native", "gru", "attention", "groupnorm", "tied", "frozen")
"""What is special in these has nothing to do with how many clients are left: two captures do, padded and not."""


@functools.cache
def learnt(name: str, engine: str) -> Record:
    """What a model comes to."""
    model, shape = MODELS[name]
    less = int(name in UNROLLED)
    method = FedAvg(lr=0.05, batch_size=4, epochs=2 - less, momentum=0.5, weight_decay=1e-3)
    data = clients(shape, (7, 6, 7, 6, 7) if name in PLAIN else RAGGED)
    return trained(engine, model, data, method, rounds=3 - less)


@pytest.mark.parametrize("engine", ["batched", "processes"])
@pytest.mark.parametrize("name", MODELS)
def test_engines_train_the_model_that_the_loop_trains(name: str, engine: str) -> None:
    assert distance(learnt(name, "loop"), learnt(name, engine)) < 1e-5


@pytest.mark.parametrize("engine", ["batched", "processes"])
@pytest.mark.parametrize(
    "solver",
    [
        {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01},
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": True, "clip": 0.5, "schedule": "exponential:0.5"},
        {"steps": 7, "batch_size": 3},
        {"batch_size": None, "epochs": 3},
    ],
)
def test_engines_agree_on_every_solver(solver: dict[str, Any], engine: str) -> None:
    model = MODELS["mlp"][0]
    method = FedAvg(**{"lr": 0.1, "batch_size": 4, **solver})
    data = clients()
    assert distance(trained("loop", model, data, method), trained(engine, model, data, method)) < 1e-5


FEW = (
    "fedavg", "scaffold", "qfedavg", "per-fedavg", "fedavg-ft", "fedbn",
    "feddf", "fedma", "fedmd", "fedora", "heterofl", "pfedhn-pc",
)  # fmt: skip
"""Methods that span the contract (see `tests/runs/test_resume.py`)."""


@functools.cache
def outcome(name: str, engine: str, sizes: tuple[int, ...]) -> tuple[Record, Evaluation, list[Record | None]]:
    """The state, the judgement and the memories that a method ends with."""
    model = lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))  # noqa: E731
    if name == "fedbn":  # refuses a model without
        model = MODELS["batchnorm"][0]
    settings: dict[str, Any] = {"lr": 0.05}
    if (
        name == "fedkseed"
    ):  # of 200 and 4096; over a short distance, differences of losses are made of rounding
        settings |= {"steps": 6, "seeds": 64, "eps": 0.1}
    if METHODS[name].low_rank:
        settings["adapter"] = "lora:2"
    if "batch_size" in set(METHODS[name].__dataclass_fields__):
        settings["batch_size"] = 4
    if name == "feddf":  # Adam's normalised steps make much of rounding where little is left to learn
        settings["distill_steps"] = 5
    if name.startswith("pfedhn"):  # of their default, 50
        settings["steps"] = 6
    public = torch.randn(12, 6, generator=torch.Generator().manual_seed(2))
    data = clients(sizes=sizes, validation=0.25).publish(public)
    model, data = fitting(name, model, data)
    federation = Federation(
        model, data, name, rounds=3, cohort=4, engine=engine, eval_every=0, device="cpu", **settings
    )
    judged = federation.fit().evaluation
    assert judged is not None
    return federation.state, judged, [federation.memories.get(k) for k in range(len(sizes))]


@pytest.mark.parametrize(
    ("name", "engine", "sizes"),
    [
        *(
            pytest.param(name, "batched", ALIKE, id=f"{name}-batched-alike")
            for name in METHODS
            if name not in FEW
        ),
        *(
            pytest.param(name, engine, RAGGED, id=f"{name}-{engine}", marks=marks)
            for name in METHODS
            for engine in ("batched", "processes")
            for marks in [() if name in FEW else pytest.mark.slow]
        ),
    ],
)
def test_engines_agree_on_every_method(name: str, engine: str, sizes: tuple[int, ...]) -> None:
    (state, judged, kept), (other, judged_too, kept_too) = (
        outcome(name, kind, sizes) for kind in ("loop", engine)
    )
    assert distance(state, other) < 1e-5
    for measure, spread in judged.own.items():
        assert spread.mean == pytest.approx(judged_too.own[measure].mean, rel=1e-4, abs=1e-5)
    for one, two in zip(kept, kept_too, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            for a, b in zip(leaves(one), leaves(two), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "method", [FedProx(gamma=0.5, lr=0.05, batch_size=4), Scaffold(option=1, lr=0.05, batch_size=4)]
)
def test_gradients_before_and_after_training_leave_shared_buffers_alone(method: Any) -> None:
    model, shape = MODELS["batchnorm"]
    states = [trained(engine, model, clients(shape), method, rounds=2) for engine in ("loop", "batched")]
    assert distance(*states) < 1e-5


def test_double_precision_stays_double() -> None:
    model = lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()  # noqa: E731
    data = clients()
    data._pools = {k: Samples(p.inputs.double(), p.targets) for k, p in data._pools.items()}
    states = [
        trained(e, model, data, FedAvg(batch_size=4), rounds=5) for e in ("loop", "batched", "processes")
    ]
    assert states[0].params["0.weight"].dtype == torch.float64
    assert distance(states[0], states[1]) < 1e-13
    assert distance(states[0], states[2]) < 1e-13


def test_processes_give_the_same_bits_whatever_their_number() -> None:
    data = clients(sizes=tuple(range(3, 40)))
    method = Scaffold(lr=0.05, batch_size=4)
    models = [
        trained("processes", MODELS["mlp"][0], data, method, cohort=20, workers=workers).params.flat()
        for workers in (1, 2, 3)
    ]
    assert torch.equal(models[0], models[1])
    assert torch.equal(models[0], models[2])


def test_while_workers_work_the_parent_takes_one_thread() -> None:
    """Its others would wait for each other awake, on the workers' cores."""
    seen = []

    class Watching(MemoryStore):
        def put(self, client: int, memory: Record | None) -> None:
            seen.append(torch.get_num_threads())
            super().put(client, memory)

    federation = Federation(
        MODELS["mlp"][0], clients(), Scaffold(), rounds=1, cohort=4, engine="processes", device="cpu"
    )
    federation.simulation.memories = Watching()
    count = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        federation.round()
        assert seen and set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(count)
        federation.engine.close()


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the legacy state is what must not change
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr] # noqa: NPY002
    for engine in ("loop", "batched"):
        trained(engine, MODELS["dropout"][0], clients(), FedAvg(batch_size=4))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # type: ignore[arg-type] # noqa: NPY002


def test_seeds_differ_and_clients_draw_differently() -> None:
    data = clients()
    model = MODELS["dropout"][0]
    first = trained("loop", model, data, FedAvg(batch_size=4), seed=1).params.flat()
    again = trained("loop", model, data, FedAvg(batch_size=4), seed=1).params.flat()
    other = trained("loop", model, data, FedAvg(batch_size=4), seed=2).params.flat()
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
def test_clients_and_rounds_draw_differently_on_the_same_sample(engine: str) -> None:
    sample = np.ones((1, 6), np.float32), np.zeros(1, np.int64)
    data = atoll.data.from_clients({name: {"train": sample, "test": sample} for name in "ab"}, classes=3)
    method = Local(lr=0.5, batch_size=1)

    def moved(model: str) -> list[Tensor]:
        """What each of two clients learns in each of two rounds."""
        federation = Federation(
            MODELS[model][0], data, method, rounds=2, cohort=2, engine=engine, eval_every=0, workers=1
        )
        models = [federation.state.params.flat()] * 2
        found = []
        for _ in range(2):
            federation.round()
            memories = [federation.memories.get(k) for k in range(2)]
            assert memories[0] is not None and memories[1] is not None
            now = [memory.params.flat() for memory in memories if memory is not None]
            found += [b - a for a, b in zip(models, now, strict=True)]
            models = now
        federation.engine.close()
        return [move != 0 for move in found]

    a1, b1, a2, b2 = moved("dropout")  # units that were dropped have not moved
    assert not torch.equal(a1, b1) and not torch.equal(a1, a2) and not torch.equal(b1, b2)
    assert torch.equal(*moved("mlp")[:2])


def test_a_group_may_be_cut_into_smaller_ones() -> None:
    data = clients()
    task = Task(MODELS["mlp"][0]())
    method = FedAvg(batch_size=4, lr=0.05)
    state = method.setup(task, None)  # type: ignore[arg-type]
    job = Job(method, method.broadcast(state, range(5)), range(5), 1, 0, method.expects(state))
    whole, _ = Batched(task, data, CPU).run(job, MemoryStore())
    parts, _ = Batched(task, data, CPU, width=2).run(job, MemoryStore())
    looped, _ = Loop(task, data, CPU).run(job, MemoryStore())
    whole, parts, looped = (found.result() for found in (whole, parts, looped))
    assert whole is not None and parts is not None and looped is not None
    assert parts.clients == whole.clients == looped.clients == [0, 1, 2, 3, 4]
    torch.testing.assert_close(whole.mean.update.flat(), looped.mean.update.flat())
    torch.testing.assert_close(parts.mean.update.flat(), looped.mean.update.flat())


class Branches(nn.Module):
    """Takes a branch on a value, which only a loop can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x) if x.sum() > 0 else self.line(-x)


def test_what_cannot_be_captured_is_said_and_auto_falls_back() -> None:
    data = clients()
    with pytest.raises(EngineError, match=r"captured|batched"):
        trained("batched", Branches, data, FedAvg(batch_size=4))
    with pytest.raises(EngineError, match=r"client c\d"):
        trained("processes", Branches, data, FedAvg(batch_size=4))
    federation = Federation(Branches, data, FedAvg(batch_size=4), rounds=1, cohort=3, device="cpu")
    assert federation.fit().engine.startswith("loop")


def test_random_calls_that_cannot_be_pure_are_refused() -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x + torch.randn(6) * float(self.training))

    with pytest.raises((EngineError, ConfigError), match="calls randn in evaluation mode"):
        trained("loop", Noise, clients(), FedAvg(batch_size=4))


def test_stragglers_run_fewer_epochs_in_every_engine() -> None:
    method = FedProx(mu=0.1, lr=0.05, epochs=6, batch_size=4)
    states = [
        trained(e, MODELS["mlp"][0], clients(), method, stragglers=0.5)
        for e in ("loop", "batched", "processes")
    ]
    full = trained("loop", MODELS["mlp"][0], clients(), method)
    assert distance(states[0], states[1]) < 1e-5
    assert distance(states[0], states[2]) < 1e-5
    assert distance(states[0], full) > 1e-3


def test_a_worker_that_dies_is_an_error_and_not_a_hang() -> None:
    data = clients()
    federation = Federation(
        MODELS["mlp"][0],
        data,
        FedAvg(batch_size=4),
        rounds=2,
        cohort=4,
        engine="processes",
        workers=2,
        device="cpu",
    )
    federation.round()
    assert isinstance(federation.engine, Processes)
    federation.engine.crew.workers[0].process.kill()
    federation.engine.crew.workers[0].process.join()
    with pytest.raises(Exception, match="worker process"):
        federation.round()
    assert not federation.engine.crew.workers


# --- reading data ---


def test_an_epoch_reads_every_sample_once_and_pads_the_last_batch() -> None:
    order = reading(Plan(epochs=2, batch_size=4), 10, np.random.default_rng(0))
    assert order.index.shape == (6, 4)
    assert order.mask.sum(1).tolist() == [4, 4, 2, 4, 4, 2]
    for epoch in (slice(0, 3), slice(3, 6)):
        assert sorted(order.index[epoch][order.mask[epoch] > 0].tolist()) == list(range(10))
    assert order.index[:3].tolist() != order.index[3:].tolist()


def test_a_last_batch_of_one_joins_the_one_before_for_batchnorm() -> None:
    order = reading(Plan(epochs=1, batch_size=4), 9, np.random.default_rng(0), merge_last=True)
    assert order.mask.sum(1).tolist() == [4, 5]
    alone = reading(Plan(epochs=1, batch_size=4), 1, np.random.default_rng(0), merge_last=True)
    assert alone.mask.sum(1).tolist() == [1]


def test_steps_go_on_over_epochs_and_none_means_all() -> None:
    assert len(reading(Plan(steps=7, batch_size=4), 10, np.random.default_rng(0)).index) == 7
    assert reading(Plan(epochs=2), 10, np.random.default_rng(0)).mask.sum(1).tolist() == [10, 10]


@pytest.mark.parametrize("count", [1, 10, 64, 65, 1000])
def test_runs_cover_a_cohort_in_order(count: int) -> None:
    runs = list(chunks(count))
    assert [at for run in runs for at in run] == list(range(count))
    assert len(runs) <= 64


def test_an_interrupt_that_left_an_error_behind_is_an_interrupt() -> None:
    def broken_off(cause: BaseException) -> Exception:
        try:
            try:
                raise cause
            finally:
                raise RuntimeError("trying to pop from empty mode stack")
        except RuntimeError as error:
            return error

    with pytest.raises(KeyboardInterrupt):
        failed("client 4", broken_off(KeyboardInterrupt()))
    assert "client 4: RuntimeError" in str(failed("client 4", broken_off(ValueError())))
