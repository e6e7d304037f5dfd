"""Methods that share a part of the network and leave the rest with the clients: FedPer, LG-FedAvg, FedBN, FedRep and
FedBABU. Each is compared with an independent loop over plain numbers or plain modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll.data
from atoll.contract import ClientData, Plan, Population
from atoll.engines.capture import capture
from atoll.engines.reading import reading
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import FedAvg, FedBABU, FedBN, FedPer, FedRep, LGFedAvg, Local, PFedHNPC
from atoll.methods.parts.shared import PartlyShared, head, layers
from atoll.methods.personal.fedala import top
from atoll.methods.personal.fedrep import batches
from atoll.task import Task
from atoll.tensors import Record, Tensors, leaves

from .driver import Client, Played, blobs, network, quadratic, whole

PLAN: dict[str, Any] = {"lr": 0.2, "epochs": 2, "batch_size": 4}
KINDS: dict[str, PartlyShared] = {
    "fedper": FedPer(**PLAN),
    "lg-fedavg": LGFedAvg(**PLAN),
    "fedbn": FedBN(**PLAN),
    "fedrep": FedRep(**PLAN, head_epochs=3),
    "fedbabu": FedBABU(**PLAN),
}
SOLVERS: list[dict[str, Any]] = [
    {"momentum": 0.9, "weight_decay": 0.1, "clip": 0.5},
    {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


def normed() -> Task:
    """6 inputs, 3 classes, one hidden layer with BatchNorm, and no bias before it, whose gradient would be noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Task(nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)))


def everything(task: Task) -> dict[str, Tensor]:
    params, buffers = task.initial()
    return {**params, **buffers}


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def same(one: Record, other: Record) -> bool:
    return equal(one.params, other.params) and equal(one.buffers, other.buffers)


# --- which tensors are whose --------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Layers of every kind: a parameter of the root's own, nested blocks, one frozen, one reparametrised."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.fixed = nn.Linear(8, 8)
        self.fixed.requires_grad_(False)
        self.plain = nn.BatchNorm1d(8, affine=False)
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.plain(self.fixed(self.block(x * self.scale))))  # type: ignore[no-any-return]


def test_layers_are_the_modules_that_own_tensors_in_the_order_of_definition() -> None:
    found = [set(names) for names in layers(Task(Mixed()))]
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert found == [
        {"scale"},
        {"block.0.weight", "block.0.bias"},
        {f"block.1.{name}" for name in ("weight", "bias", *statistics)},
        {"fixed.weight", "fixed.bias"},
        {f"plain.{name}" for name in statistics},
        {"out.bias", *(f"out.parametrizations.weight.original{at}" for at in (0, 1))},
    ]
    assert set.union(*found) == everything(Task(Mixed())).keys() | Task(Mixed()).frozen.keys()


def test_the_head_counts_trainable_layers_from_the_output() -> None:
    task = Task(Mixed())
    found = layers(task)
    for count, first in ((0, 6), (1, 5), (2, 2), (3, 1), (4, 0)):  # what cannot be trained does not count
        assert head(task, count) == {name for names in found[first:] for name in names}
    with pytest.raises(ConfigError, match="head_layers = 5, but the model has 4 layers"):
        head(task, 5)


def test_a_tied_weight_belongs_to_its_first_layer() -> None:
    first, last = nn.Linear(3, 3), nn.Linear(3, 3)
    last.weight = first.weight
    assert head(Task(nn.Sequential(first, nn.Tanh(), last)), 1) == {"2.bias"}


def test_all_layers_of_a_model_reach_to_its_input() -> None:
    """A constant before the first trainable layer is of the head if all layers are."""
    task = Task(nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3)))
    assert head(task, 1) == everything(task).keys()


class HeadFirst(nn.Module):
    """Defined from the output to the input; the head's weights are read without a call of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 3)
        self.spare = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(8)
        self.body = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.norm(self.body(x))), self.out.weight, self.out.bias)


def test_the_head_is_what_the_forward_uses_last() -> None:
    task = Task(HeadFirst())
    task.follow(torch.zeros(2, 6))
    out = {"out.weight", "out.bias"}
    assert head(task, 1) == out
    assert {"norm.weight", "norm.running_mean"} < head(task, 2) and "body.weight" not in head(task, 2)
    assert layers(task)[0][0] == "spare.weight"  # never used
    assert top(task, task.initial()[0], 1).keys() == out
    assert set(PFedHNPC(private_layers=2).private(task)) == out | {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("method", [FedPer(), FedRep(), FedBABU(), LGFedAvg()])
def test_a_federation_shows_its_model_some_data_before_it_looks_for_the_head(method: Any) -> None:
    x, y = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
    data = atoll.data.from_clients({"a": (x, y), "b": (x, y)}, classes=3)
    federation = Federation(HeadFirst, data, method, device="cpu")
    assert ("body.weight" in method.private(federation.task)) == isinstance(method, LGFedAvg)
    assert ("out.weight" in federation.state.params) == isinstance(method, LGFedAvg)


def test_the_order_of_use_is_that_of_tensors_whatever_calls_them() -> None:
    """Attention reads its output projection without calling it; a cell is used again and again; weights are tied."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decode = nn.Linear(4, 7)
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
            self.read = nn.LSTM(4, 4, batch_first=True)
            self.embed = nn.Embedding(7, 4)
            self.decode.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            h, _ = self.read(self.embed(x))
            return self.decode(self.attend(h, h, h)[0][:, -1])  # type: ignore[no-any-return]

    task = Task(Net())
    task.follow(torch.zeros(2, 5, dtype=torch.int64))
    owners = [names[0].split(".")[0] for names in layers(task)]
    assert owners == ["read", "attend", "attend", "decode"]


def test_a_layer_counts_where_it_is_used_last_and_a_tied_tensor_where_it_is_used_first() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.once = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.once(self.twice(x)))  # type: ignore[no-any-return]

    task = Task(Again())
    task.follow(torch.zeros(2, 4))
    assert head(task, 1) == {"twice.weight", "twice.bias"}
    encode, body, decode = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    decode.weight = encode.weight
    task = Task(nn.Sequential(encode, body, decode))
    task.follow(torch.zeros(2, 4))
    assert head(task, 1) == {"1.weight", "1.bias"}


# --- the ends of the scale are FedAvg and Local -------------------------------------------------------------

LAYERS = 3  # of the network with BatchNorm


@pytest.mark.parametrize("solver", [{}, *SOLVERS])
@pytest.mark.parametrize("method", [FedPer, LGFedAvg])
def test_nothing_private_is_fedavg_to_the_bit(method: Any, solver: dict[str, Any]) -> None:
    clients, settings = blobs(8, 12, 16, tested=8), {**PLAN, **solver}
    count = 0 if method is FedPer else LAYERS
    ours = Played(method(**settings, head_layers=count), normed(), clients).rounds(3)
    theirs = Played(FedAvg(**settings), normed(), clients).rounds(3)
    assert equal(ours.state.params, theirs.state.params)
    assert equal(ours.state.buffers, theirs.state.buffers)
    assert all(not leaves(memory) for memory in ours.memories.values())
    assert ours.personal(1) == theirs.personal(1)


@pytest.mark.parametrize("solver", [{}, *SOLVERS])
@pytest.mark.parametrize("method", [FedPer, LGFedAvg])
def test_everything_private_is_local_training_to_the_bit(method: Any, solver: dict[str, Any]) -> None:
    clients, settings = blobs(8, 12, 16, tested=8), {**PLAN, **solver}
    count = LAYERS if method is FedPer else 0
    ours = Played(method(**settings, head_layers=count), normed(), clients).rounds(3)
    theirs = Played(Local(**settings), normed(), clients).rounds(3)
    for k in range(3):
        assert same(ours.memories[k], theirs.memories[k])
        assert ours.personal(k) == theirs.personal(k)
    assert same(Record(zip(("params", "buffers"), ours.method.model(ours.state), strict=True)), theirs.state)


@pytest.mark.parametrize(
    ("method", "everywhere", "engine"),
    [
        pytest.param(method, everywhere, engine, marks=marks)
        for method in (FedPer, LGFedAvg)
        for everywhere in (0, 2)
        for engine in ("batched", "processes")
        for marks in [pytest.mark.slow if method is LGFedAvg and engine == "processes" else ()]
    ],
)
def test_the_ends_run_in_every_engine(method: Any, everywhere: int, engine: str) -> None:
    federation = fitted(engine, method(lr=0.05, batch_size=4, head_layers=everywhere), plain)
    plays_fedavg = (everywhere == 0) == (method is FedPer)
    other = fitted(engine, (FedAvg if plays_fedavg else Local)(lr=0.05, batch_size=4), plain)
    models = [f.method.model(f.state)[0] for f in (federation, other)]
    assert equal(*models)
    if not plays_fedavg:
        for k in range(5):
            ours, theirs = federation.memories.get(k), other.memories.get(k)
            assert (ours is None) == (theirs is None)
            assert ours is None or theirs is None or same(ours, theirs)


def test_fedper_and_lg_fedavg_share_what_the_other_keeps() -> None:
    task = normed()
    for count in range(LAYERS + 1):
        kept, shared = (method(head_layers=count).private(task) for method in (FedPer, LGFedAvg))
        assert kept | shared == everything(task).keys()
        assert not kept & shared


# --- what travels -------------------------------------------------------------------------------------------


def names(values: Record) -> set[str]:
    return {name for part in values.values() if isinstance(part, Tensors) for name in part}


@pytest.mark.parametrize("name", KINDS)
def test_private_tensors_never_travel(name: str) -> None:
    method, task = KINDS[name], normed()
    played = Played(method, task, blobs(8, 12)).rounds(2)
    private = method.private(task)
    shared = everything(task).keys() - private
    assert private and shared
    work = method.broadcast(played.state, [0, 1])
    nbytes = sum(everything(task)[each].nbytes for each in shared)
    for k in (0, 1):
        assert names(played.sent[k].values) == names(work.received(k)) == shared
        assert work.nbytes(k) == nbytes + 4  # and the learning rate
        assert sum(leaf.nbytes for leaf in leaves(played.sent[k].values)) == nbytes
        assert names(played.memories.get(k, Record())) == (set() if name == "fedbabu" else private)


@pytest.mark.parametrize("name", KINDS)
def test_the_global_model_is_the_averaged_part_with_the_initial_private_one(name: str) -> None:
    method, task = KINDS[name], normed()
    played = Played(method, task, blobs(8, 12)).rounds(2)
    params, buffers = method.model(played.state)
    initial = everything(task)
    assert {*params, *buffers} == initial.keys()
    for each, value in {**params, **buffers}.items():
        assert torch.equal(value, initial[each]) == (each in method.private(task)), each
    task.load(params, buffers)


@pytest.mark.parametrize("name", ["fedper", "lg-fedavg", "fedbn", "fedrep"])
def test_a_client_keeps_its_part_while_it_is_away_and_a_new_one_starts_afresh(name: str) -> None:
    method, task = KINDS[name], normed()
    played = Played(method, task, blobs(8, 12, 8, tested=4))
    played.round([0, 1])
    kept = copy.deepcopy(played.memories[0])
    played.round([1])
    assert same(played.memories[0], kept)
    for k, own in ((0, kept), (2, played.state.private)):
        received = method.broadcast(played.state, [k]).received(k)
        memory = played.memories.get(k) or method.remember(task, received)
        params, buffers = method.personal(received, memory)
        wanted = {**received.params, **received.buffers, **own.params, **own.buffers}
        assert equal(Tensors({**params, **buffers}), Tensors(wanted))
        local = method.begin(task, received, memory, ClientData(torch.tensor(8.0), torch.tensor(0)))
        assert equal(Tensors({**local.params, **local.buffers}), Tensors(wanted))


def test_buffers_of_the_shared_part_are_averaged() -> None:
    """Other libraries aggregate parameters alone, and running statistics stay those of one client."""
    played = Played(FedPer(**PLAN), normed(), blobs(8, 24)).rounds(1)
    means = [played.sent[k].values.buffers["1.running_mean"] for k in (0, 1)]
    mean = played.state.buffers["1.running_mean"]
    torch.testing.assert_close(mean, 0.25 * means[0] + 0.75 * means[1])
    assert all((mean - each).norm() > 0.01 for each in means)


# --- a product of two numbers, by hand ----------------------------------------------------------------------

CURVES, SIZES = ((1.0, -1.0), (2.0, 2.0), (5.0, 1.0)), (4, 8, 12)
START, LR, ROUNDS = (0.5, 0.8), 0.0625, 3


def product() -> Task:
    """f(x) = v u x: two layers of one weight each, u below v."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for layer, value in zip(module, START, strict=True):
        nn.init.constant_(layer.weight, value)  # type: ignore[arg-type]
    return Task(module, "mse")


def curved() -> list[Client]:
    clients = [quadratic(a, b, samples=n) for (a, b), n in zip(CURVES, SIZES, strict=True)]
    return [client._replace(test=(client.inputs[:1], client.targets[:1])) for client in clients]


def slopes(k: int, u: float, v: float) -> tuple[float, float]:
    """The gradient of a/2 (v u - b)^2."""
    a, b = CURVES[k]
    return a * (u * v - b) * v, a * (u * v - b) * u


def weighed(values: list[float]) -> float:
    return float(np.average(values, weights=SIZES))


def turns(k: int, *parts: str) -> list[str]:
    """What is trained at each step: `parts` name one epoch each, and an epoch has a step for 4 samples."""
    return [part for part in parts for _ in range(SIZES[k] // 4)]


def by_hand(schedule: tuple[str, ...], private: str) -> tuple[dict[str, float], list[dict[str, float]]]:
    """The shared weights and every client's own ones, after ROUNDS rounds."""
    start = dict(zip("uv", START, strict=True))
    shared, own = dict(start), [{private: start[private]} for _ in CURVES]
    for _ in range(ROUNDS):
        left = []
        for k in range(len(CURVES)):
            w = {**shared, **own[k]}
            for part in turns(k, *schedule):
                du, dv = slopes(k, w["u"], w["v"])
                w["u"] -= LR * du * ("u" in part)
                w["v"] -= LR * dv * ("v" in part)
            own[k] = {private: w[private]}
            left.append(w)
        shared = {name: weighed([w[name] for w in left]) for name in shared if name != private}
    return shared, own


@pytest.mark.parametrize(
    ("method", "schedule", "private"),
    [
        (FedPer(lr=LR, epochs=2, batch_size=4), ("uv", "uv"), "v"),
        (LGFedAvg(lr=LR, epochs=2, batch_size=4), ("uv", "uv"), "u"),
        (FedRep(lr=LR, head_epochs=3, epochs=2, batch_size=4), ("v", "v", "v", "u", "u"), "v"),
        (FedBABU(lr=LR, epochs=2, batch_size=4), ("u", "u"), "v"),
    ],
    ids=["fedper", "lg-fedavg", "fedrep", "fedbabu"],
)
def test_the_algorithm_is_the_papers_on_plain_numbers(
    method: PartlyShared, schedule: tuple[str, ...], private: str
) -> None:
    run = Played(method, product(), curved()).rounds(ROUNDS)
    shared, own = by_hand(schedule, private)
    ((name, value),) = shared.items()
    assert float(run.state.params["0.weight" if name == "u" else "1.weight"]) == pytest.approx(
        value, rel=1e-12
    )
    if not isinstance(method, FedBABU):
        for k, wanted in enumerate(own):
            assert float(run.memories[k].params.flat()) == pytest.approx(wanted[private], rel=1e-12)
            loss = CURVES[k][0] / 2 * (value * wanted[private] - CURVES[k][1]) ** 2
            assert run.personal(k).loss == pytest.approx(loss, rel=1e-10)
    # what it must not be: both at once where they take turns, turns the other way about
    for wrong in (("uv",) * len(schedule), schedule[::-1]):
        if wrong != schedule and len(set(schedule)) > 1:
            assert abs(by_hand(wrong, private)[0][name] - value) > 1e-3


# --- FedRep -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [{}, *SOLVERS])
def test_the_part_whose_turn_it_is_not_stays_to_the_bit(solver: dict[str, Any]) -> None:
    """Body buffers too; the head has a BatchNorm of its own here."""
    task, (client,) = normed(), blobs(10)
    method = FedRep(**{**PLAN, **solver}, head_epochs=3, head_layers=2)
    private = method.private(task)
    assert "1.running_mean" in private
    received = method.broadcast(method.setup(task, Population(1)), [0]).received(0)
    local = method.begin(
        task, received, method.remember(task, received), ClientData(torch.tensor(10.0), torch.tensor(0))
    )
    assert int(local.head_steps) == 9  # 4 + 4 + 2 samples, three times
    for at in range(15):
        cut = slice(4 * (at % 3), 4 * (at % 3) + 4)
        after = method.step(task, local, whole(client.inputs[cut], client.targets[cut]))
        for each, value in {**after.params, **after.buffers}.items():
            before = {**local.params, **local.buffers}[each]
            assert torch.equal(value, before) != ((each in private) == (at < 9)), (at, each)
        local = after
    assert float(local.head_seen) == 30
    assert float(local.seen) == 50
    reply, _ = method.finish(task, local, ClientData(torch.tensor(10.0), torch.tensor(0)))
    assert float(reply.weight) == 10


def test_each_part_has_the_optimiser_it_would_have_alone() -> None:
    """Adam's counter and the clipped norm know nothing of the other part."""
    task, (client,) = network(), blobs(4)
    method = FedRep(optimizer="adam", lr=0.05, clip=0.1, batch_size=4, head_epochs=2, epochs=2)
    received = method.broadcast(method.setup(task, Population(1)), [0]).received(0)
    data = ClientData(torch.tensor(4.0), torch.tensor(0))
    local = method.begin(task, received, method.remember(task, received), data)
    module = task.load(*task.initial())
    parameters = [list(layer.parameters()) for layer in (module[0], module[2])]  # type: ignore[index]
    for part in (parameters[1], parameters[0]):
        solver = torch.optim.Adam(part, lr=0.05)
        for _ in range(2):
            module.zero_grad()
            F.cross_entropy(module(client.inputs), client.targets).backward()
            torch.nn.utils.clip_grad_norm_(part, 0.1)
            solver.step()
            local = method.step(task, local, whole(client.inputs, client.targets))
    for each, value in module.named_parameters():
        torch.testing.assert_close(local.params[each], value.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalised", [False, True])
def test_turns_change_after_the_batches_that_engines_cut(normalised: bool) -> None:
    task = normed() if normalised else network()
    for size in (None, 1, 2, 4, 7, 50):
        for count in range(1, 40):
            order = reading(Plan(1, None, size), count, np.random.default_rng(0), merge_last=normalised)
            assert int(batches(task, torch.tensor(float(count)), size)) == len(order.index), (size, count)
    assert int(batches(task, torch.tensor(0.0), 4)) == 0
    assert int(batches(task, torch.tensor(2.0**24), 3)) == -(-(2**24) // 3) - normalised


def test_a_straggler_that_never_gets_to_the_body_has_no_weight_in_it() -> None:
    played = Played(FedRep(**PLAN, head_epochs=3, partial_work=True), network(), blobs(8, 12))
    replies = played.round(epochs={0: 3, 1: 4})
    assert float(played.sent[0].weight) == 0
    assert float(played.sent[1].weight) == 12
    assert replies.weight == 12
    initial = played.task.initial()[0]
    assert not torch.equal(played.memories[0].params["2.weight"], initial["2.weight"])


# --- FedBN --------------------------------------------------------------------------------------------------


class Shortcut(nn.Module):
    """BatchNorm where its name does not tell: in a Sequential, and in a shortcut as ResNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
        self.subnet = nn.Linear(4 * 36, 8)  # "bn" in the name, and none inside
        self.norm = nn.LayerNorm(8)
        self.groups = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.bn1(self.conv1(x)) + self.downsample(x))
        return self.head(self.groups(self.norm(self.subnet(y.flatten(1)))))  # type: ignore[no-any-return]


def test_fedbn_aggregates_no_tensor_of_any_batchnorm() -> None:
    task = Task(Shortcut())
    state = FedBN().setup(task, Population(2))
    shared = {*state.params, *state.buffers}
    for name, layer in task.module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert not any(each.startswith(f"{name}.") for each in shared)
    owners = {each.rpartition(".")[0] for each in everything(task).keys() - shared}
    assert owners == {"bn1", "downsample.1"}
    assert {"subnet.weight", "norm.weight", "groups.bias", "downsample.0.weight"} <= shared
    every = FedBN(norms="all").private(task)
    assert {each.rpartition(".")[0] for each in every} == {"bn1", "downsample.1", "norm", "groups"}
    by_name = {each for each in everything(task) if "bn" in each}  # what other implementations keep
    assert by_name ^ (everything(task).keys() - shared) == {
        "subnet.weight", "subnet.bias", *(each for each in everything(task) if each.startswith("downsample.1."))
    }  # fmt: skip


def test_fedbn_refuses_a_model_that_has_nothing_to_keep() -> None:
    stateless = Task(
        nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, affine=False, track_running_stats=False))
    )
    layered = Task(nn.Sequential(nn.Linear(6, 3), nn.LayerNorm(3)))
    for task in (network(), stateless, layered):
        with pytest.raises(ConfigError, match=r"no BatchNorm layer with a state\n.*norms='all'"):
            FedBN().setup(task, Population(2))
    with pytest.raises(ConfigError, match="no normalisation layer"):
        FedBN(norms="all").setup(network(), Population(2))
    assert FedBN(norms="all").private(layered) == {"1.weight", "1.bias"}


def test_fedbn_is_plain_training_with_plain_averages_of_the_rest() -> None:
    task, clients = normed(), blobs(8, 12, tested=10)
    played = Played(FedBN(lr=0.2, epochs=2, batch_size=4), task, clients).rounds(3)
    modules = [task.load(*task.initial()).train() for _ in clients]
    for _ in range(3):
        for module, client in zip(modules, clients, strict=True):
            solver = torch.optim.SGD(module.parameters(), lr=0.2)
            for at in [*range(0, len(client.inputs), 4)] * 2:
                solver.zero_grad()
                F.cross_entropy(module(client.inputs[at : at + 4]), client.targets[at : at + 4]).backward()
                solver.step()
        with torch.no_grad():
            for layer in (0, 3):
                for name in ("weight", "bias"):
                    values = [getattr(module[layer], name) for module in modules]  # type: ignore[index]
                    if values[0] is None:
                        continue
                    mean = 0.4 * values[0] + 0.6 * values[1]
                    for value in values:
                        value.copy_(mean)
    for k, module in enumerate(modules):
        received = played.method.broadcast(played.state, [k]).received(k)
        params, buffers = played.method.personal(received, played.memories[k])
        for name, value in module.state_dict().items():
            torch.testing.assert_close({**params, **buffers}[name], value, rtol=1e-4, atol=1e-5)
    assert int(played.memories[1].buffers["1.num_batches_tracked"]) == 3 * 2 * 3
    gap = played.memories[0].buffers["1.running_mean"] - played.memories[1].buffers["1.running_mean"]
    assert gap.norm() > 0.1


# --- FedBABU ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [{}, *SOLVERS])
def test_the_head_of_fedbabu_is_the_initial_one_for_ever(solver: dict[str, Any]) -> None:
    task = normed()
    method = FedBABU(**{**PLAN, **solver})
    played = Played(method, task, blobs(8, 12)).rounds(4)
    initial = everything(task)
    params, _ = method.model(played.state)
    for name in method.private(task):
        assert torch.equal(params[name], initial[name])
    assert not any(torch.equal(value, initial[name]) for name, value in played.state.params.items())
    assert played.memories == {}


@pytest.mark.parametrize("part", ["all", "head", "body"])
def test_fedbabu_predicts_after_fine_tuning_that_part(part: str) -> None:
    clients = blobs(8, 12, tested=10)
    method = FedBABU(**PLAN, finetune_epochs=3, finetune_lr=0.05, finetune=part, momentum=0.9)  # type: ignore[arg-type]
    played = Played(method, network(), clients).rounds(2)
    before = copy.deepcopy(played.state)
    module = played.task.load(*method.model(played.state))
    chosen: list[nn.Parameter] = []
    for at, name in ((0, "body"), (2, "head")):
        chosen += module[at].parameters() if part in ("all", name) else []  # type: ignore[index]
    solver = torch.optim.SGD(chosen, lr=0.05, momentum=0.9)
    client = clients[1]
    assert client.test is not None
    for at in [0, 4, 8] * 3:
        module.zero_grad()
        F.cross_entropy(module(client.inputs[at : at + 4]), client.targets[at : at + 4]).backward()
        solver.step()
    wanted = F.cross_entropy(module(client.test[0]), client.test[1])
    assert played.personal(1).loss == pytest.approx(wanted.item(), rel=1e-5)
    assert equal(before.params, played.state.params)
    assert played.memories == {}


def test_a_head_that_leaves_no_body_is_refused() -> None:
    for method in (FedRep(head_layers=2), FedBABU(head_layers=2)):
        with pytest.raises(ConfigError, match="head_layers = 2 makes the whole model the head"):
            method.setup(network(), Population(2))
        method.setup(normed(), Population(2))


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (FedPer, {"head_layers": -1}, "FedPer: head_layers = -1"),
        (LGFedAvg, {"head_layers": -1}, "LGFedAvg: head_layers = -1"),
        (FedBN, {"norms": "some"}, "FedBN: norms = 'some'"),
        (FedRep, {"head_layers": 0}, "FedRep: head_layers = 0"),
        (FedRep, {"head_epochs": 0}, "FedRep: head_epochs = 0"),
        (FedRep, {"steps": 5}, "FedRep: steps = 5"),
        (FedBABU, {"head_layers": 0}, "FedBABU: head_layers = 0"),
        (FedBABU, {"finetune_epochs": 0}, "finetune_epochs = 0"),
        (FedBABU, {"finetune": "none"}, "finetune = 'none'"),
    ],
)
def test_settings_outside_their_range_are_refused(method: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        method(**settings)


# --- engines ------------------------------------------------------------------------------------------------


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batchnorm() -> nn.Module:
    """Everything that is hard: statistics in the body and in what may be the head, dropout, a frozen layer."""
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2),
        nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3),
    )  # fmt: skip
    model[4].requires_grad_(False)
    return model


def unequal() -> Any:
    """Clients whose epochs have 3, 1, 3, 1, 1 and 3 batches of 4 or 5: a last sample alone joins the batch before."""
    rng = np.random.default_rng(7)
    weights, made = rng.normal(size=(6, 3)), {}
    for at, n in enumerate((13, 5, 13, 1, 5, 13)):
        x = rng.normal(size=(n, 6)).astype(np.float32)
        y = (x @ weights).argmax(1).astype(np.int64)
        made[f"c{at}"] = {"train": (x, y), "test": (x, y)}
    return atoll.data.from_clients(made, classes=3)


def fitted(engine: str, method: Any, model: Callable[[], nn.Module], rounds: int = 2) -> Federation:
    federation = Federation(
        model, unequal(), method, rounds=rounds, cohort=4, engine=engine, eval_every=0, device="cpu"
    )
    federation.fit()
    return federation


VARIANTS = [
    FedRep(**PLAN, head_epochs=3, head_layers=2, momentum=0.9, weight_decay=0.01, clip=1.0),
    FedRep(optimizer="adam", lr=0.01, batch_size=None, head_epochs=2),
    FedBABU(**PLAN, head_layers=2, momentum=0.9, weight_decay=0.01, finetune="head"),
]


VARIED = (FedRep, FedBABU)
"""Batched, `VARIANTS` ask more of these than the methods of `KINDS` do, which are for the long run."""


@pytest.mark.parametrize(
    ("method", "engine"),
    [
        *(
            pytest.param(method, "batched", marks=pytest.mark.slow if isinstance(method, VARIED) else ())
            for method in KINDS.values()
        ),
        *((method, "batched") for method in VARIANTS),
        *(
            pytest.param(method, "processes", marks=() if isinstance(method, FedRep) else pytest.mark.slow)
            for method in KINDS.values()
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}-{value.optimizer}",
)
def test_engines_agree_with_statistics_dropout_and_merged_batches(method: PartlyShared, engine: str) -> None:
    one, two = fitted("loop", method, batchnorm), fitted(engine, method, batchnorm)
    judged = [f.history[-1].evaluation for f in (one, two)]
    records = [f.state for f in (one, two)]
    whole_model, private = everything(one.task), method.private(one.task)
    size = sum(value.nbytes for name, value in whole_model.items() if name not in private)
    for federation in (one, two):  # four clients; and the learning rate
        last = federation.history[-1]
        assert (last.bytes_up, last.bytes_down) == (4 * size, 4 * (size + 4))
    torch.testing.assert_close(tensors(records[1]), tensors(records[0]), rtol=1e-3, atol=1e-4)
    for k in range(6):
        kept = [f.memories.get(k) for f in (one, two)]
        assert (kept[0] is None) == (kept[1] is None)
        if kept[0] is not None and kept[1] is not None:
            torch.testing.assert_close(tensors(kept[1]), tensors(kept[0]), rtol=1e-3, atol=1e-4)
    assert judged[0] is not None and judged[1] is not None
    assert judged[0].personal["loss"].mean == pytest.approx(judged[1].personal["loss"].mean, rel=1e-3)


def tensors(record: Record) -> list[Tensor]:
    return [leaf for leaf in leaves(record) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("program", ["train", "personal"])
def test_programs_are_pure_and_can_be_captured(name: str, program: str) -> None:
    task, (client,) = normed(), blobs(8, tested=4)
    method = KINDS[name]
    work = method.program(program)
    if work.plan().epochs == 0:
        return
    assert client.test is not None
    received = method.broadcast(method.setup(task, Population(2)), [0]).received(0)
    data = ClientData(torch.tensor(8.0), torch.tensor(0), test=whole(*client.test) if work.reads else None)
    memory = work.remember(task, received)
    with torch.no_grad():
        given = [leaf.clone() for leaf in tensors(Record(received=received, memory=memory))]
        local = work.begin(task, received, memory, data)
        cuts = [whole(client.inputs[at : at + 4], client.targets[at : at + 4]) for at in (0, 4)]
        captured = capture(lambda state, batch: work.step(task, state, batch), local, cuts[0])
        fast = [leaf.clone() for leaf in leaves(local)]
        for at in range(8):  # FedRep: six on the head, two on the body
            local = work.step(task, local, cuts[at % 2])
            fast = captured(fast, list(cuts[at % 2]))
        torch.testing.assert_close(fast, leaves(local), rtol=1e-5, atol=1e-6)
        work.finish(task, local, data)
        after = tensors(Record(received=received, memory=memory))
        torch.testing.assert_close(after, given, rtol=0, atol=0)
