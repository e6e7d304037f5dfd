"""Blocks whose backward pass computes them again: the same gradients to the bit, activations of one at a time."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from atoll import models
from atoll.adapters import apply
from atoll.data import from_clients
from atoll.engines.capture import capture
from atoll.engines.trace import Watch
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.gradient import grad_and_value
from atoll.models.transformer import Block
from atoll.purity import as_batched
from atoll.task import Batch, Task
from atoll.tensors import Tensors
from atoll.thrift import Thrift

AGAIN = Thrift(recompute=True)


class Dropping(Block):
    """A block that draws."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.3, self.training)


def made(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "llama":
            return models.llama(11, 2, 8, 2)
        gpt = models.gpt(11, 6, 3, 8, 2)
        if kind == "dropping":
            return nn.Sequential(gpt[0], nn.Dropout(0.2), Dropping(8, 2), Dropping(8, 2), gpt[4], gpt[5])
        return gpt if kind == "gpt" else apply(gpt, kind)


def tokens(rows: int = 3, long: int = 6) -> Batch:
    x = torch.randint(11, (rows, long), generator=torch.Generator().manual_seed(1))
    return Batch(x, x.roll(-1, 1), torch.tensor([1.0, 0.0, 1.0][:rows]), torch.tensor(7))


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", ["gpt", "llama", "dropping", "lora:2,4", "prefix:2", "lora:2,4,3.wide.0"])
def test_gradients_are_the_same_to_the_bit(kind: str) -> None:
    task, batch = Task(made(kind)), tokens()
    params, buffers = task.initial()
    both = params.map(lambda value: torch.stack([value, value * 1.5]))

    def gradient(params: Tensors) -> tuple[Tensors, Tensor]:
        return task.gradient(params, buffers, batch)[:2]

    def all_of_them() -> tuple[tuple[Tensors, Tensor], Tensors]:
        with torch.no_grad():
            found = gradient(params)
            with as_batched():
                return found, vmap(gradient)(both)[0]

    (plain, loss), stacked = all_of_them()
    task.thrift = AGAIN
    (again, value), side_by_side = all_of_them()
    assert torch.equal(loss, value)
    assert same(again, plain)
    assert same(side_by_side, stacked)
    assert any(bool(value.any()) for value in plain.values())


def test_gradients_of_gradients_are_as_they_were() -> None:
    task, batch = Task(made("gpt")), tokens()
    params, buffers = task.initial()

    def steep(params: Tensors) -> tuple[Tensor, Tensor]:
        found, loss, _ = task.gradient(params, buffers, batch)
        return sum((value.square().sum() for value in found.values()), loss * 0), loss

    with torch.no_grad(), as_batched():  # the fused kernel of attention has no second derivative
        plain = grad_and_value(steep, params)[0]
        task.thrift = AGAIN
        assert same(grad_and_value(steep, params)[0], plain)


class Live(Watch):
    """Bytes of what operations have made and somebody holds, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Counter[int] = Counter()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(found):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self._count(storage._cdata, storage.nbytes(), 1)
                weakref.finalize(value, self._count, storage._cdata, storage.nbytes(), -1)
        self.most = max(self.most, self.now)
        return found

    def _count(self, which: int, size: int, by: int) -> None:
        there = self.held[which] > 0
        self.held[which] += by
        self.now += size * ((self.held[which] > 0) - there)


def most(function: Callable[[], object]) -> int:
    with torch.no_grad(), Live() as live:
        function()
    return live.most


@pytest.mark.parametrize("captured", [False, True])
def test_activations_are_those_of_one_block(captured: bool) -> None:
    task = Task(models.gpt(11, 64, 8, 16, 2))
    params, buffers = task.initial()
    batch = tokens(3, 64)

    def step(params: Tensors, batch: list[Tensor]) -> Tensors:
        inputs, targets, key = batch
        return params - task.gradient(params, buffers, Batch(inputs, targets, torch.ones(3), key))[0] * 0.1

    def taken() -> int:
        if not captured:
            return most(lambda: task.gradient(params, buffers, batch))
        given = [batch.inputs, batch.targets, batch.key]
        with torch.no_grad():
            found, leaves = capture(step, params, given), pytree.tree_leaves(params.map(torch.clone))
        return most(lambda: found(leaves, given))

    whole = taken()
    task.thrift = AGAIN
    again = taken()
    assert again < whole / 2, (again, whole)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_engines_train_the_same_model(engine: str) -> None:
    data = from_clients(
        {f"c{k}": (tokens()[0] * 0 + k, tokens()[1]) for k in range(3)}, classes=11, test=None
    )

    def run(**given: Any) -> dict[str, Tensor]:
        fed = Federation(
            made("gpt"), data, "fedavg", rounds=2, lr=0.3, batch_size=2, engine=engine, device="cpu", **given
        )
        return fed.fit(progress=False).model.state_dict()

    plain, again = run(), run(recompute=True)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="recompute = true: Sequential has no blocks") as caught:
        Task(nn.Sequential(nn.Linear(3, 2))).thrift = AGAIN
    assert "accumulate" in str(caught.value.hint)
