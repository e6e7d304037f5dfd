"""What a GPU would refuse or be slow at, told without one: see `tests/pretended.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import atoll.data
from atoll import purity
from atoll.engines.steps import Steps
from atoll.federation import Federation
from atoll.methods import METHODS
from atoll.task import Batch, Task
from atoll.tensors import leaves, named_tensors
from tests.pretended import DEVICE, There, pretended


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(4, 5, num_layers=2, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        return self.head(self.rnn(x)[0][:, -1])  # type: ignore[no-any-return]


def sequences(device: str | torch.device = "cpu") -> Batch:
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(6, 3, 4, generator=generator), torch.arange(6) % 3
    return Batch(*(t.to(device) for t in (inputs, targets, torch.ones(6), torch.tensor(5))))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_leave_their_weights_alone(
    kind: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing weights for cuDNN asks for addresses, which the tensors of a function transform have not got."""
    task = Task(Recurrent(kind))
    params, buffers = task.initial()
    before = task.gradient(params, buffers, sequences())[0]
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda _: True)
    after = task.gradient(params, buffers, sequences())[0]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    monkeypatch.undo()
    outside = task.load(params, buffers)
    assert outside.rnn.flatten_parameters.__func__ is nn.RNNBase.flatten_parameters


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_spelt_out_where_a_gpu_trains_and_only_there(
    kind: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    spelt: list[str] = []
    plain = purity._recurrent

    def noted(pure: Any, name: str, *args: Any) -> tuple[Tensor, ...]:
        spelt.append(name)
        return plain(pure, name, *args)

    monkeypatch.setattr(purity, "_recurrent", noted)
    task = Task(Recurrent(kind))
    params, buffers = task.initial()
    task.gradient(params, buffers, sequences())
    assert not spelt
    with pretended():
        there = params.map(lambda t: t.to(DEVICE))
        task.predict(there, buffers, sequences(DEVICE).inputs)
        assert not spelt
        task.gradient(there, buffers, sequences(DEVICE))
    assert len(spelt) == 1


# --- whole rounds -----------------------------------------------------------------------------------------------------


def federation(method: Any, engine: str, device: str, sizes: tuple[int, ...] = (9, 5, 12, 4)) -> Federation:
    """Clients of unequal size, and everything that some method reads."""
    rng = np.random.default_rng(7)
    weights, made = rng.normal(size=(6, 3)), {}
    for at, n in enumerate(sizes):
        x = rng.normal(size=(n, 6)).astype(np.float32)
        y = (x @ weights).argmax(1).astype(np.int64)
        made[f"c{at}"] = {"train": (x, y), "test": (x[:3], y[:3])}
    data = atoll.data.from_clients(made, classes=3, validation=0.25)
    data = data.publish(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))

    def model() -> nn.Module:
        normed = [nn.BatchNorm1d(8)] if method == "fedbn" else []
        return nn.Sequential(nn.Linear(6, 8), *normed, nn.ReLU(), nn.Linear(8, 3))

    return Federation(
        model, data, method, rounds=2, cohort=3, engine=engine, device=device, eval_every=0, seed=3
    )


def played(federation: Federation) -> Any:
    """All that two rounds leave behind."""
    for _ in range(2):
        federation.round()
    now, method = federation.simulation, federation.method
    judged = now.judge(method, now.state, now.memories, 2)
    memories = {client: now.memories.get(client) for client in now.memories.clients()}
    return now.state, memories, judged, method.affinity(now.state)


def bare(tree: Any) -> Any:
    return pytree.tree_map_only(There, lambda leaf: leaf.inner, tree)


def as_written(
    self: Steps, key: Any, function: Callable[[Any, Any], Any], state: Any, batch: list[Tensor]
) -> Any:
    """Steps as they are written: a trace sees nothing of tensors that are pretended."""
    spec = pytree.tree_structure(state)
    return lambda values, batch: pytree.tree_leaves(function(pytree.tree_unflatten(values, spec), batch))


KEEP_SOMETHING = ("fedavg", "fedora", "ifca", "cfl", "fedfomo")


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize(
    "name",
    [name if name in KEEP_SOMETHING else pytest.param(name, marks=pytest.mark.slow) for name in METHODS],
)
def test_methods_keep_their_tensors_where_they_belong(
    name: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another device everything is as on the CPU, to the bit, and only what a method declares stays behind."""
    monkeypatch.setattr(Steps, "find", as_written)
    here = played(federation(name, engine, "cpu"))
    with pretended():
        state, memories, *_ = there = played(federation(name, engine, DEVICE.type))
        for path, tensor in named_tensors(state):
            behind = path.split(".")[0] in METHODS[name].host
            assert isinstance(tensor, There) != behind, f"{path} is on {tensor.device}"
        assert not any(isinstance(leaf, There) for leaf in leaves(memories))
        there = bare(there)
    for mine, other in zip(leaves(here), leaves(there), strict=True):
        assert torch.equal(mine, other) if isinstance(mine, Tensor) else str(mine) == str(other)
