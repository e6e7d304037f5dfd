"""Methods that train one global model, pinned by exact identities and analytic quadratics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atoll.contract import ClientData, Method
from atoll.errors import ConfigError
from atoll.methods import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDyn,
    FedNova,
    FedOpt,
    FedProx,
    FedSGD,
    FedYogi,
    QFedAvg,
    Scaffold,
)
from atoll.task import Task
from atoll.tensors import Tensors

from .driver import CURVES, OPTIMUM, Client, Played, blobs, disagreeing, line, network, quadratic, whole

SOLVER: dict[str, Any] = {"lr": 0.1, "epochs": 3, "batch_size": 4}


def final(method: Method, rounds: int = 3, clients: list[Client] | None = None) -> Tensor:
    return Played(method, network(), clients or blobs(5, 12, 8)).rounds(rounds).params


def pooled_gradient(task: Task, clients: list[Client], params: Tensors) -> Tensors:
    every = whole(torch.cat([c.inputs for c in clients]), torch.cat([c.targets for c in clients]))
    return task.gradient(params, Tensors(), every)[0]


def torch_equal(a: Tensor, b: Tensor, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- FedAvg and FedSGD --------------------------------------------------------------------------------------


def test_fedavg_weighs_by_samples_not_by_batches() -> None:
    clients = [quadratic(1.0, 0.0, 33), quadratic(1.0, 1.0, 64)]  # two batches each
    played = Played(FedAvg(lr=0.1, batch_size=32), line(), clients)
    replies = played.round()
    own = [played.sent[k].values["update"]["weight"] for k in (0, 1)]
    torch_equal(played.params, (33 * own[0] + 64 * own[1]).flatten() / 97, 1e-12)
    assert replies.weight == 97


def test_fedsgd_and_one_full_batch_of_fedavg_are_a_step_of_gradient_descent() -> None:
    task, clients = network(), blobs(5, 12, 8)
    params, _ = task.initial()
    for _ in range(3):
        params = params - pooled_gradient(task, clients, params) * 0.5
    torch_equal(final(FedSGD(lr=0.5)), params.flat(), 1e-6)
    torch_equal(final(FedAvg(lr=0.5, batch_size=None)), params.flat(), 1e-6)


@pytest.mark.parametrize("setting", [{"weight_decay": 0.1}, {"clip": 0.05}, {"schedule": "exponential:0.5"}])
def test_fedsgd_means_by_its_settings_what_fedavg_means(setting: dict[str, Any]) -> None:
    one = final(FedSGD(lr=0.5, **setting))
    torch_equal(one, final(FedAvg(lr=0.5, batch_size=None, **setting)), 1e-6)
    assert not torch.allclose(one, final(FedSGD(lr=0.5)), rtol=1e-3)


@pytest.mark.parametrize("setting", ["epochs", "batch_size", "steps", "optimizer", "momentum"])
def test_fedsgd_has_no_settings_that_would_do_nothing(setting: str) -> None:
    with pytest.raises(TypeError, match=setting):
        FedSGD(**{setting: 1})


# --- FedProx ------------------------------------------------------------------------------------------------


def test_fedprox_without_pull_is_fedavg_to_the_bit() -> None:
    plain = final(FedAvg(**SOLVER, momentum=0.5))
    assert torch.equal(final(FedProx(**SOLVER, momentum=0.5, mu=0.0, partial_work=False)), plain)
    assert not torch.allclose(final(FedProx(**SOLVER, momentum=0.5, mu=1.0)), plain, rtol=1e-3)


def test_the_proximal_gradient_is_that_of_the_squared_distance() -> None:
    task, (client,) = network(), blobs(8)
    method = FedProx(mu=0.7)
    played = Played(method, task, [client])
    received = played.method.broadcast(played.state, [0]).received(0)
    start = method.begin(
        task, received, method.remember(task, received), ClientData(torch.tensor(8.0), torch.tensor(0))
    )
    batch = whole(client.inputs, client.targets)
    away = start.replace(
        params=start.params.map(lambda p: p + torch.linspace(-1, 1, p.numel()).view(p.shape))
    )

    def distance(params: Tensors) -> Tensor:
        return 0.35 * sum(
            (torch.sum((p - received.params[n]) ** 2) for n, p in params.items()), torch.tensor(0.0)
        )

    for local in (start, away):
        pull = method.gradient(task, local, batch)[0] - FedAvg().gradient(task, local, batch)[0]
        wanted = torch.func.grad(distance)(local.params)
        torch_equal(pull.flat(), wanted.flat(), 1e-6)
    assert not FedProx().gradient(task, start, batch)[0].flat().isnan().any()
    assert wanted.norm() > 0.5


def test_a_strong_pull_holds_clients_at_the_received_model() -> None:
    settings: dict[str, Any] = {"lr": 0.001, "epochs": 200, "batch_size": None}
    free = Played(FedAvg(**settings), line(), [quadratic(1.0, 1.0)]).rounds(1).params
    held = Played(FedProx(**settings, mu=900.0), line(), [quadratic(1.0, 1.0)]).rounds(1).params
    torch_equal(held, torch.tensor([1 / 901], dtype=torch.float64), 1e-6)  # argmin of 1/2 (w-1)^2 + 450 w^2
    assert free > 100 * held


def test_gamma_stops_a_client_at_the_first_solution_good_enough() -> None:
    a, b, mu, gamma, lr = 1.0, 3.0, 0.5, 0.4, float(torch.tensor(0.1))
    clients = [quadratic(a, b, samples=4)]
    settings: dict[str, Any] = {"lr": 0.1, "epochs": 10, "mu": mu}
    # grad h = (a + mu) (w - w*) shrinks by 1 - lr (a + mu) a step
    wanted = int(np.ceil(np.log(gamma) / np.log(1 - lr * (a + mu))))
    inexact = Played(FedProx(**settings, batch_size=1, gamma=gamma), line(), clients)
    replies = inexact.round()
    assert inexact.sent[0].metrics.steps == wanted == 6
    assert replies.weight == 4  # the second epoch was not finished; the weight is that of all samples
    cut = FedAvg(lr=0.1, steps=wanted, batch_size=1)
    exact = Played(FedProx(mu=mu, **{"lr": 0.1, "steps": wanted, "batch_size": 1}), line(), clients).rounds(1)
    assert torch.equal(inexact.params, exact.params)
    assert not torch.equal(inexact.params, Played(cut, line(), clients).rounds(1).params)

    full = Played(FedProx(**settings, batch_size=1), line(), clients)
    full.round()
    assert full.sent[0].metrics.steps == 40


def test_gamma_freezes_the_optimiser_too() -> None:
    settings: dict[str, Any] = {"lr": 0.1, "mu": 0.1, "momentum": 0.9, "batch_size": None}
    stopped = Played(FedProx(**settings, epochs=30, gamma=0.3), network(), blobs(8))
    stopped.round()
    steps = int(stopped.sent[0].metrics.steps)
    assert 1 < steps < 30
    torch_equal(
        stopped.params, Played(FedProx(**settings, epochs=steps), network(), blobs(8)).rounds(1).params
    )
    assert stopped.sent[0].metrics["count"] == 8 * steps


def test_gamma_stops_a_client_for_good() -> None:
    """With momentum the next step would leave the good solution again."""
    lr, w, v, steps = float(torch.tensor(0.1)), 0.0, 0.0, 0
    while abs(w - 1) > 0.15:
        v = 0.9 * v + (w - 1)
        w, steps = w - lr * v, steps + 1
    assert abs(w - lr * (0.9 * v + (w - 1)) - 1) > 0.15
    method = FedProx(lr=0.1, mu=0.0, momentum=0.9, gamma=0.15, epochs=40, batch_size=None)
    played = Played(method, line(), [quadratic(1.0, 1.0)])
    played.round()
    assert played.sent[0].metrics.steps == steps
    assert float(played.params) == pytest.approx(w, rel=1e-12)


def test_gamma_does_not_cost_a_client_its_weight() -> None:
    """One sample was enough to step on; the test has read all six."""
    clients = [quadratic(1.0, 1.0, 6), quadratic(1.0, 2.0, 2)]
    method = FedProx(lr=0.5, gamma=0.9, batch_size=1)
    played = Played(method, line(), clients)
    assert played.round().weight == 8
    assert played.sent[0].metrics.steps == played.sent[1].metrics.steps == 1
    assert played.round(epochs={0: 0}).weight == 2


def test_fedprox_reads_all_data_only_for_gamma() -> None:
    assert FedProx().reads == ()
    assert FedProx(gamma=0.1).reads == ("train",)


# --- server optimisers --------------------------------------------------------------------------------------


def test_a_plain_server_step_of_one_is_fedavg_to_the_bit() -> None:
    plain = final(FedAvg(**SOLVER))
    assert torch.equal(final(FedOpt(**SOLVER)), plain)
    assert torch.equal(final(FedAvgM(**SOLVER, beta=0.0)), plain)
    assert not torch.allclose(final(FedAvgM(**SOLVER)), plain, rtol=1e-3)
    assert not torch.allclose(final(FedOpt(**SOLVER, server_lr=0.5)), plain, rtol=1e-3)


def test_an_optimiser_by_its_name_is_the_servers() -> None:
    assert torch.equal(final(FedOpt(**SOLVER, server_optimizer="sgd:0.9")), final(FedAvgM(**SOLVER)))
    moved = final(FedOpt(**SOLVER, server_optimizer="nesterov:0.9"))
    assert not torch.allclose(moved, final(FedAvgM(**SOLVER)), rtol=1e-3)
    with pytest.raises(ConfigError, match="unknown optimizer"):
        FedOpt(server_optimizer="newton")


@pytest.mark.parametrize("own", [{"optimizer": "adamw", "weight_decay": 0.1}, {"momentum": 0.9}])
@pytest.mark.parametrize("kind", [FedOpt, FedAvgM])
def test_an_optimiser_that_is_kept_goes_on_where_it_stopped(kind: type[FedOpt], own: dict[str, Any]) -> None:
    """Three rounds of two steps are one of six, where the server takes what comes; a state that starts anew is not."""
    plain: dict[str, Any] = {} if kind is FedOpt else {"beta": 0.0}
    client = [quadratic(1.0, 3.0, 4)]

    def trained(rounds: int, steps: int, keep: bool) -> Tensor:
        method = kind(lr=0.1, steps=steps, batch_size=None, keep_optimizer=keep, **plain, **own)
        return Played(method, line(0.25), client).rounds(rounds).params

    torch_equal(trained(3, 2, True), trained(1, 6, False), 1e-12)
    assert not torch.allclose(trained(3, 2, False), trained(1, 6, False), rtol=1e-3)


def by_hand(rule: str, w: Any, m: Any, v: Any, delta: Any) -> tuple[Any, Any, Any]:
    """One server step as the papers write it."""
    if rule == "momentum":
        m = 0.9 * m + delta
        return w + 0.3 * m, m, v
    beta1 = 0.0 if rule == "adagrad" else 0.9
    m = beta1 * m + (1 - beta1) * delta
    square = delta * delta
    if rule == "adagrad":
        v = v + square
    elif rule == "adam":
        v = 0.99 * v + 0.01 * square
    else:
        v = v - 0.01 * square * np.sign(v - square)
    return w + 0.3 * m / (np.sqrt(v) + 1e-3), m, v


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("momentum", FedAvgM), ("adagrad", FedAdagrad), ("adam", FedAdam), ("yogi", FedYogi)],
)
def test_server_optimisers_follow_the_papers(rule: str, kind: type[FedOpt]) -> None:
    clients = [quadratic(1.0, 3.0, 2), quadratic(2.0, -1.0, 5)]
    played = Played(kind(lr=0.1, epochs=4, server_lr=0.3), line(0.25), clients)
    w, m, v = np.array([0.25]), np.zeros(1), np.full(1, 1e-6)
    for _ in range(4):
        delta = played.round().mean["update"].flat().numpy()
        w, m, v = by_hand(rule, w, m, v, delta)
        np.testing.assert_allclose(played.params.numpy(), w, rtol=1e-12)
    assert abs(w[0] - 0.25) > 0.05


@pytest.mark.parametrize("kind", [FedAvgM, FedAdagrad, FedAdam, FedYogi])
def test_server_optimisers_average_buffers(kind: type[FedOpt]) -> None:
    clients = blobs(8, 16)
    shrunk = [Client(c.inputs * s, c.targets) for c, s in zip(clients, (0.01, 0.1), strict=True)]
    plain = Played(FedAvg(**SOLVER), network(normalised=True), shrunk)
    played = Played(kind(**SOLVER, server_lr=1.0), network(normalised=True), shrunk)
    plain.round()
    before = played.state.buffers
    played.round()
    for name, value in played.state.buffers.items():
        assert torch.equal(value, plain.state.buffers[name]), name
        assert value.dtype == before[name].dtype
    assert int(played.state.buffers["1.num_batches_tracked"]) == 12  # the most any client has seen
    for _ in range(5):
        before = played.state.buffers
        moved = played.round().mean.buffers
        for name in ("1.running_mean", "1.running_var"):
            assert torch.equal(played.state.buffers[name], before[name] + moved[name])
        assert (played.state.buffers["1.running_var"] > 0).all()


# --- correcting drift ---------------------------------------------------------------------------------------

DRIFTING: dict[str, Any] = {"lr": 0.05, "epochs": 8, "batch_size": None}


def test_fedavg_is_biased_where_clients_disagree() -> None:
    assert abs(float(Played(FedAvg(**DRIFTING), line(), disagreeing()).rounds(60).params) - OPTIMUM) > 0.1


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("server_lr", [1.0, pytest.param(0.6, marks=pytest.mark.slow)])
def test_scaffold_reaches_the_optimum(option: Any, server_lr: float) -> None:
    method = Scaffold(**DRIFTING, option=option, server_lr=server_lr)
    played = Played(method, line(), disagreeing()).rounds(100)
    assert float(played.params) == pytest.approx(OPTIMUM, abs=1e-10)
    for k, (a, b) in enumerate(CURVES):  # at rest a control variate is the client's gradient there
        assert float(played.memories[k].control["weight"]) == pytest.approx(a * (OPTIMUM - b), abs=1e-9)


def test_feddyn_reaches_the_optimum() -> None:
    played = Played(FedDyn(**DRIFTING, alpha=1.0), line(), disagreeing()).rounds(150)
    assert float(played.params) == pytest.approx(OPTIMUM, abs=1e-10)
    for k, (a, b) in enumerate(CURVES):
        assert float(played.memories[k].h["weight"]) == pytest.approx(a * (OPTIMUM - b), abs=1e-9)


def test_feddyn_forgets_those_that_leave() -> None:
    """h stays the mean of the h_k that remain, and rounds come to rest where the others' gradients add up to 0."""
    played = Played(FedDyn(**DRIFTING, alpha=1.0), line(), disagreeing()).rounds(150)
    slopes = [float(played.memories[k].h["weight"]) for k in range(3)]
    assert slopes == pytest.approx([3.875, 1.75, -5.625])  # a (23/8 - b)
    assert float(played.state.h["weight"]) == pytest.approx(0.0, abs=1e-9)
    state = played.method.farewell(played.state, played.memories.pop(2))
    assert float(state.h["weight"]) == pytest.approx(5.625 / 3)
    played.state = played.method.leave(state, [2])
    assert float(played.state.h["weight"]) == pytest.approx((3.875 + 1.75) / 2) and played.state.clients == 2
    for _ in range(150):
        played.round([0, 1])
        mean = sum(float(played.memories[k].h["weight"]) for k in (0, 1)) / 2
        assert float(played.state.h["weight"]) == pytest.approx(mean, abs=1e-9)
    assert float(played.params) == pytest.approx((1 * -1 + 2 * 2) / (1 + 2), abs=1e-10)


COHORTS = ([0, 1], [2], [0, 2], [0, 1, 2], [1])


@pytest.mark.parametrize("option", [1, 2])
def test_control_variates_average_to_the_servers(option: Any) -> None:
    method = Scaffold(lr=0.05, epochs=2, batch_size=3, option=option)
    clients = blobs(5, 12, 8)
    played = Played(method, network(), clients)
    zero = played.state.control.flat()
    for cohort in COHORTS:
        played.round(cohort, epochs={0: 1, 1: 3})
        own = [played.memories[k].control.flat() if k in played.memories else zero for k in range(3)]
        torch_equal(played.state.control.flat(), torch.stack(own).mean(0), 1e-6)
    assert played.state.control.norm() > 0.01


def test_dynamic_terms_average_to_the_servers() -> None:
    played = Played(FedDyn(lr=0.05, epochs=2, batch_size=3), network(), blobs(5, 12, 8))
    zero = played.state.h.flat()
    for cohort in COHORTS:
        played.round(cohort)
        own = [played.memories[k].h.flat() if k in played.memories else zero for k in range(3)]
        torch_equal(played.state.h.flat(), torch.stack(own).mean(0), 1e-6)
    assert played.state.h.norm() > 0.001


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_with_one_client_is_gradient_descent(option: Any) -> None:
    task, clients = network(), blobs(9)
    params, _ = task.initial()
    for _ in range(12):
        params = params - pooled_gradient(task, clients, params) * 0.2
    method = Scaffold(lr=0.2, epochs=4, batch_size=None, option=option)
    torch_equal(final(method, rounds=3, clients=clients), params.flat(), 1e-5)


def test_scaffold_counts_the_steps_each_client_took() -> None:
    """With one step c_k' is that step's gradient, with several their mean: never the plan's number."""
    method = Scaffold(lr=0.05, epochs=4, batch_size=None, schedule="exponential:0.5")
    played = Played(method, line(), disagreeing())
    for number, epochs in enumerate((1, 3)):
        w, old, c = float(played.params), played.memories.get(2), float(played.state.control["weight"])
        own = float(old.control["weight"]) if old else 0.0
        played.round([0, 2], epochs={2: epochs})
        a, b = CURVES[2]
        y, slopes = w, []
        for _ in range(epochs):
            slopes.append(a * (y - b))
            y -= 0.05 * 0.5**number * (slopes[-1] - own + c)
        assert float(played.memories[2].control["weight"]) == pytest.approx(np.mean(slopes), rel=1e-6)


def test_scaffold_counts_clients_equally() -> None:
    clients = [quadratic(1.0, 0.0, 1), quadratic(1.0, 1.0, 9)]
    for method in (Scaffold(lr=0.1), FedDyn(lr=0.1), QFedAvg(lr=0.1, q=1.0)):
        assert Played(method, line(), clients).round().weight == 2


# --- FedNova ------------------------------------------------------------------------------------------------


def test_fednova_removes_the_bias_of_unequal_work() -> None:
    curves = ((1.0, -1.0, 3), (1.0, 2.0, 1), (1.0, 4.0, 2))  # curvature, minimum, samples
    clients = [quadratic(*curve) for curve in curves]
    optimum = sum(b * n for _, b, n in curves) / 6
    settings: dict[str, Any] = {"lr": 0.002, "epochs": 5, "batch_size": None}
    off = {}
    for method in (FedAvg(**settings), FedNova(**settings)):
        played = Played(method, line(optimum), clients)
        for _ in range(100):
            played.round(epochs={0: 1, 1: 20})
        off[type(method)] = abs(float(played.params) - optimum)
    assert off[FedAvg] > 0.5
    assert off[FedNova] < 0.03


@pytest.mark.parametrize("setting", [{}, {"momentum": 0.8}, {"weight_decay": 0.1}])
def test_fednova_with_equal_work_is_fedavg(setting: dict[str, Any]) -> None:
    plan: dict[str, Any] = {"lr": 0.1, "epochs": 3, "batch_size": None}
    plain = final(FedAvg(**plan, **setting))
    torch_equal(final(FedNova(**plan, **setting)), plain, 1e-5)
    prox = final(FedNova(**plan, **setting, mu=0.5))
    torch_equal(prox, final(FedProx(**plan, **setting, mu=0.5)), 1e-5)
    assert not torch.allclose(prox, plain, rtol=1e-3)


def length(method: FedNova, steps: int) -> float:
    """The length a client sends after so many steps."""
    played = Played(method, line(), [quadratic(1.0, 1.0)])
    return float(played.round(epochs={0: steps}).mean.length)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_fednova_lengths_are_the_papers(steps: int) -> None:
    rho, pull = 0.9, 0.1 * 0.5
    assert length(FedNova(lr=0.1), steps) == steps
    wanted = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert length(FedNova(lr=0.1, momentum=rho), steps) == pytest.approx(wanted, rel=1e-5)
    wanted = (1 - (1 - pull) ** steps) / pull
    assert length(FedNova(lr=0.1, mu=0.5), steps) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize(
    "setting", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.2}]
)
def test_a_constant_gradient_has_one_direction_whatever_the_solver(
    setting: dict[str, Any], mu: float
) -> None:
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, 2.0)
    slope = Task(module, lambda outputs, targets: outputs.squeeze(1))
    client = Client(torch.full((1, 1), 3.0, dtype=torch.float64), torch.zeros(1))
    played = Played(FedNova(lr=0.1, epochs=9, mu=mu, **setting), slope, [client])
    direction = float(played.round().mean.direction["weight"])
    assert direction == pytest.approx(-0.1 * (3.0 + setting.get("weight_decay", 0.0) * 2.0), rel=1e-5)


def test_fednova_server_momentum() -> None:
    plan: dict[str, Any] = {"lr": 0.1, "epochs": 2, "batch_size": None}
    torch_equal(final(FedNova(**plan, server_momentum=0.7)), final(FedAvgM(**plan, beta=0.7)), 1e-5)


def test_fednova_weighs_by_all_samples_however_few_steps() -> None:
    clients = [quadratic(1.0, 0.0, 30), quadratic(1.0, 1.0, 10)]
    played = Played(FedNova(lr=0.1, steps=2, batch_size=4), line(), clients)
    assert played.round().weight == 40
    assert played.sent[0].metrics["count"] == 8


def test_fednova_ignores_a_client_that_did_nothing() -> None:
    played = Played(FedNova(lr=0.1, epochs=2), line(), disagreeing())
    alone = Played(FedNova(lr=0.1, epochs=2), line(), disagreeing())
    played.round(epochs={0: 0})
    alone.round([1, 2])
    torch_equal(played.params, alone.params, 1e-12)


# --- q-FedAvg -----------------------------------------------------------------------------------------------


def test_q_of_zero_is_unweighted_fedavg() -> None:
    plan: dict[str, Any] = {"lr": 0.1, "epochs": 3, "batch_size": None}
    alike = disagreeing()
    assert torch.equal(
        Played(QFedAvg(**plan, q=0.0), line(), alike).rounds(3).params,
        Played(FedAvg(**plan), line(), alike).rounds(3).params,
    )
    uneven = [quadratic(a, b, samples) for (a, b), samples in zip(CURVES, (1, 5, 2), strict=True)]
    torch_equal(
        Played(QFedAvg(**plan, q=0.0), line(), uneven).rounds(3).params,
        Played(FedAvg(**plan), line(), alike).rounds(3).params,
        1e-12,
    )


def test_losses_draw_together_as_q_grows() -> None:
    curves = ((1.0, -1.0), (4.0, 3.0))
    clients = [quadratic(a, b) for a, b in curves]
    variances = []
    for q in (0.0, 1.0, 5.0):
        played = Played(QFedAvg(lr=0.1, batch_size=None, q=q), line(), clients).rounds(150)
        w = float(played.params)
        variances.append(np.var([a / 2 * (w - b) ** 2 for a, b in curves]))
        slope = sum((a / 2 * (w - b) ** 2) ** q * a * (w - b) for a, b in curves)
        assert slope == pytest.approx(0, abs=1e-6)  # where sum F^(q+1) is least
    assert variances[1] < 0.7 * variances[0]
    assert variances[2] < 0.7 * variances[1]


def test_q_fedavg_is_the_papers_update() -> None:
    q, lr, w = 2.0, float(torch.tensor(0.1)), 0.5
    played = Played(QFedAvg(lr=0.1, epochs=2, batch_size=None, q=q), line(w), disagreeing())
    played.round()
    deltas = hs = 0.0
    for a, b in CURVES:
        loss, own = a / 2 * (w - b) ** 2 + 1e-10, w
        for _ in range(2):
            own -= lr * a * (own - b)
        step = (w - own) / lr
        deltas += loss**q * step
        hs += q * loss ** (q - 1) * step**2 + loss**q / lr
    assert float(played.params) == pytest.approx(w - deltas / hs, rel=1e-6)
