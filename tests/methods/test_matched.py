"""Matched averaging: whose hidden units are whose, and what comes out of averaging them."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from atoll.contract import Population
from atoll.errors import ConfigError, MissingExtraError
from atoll.methods import PFNM, FedAvg, FedMA
from atoll.methods.matched import Groups, match_models, match_units, permutation_groups
from atoll.models import build
from atoll.seeds import scoped
from atoll.task import Task
from atoll.tensors import Tensors

from .driver import Client, Played, blobs, network

# --- assignments --------------------------------------------------------------------------------------------


def copies(clients: int, deviation: float = 1.0, noise: float = 0.1) -> tuple[list[Any], list[Any]]:
    """Rows of one layer in many orders, with noise; and the orders: row l of client j is unit orders[j][l]."""
    rng = np.random.default_rng(1)
    layer = rng.normal(size=(50, 65)) * deviation
    orders = [rng.permutation(50) for _ in range(clients)]
    noisy = [layer + noise * deviation * rng.normal(size=layer.shape) for _ in orders]
    return [each[order] for each, order in zip(noisy, orders, strict=True)], orders


@pytest.mark.parametrize("gamma", [7.0, 1e-3, 0.0])
@pytest.mark.parametrize("deviation", [1.0, 0.1])
@pytest.mark.parametrize("clients", [4, 10])
def test_units_in_any_order_are_found_again(clients: int, deviation: float, gamma: float) -> None:
    rows, orders = copies(clients, deviation)
    prior = np.append(np.zeros(64), 0.1 * deviation)
    found = match_units(rows, gamma=gamma, prior=prior, relative=deviation < 1)
    assert found.units == 50
    wanted = found.assignments[0][np.argsort(orders[0])]
    for ids, order in zip(found.assignments, orders, strict=True):
        assert np.array_equal(ids[np.argsort(order)], wanted)
    mean = sum(each[np.argsort(order)] for each, order in zip(rows, orders, strict=True)) / clients
    np.testing.assert_allclose(found.means[wanted], mean, atol=1e-10)


def test_small_weights_need_deviations_that_are_relative_to_them() -> None:
    rows, _ = copies(10, 0.1)
    assert match_units(rows, gamma=7.0).units > 55  # every client seems to have units of its own
    assert match_units(rows, gamma=7.0, relative=True).units == 50
    assert match_units(rows, gamma=1e-3).units == 50


def test_the_posterior_mode_shrinks_and_the_mean_does_not() -> None:
    for clients in (4, 10):
        rows = [copies(1, noise=0.0)[0][0]] * clients
        for relative in (True, False):
            mode = match_units(rows, shrink=True, relative=relative).means
            np.testing.assert_allclose(mode, rows[0] * clients / (clients + 1), atol=1e-10)
            np.testing.assert_allclose(match_units(rows, relative=relative).means, rows[0], atol=1e-10)


def test_identical_clients_keep_their_places() -> None:
    rows = [copies(1)[0][0]] * 5
    for gamma in (0.0, 1e-3, 7.0):
        for ids in match_units(rows, gamma=gamma).assignments:
            assert ids.tolist() == list(range(50))


def test_gamma_says_how_many_units_there_are() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(n, 12)) for n in (20, 35, 30)]
    assert match_units(rows, gamma=0.0).units == 35
    assert match_units(rows, gamma=1e-100).units == 35
    assert match_units(rows, gamma=1e100).units == 85
    assert 35 < match_units(rows, gamma=1e100, cap=60).units <= 63  # above the cap, one at a time
    for found in (match_units(rows, gamma=1.0), match_units(rows, gamma=0.0), match_units(rows[:1])):
        for ids in found.assignments:
            assert len(set(ids.tolist())) == len(ids)
            assert ids.max() < found.units


def literal(rows: list[Any], gamma: float, mean: float, orders: list[Any]) -> list[list[int]]:
    """The algorithm as it is written down, unit by unit, without sweeps that stop early; sigma = sigma0 = 1."""
    from scipy.optimize import linear_sum_assignment

    clients = len(rows)
    start = max(range(clients), key=lambda j: len(rows[j]))
    units = [[mean + v, 2.0, 1] for v in rows[start]]
    found = {start: list(range(len(rows[start])))}

    def match(j: int) -> None:
        count = min(len(rows[j]), max(700 - len(units), 1))
        gains = np.zeros((len(rows[j]), len(units) + count))
        for at, v in enumerate(rows[j]):
            for i, (m, s, c) in enumerate(units):
                c = min(c, 10)
                gains[at, i] = ((v + m) ** 2 / (1 + s)).sum() - (m**2 / s).sum() + np.log(c / (clients - c))
            for r in range(count):
                gains[at, len(units) + r] = (
                    ((v + mean) ** 2 / 2).sum()
                    - mean**2 * len(v)
                    - 2 * np.log(r + 1)
                    + 2 * np.log(gamma / clients)
                )
        _, columns = linear_sum_assignment(-gains)
        found[j], known = [], len(units)
        for v, i in zip(rows[j], columns, strict=True):
            if i < known:
                units[i] = [units[i][0] + v, units[i][1] + 1, units[i][2] + 1]
                found[j].append(int(i))
            else:
                units.append([mean + v, 2.0, 1])
                found[j].append(len(units) - 1)

    for j in sorted(range(clients), key=lambda j: -len(rows[j]))[1:]:
        match(j)
    for order in orders:
        for j in order:
            for at, i in enumerate(found[j]):
                units[i] = [units[i][0] - rows[j][at], units[i][1] - 1, units[i][2] - 1]
            stays = [i for i, (_, _, c) in enumerate(units) if c > 0]
            units = [units[i] for i in stays]
            found = {k: [stays.index(i) for i in ids if i in stays] for k, ids in found.items()}
            match(j)
    return [found[j] for j in range(clients)]


@pytest.mark.parametrize("gamma", [0.05, 1.0, 20.0])
def test_matching_is_the_algorithm_as_it_is_written_down(gamma: float) -> None:
    from atoll import seeds

    rng = np.random.default_rng(3)
    base = rng.normal(size=(9, 7))
    rows = [(base + 0.6 * rng.normal(size=base.shape))[rng.permutation(9)][:n] for n in (6, 9, 8, 7)]
    draws = seeds.rng(4, "matching", client=2)
    orders = [draws.permutation(4) for _ in range(5)]
    found = match_units(rows, gamma=gamma, prior=0.3, seed=4, stream=2)
    assert [ids.tolist() for ids in found.assignments] == literal(rows, gamma, 0.3, orders)


def test_what_cannot_be_matched_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="same width"):
        match_units([np.zeros((3, 4)), np.zeros((3, 5))])
    with pytest.raises(ConfigError, match="sigma = 0"):
        match_units([np.zeros((3, 4))], sigma=0.0)
    with pytest.raises(ConfigError, match="no network"):
        match_units([])
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"atoll\[matched\]"):
        match_units([np.zeros((3, 4))])
    with pytest.raises(MissingExtraError):
        PFNM().setup(network(), Population(2))


# --- groups -------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A stem, two residual blocks, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(inplace=True),
                nn.Conv2d(6, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Depthwise(nn.Module):
    """Depthwise convolution, concatenation, transposition, a scale of its own, and a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.side = nn.Conv2d(2, 5, 1)
        self.scale = nn.Parameter(torch.rand(5, 1, 1))
        self.norm = nn.BatchNorm2d(13)
        self.mix = nn.Conv2d(13, 6, 1)
        self.head = nn.Linear(6 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.deep(nn.functional.elu(self.first(x)))
        both = torch.cat([torch.tanh(deep), self.side(x) * self.scale], dim=1)
        both = nn.functional.max_pool2d(self.mix(self.norm(both)), 2)
        return self.head(both.view(both.size(0), -1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], layers: int = 1, both: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, 5)
        self.rnn = kind(5, 7, layers, batch_first=True, bidirectional=both)
        self.norm = nn.LayerNorm(7)
        self.both = both
        self.head = nn.Linear(14 if both else 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.rnn(self.embedding(x))
        last = x[:, -1]
        return self.head(last if self.both else self.norm(last))  # type: ignore[no-any-return]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12, 10), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(10, 3),
    )  # fmt: skip


def projected() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 9), nn.PReLU(9), nn.Linear(9, 3)
    )


def sequence() -> nn.Module:
    """Linear layers along a sequence, whose units are then flattened with the time outside."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 3)
    )


IMAGE = (2, 6, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "mlp": (lambda: build("mlp:20,15", (6,), 3), (6,), (20, 15)),
    "cnn": (convolutional, IMAGE, (8, 12, 10)),
    "residual": (Residual, IMAGE, (8, 6, 6)),
    "depthwise": (Depthwise, IMAGE, (4, 5, 6)),
    "projected": (projected, (6,), (16, 9)),
    "sequence": (sequence, (5, 4), (6, 8)),
    "lenet": (lambda: build("lenet", (1, 28, 28), 10), (1, 28, 28), (16, 32, 120, 84)),
    "conv1d": (lambda: build("conv1d", (3, 16), 4), (3, 16), (32, 64, 128)),
    "lstm": (lambda: Recurrent(nn.LSTM), (5, 4), (5, 7)),
    "lstm-2": (lambda: Recurrent(nn.LSTM, 2), (5, 4), (5, 7, 7)),
    "gru-both": (lambda: Recurrent(nn.GRU, 1, True), (5, 4), (5, 7, 7)),
    "rnn": (lambda: Recurrent(nn.RNN), (5, 4), (5, 7)),
}


def made(name: str, seed: int = 0) -> tuple[nn.Module, Tensors, Tensors, Tensor]:
    """The network in evaluation mode, its parameters and buffers (none at its initial constant), and inputs."""
    model, shape, _ = NETWORKS[name]
    with scoped(seed):
        module = model().eval()
        params, buffers = Task(module).initial()
        params = params.map(lambda p: p + 0.3 * torch.randn_like(p) * p.std(correction=0).clamp(min=0.2))
        buffers = buffers.map(lambda b: b + 0.5 * torch.rand_like(b) if b.is_floating_point() else b)
        return module, params, buffers, torch.randn(4, *shape)


def shuffled(groups: Groups, tensors: Tensors, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return groups.moved(
        tensors, {g: torch.randperm(n, generator=generator) for g, n in enumerate(groups.sizes)}
    )


def outputs(module: nn.Module, params: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return functional_call(module, {**params, **buffers}, (inputs,))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_units_may_change_places(name: str) -> None:
    module, params, buffers, inputs = made(name)
    groups = permutation_groups(module, inputs)
    assert groups.sizes == NETWORKS[name][2]
    other, moved = shuffled(groups, params), shuffled(groups, buffers)
    assert any(not torch.equal(value, params[n]) for n, value in other.items())
    wanted = outputs(module, params, buffers, inputs)
    torch.testing.assert_close(outputs(module, other, moved, inputs), wanted, rtol=1e-4, atol=1e-5)
    names = sorted([*params, *buffers])
    assert Groups.of_table(groups.table(names), names) == groups


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_and_its_shuffled_copies_average_to_that_network(name: str) -> None:
    module, params, buffers, inputs = made(name)
    groups = permutation_groups(module)
    models = [(params, buffers)]
    models += [(shuffled(groups, params, seed), shuffled(groups, buffers, seed)) for seed in (1, 2)]
    wanted = outputs(module, params, buffers, inputs)
    for options in ({}, {"passes": 2}, {"outgoing": True}, {"gamma": 1e-3}):
        found = match_models(groups, models, **options)  # type: ignore[arg-type]
        result = outputs(module, found.params, found.buffers, inputs)
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)
    plain = [Tensors({n: sum(m[at][n] for m in models) / 3 for n in models[0][at]}) for at in (0, 1)]  # type: ignore[misc]
    assert float((outputs(module, plain[0], plain[1], inputs) - wanted).norm() / wanted.norm()) > 0.05
    shrunk = match_models(groups, models, shrink=True)
    assert not torch.allclose(outputs(module, shrunk.params, shrunk.buffers, inputs), wanted, atol=1e-2)


def test_identical_networks_average_to_the_bit() -> None:
    module, params, buffers, _ = made("residual")
    found = match_models(module, [(params, buffers)] * 4, [3.0, 1.0, 7.0, 2.0])
    for assignments in found.assignments:
        for ids in assignments:
            assert ids.tolist() == list(range(len(ids)))
    for name, value in [*params.items(), *buffers.items()]:
        assert torch.equal({**found.params, **found.buffers}[name], value)


def test_networks_of_other_widths_grow_together() -> None:
    """A narrow network is a wide one without some of its units."""
    module, params, buffers, _ = made("cnn")
    groups = permutation_groups(module)
    keep = {0: torch.tensor([6, 1, 3, 0]), 1: torch.arange(12), 2: torch.tensor([9, 4, 7, 2, 0])}
    narrow = dict(params), dict(buffers)
    for part in narrow:
        for name, value in part.items():
            for axis in groups.axes.get(name, ()):
                (segment,) = axis.segments
                if segment.group in keep:
                    bare = torch.arange(segment.length).reshape(segment.size, segment.inner)
                    value = value.index_select(axis.dim, bare[keep[segment.group]].reshape(-1))
            part[name] = value
    small = Tensors(narrow[0]), Tensors(narrow[1])
    found = match_models(module, [small, (params, buffers)])
    assert found.params["0.weight"].shape == params["0.weight"].shape
    for g, kept in keep.items():
        assert torch.equal(found.assignments[g][0], found.assignments[g][1][kept])
    shuffle = match_models(module, [(params, buffers), small], gamma=1e9)  # strangers: units side by side
    assert shuffle.params["0.weight"].shape[0] == 12


def test_outputs_are_averaged_by_the_classes_that_clients_have_seen() -> None:
    task = network()
    params, buffers = task.initial()
    other = params.map(lambda p: p + 1.0)
    counts = torch.tensor([[8.0, 0.0, 0.0], [2.0, 5.0, 0.0]])
    found = match_models(task.module, [(params, buffers), (other, buffers)], [1.0, 3.0], counts)
    share = torch.tensor([0.2, 1.0, 0.75])  # of the second client; nobody has the last class: by samples
    torch.testing.assert_close(found.params["2.bias"], params["2.bias"] + share)
    # Rows of hidden units are plain means, whatever the number of samples.
    torch.testing.assert_close(found.params["0.bias"].sort()[0], (params["0.bias"] + 0.5).sort()[0])


class Mixes(nn.Module):
    """Attention, which mixes units in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.attention(x, x, x)[0][:, 0])  # type: ignore[no-any-return]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x) if x.sum() > 0 else self.line(-x)  # type: ignore[no-any-return]


class Picks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.line(x), 1)


@pytest.mark.parametrize(
    ("module", "words"),
    [(Mixes(), r"MultiheadAttention \(attention\)"), (Branches(), "trace"), (Picks(), r"cumsum\(\)")],
)
def test_a_model_that_is_not_understood_is_a_clear_error(module: nn.Module, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        permutation_groups(module)


def test_units_that_must_stay_do() -> None:
    frozen = build("mlp:8,7", (6,), 3)
    frozen[3].weight.requires_grad_(False)  # type: ignore[union-attr, index]
    assert permutation_groups(frozen).sizes == ()

    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    tied = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(6, 3))
    assert permutation_groups(tied).sizes == ()

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.head = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.line(x))  # type: ignore[no-any-return]

    groups = permutation_groups(Skips(), torch.randn(3, 6))
    assert groups.sizes == (4,)
    assert "line.weight" not in groups.axes
    assert permutation_groups(build("logistic", (6,), 3)).sizes == ()


def test_grouped_normalisation_holds_units_in_place() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )
    assert permutation_groups(module, torch.randn(2, 2, 4, 4)).sizes == (5,)


# --- methods ------------------------------------------------------------------------------------------------

PLAN = {"lr": 0.2, "epochs": 2, "batch_size": 4}


def test_one_client_is_federated_averaging() -> None:
    for method in (PFNM(**PLAN), FedMA(**PLAN)):
        played = Played(method, network(normalised=True), blobs(12)).rounds(1)
        plain = Played(FedAvg(**PLAN), network(normalised=True), blobs(12)).rounds(1)
        torch.testing.assert_close(played.params, plain.params)


def test_pfnm_is_matching_what_clients_send() -> None:
    task, clients = network(), blobs(8, 12, 16)
    played = Played(PFNM(**PLAN), task, clients).rounds(1)
    models = [(played.sent[k].values.params, played.sent[k].values.buffers) for k in range(3)]
    counts = torch.stack([torch.bincount(c.targets, minlength=3).float() for c in clients])
    assert torch.equal(torch.stack([played.sent[k].values.classes for k in range(3)]), counts)
    wanted = match_models(task.module, models, [8.0, 12.0, 16.0], counts)
    torch.testing.assert_close(played.params, wanted.params.flat())
    weighted = Played(PFNM(**PLAN, weighting="samples", outgoing=True), task, clients).rounds(1)
    wanted = match_models(
        task.module, models, [8.0, 12.0, 16.0], counts, precision=[8.0, 12.0, 16.0], outgoing=True
    )
    torch.testing.assert_close(weighted.params, wanted.params.flat())


def test_clients_may_start_from_weights_of_their_own() -> None:
    method = PFNM(start="own")
    state = method.setup(network(), Population(3))
    work = method.broadcast(state, [0, 2])
    first, second = (work.received(k).params["0.weight"] for k in (0, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first.flatten().sort()[0], second.flatten().sort()[0])
    assert torch.equal(method.broadcast(state, [2]).received(2).params["0.weight"], second)
    assert method.broadcast(state.replace(round=1), [0]).own == {}


def test_networks_that_were_trained_apart_are_better_matched() -> None:
    generator = torch.Generator().manual_seed(0)
    inner, outer = torch.randn(6, 10, generator=generator), torch.randn(10, 3, generator=generator)

    def drawn(count: int) -> Client:
        inputs = torch.randn(count, 6, generator=generator)
        return Client(inputs, (torch.tanh(inputs @ inner) @ outer).argmax(1))

    with scoped(0):
        task = Task(nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 3)))
    method = PFNM(lr=0.3, epochs=30, batch_size=20, start="own")
    played = Played(method, task, [drawn(200) for _ in range(4)]).rounds(1)
    sent, test = [played.sent[k].values.params for k in range(4)], drawn(1000)
    plain = Tensors({name: torch.stack([params[name] for params in sent]).mean(0) for name in sent[0]})

    def accuracy(params: Tensors) -> float:
        return float(task.measure(params, Tensors(), test.inputs, test.targets).accuracy.mean())

    assert accuracy(played.state.params) > accuracy(plain) + 0.05


def deep() -> Task:
    with scoped(4):
        return Task(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)))


def test_fedma_is_layer_wise_matching_with_training_in_between() -> None:
    """Against a plain loop: match a layer, freeze it, train the rest, match the next; twice over."""
    task, clients = deep(), blobs(8, 12, 16)
    method = FedMA(**PLAN)
    played = Played(method, task, clients)
    groups = permutation_groups(task.module)
    counts = torch.stack([torch.bincount(c.targets, minlength=3).float() for c in clients])
    params, buffers = task.initial()
    mine, kept = [params] * 3, dict(params)
    for number in range(6):
        stage = number % 3
        frozen = [f"{2 * n}.{kind}" for n in range(stage) for kind in ("weight", "bias")]
        for k, client in enumerate(clients):
            layers = task.load(mine[k], buffers)
            for name, parameter in layers.named_parameters():
                parameter.requires_grad_(name not in frozen)
            opened = [p for p in layers.parameters() if p.requires_grad]
            solver = torch.optim.SGD(opened, lr=0.2)
            for _ in range(2):
                for at in range(0, len(client.inputs), 4):
                    solver.zero_grad()
                    with torch.enable_grad():
                        logits = layers(client.inputs[at : at + 4])
                        nn.functional.cross_entropy(logits, client.targets[at : at + 4]).backward()
                    solver.step()
            mine[k] = Tensors({n: p.detach() for n, p in layers.named_parameters()})
        found = match_models(
            groups, [(m, buffers) for m in mine], [8.0, 12.0, 16.0], counts, known=stage, seed=number
        )
        played.round()
        torch.testing.assert_close(played.params, found.params.flat(), rtol=1e-4, atol=1e-5)
        for name in frozen:
            assert torch.equal(played.state.params[name], kept[name])
        if stage == 2:
            mine = [found.params] * 3
            assert played.state.stage == 0 and not played.state.models
            continue
        maps = [{stage: found.assignments[stage][k]} for k in range(3)]
        mine = [groups.moved(m, each) for m, each in zip(mine, maps, strict=True)]
        done = [f"{2 * stage}.weight", f"{2 * stage}.bias"]
        mine = [Tensors({n: found.params[n] if n in done else v for n, v in m.items()}) for m in mine]
        kept = dict(played.state.params)


def test_fedma_trains_and_sends_only_what_is_not_matched_yet() -> None:
    played = Played(FedMA(**PLAN, momentum=0.9, weight_decay=0.1), deep(), blobs(8, 12, 16))
    sent = []
    for _ in range(4):
        played.round()
        sent.append(sorted(played.sent[0].values.params))
    assert [len(names) for names in sent] == [6, 4, 2, 6]
    assert sent[2] == ["4.bias", "4.weight"]


def test_fedma_can_go_on_from_the_mean_of_later_layers() -> None:
    clients = blobs(8, 12, 16)
    played = Played(FedMA(**PLAN, later="matched"), deep(), clients)
    other = Played(FedMA(**PLAN), deep(), clients)
    played.round()
    other.round()
    assert torch.equal(played.params, other.params)
    assert not played.state.models and other.state.models
    for stage in (1, 2):
        assert played.state.stage == stage
        work = played.method.broadcast(played.state, [0, 2])
        assert work.own == {} and work.shared.params is played.state.params
        kept = played.state.params
        played.round([0, 2])
        for n in range(stage):
            assert torch.equal(played.state.params[f"{2 * n}.weight"], kept[f"{2 * n}.weight"])
        assert not torch.equal(played.state.params["4.weight"], kept["4.weight"])
    assert played.state.stage == 0


def test_fedma_goes_on_with_whoever_comes() -> None:
    played = Played(FedMA(**PLAN), deep(), blobs(8, 12, 16, 9))
    played.round([0, 1])
    before = played.state.models["0"]
    played.round([1, 3])  # 3 is new: from the global model
    assert sorted(played.state.models) == ["0", "1", "3"]
    assert played.state.stage == 2
    assert torch.equal(played.state.models["0"]["4.bias"], before["4.bias"])
    for client in ("0", "1", "3"):
        assert torch.equal(played.state.models[client]["0.weight"], played.state.params["0.weight"])
        assert torch.equal(played.state.models[client]["2.bias"], played.state.params["2.bias"])
    played.round([2])
    assert played.state.stage == 0


def test_fedma_learns_a_residual_network() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
            self.up, self.down, self.head = nn.Linear(8, 5), nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.norm(self.stem(x)))
            return self.head(x + self.down(torch.tanh(self.up(x))))  # type: ignore[no-any-return]

    with scoped(2):
        task = Task(Small())
    clients = blobs(40, 60, 50)
    played = Played(FedMA(lr=0.1, epochs=5, batch_size=10, start="own"), task, clients).rounds(9)
    assert played.state.stage == 0
    inputs, targets = torch.cat([c.inputs for c in clients]), torch.cat([c.targets for c in clients])
    params, buffers = played.method.model(played.state)
    assert float(task.measure(params, buffers, inputs, targets).accuracy.mean()) > 0.95


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": "none"}, "start"),
        ({"weighting": "x"}, "weighting"),
        ({"sweeps": -1}, "sweeps"),
        ({"passes": 0}, "passes"),
        ({"later": "mean"}, "later"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FedMA(**settings)
