"""Sub-models of several widths: cut, trained, and averaged coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll.data
from atoll.contract import Each, Population, Replies, misshapen
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import FedAvg, HeteroFL
from atoll.methods.heterofl import scaled
from atoll.task import Task
from atoll.tensors import Record, Tensors

from .driver import Client, Played, blobs, network, whole

PLAN: dict[str, Any] = {"lr": 0.1, "epochs": 2, "batch_size": None}


class Mixed(Played):
    """Asks new clients first, and expects of each the form that is its own."""

    def round(self, cohort: Sequence[int] | None = None, epochs: Any = None) -> Replies:
        chosen = list(range(len(self.clients)) if cohort is None else cohort)
        asked = self.method.enrol(self.state, chosen)
        if asked is not None:
            self.state = self.method.welcome(self.state, self.replies(*asked))
        replies = self.replies(chosen, self.method.broadcast(self.state, chosen))
        self.state = self.method.update(self.state, replies)
        return replies

    def replies(self, chosen: Sequence[int], work: Any) -> Replies:
        reduction = Each()
        for k in chosen:
            reply, _ = self.client(k, self.method.program(work.program), work.received(k))
            assert misshapen(reply.values, work.forms.get(k, Record())) is None
            self.sent[k] = reply
            reduction.add(k, reply)
        result = reduction.result()
        assert result is not None
        return result


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make()


def convolutional(one: int = 4, two: int = 6) -> nn.Sequential:
    """Images of 1 x 4 x 4 in 3 classes."""
    return nn.Sequential(
        nn.Conv2d(1, one, 3, padding=1), nn.BatchNorm2d(one), nn.ReLU(),
        nn.Conv2d(one, two, 3, stride=2), nn.BatchNorm2d(two), nn.ReLU(), nn.Flatten(), nn.Linear(two, 3),
    )  # fmt: skip


def deep(one: int = 8, two: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, one), nn.Tanh(), nn.Linear(one, two), nn.ReLU(), nn.Linear(two, 3)
    )  # fmt: skip


def images(*sizes: int) -> list[Client]:
    generator = torch.Generator().manual_seed(1)
    return [
        Client(torch.randn(n, 1, 4, 4, generator=generator), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]


# --- the paper, by hand ---------------------------------------------------------------------------------------------


def trained_by_hand(
    module: nn.Sequential,
    client: Client,
    rate: float,
    hidden: Sequence[int],
    epochs: int,
    absent: Sequence[int],
) -> None:
    """Full-batch gradient descent with a Scaler after the hidden layers and absent classes' logits at 0."""
    module.train()
    for _ in range(epochs):
        x = client.inputs
        for at, layer in enumerate(module):
            x = layer(x)
            x = x / rate if at in hidden else x
        x = torch.stack([torch.zeros(len(x)) if c in absent else x[:, c] for c in range(3)], 1)
        gradient = torch.autograd.grad(F.cross_entropy(x, client.targets), list(module.parameters()))
        with torch.no_grad():
            for p, g in zip(module.parameters(), gradient, strict=True):
                p.sub_(0.1 * g)


Blocks = dict[str, tuple[slice, ...]]


def averaged_by_hand(
    old: Tensors, models: Sequence[Any], counts: Sequence[int], blocks: Sequence[Blocks]
) -> Tensors:
    """Coordinate by coordinate, in NumPy: `blocks` says which block of a tensor each client has."""
    result = {}
    for name, value in old.items():
        new, flat = value.double().numpy().copy(), value.double().numpy()
        for at in np.ndindex(*new.shape):
            above = below = 0.0
            for model, count, block in zip(models, counts, blocks, strict=True):
                limits = [s.stop for s in block[name]] if name in block else list(new.shape)
                if all(i < stop for i, stop in zip(at, limits, strict=True)):
                    above, below = above + count * float(model[name][at].double()), below + count
            new[at] = above / below if below else flat[at]
        result[name] = torch.from_numpy(new).to(value.dtype)
    return Tensors(result)


def test_an_mlp_is_averaged_where_clients_have_its_coordinates() -> None:
    clients = blobs(12, 7, 9)
    task = Task(seeded(deep))
    played = Mixed(HeteroFL(rates="1,0.5,0.25", masked=False, **PLAN), task, clients).rounds(2)
    params, _ = task.initial()
    for _ in range(2):
        models, blocks = [], []
        for client, rate, (one, two) in zip(clients, (1, 0.5, 0.25), ((8, 5), (4, 3), (2, 2)), strict=True):
            block = {
                "0.weight": (slice(one), slice(6)), "0.bias": (slice(one),),
                "2.weight": (slice(two), slice(one)), "2.bias": (slice(two),),
                "4.weight": (slice(3), slice(two)), "4.bias": (slice(3),),
            }  # fmt: skip
            module = deep(one, two)
            module.load_state_dict({name: params[name][block[name]] for name in params})
            trained_by_hand(module, client, rate, (0, 2), 2, ())
            models.append(module.state_dict())
            blocks.append(block)
        params = averaged_by_hand(params, models, (12, 7, 9), blocks)
    torch.testing.assert_close(played.params, params.flat(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("absent", [(), (1,)])
def test_a_convolutional_network_with_batchnorm(absent: tuple[int, ...]) -> None:
    first, second = images(10, 14)
    second = (
        second._replace(targets=torch.where(second.targets == 1, 2, second.targets)) if absent else second
    )
    task = Task(seeded(convolutional))
    method = HeteroFL(rates="1,0.5", masked=bool(absent), **PLAN)
    played = Mixed(method, task, [first, second]).rounds(1)
    params, buffers = task.initial()
    wide, narrow = convolutional(), convolutional(2, 3)
    block = {
        "0.weight": (slice(2), slice(1), slice(3), slice(3)), "0.bias": (slice(2),),
        "1.weight": (slice(2),), "1.bias": (slice(2),),
        "3.weight": (slice(3), slice(2), slice(3), slice(3)), "3.bias": (slice(3),),
        "4.weight": (slice(3),), "4.bias": (slice(3),), "7.weight": (slice(3), slice(3)), "7.bias": (slice(3),),
    }  # fmt: skip
    wide.load_state_dict({**params, **buffers})
    narrow.load_state_dict({**narrow.state_dict(), **{n: params[n][block[n]] for n in params}})
    trained_by_hand(wide, first, 1, (0, 3), 2, ())
    trained_by_hand(narrow, second, 0.5, (0, 3), 2, absent)
    wanted = averaged_by_hand(params, [wide.state_dict(), narrow.state_dict()], (10, 14), [{}, block])
    for c in absent:  # the class's row is the first client's alone
        wanted["7.weight"][c], wanted["7.bias"][c] = (
            wide.state_dict()["7.weight"][c],
            wide.state_dict()["7.bias"][c],
        )
    torch.testing.assert_close(played.params, wanted.flat(), rtol=1e-4, atol=1e-5)
    for kept, module in ((played.state.buffers, wide), (played.state.narrow["0.5"], narrow)):
        for name, value in kept.items():
            torch.testing.assert_close(value, module.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_averaging_sub_models_padded_with_zeros_is_another_method() -> None:
    played = Mixed(HeteroFL(rates="1,0.5", masked=False, **PLAN), network(), blobs(8, 8))
    before = played.state.params
    played.round()
    narrow = before["0.weight"][:4] + played.sent[1].values["update"]["0.weight"]
    wide = before["0.weight"] + played.sent[0].values["update"]["0.weight"]
    padded = (wide + torch.cat([narrow, torch.zeros(4, 6)])) / 2
    now = played.state.params["0.weight"]
    torch.testing.assert_close(now[:4], padded[:4], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(now[4:], wide[4:], rtol=0, atol=1e-7)
    assert float((now[4:] - padded[4:]).norm() / now[4:].norm()) > 0.4


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalised", [False, True])
def test_with_all_units_this_is_fedavg_to_the_bit(normalised: bool) -> None:
    plan: dict[str, Any] = {"lr": 0.1, "epochs": 3, "batch_size": 4, "momentum": 0.5}
    clients = blobs(5, 12, 8)
    ours = Played(HeteroFL(rates="1", masked=False, **plan), network(normalised), clients).rounds(3)
    plain = Played(FedAvg(**plan), network(normalised), clients).rounds(3)
    assert torch.equal(ours.params, plain.params)
    assert all(torch.equal(ours.state.buffers[n], b) for n, b in plain.state.buffers.items())


def test_masks_change_nothing_where_everybody_has_every_class() -> None:
    clients = blobs(30, 30)
    assert all(set(client.targets.tolist()) == {0, 1, 2} for client in clients)
    one, two = (
        Mixed(HeteroFL(rates="1,0.5", masked=m, **PLAN), network(), clients).rounds(2) for m in (True, False)
    )
    assert torch.equal(one.params, two.params)


def test_what_nobody_has_stays_equal_to_the_bit() -> None:
    task = network(normalised=True)
    played = Mixed(HeteroFL(rates="0.5,1,0.25", **PLAN), task, blobs(9, 9, 9))
    before, buffers = played.state.params, played.state.buffers
    for _ in range(2):
        played.round([0, 2])
    after = played.state.params
    assert torch.equal(after["0.weight"][4:], before["0.weight"][4:])
    assert torch.equal(after["1.weight"][4:], before["1.weight"][4:])
    assert torch.equal(after["3.weight"][:, 4:], before["3.weight"][:, 4:])
    assert not torch.isclose(after["0.weight"][:4], before["0.weight"][:4]).any()
    assert all(torch.equal(played.state.buffers[n], b) for n, b in buffers.items())


def test_a_class_that_nobody_has_keeps_its_row() -> None:
    clients = [c._replace(targets=c.targets.clamp(max=1)) for c in blobs(12, 12)]
    kept = {}
    for mask in (True, False):
        played = Mixed(HeteroFL(rates="1,0.5", masked=mask, **PLAN), network(), clients)
        before = played.state.params
        played.rounds(2)
        kept[mask] = [torch.equal(played.state.params[n][2], before[n][2]) for n in ("2.weight", "2.bias")]
        assert not torch.isclose(played.state.params["2.weight"][:2], before["2.weight"][:2]).any()
    assert kept == {True: [True, True], False: [False, False]}


# --- what travels, and who predicts with what -----------------------------------------------------------------------


def test_a_client_receives_and_sends_its_sub_model_and_no_more() -> None:
    played = Mixed(HeteroFL(rates="1,0.5,0.25", **PLAN), network(), blobs(8, 8, 8))
    work = played.method.broadcast(played.state, [0, 1, 2])
    played.round()
    for k, units in enumerate((8, 4, 2)):
        model = 4 * (units * 6 + units + 3 * units + 3)
        assert played.sent[k].values["update"].nbytes() == model
        assert work.nbytes(k) == model + 4 * (1 + 1 + 3)  # the learning rate, the scale, the classes


@pytest.mark.parametrize(
    ("rates", "normalised", "warned"),
    [("1,0.0625", False, True), ("1,0.0625", True, False), ("1", False, False)],
)
def test_narrow_rates_without_normalisation_are_warned_of(
    rates: str, normalised: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    HeteroFL(rates=rates).setup(network(normalised), Population(2))
    assert caplog.text.count("at rate 0.0625 what a layer gives is made 16 times as large") == warned
    assert ("atoll.models.with_batchnorm" in caplog.text) == warned


def test_rates_take_turns_or_are_drawn_anew() -> None:
    state = Record(round=0)
    fixed = HeteroFL(rates="1,0.5, 0.25")
    assert [fixed.rate(state, k) for k in range(4)] == [1.0, 0.5, 0.25, 1.0]
    drawn = HeteroFL(rates="1,0.5,0.25", dynamic=True)
    rates = [[drawn.rate(Record(round=t, seed=0), k) for t in range(200)] for k in (0, 1)]
    assert rates[0] != rates[1]
    assert all(40 < each.count(r) < 95 for each in rates for r in (1.0, 0.5, 0.25))
    played = Mixed(HeteroFL(rates="1,0.5,0.25", dynamic=True, **PLAN), network(True), blobs(8, 8, 8)).rounds(
        4
    )
    assert torch.isfinite(played.params).all()


def test_clients_predict_with_their_sub_model_as_they_trained_it() -> None:
    clients = blobs(20, 20, tested=20)
    played = Mixed(HeteroFL(rates="1,0.5", masked=False, **PLAN), network(normalised=True), clients).rounds(6)
    params, statistics = played.state.params, played.state.narrow["0.5"]
    assert clients[1].test is not None
    inputs, targets = clients[1].test
    hidden = (inputs @ params["0.weight"][:4].T + params["0.bias"][:4]) / 0.5
    hidden = F.batch_norm(
        hidden,
        statistics["1.running_mean"],
        statistics["1.running_var"],
        params["1.weight"][:4],
        params["1.bias"][:4],
    )
    outputs = torch.tanh(hidden) @ params["3.weight"][:, :4].T + params["3.bias"]
    assert played.personal(1).loss == pytest.approx(float(F.cross_entropy(outputs, targets)), rel=1e-5)
    whole_model = played.task.totals(params, played.state.buffers, whole(*clients[0].test or ()))
    assert played.personal(0).loss == pytest.approx(float(whole_model.loss) / 20, rel=1e-5)


def test_hidden_layers_are_scaled_inside_and_not_after() -> None:
    task = network()
    state = HeteroFL(rates="1,0.5").setup(task, Population(1))
    assert state.scaled.keys() == {"0"}
    params, x = state.params, torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    plain, _ = task.predict(params, Tensors(), x)
    with scaled(task, Tensors({"0": torch.tensor(0.5)})):
        divided, _ = task.predict(params, Tensors(), x)
    wanted = (
        torch.tanh(2 * F.linear(x, params["0.weight"], params["0.bias"])) @ params["2.weight"].T
        + params["2.bias"]
    )
    torch.testing.assert_close(divided, wanted)
    assert torch.equal(task.predict(params, Tensors(), x)[0], plain)


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "why"),
    [("1,half", "'half' is not a number"), ("", "is empty"), ("1,0", "above 0"), ("2,1", "at most 1"),
     ("0.5,0.25", "must have a 1")],
)  # fmt: skip
def test_rates_must_be_shares(rates: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"HeteroFL: rates = '{rates}'.*{why}"):
        HeteroFL(rates=rates)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])  # type: ignore[no-any-return]


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).view(-1, 8))  # type: ignore[no-any-return]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.sum() > 0 else self.one(-x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "shape", "why"),
    [
        (lambda: nn.Linear(6, 3), (6,), "no hidden units"),
        (
            lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
            (6,),
            "0.5 of its hidden units",
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(8, 8), nn.Linear(8, 3)),
            (6,),
            "0.5 of its hidden",
        ),
        (Recurrent, (5, 6), "Recurrent does not run with 0.5 of its hidden units"),
        (Fixed, (6,), "Fixed does not run with 0.5"),
        (Branching, (6,), "hidden units of Branching apart"),
    ],
)
def test_models_that_cannot_be_narrower_are_refused(
    module: Callable[[], nn.Module], shape: tuple[int, ...], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        HeteroFL(rates="1,0.5").setup(Task(module()), Population(2, example=torch.zeros(1, *shape)))


# --- engines --------------------------------------------------------------------------------------------------------


def federated(engine: str, dynamic: bool = False) -> Federation:
    made = {}
    for at, client in enumerate(images(9, 12, 5, 8)):
        x, y = client.inputs.numpy(), client.targets.numpy() % (2 if at == 1 else 3)
        made[f"c{at}"] = {"train": (x, y), "test": (x, y)}
    method = HeteroFL(lr=0.05, batch_size=4, rates="1,0.5", dynamic=dynamic)
    federation = Federation(
        lambda: seeded(convolutional), atoll.data.from_clients(made, classes=3), method,
        rounds=2, cohort=4, engine=engine, device="cpu", workers=1, eval_every=0,
    )  # fmt: skip
    federation.fit()
    return federation


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("engine", ["batched", "processes"])
def test_engines_agree(engine: str, dynamic: bool) -> None:
    one, two = federated("loop", dynamic), federated(engine, dynamic)
    torch.testing.assert_close(two.state.params.flat(), one.state.params.flat(), rtol=1e-4, atol=1e-5)
    assert two.state.present["1"]["classes"].tolist() == [1.0, 1.0, 0.0]
    for a, b in zip(two.state.narrow["0.5"].values(), one.state.narrow["0.5"].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    judged, wanted = two.history[-1].evaluation, one.history[-1].evaluation
    assert judged is not None and wanted is not None
    assert judged.personal["loss"].mean == pytest.approx(wanted.personal["loss"].mean, rel=1e-4)
