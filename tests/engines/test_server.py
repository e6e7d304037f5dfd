"""The server's captured steps, against the functions as they are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atoll.contract import as_written
from atoll.engines.server import Quick
from atoll.federation import Federation
from atoll.methods import FedDF
from atoll.methods.distilled.feddf import divergence
from atoll.methods.parts.outputs import gradient_towards
from atoll.optimizers import Adam
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, leaves

from .test_engines import clients


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def normed() -> nn.Module:
    layers = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)
    return nn.Sequential(*layers)


def learnt(task: Task, quick: Any) -> Record:
    """A dozen steps of Adam, each on another batch and with another stream."""
    params, buffers = task.initial()
    state = Adam().init(params)
    stream = torch.Generator().manual_seed(3)
    for at in range(12):
        inputs, wanted = (torch.randn(10, n, generator=stream) for n in (6, 3))
        batch = Batch(inputs, torch.log_softmax(wanted, -1), torch.ones(10), torch.tensor(at))
        gradient, _, buffers = quick(gradient_towards, task, params, buffers, batch, divergence)
        params, state = Adam().at_once(gradient, state, params, 0.01, own=True)
    return Record(params=params, buffers=buffers)


@pytest.mark.parametrize("model", [perceptron, normed])
def test_captured_steps_are_the_steps_to_the_bit(model: Any) -> None:
    task, quick = Task(model()), Quick()
    plain, captured = learnt(task, as_written), learnt(task, quick)
    assert all(torch.equal(a, b) for a, b in zip(leaves(plain), leaves(captured), strict=True))
    assert len(quick.known) == 1 and None not in quick.known.values()


def scaled(value: Tensors, by: float, kind: str = "sum") -> Any:
    total = value.map(lambda each: getattr(torch, kind)(each) * by)
    return total, {"by": by, "first": value["a"]}


def test_what_is_no_tensor_is_a_constant_of_one_capture() -> None:
    quick = Quick()
    for kind in ("sum", "mean"):
        for by in (2.0, 3.0, 2.0):
            for seed in (0, 1):
                value = Tensors(a=torch.randn(4, generator=torch.Generator().manual_seed(seed)))
                (made, others), (want, _) = quick(scaled, value, by, kind), scaled(value, by, kind)
                assert torch.equal(made["a"], want["a"])
                assert others["by"] == by and torch.equal(others["first"], value["a"])
    assert len(quick.known) == 4


def test_what_asks_for_values_is_called_as_written() -> None:
    def steep(value: Tensor) -> Tensor:
        return value * 2 if float(value.sum()) > 0 else value

    quick = Quick()
    for sign in (1.0, -1.0, 1.0):
        assert torch.equal(quick(steep, torch.ones(3) * sign), steep(torch.ones(3) * sign))


def test_forms_without_end_are_not_all_kept() -> None:
    quick = Quick()
    for rows in range(1, 80):
        assert quick(torch.neg, torch.ones(rows)).shape == (rows,)
    assert len(quick.known) == 64


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_the_loop_does_as_it_is_written(engine: str) -> None:
    data = clients().publish(torch.zeros(4, 6))
    federation = Federation(perceptron, data, FedDF(), rounds=1, engine=engine, device="cpu")
    quick = federation.simulation.population.quick
    assert (quick is as_written) == (engine == "loop")
