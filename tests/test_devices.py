"""What a GPU would refuse or be slow at, told without one: see `tests/pretended.py`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import atoll.data
from atoll import purity
from atoll.engines import devices
from atoll.engines.steps import Steps
from atoll.errors import EngineError
from atoll.federation import Federation
from atoll.methods import METHODS, FedAvg
from atoll.rounds import judging
from atoll.task import Batch, Task
from atoll.tensors import leaves, named_tensors
from tests.halves import fitting
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


def federation(
    method: Any, engine: str, device: str, sizes: tuple[int, ...] = (9, 5, 12, 4), **more: Any
) -> Federation:
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

    network, data = fitting(str(method), model, data)
    more = {"cohort": 3, **more}
    if method == "fedkseed":  # of their defaults, 200 and 4096
        more |= {"steps": 6, "seeds": 64}
    if isinstance(method, str) and METHODS[method].low_rank:
        more["adapter"] = "lora:2"
    return Federation(
        network, data, method, rounds=2, engine=engine, device=device, eval_every=0, seed=3, **more
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


# --- what crosses, and what is waited for -----------------------------------------------------------------------------


def crossings(counted: Any) -> tuple[int, int, int]:
    found = counted.up.total(), counted.down.total(), counted.waits.total()
    counted.reset()
    return found


def test_what_crosses_in_a_batched_round_does_not_grow_with_its_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scaffold remembers a tensor for each parameter: they come and go stacked."""
    monkeypatch.setattr(Steps, "find", as_written)
    seen = []
    for clients in (3, 6):
        with pretended() as counted:
            running = federation("scaffold", "batched", DEVICE.type, sizes=(8,) * clients, cohort=clients)
            running.round()
            counted.reset()
            running.round()
            seen.append(crossings(counted))
    assert seen[0] == seen[1]


def test_memories_are_tensors_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is replaced must not stay because another one lies in the same storage."""
    running = federation("scaffold", "batched", "cpu")
    running.round()
    for client in running.simulation.memories.clients():
        for leaf in leaves(running.simulation.memories.get(client)):
            assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size()


def test_what_crosses_for_a_client_does_not_grow_with_its_steps() -> None:
    seen = []
    for size in (8, 2):
        with pretended() as counted:
            running = federation(FedAvg(batch_size=size), "loop", DEVICE.type, sizes=(16, 16, 16))
            running.round()
            seen.append(crossings(counted))
    assert seen[0] == seen[1]


def test_a_round_waits_once_to_know_that_its_model_is_finite() -> None:
    with pretended() as counted:
        federation("fedavg", "loop", DEVICE.type).round()
    assert counted.waits["rounds/round.py:stepped"] == 1


@pytest.mark.parametrize("room", [1 << 30, 8], ids=["kept", "too large"])
def test_test_data_stay_on_the_device_where_they_fit(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory", lambda _: room)
    monkeypatch.setattr(judging, "ROWS", 4)
    with pretended() as counted:
        running = federation("fedavg", "loop", DEVICE.type)
        now = running.simulation
        params, buffers = running.method.model(now.state)
        everyone = [now.judge(running.method, now.state, now.memories, 1) for _ in range(2)]
        counted.reset()
        assert running.data.test_set is not None
        here = running.engine.resident.within(running.data.test_set)
        now.judge.measures(params, buffers, here)
        up, down, waits = crossings(counted)
    assert (up == 0, down, waits) == (room > 8, 1, 0)
    assert str(everyone[0]) == str(everyone[1])


# --- a device's memory ------------------------------------------------------------------------------------------------


def test_the_width_of_groups_follows_all_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free changes as the allocator keeps what it has had: a width that followed it would change last bits."""

    def refused(*_: Any) -> None:
        raise AssertionError("nobody asks what is free")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refused)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1000))
    room = devices.Room(torch.device("cuda"))
    assert [room.width(100, need, 1) for need in (100, 0, 10_000)] == [5, 100, 1]
    room.halve(5)
    assert [room.width(100, need, 1) for need in (100, 400)] == [2, 1]


@dataclass(frozen=True, kw_only=True)
class Greedy(FedAvg):
    """Its clients are too many for the device when more than `most` are together at a stage of their work."""

    stage: str = "begin"
    most: int = 2
    failed: ClassVar[list[Any]] = []

    def _together(self, stage: str, tensor: Tensor) -> None:
        if stage != self.stage or not torch._C._functorch.is_batchedtensor(tensor):
            return
        assert not any(held() is not None for held in self.failed), "what a group held is still there"
        inside = torch._C._functorch.get_unwrapped(tensor)
        if inside.shape[0] > self.most:
            if type(inside) is Tensor and stage != "step":
                self.failed.append(weakref.ref(inside))
            raise torch.cuda.OutOfMemoryError("no memory")

    def begin(self, task: Any, received: Any, memory: Any, data: Any) -> Any:
        local = super().begin(task, received, memory, data)
        self._together("begin", data.count + 0)
        return local

    def step(self, task: Any, local: Any, batch: Any) -> Any:
        self._together("step", batch.inputs)
        return super().step(task, local, batch)

    def finish(self, task: Any, local: Any, data: Any) -> Any:
        found = super().finish(task, local, data)
        self._together("finish", found[0].values.update["0.bias"])
        return found


@pytest.mark.parametrize("stage", ["begin", "step", "finish"])
def test_groups_that_do_not_fit_are_halved(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    sizes = (9, 5, 12, 4, 7)
    want = federation(FedAvg(), "batched", "cpu", sizes, cohort=5)
    want.engine.width = 2  # type: ignore[attr-defined]
    running = federation(Greedy(stage=stage), "batched", "cpu", sizes, cohort=5)
    for _ in range(2):
        want.round()
        running.round()
    for mine, other in zip(leaves(running.state), leaves(want.state), strict=True):
        assert torch.equal(mine, other) if isinstance(mine, Tensor) else mine == other
    assert len(Greedy.failed) == (stage != "step")
    Greedy.failed.clear()
    (record,) = (each for each in caplog.records if each.name == "atoll.engines")
    assert record.getMessage() == "5 clients at once do not fit the memory of cpu: smaller groups from now on"


def test_a_client_that_does_not_fit_alone_is_an_error_that_says_so() -> None:
    running = federation(Greedy(most=0), "batched", "cpu")
    with pytest.raises(EngineError, match=r"client c\d, begin: the work of a single client") as raised:
        running.round()
    assert "batch_size" in (raised.value.hint or "")
