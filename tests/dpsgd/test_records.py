"""Steps that hide single samples: what a sample can move, what noise there is, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import atoll.data
from atoll.contract import Plan
from atoll.dpsgd import persample
from atoll.dpsgd.fits import check_method, mechanism, private_task
from atoll.dpsgd.records import DPSGD, PrivateTask, opened, sealed
from atoll.engines.reading import reading
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import METHODS
from atoll.task import Batch, Task
from atoll.tensors import Tensors
from tests.halves import fitting

QUIET = DPSGD(1.0, 0.0)
KEY = torch.tensor(2**40 + 12345)


def batch_of(inputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Batch:
    return Batch(inputs, targets, torch.ones(len(inputs)) if mask is None else mask, KEY)


def private(module: nn.Module, batch: Batch, rule: DPSGD = QUIET, **kw: Any) -> PrivateTask:
    return private_task(Task(module, **kw), rule, batch.inputs[:3], batch.targets[:3])


def released(task: PrivateTask, batch: Batch, expected: float, **kw: Tensors) -> Tensors:
    """What a step of a method gets."""
    params, buffers = task.initial()
    return task.gradient(kw.get("params", params), buffers, sealed(batch, torch.tensor(expected)))[0]


class Words(nn.Module):
    """Reads words; one of them is padding."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.words, self.core, self.out = nn.Embedding(7, 6, padding_idx=0), core, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.core(self.words(x))
        return self.out((found[0] if isinstance(found, tuple) else found).mean(1))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Twice(nn.Module):
    """One layer, used two times: its squared norms are no sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


def pictures() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, 2, padding=1), nn.GroupNorm(2, 6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 2, dilation=2),
        nn.ReLU(), nn.Flatten(), nn.LazyLinear(5), nn.LayerNorm(5), nn.Linear(5, 3),
    )  # fmt: skip


def of_words(core: Callable[[], nn.Module]) -> tuple[Callable[[], nn.Module], str]:
    return lambda: Words(core()), "words"


MODELS: dict[str, tuple[Callable[[], nn.Module], str, bool]] = {
    "mlp": (lambda: atoll.models.mlp(4, 8, 3), "numbers", True),
    "pictures": (pictures, "pictures", True),
    "positions": (lambda: Words(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))), "words", True),
    "twice": (Twice, "numbers", False),
    "attention": (lambda: Words(Attends()), "words", False),
    "lstm": (lambda: Words(nn.LSTM(6, 6, batch_first=True)), "words", False),
    "gru": (lambda: Words(nn.GRU(6, 6, batch_first=True)), "words", False),
}


def made(name: str, rows: int = 6) -> tuple[nn.Module, Batch, bool]:
    make, kind, fast = MODELS[name]
    torch.manual_seed(3)
    inputs = {
        "numbers": torch.randn(rows, 4),
        "pictures": torch.randn(rows, 2, 8, 8),
        "words": torch.randint(0, 7, (rows, 5)),
    }[kind]
    module = make()
    module(inputs)  # lazy layers
    return module, batch_of(inputs, torch.randint(0, 3, (rows,))), fast


# --- the gradient ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_the_sum_of_its_samples_gradients_clipped_one_by_one(name: str) -> None:
    module, batch, fast = made(name)
    task = private(module, batch)
    assert task.ghosted == fast
    params, buffers = task.initial()
    wanted, mask = params.zeros(), torch.tensor([1.0, 1, 0, 1, 1, 1])
    alone = [
        Task(module).gradient(params, buffers, batch_of(batch.inputs[[i]], batch.targets[[i]]))[0]
        for i in range(6)
    ]
    clip = float(torch.stack([each.norm() for each in alone]).median())  # some are clipped, some are not
    for each, real in zip(alone, mask, strict=True):
        wanted = wanted + each * (real * min(1.0, clip / float(each.norm())))
    task.rule = DPSGD(clip, 0.0)
    found = task.clipped_sum(params, buffers, batch._replace(mask=mask))
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    twin = persample.clipped_sum(task, params, buffers, batch._replace(mask=mask), clip)
    assert (twin - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("name", MODELS)
def test_without_clipping_and_noise_it_is_the_plain_gradient(name: str) -> None:
    module, batch, _ = made(name)
    task = private(module, batch, DPSGD(math.inf, 0.0))
    params, buffers = task.initial()
    plain = Task(module).gradient(params, buffers, batch)[0]
    assert (released(task, batch, 6.0) - plain).norm() <= 1e-6 * plain.norm()


def test_a_model_that_drops_units_has_the_same_draws_as_in_plain_training_and_no_second_model() -> None:
    _, batch, _ = made("mlp")
    module = nn.Sequential(nn.Linear(4, 20), nn.Dropout(0.5), nn.Linear(20, 3))
    task = private(module, batch, DPSGD(math.inf, 0.0))
    plain = Task(module).gradient(*task.initial(), batch)[0]
    assert task.ghosted and (released(task, batch, 6.0) - plain).norm() <= 1e-6 * plain.norm()
    apart = persample.by_sample(task, *task.initial(), batch._replace(inputs=batch.inputs[:1].expand(6, 4)))
    assert len({float(each) for each in apart["0.bias"].flatten(1).abs().gt(0).float().sum(1)}) > 1


def test_of_a_linear_model_norms_are_those_by_hand() -> None:
    batch = batch_of(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.zeros(2, 1))
    task = private(nn.Linear(2, 1, bias=False), batch, loss="mse")
    params = Tensors(weight=torch.tensor([[1.0, 1.0]]))
    # gradients 2 (w x) x: 14 [3, 4], of norm 70, and 1.4 [0.3, 0.4], of norm 0.7
    found = released(task, batch, 2.0, params=params)["weight"]
    assert torch.allclose(found, torch.tensor([[(0.6 + 0.42) / 2, (0.8 + 0.56) / 2]]))


@given(
    st.integers(0, 10_000), st.floats(0.01, 10.0), st.sampled_from(["mlp", "pictures", "positions", "twice"])
)
@settings(max_examples=25, deadline=None)
def test_a_sample_more_moves_the_gradient_by_the_clip_norm_over_the_batch_at_most(
    seed: int, clip: float, name: str
) -> None:
    module, batch, _ = made(name)
    task = private(module, batch, DPSGD(clip, 0.0))
    torch.manual_seed(seed)
    params = task.initial()[0].map(lambda value: value + torch.randn_like(value))
    at = seed % 6
    without = batch._replace(mask=torch.ones(6).index_fill(0, torch.tensor(at), 0.0))
    moved = (released(task, batch, 4.0, params=params) - released(task, without, 4.0, params=params)).norm()
    assert moved <= clip / 4.0 * (1 + 1e-4)


@pytest.mark.parametrize("name", ["mlp", "pictures", "twice"])
def test_a_sample_without_a_finite_gradient_counts_for_nothing(name: str) -> None:
    module, batch, _ = made(name)
    task = private(module, batch)
    bad = batch.inputs.clone()
    bad[2] = math.inf
    rest = released(task, batch._replace(mask=torch.tensor([1.0, 1, 0, 1, 1, 1])), 6.0)
    assert (released(task, batch._replace(inputs=bad), 6.0) - rest).norm() <= 1e-6


@pytest.mark.parametrize("name", ["mlp", "pictures", "lstm"])
def test_an_empty_batch_gives_noise_alone(name: str) -> None:
    module, batch, _ = made(name)
    nothing = Batch(batch.inputs[:0], batch.targets[:0], batch.mask[:0], KEY)
    assert float(released(private(module, batch), nothing, 6.0).norm()) == 0
    padded = batch._replace(mask=torch.zeros(6))
    noisy = private(module, batch, DPSGD(1.0, 1.0))
    assert torch.equal(released(noisy, nothing, 6.0).flat(), released(noisy, padded, 6.0).flat())


def test_noise_has_the_variance_that_it_is_said_to_have_and_is_drawn_anew_for_each_gradient() -> None:
    module = nn.Linear(300, 200)
    batch = batch_of(torch.randn(4, 300), torch.randint(0, 200, (4,)))
    task = private(module, batch, DPSGD(0.5, 3.0))
    params, buffers = task.initial()
    quiet = released(private(module, batch, DPSGD(0.5, 0.0)), batch, 8.0)
    seal = sealed(batch, torch.tensor(8.0))
    one, other = ((task.gradient(params, buffers, seal)[0] - quiet).flat() for _ in range(2))
    for noise in (one, other, (one + other) / math.sqrt(2)):  # apart, of one size, and not related
        assert float(noise.std()) == pytest.approx(0.5 * 3.0 / 8.0, rel=0.01)
        assert abs(float(noise.mean())) < 0.004
    assert opened(seal).calls == 2
    later = sealed(batch._replace(key=KEY + 1), torch.tensor(8.0))
    assert not torch.equal(one + quiet.flat(), task.gradient(params, buffers, later)[0].flat())


def test_neither_losses_nor_buffers_nor_sizes_of_batches_leave_a_step() -> None:
    module, batch, _ = made("mlp")
    module.register_buffer("kept", torch.ones(2))
    task = private(module, batch)
    seal = sealed(batch, torch.tensor(4.0))
    _, loss, buffers = task.gradient(*task.initial(), seal)
    assert float(loss) == 0 and torch.equal(buffers["kept"], torch.ones(2))
    assert float(seal.mask.sum()) == 4.0
    for look in (
        lambda: len(seal.inputs), lambda: seal.targets + 1, lambda: seal.inputs[0], lambda: torch.cat([seal.inputs]),
        lambda: seal.inputs.shape, lambda: task.loss(*task.initial(), seal), lambda: task.totals(*task.initial(), seal),
        lambda: torch.mean(seal.targets), lambda: list(seal.inputs), lambda: np.asarray(seal.inputs),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="looks at samples"):
            look()  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigError, match="takes some of them"):
        task.gradient(*task.initial(), seal._replace(mask=torch.ones(6)))


# --- batches --------------------------------------------------------------------------------------------------------


def test_poisson_batches_have_each_sample_with_the_same_chance_whatever_others_have() -> None:
    plan = Plan(epochs=400, batch_size=5, poisson=True)
    found = reading(plan, 23, np.random.default_rng(0))
    assert len(found.index) == 400 * 5
    there = np.zeros((len(found.index), 23))
    for row, index, mask in zip(there, found.index, found.mask, strict=True):
        read = index[mask > 0]
        assert len(set(read.tolist())) == len(read)
        row[read] = 1
    q = 5 / 23
    assert np.abs(there.mean(0) - q).max() < 5 * math.sqrt(q * (1 - q) / 2000)
    off = np.corrcoef(there.T)[~np.eye(23, dtype=bool)]
    assert np.abs(off).max() < 5 / math.sqrt(2000)  # as many as it may be, and not a fixed number
    assert there.sum(1).var() == pytest.approx(23 * q * (1 - q), rel=0.15)
    assert (reading(Plan(epochs=2, poisson=True), 9, np.random.default_rng(0)).mask == 1).all()
    assert len(reading(Plan(steps=7, batch_size=4, poisson=True), 10, np.random.default_rng(0)).index) == 7


def test_what_a_round_is_to_an_accountant() -> None:
    rule = DPSGD(1.0, 2.0)
    assert mechanism(rule, METHODS["fedavg"](epochs=3, batch_size=10), 45) == (10 / 45, 15, 2.0)
    assert mechanism(rule, METHODS["fedavg"](steps=7, batch_size=None), 45) == (1.0, 7, 2.0)
    assert mechanism(rule, METHODS["fedsgd"](), 45) == (1.0, 1, 2.0)
    assert mechanism(rule, METHODS["pfedme"](batch_size=50), 45, calls=4) == (1.0, 1, 1.0)
    assert mechanism(rule, METHODS["fedavg"](), 0).steps == 0


# --- runs -----------------------------------------------------------------------------------------------------------

DATA: dict[str, Any] = {}


def data(validation: float = 0.0) -> Any:
    rng = np.random.default_rng(7)
    weights = rng.normal(size=(6, 3))
    clients = {}
    for at, n in enumerate((13, 5, 9, 1)):
        x = rng.normal(size=(n, 6)).astype(np.float32)
        clients[f"c{at}"] = {"train": (x, (x @ weights).argmax(1)), "test": (x, (x @ weights).argmax(1))}
    return atoll.data.from_clients(clients, classes=3, validation=validation)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.GroupNorm(2, 8), nn.Linear(8, 3))


def federation(method: Any = "fedavg", **kw: Any) -> Federation:
    usual = {"batch_size": 4, "epochs": 2, "lr": 0.1} if method in ("fedavg", "scaffold") else {}
    given = {"rounds": 2, "eval_every": 0, "device": "cpu", "workers": 2, "dp_sgd": "0.7,0.5", **usual, **kw}
    return Federation(given.pop("model", model), given.pop("data", None) or data(), method, **given)


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_every_engine_gives_the_same_model(method: str) -> None:
    found = {}
    for engine in ("loop", "batched", "processes"):
        run = federation(method, engine=engine)
        run.fit(progress=False)
        found[engine] = run.state.params
    for engine in ("batched", "processes"):
        assert (found[engine] - found["loop"]).norm() <= 1e-5 * found["loop"].norm()
    assert torch.isfinite(found["loop"].flat()).all()


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
def test_full_batches_without_clipping_and_noise_are_plain_training(engine: str) -> None:
    kw: dict[str, Any] = {"engine": engine, "batch_size": None, "lr": 0.1}
    private, plain = federation(dp_sgd="inf,0", **kw), federation(dp_sgd=None, **kw)
    private.fit(progress=False), plain.fit(progress=False)
    assert (private.state.params - plain.state.params).norm() <= 1e-6 * plain.state.params.norm()


def test_training_losses_are_not_told() -> None:
    run = federation(engine="loop")
    run.fit(progress=False)
    assert all(math.isnan(each.loss) and "loss" not in each.clients for each in run.history)


PASS = """fedsgd fedavg fedopt fedavgm fedprox fedadagrad fedadam fedyogi scaffold fednova feddyn local fedavg-ft pfedhn
 pfedhn-pc ditto pfedme fedper lg-fedavg fedbn fedrep fedbabu knn-per fedamp heurfedamp cfl fedmd feddf
 fedcoral fedmmd fada adabn shot dpsgd adpsgd pushsum gossip tracking d2 choco moshpit diloco
 fedit ffa rolora flora fedex flexlora hetlora fedsa"""
REFUSED = (
    "fedkseed qfedavg moon crossmodal heterofl pfnm fedma fedora apfl per-fedavg fedala fedphp fedproto ifca"
    " fedfomo"
)


def test_each_method_passes_or_is_refused() -> None:
    assert sorted(PASS.split() + REFUSED.split()) == sorted(METHODS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_that_see_data_beside_the_gradient_of_a_step_are_refused(name: str) -> None:
    kw: dict[str, Any] = {"norms": "all"} if name == "fedbn" else {"rates": "1"} if name == "heterofl" else {}
    kw |= {"adapter": "lora:2"} if METHODS[name].low_rank else {}
    network, made = fitting(name, model, data(validation=0.2).publish(torch.randn(20, 6)), lack=False)
    kw |= {"model": network}
    if name in REFUSED.split():
        with pytest.raises(ConfigError, match="dp_sgd") as error:
            federation(name, data=made, **kw)
        assert "fedavg, fedprox or scaffold" in (error.value.hint or "") and error.value.exit_code == 2
        return
    federation(name, data=made, engine="loop", **kw).round()


def test_methods_are_refused_by_their_settings_and_not_by_their_names() -> None:
    with pytest.raises(ConfigError, match="train data as a whole"):
        federation("scaffold", option=1)
    federation("moon", mu=0.0)
    for name in ("fedcoral", "fedmmd", "fada"):
        federation(name)
        with pytest.raises(ConfigError, match="train data as a whole"):
            federation(name, targets="0")


def test_a_method_that_looks_later_is_refused_then() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(METHODS["fedavg"]):  # type: ignore[misc]
        def broadcast(self, state: Any, cohort: Any) -> Any:
            work = super().broadcast(state, cohort)
            return dataclasses.replace(work, shared=work.shared.replace(looks=state.round > 0))

        def step(self, task: Any, local: Any, batch: Any) -> Any:
            if local.received.looks:
                batch.targets.sum()
            return super().step(task, local, batch)

    run = federation(Later(lr=0.1), engine="loop")
    with pytest.raises(ConfigError, match=r"round 2, client c0, step: .* looks at samples"):
        run.fit(progress=False)


def test_gradients_of_a_step_are_counted() -> None:
    run = federation("pfedme", engine="loop")
    assert check_method(run.method, run.task, run.state, run.data) == run.method.inner_steps  # type: ignore[attr-defined]
    run = federation("ditto", engine="loop")
    assert check_method(run.method, run.task, run.state, run.data) == 2


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


class Follows(nn.Linear):
    """Keeps a buffer of what it has seen."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.lerp_(x.mean(0), 0.1)
        return super().forward(x)


class Branches(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 1e9 else super().forward(x * 2)


@pytest.mark.parametrize(
    ("kw", "says", "hint"),
    [
        (
            {"model": lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))},
            "BatchNorm mixes",
            "GroupNorm",
        ),
        ({"model": Centred}, "depends on the others", "GroupNorm"),
        ({"model": Follows}, "the buffer seen follows", "GroupNorm"),
        ({"model": Branches}, "no gradient of a single sample", "vmap"),
        ({"dp_sgd": "0,1"}, "clip = '0'", "write CLIP,NOISE"),
        ({"dp_sgd": "-1,1"}, "clip = '-1'", "write CLIP,NOISE"),
        ({"dp_sgd": "1,-0.1"}, "noise = '-0.1'", "write CLIP,NOISE"),
        ({"dp_sgd": "1"}, "is not CLIP,NOISE", "1.0,1.1"),
        ({"dp_sgd": "inf,1"}, "none that hides", "1.0,1.1"),
        ({"dp_sgd": "inf,auto"}, "none that hides", "1.0,1.1"),
        ({"dp_sgd": "1,automatic"}, 'number at least 0 and below inf, or "auto"', "write CLIP,NOISE"),
        ({"dp_sgd": "nan,1"}, "clip = 'nan'", "write CLIP,NOISE"),
        ({"batch_size": 0}, "batch_size", "at least 1"),
        ({"choose": "oort"}, "training losses", "another rule"),
        ({"adaptive": "adacomm"}, "training losses", "another rule"),
    ],
)
def test_what_does_not_fit_is_said_with_what_to_do(kw: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        federation(**kw)
    assert says in str(error.value) and hint in str(error.value) and error.value.exit_code == 2
