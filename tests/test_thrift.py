"""Gradients part by part are those of the whole batch; fewer bits are in the operations alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import vmap

from atoll.data import FederatedData, from_clients
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.models import gpt
from atoll.optimizers import schedule_factor
from atoll.purity import as_batched
from atoll.task import Batch, Task
from atoll.tensors import Tensors
from atoll.thrift import Thrift


def clients() -> FederatedData:
    generator = torch.Generator().manual_seed(0)
    held = {
        name: (torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator))
        for name, n in (("a", 13), ("b", 6))
    }
    return from_clients(held, test=None, classes=3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@given(st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_parts_are_even_and_none_is_empty(accumulate: int, rows: int) -> None:
    parts = [range(rows)[each] for each in Thrift(accumulate=accumulate).goes(rows)]
    assert [k for part in parts for k in part] == list(range(rows))
    assert len(parts) == min(accumulate, rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("accumulate", [2, 3, 20])
def test_part_by_part_it_is_the_gradient_of_the_whole_batch(accumulate: int) -> None:
    task, generator = Task(network()), torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)
    batch = Batch(x, y, torch.tensor([1.0, 1, 1, 0, 0, 0, 1, 0]), torch.tensor(5))
    with torch.no_grad():
        whole, loss, _ = task.gradient(*task.initial(), batch)
        task.thrift = Thrift(accumulate=accumulate)
        parts, total, _ = task.gradient(*task.initial(), batch)
    torch.testing.assert_close(total, loss)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_parts_draw_apart() -> None:
    task = Task(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)))
    x = torch.ones(1, 4).repeat(2, 1)
    batch = Batch(x, torch.tensor([0, 0]), torch.ones(2), torch.tensor(5))
    task.thrift = Thrift(accumulate=2)
    with torch.no_grad():
        found = task.gradient(*task.initial(), batch)[0]["1.weight"]
        task.thrift = Thrift()
        alone = task.gradient(*task.initial(), Batch(x[:1], batch.targets[:1], torch.ones(1), batch.key))[0]
    assert not torch.allclose(found, alone["1.weight"])


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
def test_every_engine_computes_so(engine: str) -> None:
    def run(**given: Any) -> dict[str, torch.Tensor]:
        fed = Federation(
            network(),
            clients(),
            "fedavg",
            rounds=2,
            lr=0.3,
            batch_size=5,
            engine=engine,
            device="cpu",
            **given,
        )
        return fed.fit().model.state_dict()

    plain, parts, few = run(), run(accumulate=2), run(precision="bfloat16")
    for name, value in plain.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-5)
        assert few[name].dtype == torch.float32
        torch.testing.assert_close(few[name], value, atol=2e-2, rtol=0)
    assert any(not torch.equal(few[name], value) for name, value in plain.items())


def test_operations_that_can_are_in_half_precision() -> None:
    seen = []

    class Noting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = super().forward(x)
            seen.append(found.dtype)
            return found

    fed = Federation(
        Noting(4, 3),
        clients(),
        "fedavg",
        rounds=1,
        batch_size=5,
        engine="loop",
        device="cpu",
        precision="bfloat16",
    )
    fed.fit()
    assert seen[-1] == torch.bfloat16
    task = fed.simulation.judge.task
    batch = Batch(torch.randn(2, 4), torch.tensor([0, 2]), torch.ones(2), torch.tensor(0))
    assert task.loss(*task.initial(), batch)[0].dtype == torch.float32


def test_attention_of_many_clients_is_in_half_precision_as_that_of_one() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = Task(gpt(11, 6, 2, 8, 2))
    x = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(1))
    batch = Batch(x, x.roll(-1, 1), torch.ones(3), torch.tensor(7))
    params, buffers = task.initial()

    def gradient(params: Tensors) -> Tensors:
        return task.gradient(params, buffers, batch)[0]

    with torch.no_grad():
        exact = gradient(params)
        task.thrift = Thrift("bfloat16")
        alone = gradient(params)
        with as_batched():
            both = vmap(gradient)(params.map(lambda value: torch.stack([value, value])))
    assert any(not torch.equal(alone[name], value) for name, value in exact.items())
    for name, value in exact.items():
        near = 2e-2 * value.abs().max().item() + 1e-6
        torch.testing.assert_close(alone[name], value, atol=near, rtol=0)
        torch.testing.assert_close(both[name][1], value, atol=near, rtol=0)


def test_schedules_in_a_row_are_multiplied() -> None:
    found = [schedule_factor("warmup:4 + cosine:10", round) for round in range(11)]
    assert found[0] == 0.25
    assert found[3] == schedule_factor("cosine:10", 3)
    assert max(found) == found[3]
    assert found[10] == 0
    with pytest.raises(ConfigError, match="unknown schedule 'cosin'"):
        schedule_factor("warmup:4 + cosin:10", 0)


@pytest.mark.parametrize("given", [{"precision": "bfloat16"}, {"accumulate": 2}])
def test_private_steps_compute_in_one_way(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="private steps take the gradient of each sample"):
        Federation(network(), clients(), "fedavg", rounds=1, dp_sgd="1.0,1.0", device="cpu", **given)


def test_losses_are_taken_in_single_precision() -> None:
    """Of outputs in half precision, too, and whichever loss it is."""
    outputs, targets = torch.randn(6, 3).bfloat16(), torch.arange(6) % 3
    for loss in ("cross_entropy", "mse"):
        task = Task(network(), loss)
        task.thrift = Thrift("bfloat16")
        wanted = targets if loss == "cross_entropy" else torch.zeros(6, 3)
        assert task.losses(outputs, wanted).dtype == torch.float32
    task = Task(network())
    task.thrift = Thrift("bfloat16")
    due = nn.functional.cross_entropy(outputs.float(), targets, reduction="none")
    torch.testing.assert_close(task.losses(outputs, targets), due, atol=1e-6, rtol=1e-6)


def test_buffers_see_every_part() -> None:
    task = Task(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)))
    task.thrift = Thrift(accumulate=3)
    batch = Batch(torch.randn(6, 4), torch.arange(6) % 3, torch.ones(6), torch.tensor(5))
    with torch.no_grad():
        buffers = task.gradient(*task.initial(), batch)[2]
    assert int(buffers["0.num_batches_tracked"]) == 3
