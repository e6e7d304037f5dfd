"""What is reckoned of a training, beside what a training counts."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from torch import nn

from atoll.distributed.planning import FORMULAS, Demand, Setup, bubble, demanded, quantity
from atoll.errors import ConfigError
from atoll.optimizers import optimizer
from atoll.task import Task
from tests.distributed.test_strategies import blobs, net, trained
from tests.network.commands import command

W = 2


@cache
def demand(rows: int = 15, kind: str = "sgd:0.9") -> Demand:
    return demanded(Task(net()), blobs().train, optimizer(kind), rows)


@pytest.mark.parametrize("strategy", ["ddp", "ring", "zero1", "fsdp"])
def test_bytes_are_those_that_are_counted(strategy: str) -> None:
    plan = FORMULAS[strategy](demand(), Setup(W, 30, 1e9))
    assert trained(strategy, W, steps=4, every=4).figures["bytes"] / 4 == pytest.approx(plan.bytes, abs=1e-6)


def test_bytes_of_workers_that_meet_now_and_then() -> None:
    """A run of one period: one meeting, which is all that is sent."""
    plan = FORMULAS["local"](demand(), Setup(W, 30, 1e9))
    assert trained("local:8", W, steps=8, every=8).figures["bytes"] / 8 == pytest.approx(plan.bytes)


def test_a_model_asks_for_what_can_be_counted_by_hand() -> None:
    found, size = demand(), (6 * 9 + 9 + 9 * 4 + 4) * 4
    assert (found.numbers, found.size, found.trained) == (size // 4, size, size)
    assert found.state == size  # a velocity
    assert demand(15, "sgd").state == 0
    assert demand(15, "adam").state == 2 * size + 4  # two moments, and a counter
    assert (found.layers, found.widest) == (2, (6 * 9 + 9) * 4)
    assert found.handed == 9 * 4
    # kept for the way back: inputs [6], tanh [9], log-softmax [4], targets (an int64), and the sum's one number
    assert found.activations == pytest.approx((6 + 9 + 4) * 4 + 8, abs=8)


def test_activations_grow_with_the_rows_and_frozen_parameters_are_no_gradient() -> None:
    assert demand(30).activations == pytest.approx(demand(15).activations, abs=1)
    module = net()
    for p in module[0].parameters():
        p.requires_grad = False
    found = demanded(Task(module), blobs().train, optimizer("sgd"), 8, flops=1e9)
    assert (found.trained, found.size) == (40 * 4, demand().size)


def test_given_a_speed_operations_are_counted() -> None:
    """Forward 2 b i o for each layer, and backward twice that, but for the inputs, which want no gradient."""
    found = demanded(Task(net()), blobs().train, optimizer("sgd"), 10, flops=1e6)
    assert found.seconds == pytest.approx((2 * 6 * 9 * 2 + 2 * 9 * 4 * 3) / 1e6)


def test_memory_and_time_by_the_formulas() -> None:
    given = Demand(1000, 4000, 4000, 8000, 100.0, 40.0, 2, 3000, 1e-3)
    setup = Setup(4, 64, 1e6, 0.001)
    plans = {name: formula(given, setup) for name, formula in FORMULAS.items()}
    assert plans["ring"].memory == 4000 + 4000 + 8000 + 1600 + 1000
    assert plans["zero1"].memory == 4000 + 4000 + 2000 + 1600 + 1000
    assert plans["fsdp"].memory == 1000 + 1000 + 2000 + 1600 + 6000
    assert plans["ring"].communication == pytest.approx(
        6 * 0.001 + 6000 / 1e6
    )  # 2 (W - 1) a + 2 (W - 1) / W N b
    assert plans["ps"].communication == pytest.approx(
        2 * 0.001 + 4 * 4000 / 1e6
    )  # W N b at the server's door
    assert plans["diloco"].bytes == pytest.approx(1.5 * 4004 / 50)
    assert plans["diloco"].memory - plans["local"].memory == 4000  # the outer momentum
    assert plans["pipeline"].bubble == 3 / 19
    assert plans["pipeline"].compute == pytest.approx(64e-3 / 4 / (1 - 3 / 19))
    assert plans["pipeline"].activations == 100 * 64 / 4 * 4 / 16  # 1F1B: min(S, M) of M micro-batches
    assert all(plan.compute == 16e-3 for name, plan in plans.items() if name != "pipeline")


def test_one_worker_sends_nothing() -> None:
    for name, formula in FORMULAS.items():
        if name != "ps":
            assert formula(demand(), Setup(1, 30, 1e6)).bytes == 0


def test_the_bubble() -> None:
    assert [bubble(1, 4), bubble(2, 4), bubble(4, 8, 2)] == [0, 1 / 5, 3 / 19]


@pytest.mark.parametrize(("text", "value"), [("1.5 kB", 1500), ("1MiB", 2**20), ("8Mbit/s", 1e6), ("7", 7)])
def test_quantities(text: str, value: float) -> None:
    assert quantity(text, "memory", "B") == value


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "1 Gb", "1GB 2"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ConfigError, match="memory = "):
        quantity(text, "memory", "B")


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    usual = ["plan", "mlp:32", "--workers", "2", "--bandwidth", "1Gbit", "--shape", "4,4", "--flops", "1T"]
    code, out, _ = command(*usual, "--memory", "1GB", "--json")
    found = json.loads(out)
    assert (
        code == 0
        and (found["quickest"], found["quickest_exact"]) == ("diloco:50", "ddp")
        and not found["measured"]
    )
    assert found["parameters"] == 16 * 32 + 32 + 32 * 10 + 10
    size, rows = found["bytes"], {each["strategy"]: each for each in found["plans"]}
    assert rows["ddp"]["bytes"] == size and rows["fsdp"]["bytes"] == 1.5 * size
    code, out, _ = command(*usual, "--memory", "100B")
    assert code == 0 and "none of them fits" in out and out.count("too large") == len(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "lots", "--shape", "4"], "memory = 'lots'"),
        (["--memory", "1GB"], "--data digits, or --shape"),
        (["--memory", "1GB", "--shape", "4,x"], "shape = '4,x'"),
        (["--memory", "1GB", "--shape", "4", "--batch", "1"], "cannot be divided among 2 workers"),
    ],
)
def test_what_cannot_be_planned(options: list[str], message: str) -> None:
    code, _, said = command("plan", "mlp", "--workers", "2", "--bandwidth", "1Gbit", *options)
    assert code == 2 and message in said


def test_samples_are_repeated_where_there_are_fewer() -> None:
    few = blobs().train.take(torch.arange(3).numpy())
    assert demanded(Task(net()), few, optimizer("sgd"), 12, 1e9).activations == pytest.approx(
        demand().activations, abs=8
    )


def test_a_model_without_layers_is_one() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(6, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w

    found = demanded(Task(Scale()), blobs().train, optimizer("sgd"), 4, 1e9)
    assert (found.layers, found.widest, found.handed) == (1, 96, 0)
