"""Methods that hold a client's model near the shared one, or near its own past: Ditto, APFL, pFedMe, Per-FedAvg,
FedALA, FedPHP and MOON. Each is compared with an independent loop over plain numbers or a plain network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import atoll.data
from atoll import seeds
from atoll.contract import ClientData, Method
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import APFL, Ditto, FedALA, FedAvg, FedPHP, Local, Moon, PerFedAvg, PFedMe
from atoll.methods.parts.features import features
from atoll.methods.personal.apfl import drawn
from atoll.methods.personal.fedala import sampled, top
from atoll.methods.personal.fedphp import discrepancy
from atoll.methods.personal.perfedavg import disjoint
from atoll.models import build
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, leaves

from .driver import CURVES, Client, Played, blobs, line, network, quadratic, whole

PLAN: dict[str, Any] = {"lr": 0.2, "epochs": 2, "batch_size": 4}
LR, STEPS, ROUNDS = 0.125, 4, 3
FLAT: dict[str, Any] = {
    "lr": LR,
    "epochs": 2,
    "batch_size": 6,
}  # 12 samples: two batches an epoch, four steps


def curved() -> list[Client]:
    clients = [quadratic(a, b, samples=12) for a, b in CURVES]
    return [client._replace(test=(client.inputs[:1], client.targets[:1])) for client in clients]


def slope(k: int, w: float) -> float:
    a, b = CURVES[k]
    return a * (w - b)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def played(method: Method, rounds: int = ROUNDS) -> Played:
    return Played(method, line(), curved()).rounds(rounds)


def theirs(run: Played, k: int) -> float:
    """The parameter with which a client predicts, from its loss a/2 (w - b)^2 or from its model."""
    received = run.method.broadcast(run.state, [k]).received(k)
    return float(run.method.personal(received, run.memories[k])[0].flat())


def bits(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())


# --- Ditto ----------------------------------------------------------------------------------------------------------


def ditto_by_hand(lam: float, anchored: bool = True) -> tuple[float, list[float]]:
    w, own = 0.0, [0.0, 0.0, 0.0]
    for _ in range(ROUNDS):
        ends = []
        for k in range(3):
            x = w
            for _ in range(STEPS):
                anchor = w if anchored else x
                own[k] -= LR * (slope(k, own[k]) + lam * (own[k] - anchor))
                x -= LR * slope(k, x)
            ends.append(x)
        w = mean(ends)
    return w, own


def test_ditto_is_its_formula() -> None:
    run = played(Ditto(**FLAT, lam=0.5))
    w, own = ditto_by_hand(0.5)
    assert float(run.params) == pytest.approx(w, rel=1e-9)
    assert [theirs(run, k) for k in range(3)] == pytest.approx(own, rel=1e-9)
    _, wrong = ditto_by_hand(0.5, anchored=False)  # pulled toward the model in training
    assert all(abs(theirs(run, k) - wrong[k]) > 1e-3 for k in range(3))


SOLVERS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9, "nesterov": True, "clip": 0.5, "weight_decay": 0.01},
    {"optimizer": "adam", "lr": 0.01},
]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "method", [Ditto(lam=0.0), APFL(alpha=1.0, adapt_alpha=False)], ids=["ditto", "apfl"]
)
def test_without_a_pull_it_is_local_training_beside_federated_averaging(
    method: Method, solver: dict[str, Any]
) -> None:
    clients, task = blobs(8, 13, 6), network(normalised=True)
    settings = {**PLAN, **solver}
    kind = type(method)
    kept: dict[str, Any] = {"lam": 0.0} if kind is Ditto else {"alpha": 1.0, "adapt_alpha": False}
    run, alone, shared = (
        Played(m, task, clients) for m in (kind(**kept, **settings), Local(**settings), FedAvg(**settings))
    )
    for cohort in ([0, 1], [1, 2], [0, 2]):
        for each in (run, alone, shared):
            each.round(cohort)
    assert bits(run.state.params, shared.state.params)
    assert bits(run.state.buffers, shared.state.buffers)
    for k in range(3):
        received = run.method.broadcast(run.state, [k]).received(k)
        params, buffers = run.method.personal(received, run.memories[k])
        assert bits(params, alone.memories[k].params)
        assert bits(buffers, alone.memories[k].buffers)


def test_a_strong_pull_of_ditto_holds_a_client_at_the_received_model() -> None:
    settings = {**FLAT, "lr": 2.0**-10, "epochs": 25}
    near = Played(Ditto(**settings, lam=500.0), line(), curved())
    near.state = near.state.replace(params=near.state.params + 1.0)
    near.round()
    assert [theirs(near, k) for k in range(3)] == pytest.approx(
        [(a * b + 500 * 1.0) / (a + 500) for a, b in CURVES], rel=1e-6
    )


# --- APFL -----------------------------------------------------------------------------------------------------------


def apfl_by_hand(lr: float, share: float, decay: float = 0.0) -> tuple[float, list[float], list[float]]:
    w, own, shares = 0.0, [0.0, 0.0, 0.0], [share] * 3
    for _ in range(ROUNDS):
        ends = []
        for k in range(3):
            x = w
            for step in range(STEPS):
                alpha = shares[k]
                g = slope(k, alpha * own[k] + (1 - alpha) * x)
                if step == 0:
                    moved = alpha - lr * (g * (own[k] - x) + decay * alpha)
                    shares[k] = min(1.0, max(0.0, moved))
                own[k] -= lr * alpha * g
                x -= lr * slope(k, x)
            ends.append(x)
        w = mean(ends)
    return w, [s * v + (1 - s) * w for s, v in zip(shares, own, strict=True)], shares


def test_apfl_is_its_formula() -> None:
    run = played(APFL(**{**FLAT, "lr": 2.0**-5}, alpha=0.5))
    w, predicted, shares = apfl_by_hand(2.0**-5, 0.5)
    assert float(run.params) == pytest.approx(w, rel=1e-6)
    assert [theirs(run, k) for k in range(3)] == pytest.approx(predicted, rel=1e-6)
    found = [float(run.memories[k].alpha) for k in range(3)]
    assert found == pytest.approx(shares, rel=1e-6)
    assert len({round(share, 3) for share in found}) == 3 and all(0 < share < 1 for share in found)
    _, _, decayed = apfl_by_hand(2.0**-5, 0.5, decay=0.02)
    assert all(abs(a - b) > 5e-4 for a, b in zip(found, decayed, strict=True))


def test_apfl_draws_a_batch_for_the_share_among_the_real_samples() -> None:
    def data(seed: int, width: int, real: int = 12) -> ClientData:
        x = torch.arange(width, dtype=torch.float32).unsqueeze(1)
        mask = (torch.arange(width) < real).float()
        key = torch.tensor(seeds.address(seed, "begin"))
        return ClientData(torch.tensor(float(real)), key, Batch(x, torch.zeros(width), mask, key))

    batch = drawn(data(0, 12), 5)
    rows = batch.inputs.flatten().tolist()  # type: ignore[union-attr]
    assert len(set(rows)) == 5 and bool(batch.mask.all())
    padded = drawn(data(0, 20), 5)  # the same samples, however many rows are padding
    assert padded.inputs.flatten().tolist() == rows and bool(padded.mask.all())  # type: ignore[union-attr]
    assert rows != drawn(data(1, 12), 5).inputs.flatten().tolist()  # type: ignore[union-attr]
    few = drawn(data(0, 20, real=3), 5)
    assert sorted(few.inputs[few.mask > 0].flatten().tolist()) == [0, 1, 2]  # type: ignore[index]
    seen = Counter(row for seed in range(600) for row in drawn(data(seed, 12), 5).inputs.flatten().tolist())  # type: ignore[union-attr]
    assert all(abs(count - 250) < 60 for count in seen.values()) and len(seen) == 12  # 5 of 12, fairly
    assert len(drawn(data(0, 12), None).mask) == 12


def test_apfl_with_no_share_predicts_with_the_global_model() -> None:
    clients = blobs(8, 12, tested=10)
    run = Played(APFL(**PLAN, alpha=0.0, adapt_alpha=False), network(normalised=True), clients).rounds(3)
    shared = Played(FedAvg(**PLAN), run.task, clients).rounds(3)
    received = run.method.broadcast(run.state, [1]).received(1)
    params, buffers = run.method.personal(received, run.memories[1])
    assert bits(params, shared.state.params)
    assert all(torch.equal(v, buffers[n]) for n, v in shared.state.buffers.items() if v.is_floating_point())
    measured, wanted = run.personal(1), shared.personal(1)
    assert measured.loss == wanted.loss and measured.accuracy == wanted.accuracy


def test_apfl_mixes_parameters_and_not_outputs() -> None:
    run = Played(APFL(**PLAN), network(), blobs(8, 12, tested=10)).rounds(3)
    received, memory = run.method.broadcast(run.state, [0]).received(0), run.memories[0]
    params, buffers = run.method.personal(received, memory)
    assert run.clients[0].test is not None
    x, share = run.clients[0].test[0], float(memory.alpha)
    outputs, own, shared = (
        run.task.predict(p, buffers, x)[0] for p in (params, memory.params, received.params)
    )
    assert 0 < share < 1
    assert not torch.allclose(outputs, share * own + (1 - share) * shared, atol=1e-4)
    by_hand = {n: share * memory.params[n] + (1 - share) * received.params[n] for n in params}
    torch.testing.assert_close(outputs, functional_call(run.task.module, by_hand, (x,)))


# --- pFedMe ---------------------------------------------------------------------------------------------------------


def pfedme_by_hand(
    lam: float, inner_lr: float, inner_steps: int, beta: float, send_theta: bool = False
) -> tuple[float, list[float]]:
    w, thetas = 0.0, [0.0, 0.0, 0.0]
    for _ in range(ROUNDS):
        ends = []
        for k in range(3):
            x, theta = w, w
            for _ in range(STEPS):
                for _ in range(inner_steps):
                    theta -= inner_lr * (slope(k, theta) + lam * (theta - x))
                x -= LR * lam * (x - theta)
            thetas[k] = theta
            ends.append(theta if send_theta else x)
        w = (1 - beta) * w + beta * mean(ends)
    return w, thetas


@pytest.mark.parametrize("beta", [1.0, 0.5, 1.5])
def test_pfedme_is_its_formula(beta: float) -> None:
    run = played(PFedMe(**FLAT, lam=2.0, inner_steps=3, inner_lr=0.0625, beta=beta))
    w, thetas = pfedme_by_hand(2.0, 0.0625, 3, beta)
    assert float(run.params) == pytest.approx(w, rel=1e-9)
    assert [theirs(run, k) for k in range(3)] == pytest.approx(thetas, rel=1e-9)
    wrong, _ = pfedme_by_hand(2.0, 0.0625, 3, beta, send_theta=True)
    assert abs(float(run.params) - wrong) > 1e-3


def test_pfedme_comes_to_rest_at_the_minimum_of_the_envelopes() -> None:
    """The envelope of a/2 (w - b)^2 is c/2 (w - b)^2 with c = a lam / (a + lam)."""
    lam = 2.0
    settings: dict[str, Any] = {"lr": 0.5, "epochs": 1, "batch_size": None}
    run = played(PFedMe(**settings, lam=lam, inner_steps=20, inner_lr=0.2), rounds=25)
    weights = [a * lam / (a + lam) for a, _ in CURVES]
    wanted = sum(c * b for c, (_, b) in zip(weights, CURVES, strict=True)) / sum(weights)
    assert float(run.params) == pytest.approx(wanted, rel=1e-6)
    near = [(a * b + lam * wanted) / (a + lam) for a, b in CURVES]
    assert [theirs(run, k) for k in range(3)] == pytest.approx(near, rel=1e-6)


def test_pfedme_moves_the_global_model_by_default_and_refuses_not_to() -> None:
    run = Played(PFedMe(), network(), blobs(8, 12))
    before = run.params
    run.round()
    assert (run.params - before).norm() > 1e-3
    with pytest.raises(ConfigError, match="never moves"):
        PFedMe(beta=0.0)
    with pytest.raises(ConfigError, match="lam"):
        PFedMe(lr=0.2, lam=15.0)


def test_pfedme_counts_clients_equally() -> None:
    run = Played(PFedMe(**FLAT, lam=2.0), line(), [quadratic(1.0, 1.0, 2), quadratic(1.0, -1.0, 40)])
    replies = run.round()
    assert replies.weight == 2.0


# --- Per-FedAvg -----------------------------------------------------------------------------------------------------


def perfedavg_by_hand(inner_lr: float, second_order: bool, from_adapted: bool = False) -> float:
    w = 0.0
    for _ in range(ROUNDS):
        ends = []
        for k in range(3):
            x = w
            for _ in range(STEPS):
                u = x - inner_lr * slope(k, x)
                g = slope(k, u)
                h = CURVES[k][0] * g if second_order else 0.0
                x = (u if from_adapted else x) - LR * (g - inner_lr * h)
            ends.append(x)
        w = mean(ends)
    return w


@pytest.mark.parametrize("variant", ["first-order", "hessian-free"])
def test_perfedavg_is_its_formula_and_predicts_after_one_step(variant: Any) -> None:
    run = played(PerFedAvg(**FLAT, inner_lr=0.1, variant=variant))
    w = perfedavg_by_hand(0.1, variant == "hessian-free")
    assert float(run.params) == pytest.approx(w, rel=1e-6)
    other = perfedavg_by_hand(0.1, variant != "hessian-free")
    wrong = perfedavg_by_hand(0.1, variant == "hessian-free", from_adapted=True)
    assert abs(float(run.params) - other) > 1e-3 and abs(float(run.params) - wrong) > 1e-3
    for k, (a, b) in enumerate(CURVES):
        u = w - 0.1 * slope(k, w)
        assert run.personal(k).loss == pytest.approx(a / 2 * (u - b) ** 2, rel=1e-5)


def smooth() -> tuple[Task, Batch]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        task = Task(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    (client,) = blobs(9)
    return task, whole(client.inputs.double(), client.targets)


@pytest.mark.parametrize("variant", ["first-order", "hessian-free"])
def test_the_outer_gradient_is_that_of_the_adapted_loss(variant: Any) -> None:
    task, batch = smooth()
    method = PerFedAvg(inner_lr=0.5, variant=variant, lr=0.125, width=1e-4)
    received = Record(params=task.initial()[0], buffers=Tensors(), lr=torch.tensor(0.125))
    local = method.begin(task, received, Record(), None)  # type: ignore[arg-type]
    found, _ = method.gradient(task, local, batch)
    parts = [(batch.inputs[at :: method.parts], batch.targets[at :: method.parts]) for at in range(3)]

    def loss(params: dict[str, Tensor], part: int) -> Tensor:
        return F.cross_entropy(functional_call(task.module, params, (parts[part][0],)), parts[part][1])

    w = dict(received.params)
    inner = grad(loss)(w, 0)
    g = grad(loss)({n: w[n] - 0.5 * inner[n] for n in w}, 1)
    first = torch.cat([g[n].reshape(-1) for n in w])
    if variant == "first-order":
        torch.testing.assert_close(found.flat(), first, rtol=1e-9, atol=1e-12)
        return
    h = grad(lambda p: sum((s * g[n]).sum() for n, s in grad(loss)(p, 2).items()))(w)
    wanted = torch.cat([(g[n] - 0.5 * h[n]).reshape(-1) for n in w])
    torch.testing.assert_close(found.flat(), wanted, rtol=1e-5, atol=1e-8)
    assert (wanted - first).norm() > 1e-2 * first.norm()


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_the_parts_of_a_batch_share_no_sample_and_padding_changes_nothing(parts: int, rows: int) -> None:
    inputs = torch.arange(1.0, rows + 1).unsqueeze(1)
    batch = whole(inputs, torch.arange(rows))
    padding = Batch(
        torch.cat([inputs, inputs[:1].expand(4, 1)]),
        torch.cat([batch.targets, batch.targets[:1].expand(4)]),
        torch.cat([batch.mask, torch.zeros(4)]),
        batch.key,
    )
    plain, padded = ([
        (p.inputs[p.mask > 0].flatten().tolist(), p.targets[p.mask > 0].tolist(), int(p.key))
        for p in disjoint(b, parts)
    ] for b in (batch, padding))  # fmt: skip
    assert plain == padded
    assert len({key for _, _, key in plain}) == parts
    read = sorted(value for values, _, _ in plain for value in values)
    if rows >= parts:
        assert read == inputs.flatten().tolist()
    else:
        assert all(values for values, _, _ in plain)


# --- FedALA ---------------------------------------------------------------------------------------------------------


def fedala_by_hand(
    ala_lr: float, passes: int, first: int, chain: bool = True
) -> tuple[float, list[float], list[float]]:
    w, last, a = 0.0, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]

    def take(k: int, number: int) -> tuple[float, float]:
        share = a[k]
        for _ in range((first if number == 1 else passes) * 2):  # two batches a pass
            g = slope(k, last[k] + (w - last[k]) * share)
            share = min(1.0, max(0.0, share - ala_lr * g * ((w - last[k]) if chain else 1.0)))
        return last[k] + (w - last[k]) * share, share

    for number in range(ROUNDS):
        ends = []
        for k in range(3):
            x, a[k] = take(k, number)
            for _ in range(STEPS):
                x -= LR / 8 * slope(k, x)
            ends.append(x)
        last, w = ends, mean(ends)
    return w, [take(k, ROUNDS)[0] for k in range(3)], a


def test_fedala_is_its_formula() -> None:
    """A pass in batches a round, more of them in the second round."""
    setting: dict[str, Any] = {**FLAT, "lr": LR / 8, "ala_lr": 0.1, "share": 1.0}
    run = played(FedALA(**setting, first_passes=3))
    w, predicted, shares = fedala_by_hand(0.1, 1, 3)
    assert float(run.params) == pytest.approx(w, rel=1e-9)
    assert [float(run.memories[k].weights.flat()) for k in range(3)] == pytest.approx(shares, rel=1e-9)
    assert any(0 < share < 1 for share in shares)
    for k, (a, b) in enumerate(CURVES):
        assert run.personal(k).loss == pytest.approx(a / 2 * (predicted[k] - b) ** 2, rel=1e-6)
    for wrong in (fedala_by_hand(0.1, 1, 3, chain=False), fedala_by_hand(0.1, 1, 1)):
        assert abs(float(run.params) - wrong[0]) > 1e-4


def test_the_second_round_of_a_client_of_fedala_is_its_own_second() -> None:
    """Of whoever is late, leaves, or is only judged, too: the server counts how often each has taken part."""
    method = FedALA(**PLAN, first_passes=4)
    run = Played(method, network(), blobs(8, 12, 5))
    for cohort in ([0, 1], [0, 2], [0, 1, 2]):
        asked = method.broadcast(run.state, [0, 1, 2])
        run.round(cohort)
    assert asked.passes == {1: 3, 2: 3}
    assert [float(asked.own[k].passes) for k in range(3)] == [1.0, 4.0, 4.0]
    assert method.broadcast(run.state, [0, 1, 2]).passes == {}
    gone = method.leave(run.state, [1])
    assert gone.met.tolist() == [2, 0, 2] and run.state.met.tolist() == [2, 2, 2]


def test_fedala_without_steps_and_in_its_first_round_is_federated_averaging() -> None:
    clients, task = blobs(8, 12), network(normalised=True)
    shared = Played(FedAvg(**PLAN), task, clients)
    none = Played(FedALA(**PLAN, ala_passes=0), task, clients)
    some = Played(FedALA(**PLAN), task, clients)
    for rounds in (1, 2, 3):
        for each in (shared, none, some):
            each.round()
        assert bits(none.state.params, shared.state.params)
        assert bits(some.state.params, shared.state.params) == (rounds == 1)
    assert bits(none.state.buffers, shared.state.buffers)


def test_fedala_takes_lower_layers_as_they_are_and_predicts_better_where_clients_differ() -> None:
    first, _ = blobs(30, 30, tested=30)
    assert first.test is not None
    swapped = Client(first.inputs, (first.targets + 1) % 3, (first.test[0], (first.test[1] + 1) % 3))
    task = network()
    run, shared = (Played(m(**PLAN), task, [first, swapped]).rounds(8) for m in (FedALA, FedAvg))
    assert set(run.memories[0].last) == {"2.weight", "2.bias"}
    assert set(top(task, run.state.params, 2)) == set(run.state.params)
    params, weights = run.method.taken(run.state, run.memories[0])["params"], run.memories[0].weights  # type: ignore[attr-defined]
    assert torch.equal(params["0.weight"], run.state.params["0.weight"])
    assert not torch.equal(params["2.weight"], run.state.params["2.weight"])
    assert float(weights.flat().min()) >= 0 and float(weights.flat().max()) <= 1
    before = [leaf.clone() for leaf in leaves(run.memories[0])]
    assert run.personal(0).accuracy > shared.personal(0).accuracy + 0.2
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(run.memories[0]), strict=True))


def test_fedala_draws_its_part_from_real_samples_only() -> None:
    key = torch.tensor(77)
    batch = Batch(torch.zeros(400, 1), torch.zeros(400), torch.ones(400), key)
    padded = Batch(torch.zeros(500, 1), torch.zeros(500), torch.cat([torch.ones(400), torch.zeros(100)]), key)
    assert torch.equal(sampled(batch, 0.8).mask, sampled(padded, 0.8).mask[:400])
    assert sampled(padded, 0.8).mask[400:].sum() == 0
    assert 290 < sampled(batch, 0.8).mask.sum() < 350
    one = Batch(torch.zeros(3, 1), torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]), key)
    assert sampled(one, 1e-6).mask.tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(sampled(batch, 1.0).mask, batch.mask)


# --- features -------------------------------------------------------------------------------------------------------


def test_features_are_what_the_last_layer_reads() -> None:
    task, (client,) = network(normalised=True), blobs(8)
    params, buffers = task.initial()
    found = features(task, params, buffers, client.inputs)
    module = task.load(params, buffers).eval()
    assert torch.equal(found, module[:-1](client.inputs))  # type: ignore[index]
    assert all(not layer._forward_pre_hooks for layer in task.module.modules())
    batched = vmap(lambda p, x: features(task, p, buffers, x))(
        params.map(lambda p: torch.stack([p, 2 * p])), torch.stack([client.inputs, client.inputs])
    )
    torch.testing.assert_close(batched[0], found)
    torch.testing.assert_close(batched[1], features(task, params * 2, buffers, client.inputs))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_features_of_the_reference_networks(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        task = Task(build(name, (1, 28, 28), 10))
    params, buffers = task.initial()
    head = list(params)[-2]
    assert features(task, params, buffers, torch.zeros(2, 1, 28, 28)).shape == (2, params[head].shape[1])


def test_a_model_without_a_row_a_sample_is_a_clear_error() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.reshape(-1, 3)).reshape(len(x), 2, 3)[:, 0]

    task = Task(Folded())
    with pytest.raises(ConfigError, match="row a sample"):
        features(task, *task.initial(), torch.zeros(4, 6))


# --- MOON and FedPHP, against a plain network -----------------------------------------------------------------------


def plain(params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.tanh(x @ params["0.weight"].T + params["0.bias"])
    return z, z @ params["2.weight"].T + params["2.bias"]


def by_hand(
    clients: list[Client],
    extra: Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor],
    keep: Callable[[int, dict[str, Tensor] | None, dict[str, Tensor]], dict[str, Tensor]],
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Rounds of training on extra(round, loss, z, z received, z remembered); keep(round, old, new) is remembered."""
    w: dict[str, Tensor] = dict(network().initial()[0])
    remembered: list[Any] = [None] * len(clients)
    for r in range(ROUNDS):
        total, ends = sum(len(c.inputs) for c in clients), []
        for k, client in enumerate(clients):
            v, old = dict(w), remembered[k] or w
            for _ in range(PLAN["epochs"]):
                for at in range(0, len(client.inputs), 4):
                    x, y = client.inputs[at : at + 4], client.targets[at : at + 4]
                    v = {n: p.detach().requires_grad_() for n, p in v.items()}
                    z, out = plain(v, x)
                    met = r if remembered[k] is not None else 0
                    value = extra(
                        met, F.cross_entropy(out, y), z, plain(w, x)[0].detach(), plain(old, x)[0].detach()
                    )
                    slopes = torch.autograd.grad(value, list(v.values()))
                    v = {
                        n: (p - PLAN["lr"] * s).detach() for (n, p), s in zip(v.items(), slopes, strict=True)
                    }
            remembered[k] = keep(r, remembered[k], v)
            ends.append((len(client.inputs) / total, v))
        w = {n: sum((share * v[n] for share, v in ends), torch.zeros(())) for n in w}
    return w, remembered


def close(one: Any, other: Any) -> None:
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=2e-4, atol=2e-6)


def moon_extra(mu: float, swapped: bool = False) -> Callable[..., Tensor]:
    def extra(r: int, loss: Tensor, z: Tensor, received: Tensor, last: Tensor) -> Tensor:
        good, bad = (last, received) if swapped else (received, last)
        s, p = F.cosine_similarity(z, good) / 0.5, F.cosine_similarity(z, bad) / 0.5
        return loss + mu * -torch.log(torch.exp(s) / (torch.exp(s) + torch.exp(p))).mean()

    return extra


def test_moon_is_its_formula() -> None:
    clients = blobs(8, 13)
    run = Played(Moon(**PLAN, mu=5.0, tau=0.5), network(), clients).rounds(ROUNDS)
    w, last = by_hand(clients, moon_extra(5.0), lambda r, old, new: new)
    close(run.state.params, w)
    for k in (0, 1):
        close(run.memories[k].params, last[k])
    wrong, _ = by_hand(clients, moon_extra(5.0, swapped=True), lambda r, old, new: new)
    assert max(float((run.state.params[n] - wrong[n]).abs().max()) for n in wrong) > 1e-2


def test_moon_without_contrast_and_in_its_first_round_is_federated_averaging() -> None:
    clients, task = blobs(8, 13), network(normalised=True)
    none, some, shared = (
        Played(m, task, clients).rounds(1) for m in (Moon(**PLAN, mu=0.0), Moon(**PLAN), FedAvg(**PLAN))
    )
    torch.testing.assert_close(some.params, shared.params, rtol=1e-5, atol=1e-6)
    for each in (none, some, shared):
        each.rounds(2)
    assert bits(none.state.params, shared.state.params) and bits(none.state.buffers, shared.state.buffers)
    assert (some.params - shared.params).norm() > 1e-3


def mmd(one: Tensor, other: Tensor) -> Tensor:
    """The biased estimate, pair by pair."""
    rows = torch.cat([one, other])
    gaps = [[(a - b).square().sum() for b in rows] for a in rows]
    width = other.square().sum(1).mean()
    n, total = len(one), torch.zeros(())
    for i in range(2 * n):
        for j in range(2 * n):
            sign = 1.0 if (i < n) == (j < n) else -1.0
            total = total + sign * sum(torch.exp(-gaps[i][j] / (s * width)) for s in (0.5, 1.0, 2.0))
    return total / n**2


def test_the_discrepancy_is_that_of_pairs_and_blind_to_padding() -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(5, 3, generator=generator), 1 + torch.randn(5, 3, generator=generator)
    torch.testing.assert_close(discrepancy(one, other, torch.ones(5)), mmd(one, other))
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(discrepancy(one, other, mask), mmd(one[:3], other[:3]))
    assert abs(float(discrepancy(one, one, mask))) < 1e-6
    slopes = grad(lambda x: discrepancy(x, other, mask))(one)
    assert bool((slopes[3:] == 0).all()) and bool((slopes[:3] != 0).all())


def test_fedphp_is_its_formula() -> None:
    clients, mu, lam, horizon = blobs(8, 13), 0.9, 0.5, 4

    def extra(r: int, loss: Tensor, z: Tensor, received: Tensor, private: Tensor) -> Tensor:
        return loss if r == 0 else (1 - lam) * loss + lam * mmd(z, private)

    def keep(r: int, old: Any, new: dict[str, Tensor]) -> dict[str, Tensor]:
        m = mu * r / horizon
        return new if old is None else {n: m * old[n] + (1 - m) * new[n] for n in new}

    run = Played(FedPHP(**PLAN, mu=mu, lam=lam, horizon=horizon), network(), clients).rounds(ROUNDS)
    w, private = by_hand(clients, extra, keep)
    close(run.state.params, w)
    for k in (0, 1):
        close(run.memories[k].params, private[k])
    alone, _ = by_hand(clients, lambda r, loss, *_: loss if r == 0 else (1 - lam) * loss, keep)
    assert max(float((run.state.params[n] - alone[n]).abs().max()) for n in alone) > 1e-4


def test_fedphp_keeps_more_of_the_private_model_the_later_it_is() -> None:
    run = Played(FedPHP(**PLAN, mu=0.8, horizon=4), network(), blobs(8))
    kept = []
    for _ in range(7):
        kept.append(float(run.method.broadcast(run.state, [0]).shared.kept))
        run.round()
    assert kept == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_fedphp_without_likeness_leaves_the_global_model_to_fedavg() -> None:
    clients, task = blobs(8, 13, tested=10), network(normalised=True)
    run, shared = (Played(m, task, clients) for m in (FedPHP(**PLAN, lam=0.0), FedAvg(**PLAN)))
    for cohort in ([0], [0, 1], [1]):
        if cohort == [0, 1]:  # the second client has not taken part: it predicts with the latest global model
            assert run.personal(1).loss == shared.personal(1).loss
        run.round(cohort)
        shared.round(cohort)
    assert bits(run.state.params, shared.state.params) and bits(run.state.buffers, shared.state.buffers)


# --- all of them ----------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Method] = {
    "ditto": Ditto(lr=0.05, batch_size=4, momentum=0.9, clip=0.5),
    "apfl": APFL(lr=0.05, batch_size=4, momentum=0.9, clip=0.5),
    "pfedme": PFedMe(lr=0.05, batch_size=4, momentum=0.5, clip=0.5),
    "per-fedavg": PerFedAvg(lr=0.05, batch_size=4, adapt_steps=2),
    "per-fedavg-hf": PerFedAvg(lr=0.05, batch_size=4, variant="hessian-free", width=0.1, inner_lr=0.1),
    "fedala": FedALA(lr=0.05, batch_size=4, layers=2, share=0.5),
    "fedphp": FedPHP(lr=0.05, batch_size=4, lam=0.5, horizon=2),
    "moon": Moon(lr=0.05, batch_size=4, mu=5.0),
}


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


QUICK = (("per-fedavg-hf", "batched"), ("fedala", "batched"))  # the rest is for the long run of the tests


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(name, engine, marks=() if (name, engine) in QUICK else pytest.mark.slow)
        for name in VARIANTS
        for engine in ("batched", "processes")
    ],
)
def test_engines_agree_with_dropout_and_batch_statistics(name: str, engine: str) -> None:
    made = {}
    for k, client in enumerate(blobs(13, 5, 2, 9)):
        split = (client.inputs.numpy(), client.targets.numpy())
        made[f"c{k}"] = {"train": split, "test": split}
    data = atoll.data.from_clients(made, classes=3)
    outcomes = []
    for kind in ("loop", engine):
        federation = Federation(
            noisy, data, VARIANTS[name], rounds=2, cohort=3, engine=kind, eval_every=0, device="cpu"
        )
        run = federation.fit()
        assert run.evaluation is not None
        own = {measure: spread.mean for measure, spread in run.evaluation.own.items()}
        outcomes.append(([leaves(federation.state), [federation.memories.get(k) for k in range(4)]], own))
    (state, judged), (other, judged_too) = outcomes
    for a, b in zip(leaves(state), leaves(other), strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
    assert judged == pytest.approx(judged_too, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_who_predicts_with_a_model_of_their_own(name: str) -> None:
    assert VARIANTS[name].personalised == (name != "moon")


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (Ditto, {"lam": -0.1}, "Ditto: lam = -0.1"),
        (APFL, {"alpha": 1.5}, "APFL: alpha = 1.5"),
        (PFedMe, {"lam": 0.0}, "PFedMe: lam"),
        (PFedMe, {"inner_steps": 0}, "inner_steps"),
        (PFedMe, {"inner_lr": 0.0}, "inner_lr"),
        (PerFedAvg, {"variant": "exact"}, "variant"),
        (PerFedAvg, {"inner_lr": -1.0}, "inner_lr"),
        (PerFedAvg, {"width": 0.0}, "width"),
        (PerFedAvg, {"adapt_steps": 0}, "adapt_steps"),
        (PerFedAvg, {"batch_size": 1}, "batch_size = 1, but it must be at least 2"),
        (PerFedAvg, {"batch_size": 2, "variant": "hessian-free"}, "at least 3"),
        (FedALA, {"layers": 0}, "layers"),
        (FedALA, {"share": 0.0}, "share"),
        (FedALA, {"ala_lr": 0.0}, "ala_lr"),
        (FedALA, {"ala_passes": -1}, "ala_passes"),
        (
            FedALA,
            {"ala_passes": 3, "first_passes": 2},
            "first_passes = 2, but it must be at least ala_passes",
        ),
        (FedALA, {"steps": 5}, "steps"),
        (FedPHP, {"mu": 1.1}, "mu"),
        (FedPHP, {"lam": 1.0}, "lam"),
        (FedPHP, {"horizon": 0}, "horizon"),
        (Moon, {"mu": -1.0}, "Moon: mu"),
        (Moon, {"tau": 0.0}, "tau"),
    ],
)
def test_settings_outside_their_range_are_refused(method: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        method(**settings)
