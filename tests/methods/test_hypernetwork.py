"""pFedHN: a network on the server that writes every client's model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atoll.codec import decode, encode
from atoll.contract import Population, Replies
from atoll.errors import ConfigError
from atoll.methods import PFedHN, PFedHNPC
from atoll.methods.personal.hypernetwork import create, generate, pull_back
from atoll.task import Task
from atoll.tensors import Record, Tensors, leaves

from .driver import Client, Played, blobs, network, whole

PLAIN: dict[str, Any] = {
    "lr": 1.0, "steps": 1, "batch_size": None, "momentum": 0.0, "weight_decay": 0.0, "clip": 0.0,
    "hidden": 6, "embedding": 4, "depth": 2, "server_lr": 0.1,
    "server_optimizer": "sgd", "server_momentum": 0.0, "server_weight_decay": 0.0, "server_clip": 0.0,
}  # fmt: skip


def double(*sizes: int, tested: int = 0) -> tuple[Task, list[Client]]:
    """A small classification problem in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        task = Task(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    made = []
    for inputs, targets, test in blobs(*sizes, tested=tested):
        made.append(Client(inputs.double(), targets, test and (test[0].double(), test[1])))
    return task, made


def joint_gradient(played: Played, cohort: list[int]) -> tuple[Tensors, Tensor]:
    """Autograd through the whole of mean_S F_i(h(v_i; phi)), written out."""
    net = played.state.hypernetwork.map(lambda t: t.clone().requires_grad_())
    embeddings = played.state.embeddings.clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for k in cohort:
        x = embeddings[k]
        x = net["trunk.0.weight"] @ x + net["trunk.0.bias"]
        for at in range(1, played.method.depth + 1):  # type: ignore[attr-defined]
            x = net[f"trunk.{at}.weight"] @ x.clamp(min=0) + net[f"trunk.{at}.bias"]
        w1, b1, w2, b2 = (
            (net[f"heads.{n}.weight"] @ x + net[f"heads.{n}.bias"]).reshape(played.state.params[n].shape)
            for n in ("0.weight", "0.bias", "2.weight", "2.bias")
        )
        logits = torch.tanh(played.clients[k].inputs @ w1.T + b1) @ w2.T + b2
        loss = loss + nn.functional.cross_entropy(logits, played.clients[k].targets) / len(cohort)
    found = torch.autograd.grad(loss, [*net.values(), embeddings])
    return Tensors(zip(net, found[:-1], strict=True)), found[-1]


@pytest.mark.parametrize("start", ["scaled", "default"])
def test_one_full_batch_step_is_gradient_descent_on_the_joint_loss(start: str) -> None:
    task, clients = double(7, 12, 5)
    played = Played(PFedHN(**PLAIN, start=start), task, clients, seed=1)  # type: ignore[arg-type]
    for cohort in ([0, 1, 2], [0, 2], [1]):
        g_net, g_embeddings = joint_gradient(played, cohort)
        before = played.state
        played.round(cohort)
        for name, gradient in g_net.items():
            moved = (before.hypernetwork[name] - played.state.hypernetwork[name]) / 0.1
            torch.testing.assert_close(moved, gradient, rtol=1e-8, atol=1e-11)
        moved = (before.embeddings - played.state.embeddings) / 0.1
        torch.testing.assert_close(moved, g_embeddings, rtol=1e-8, atol=1e-11)
        assert float(g_embeddings.norm()) > 1e-6


def test_the_wrong_sign_climbs_and_the_right_one_descends() -> None:
    """The server descends theta - theta~; handing back the update as it came climbs the joint loss."""
    task, clients = double(20, 20)

    def loss(state: Record) -> float:
        total = 0.0
        for k, client in enumerate(clients):
            made = generate(state.hypernetwork, state.embeddings[[k]], state.params).map(lambda t: t[0])
            total += float(task.loss(made, Tensors(), whole(client.inputs, client.targets))[0])
        return total

    class Climbing(PFedHN):
        def update(self, state: Record, replies: Replies) -> Record:
            each = [r._replace(values=r.values.replace(update=-r.values["update"])) for r in replies.each]
            return super().update(state, Replies(replies.clients, replies.weight, replies.mean, each))

    for kind, sign in ((PFedHN, -1), (Climbing, 1)):
        played = Played(kind(**PLAIN), task, clients)
        before = loss(played.state)
        assert sign * (loss(played.rounds(3).state) - before) > 1e-3


def test_several_local_steps_pull_back_the_whole_way_travelled() -> None:
    task, clients = double(8, 12)
    settings = PLAIN | {"lr": 0.125, "steps": 5, "batch_size": 4, "momentum": 0.9}
    played = Played(PFedHN(**settings), task, clients)
    before = played.state
    played.round()
    for k in (0, 1):  # plain torch: momentum SGD from theta_k
        theta = generate(before.hypernetwork, before.embeddings[[k]], before.params).map(lambda t: t[0])
        module = task.load(theta, Tensors())
        solver = torch.optim.SGD(module.parameters(), lr=0.125, momentum=0.9)
        size = len(clients[k].inputs)
        for at in range(5):
            cut = slice(at * 4 % size, at * 4 % size + 4)
            solver.zero_grad()
            nn.functional.cross_entropy(module(clients[k].inputs[cut]), clients[k].targets[cut]).backward()  # type: ignore[no-untyped-call]
            solver.step()
        travelled = Tensors({n: p.detach() - theta[n] for n, p in module.named_parameters()})
        torch.testing.assert_close(
            travelled.flat(), played.sent[k].values["update"].flat(), rtol=1e-9, atol=1e-12
        )


def test_a_cohorts_product_is_the_mean_of_single_ones() -> None:
    task, clients = double(8, 12, 5, 9)
    start = Played(PFedHN(**PLAIN), task, clients).state
    steps = []
    for cohort in ([0], [1], [3], [0, 1, 3]):
        played = Played(PFedHN(**PLAIN), task, clients)
        played.round(cohort)
        steps.append(
            torch.cat(
                [
                    (played.state.hypernetwork - start.hypernetwork).flat(),
                    (played.state.embeddings - start.embeddings).flatten(),
                ]
            )
        )
    torch.testing.assert_close(steps[3], (steps[0] + steps[1] + steps[2]) / 3, rtol=1e-9, atol=1e-13)
    assert not torch.allclose(steps[0], steps[1], rtol=1e-2)


# --- the server's optimiser -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_the_server_is_torchs_sgd_over_everything_or_over_the_cohorts_embeddings(sparse: bool) -> None:
    task, clients = double(8, 12, 5)
    settings = PLAIN | {"server_momentum": 0.9, "server_weight_decay": 1e-2, "server_clip": 0.05}
    played = Played(PFedHN(**settings, embedding_lr=0.3, sparse=sparse), task, clients)
    state = played.state
    weights: list[Tensor] = [
        t.clone().requires_grad_() for t in (*state.hypernetwork.values(), state.embeddings)
    ]
    groups: list[dict[str, Any]] = [{"params": weights[:-1]}, {"params": weights[-1:], "lr": 0.3}]
    solver = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-2)
    for cohort in ([0, 1], [1, 2], [0, 2]):
        g_net, g_embeddings = joint_gradient(played, cohort)
        for weight, gradient in zip(weights, (*g_net.values(), g_embeddings), strict=True):
            weight.grad = gradient.clone()
        norm = nn.utils.clip_grad_norm_(weights, 0.05)
        assert float(norm) > 0.05
        before = played.state.embeddings
        solver.step()
        played.round(cohort)
        away = next(k for k in range(3) if k not in cohort)
        if sparse:
            assert torch.equal(played.state.embeddings[away], before[away])
            break  # from here on torch has moved what is at rest here
        assert not torch.equal(played.state.embeddings[away], before[away])
        torch.testing.assert_close(
            torch.cat([t.detach().flatten() for t in weights]),
            torch.cat([played.state.hypernetwork.flat(), played.state.embeddings.flatten()]),
            rtol=1e-5, atol=1e-8,  # torch clips at norm / (norm + 1e-6)
        )  # fmt: skip


@pytest.mark.parametrize("settings", [{"server_optimizer": "sgd"}, {"sparse": True}])
@pytest.mark.parametrize("kind", [PFedHN, PFedHNPC])
def test_a_state_that_was_stored_goes_on_bit_for_bit(kind: type[PFedHN], settings: dict[str, Any]) -> None:
    method = kind(batch_size=4, steps=3, lr=0.05, hidden=8, **settings)
    straight = Played(method, network(normalised=True), blobs(8, 12, 5))
    straight.round([0, 2])
    stopped = Played(method, network(normalised=True), straight.clients)
    stopped.state = decode(encode(straight.state))
    stopped.memories = {k: decode(encode(m)) for k, m in straight.memories.items()}
    for played in (straight, stopped):
        played.round([0, 1])
        played.round([1, 2])
    one, two = leaves((straight.state, straight.memories)), leaves((stopped.state, stopped.memories))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


# --- what it can write ----------------------------------------------------------------------------------------


class Sequences(nn.Module):
    """A recurrent classifier, its embedding tied to its decoder and one bias frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(3, 8)
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.again = nn.Linear(3, 8)
        self.again.weight = self.encode.weight
        self.head = nn.Linear(8, 3)
        self.again.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.reshape(len(x), 2, 3)
        return self.head(self.rnn(self.encode(steps))[0][:, -1] + self.again(steps[:, 0]))  # type: ignore[no-any-return]


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 2),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize("make", [Sequences, convolutions])
@pytest.mark.parametrize("kind", [PFedHN, PFedHNPC])
def test_heads_follow_from_the_parameters_of_any_module(
    kind: type[PFedHN], make: Callable[[], nn.Module]
) -> None:
    task = Task(make())
    params, buffers = task.initial()
    method = kind(hidden=8, batch_size=4, steps=4, lr=0.05, server_lr=0.01)
    played = Played(method, task, blobs(12, 8, tested=4))
    last = set() if kind is PFedHN else {name for name in params if name.rpartition(".")[0] in ("head", "5")}
    assert len(last) == (0 if kind is PFedHN else 2)
    heads = {n[6:-7] for n in played.state.hypernetwork if n.startswith("heads.") and n.endswith(".weight")}
    assert heads == params.keys() - last
    for name in heads:
        assert played.state.hypernetwork[f"heads.{name}.weight"].shape == (params[name].numel(), 8)
    before = played.state
    played.rounds(2)
    sent = played.method.broadcast(played.state, [0, 1])
    assert sent.own[0].params.keys() == heads
    for name in heads:
        assert sent.own[1].params[name].shape == params[name].shape
        assert not torch.equal(sent.own[0].params[name], before.params[name])
    for name, value in buffers.items():
        if name == "again.bias":
            assert torch.equal(played.state.buffers[name], value)  # frozen: equal to the bit
        elif value.is_floating_point():
            assert not torch.equal(played.state.buffers[name], value)
        else:
            assert int(played.state.buffers[name]) == 8
    assert played.personal(0).loss > 0
    module = task.load(*method.model(played.state))  # the global model is whole
    assert module(played.clients[0].inputs).shape == (12, 3)


def test_a_scaled_start_writes_models_of_the_scale_of_the_tasks_own() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        params, _ = Task(nn.Sequential(nn.Linear(300, 20), nn.BatchNorm1d(20), nn.Linear(20, 10))).initial()
    net, embeddings = create(params, 40, 11, 100, 3, "scaled", 0)
    made = generate(net, embeddings, params)
    for name in ("0.weight", "2.weight"):
        assert float(made[name].std()) == pytest.approx(float(params[name].std()), rel=0.2)
    assert torch.equal(made["1.weight"], torch.ones(40, 20))
    assert torch.equal(made["1.bias"], torch.zeros(40, 20))
    plain, _ = create(params, 40, 11, 100, 3, "default", 0)
    first = generate(plain, embeddings, params)
    assert float(first["0.weight"].std()) > 1.5 * float(params["0.weight"].std())
    assert float(first["1.weight"].mean()) < 0.5  # a BatchNorm of noise
    for name, value in plain.items():  # the trunks are the same, the heads are not
        assert torch.equal(value, net[name]) == name.startswith("trunk.")


def test_the_start_follows_from_the_seed_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = (PFedHN().setup(network(), Population(5)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.hypernetwork.flat(), two.hypernetwork.flat())
    assert torch.equal(one.embeddings, two.embeddings)
    other = PFedHN().setup(network(), Population(5, seed=1))
    assert not torch.equal(one.embeddings, other.embeddings)
    assert one.embeddings.shape == (5, 2)  # 1 + 5 // 4
    assert PFedHN().setup(network(), Population(1000)).embeddings.shape == (1000, 100)


def test_the_global_model_is_written_for_the_mean_embedding() -> None:
    played = Played(PFedHN(hidden=8, batch_size=4, steps=3), network(), blobs(8, 12)).rounds(2)
    mean = played.state.embeddings.mean(0, keepdim=True)
    wanted = generate(played.state.hypernetwork, mean, played.state.params)
    for name, value in played.method.model(played.state)[0].items():
        assert torch.equal(value, wanted[name][0])


# --- private layers -------------------------------------------------------------------------------------------


def test_private_layers_never_travel_and_are_remembered() -> None:
    task, clients = double(8, 12, tested=6)
    settings = PLAIN | {"lr": 0.125, "steps": 4}
    played = Played(PFedHNPC(**settings), task, clients)
    params, _ = task.initial()
    assert played.method.broadcast(played.state, [0]).own[0].params.keys() == {"0.weight", "0.bias"}
    before = played.state
    played.round()
    for k in (0, 1):  # plain gradient descent on body and head together
        theta = generate(
            before.hypernetwork,
            before.embeddings[[k]],
            Tensors({n: params[n] for n in ("0.weight", "0.bias")}),
        )
        module = task.load(Tensors({**params, **theta.map(lambda t: t[0])}), Tensors())
        solver = torch.optim.SGD(module.parameters(), lr=0.125)
        for _ in range(4):
            solver.zero_grad()
            nn.functional.cross_entropy(module(clients[k].inputs), clients[k].targets).backward()  # type: ignore[no-untyped-call]
            solver.step()
        end = dict(module.named_parameters())
        assert played.sent[k].values["update"].keys() == {"0.weight", "0.bias"}
        assert played.memories[k].params.keys() == {"2.weight", "2.bias"}
        for name in ("2.weight", "2.bias"):
            torch.testing.assert_close(
                played.memories[k].params[name], end[name].detach(), rtol=1e-9, atol=1e-12
            )
            assert torch.equal(played.state.params[name], params[name])  # the server never sees them
        travelled = played.sent[k].values["update"]["0.weight"]
        torch.testing.assert_close(
            travelled, end["0.weight"].detach() - theta["0.weight"][0], rtol=1e-9, atol=1e-12
        )
    received = played.method.broadcast(played.state, [1]).received(1)
    joined, _ = played.method.personal(received, played.memories[1])
    assert clients[1].test is not None
    totals = task.totals(joined, Tensors(), whole(*clients[1].test))
    assert played.personal(1).loss == pytest.approx(float(totals.loss) / 6)


def test_one_layer_must_be_left_to_the_hypernetwork() -> None:
    assert len(PFedHNPC(private_layers=1).private(network())) == 2
    with pytest.raises(ConfigError, match="private_layers = 2, but the model has 2 layers"):
        PFedHNPC(private_layers=2).setup(network(), Population(3))


# --- new clients ----------------------------------------------------------------------------------------------


def test_a_new_client_learns_an_embedding_and_nothing_else_moves() -> None:
    clients = blobs(20, 20, 20, 20, tested=20)
    settings: dict[str, Any] = {
        "hidden": 16,
        "embedding": 4,
        "lr": 0.1,
        "steps": 8,
        "batch_size": None,
        "server_optimizer": "sgd",
        "server_weight_decay": 1e-3,
    }
    method = PFedHN(**settings, server_lr=0.05)
    old = Played(method, network(), clients[:3]).rounds(10)
    frozen = PFedHN(**settings, server_lr=0.01, freeze_hypernetwork=True)
    played = Played(frozen, old.task, clients)
    played.state = old.state
    mean = old.state.embeddings.mean(0)
    received = frozen.broadcast(old.state, [3]).received(
        3
    )  # not met yet: the mean embedding, the global model
    torch.testing.assert_close(received.params.flat(), old.state.params.flat(), rtol=1e-5, atol=1e-6)
    net = {name: value.clone() for name, value in old.state.hypernetwork.items()}

    descent = None
    for _ in range(5):
        before = frozen.broadcast(played.state, [3]).received(3).params
        embedding = played.state.embeddings[3] if len(played.state.embeddings) > 3 else mean
        played.round([3])
        if descent is None:  # the same product, on its own, through a velocity that starts at 0
            back = -played.sent[3].values["update"].map(lambda t: t.unsqueeze(0))
            descent = pull_back(old.state.hypernetwork, mean[None], Tensors(before), back)[1][0]
            torch.testing.assert_close(
                embedding - played.state.embeddings[3],
                0.01 * (descent + 1e-3 * embedding),
                rtol=1e-4,
                atol=1e-6,
            )
    assert played.state.embeddings.shape[0] == 4
    assert torch.equal(played.state.embeddings[:3], old.state.embeddings)
    for name, value in net.items():
        assert torch.equal(played.state.hypernetwork[name], value)
    decode(encode(played.state))


def test_a_larger_population_grows_the_optimisers_state_too() -> None:
    for settings in ({}, {"server_optimizer": "sgd"}):
        method = PFedHN(hidden=8, steps=2, batch_size=4, **settings)  # type: ignore[arg-type]
        played = Played(method, network(), blobs(8, 8))
        played.round()
        played.clients = blobs(8, 8, 8, 8)
        played.round([0, 3])
        assert len(played.state.embeddings) == 4
        for leaf in leaves(played.state.optimizer.embeddings):
            assert leaf.ndim == 0 or len(leaf) == 4
        assert all(bool(torch.isfinite(p).all()) for p in played.state.params.values())


@pytest.mark.parametrize(
    "settings",
    [{"hidden": 0}, {"depth": 0}, {"embedding": 0}, {"start": "zero"}, {"server_optimizer": "lbfgs"},
     {"server_lr": 0.0}, {"embedding_lr": 0.0}, {"server_momentum": 1.0},
     {"server_weight_decay": -1.0}, {"server_clip": -1.0}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PFedHN(**settings)


def contradicting() -> list[Client]:
    """Four clients; the labels of the second and the fourth are turned by one."""
    made = []
    for k, (inputs, targets, test) in enumerate(blobs(30, 30, 30, 30, tested=30)):
        assert test is not None
        made.append(Client(inputs, (targets + k % 2) % 3, (test[0], (test[1] + k % 2) % 3)))
    return made


def test_clients_that_contradict_each_other_get_models_of_their_own_and_a_new_one_finds_its_kind() -> None:
    clients = contradicting()
    settings: dict[str, Any] = {"hidden": 32, "embedding": 4, "lr": 0.1, "steps": 10, "batch_size": None}
    old = Played(PFedHN(**settings, server_lr=0.005), network(), clients[:3]).rounds(40)
    assert min(old.personal(k).accuracy for k in (0, 1, 2)) > 0.8
    frozen = PFedHN(**settings, server_lr=0.1, freeze_hypernetwork=True)
    played = Played(frozen, old.task, clients)
    played.state = old.state
    before = played.personal(3).accuracy  # at the mean embedding
    for _ in range(30):
        played.round([3])
    assert played.personal(3).accuracy > max(0.8, before + 0.3)
    assert [played.personal(k) for k in (0, 1, 2)] == [old.personal(k) for k in (0, 1, 2)]
