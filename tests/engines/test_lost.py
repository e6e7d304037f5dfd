"""Runs of clients that are lost with their actors, and what an actor does: with a Ray that is all in this process."""

from __future__ import annotations

import copy
import importlib.metadata
import random
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import atoll.data
import atoll.engines.ray as driver
from atoll.codec import encode
from atoll.engines import cluster
from atoll.engines.actor import Actor, packed, read, unpacked, written
from atoll.engines.pool import AHEAD
from atoll.engines.ray import Actors, home
from atoll.errors import ConfigError, EngineError, MissingExtraError, RunError
from atoll.federation import Federation
from atoll.methods import FedAvg, Scaffold
from atoll.tensors import Record

from .test_engines import CPU, MODELS, clients


class Died(Exception):
    """What Ray raises where an actor is gone."""


class Pretended:
    """Actors that are called when somebody looks at the result; any of them may die then, with all it holds."""

    def __init__(self, seed: int = 0, mortality: float = 0.0, cores: float = 3.0) -> None:
        self.random, self.mortality, self.cores = random.Random(seed), mortality, cores
        self.exceptions = SimpleNamespace(RayError=Died, RayTaskError=type("Task", (Exception,), {}))
        self.died, self.killed = 0, 0

    def remote(self, **options: Any) -> Any:
        return lambda kind: SimpleNamespace(remote=lambda *given: _Handle(self, kind, given))

    def put(self, value: Any) -> Any:
        return value

    def wait(self, refs: list[Any], timeout: float | None) -> tuple[list[Any], list[Any]]:
        alive = [ref for ref in refs if ref.handle.place]
        if not alive and timeout is None:
            raise AssertionError("this would hang")
        return ([self.random.choice(alive)] if alive else []), []

    def get(self, ref: Any) -> Any:
        if self.random.random() < self.mortality:
            ref.handle.dead = True
            self.died += 1
        return ref.found()

    def kill(self, handle: Any) -> None:
        self.killed += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cores}

    available_resources = cluster_resources


class _Handle:
    def __init__(self, world: Pretended, kind: type, given: tuple[Any, ...]) -> None:
        self.world, self.actor, self.dead, self.place = world, kind(*given), False, True
        self.calls: list[_Ref] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: self._called(name, given))

    def _called(self, name: str, given: tuple[Any, ...]) -> _Ref:
        ref = _Ref(self, lambda: getattr(self.actor, name)(*given))
        self.calls.append(ref)
        return ref


class _Ref:
    def __init__(self, handle: _Handle, call: Callable[[], Any]) -> None:
        self.handle, self.call = handle, call

    def found(self) -> Any:
        if self.handle.dead:
            raise Died("the actor is gone")
        while True:  # calls are done in their order
            ref = self.handle.calls.pop(0)
            came = ref.call()
            if ref is self:
                return came


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretended]:
    """Makes the Ray that engines find from then on."""

    def made(*given: Any, **named: Any) -> Pretended:
        ray = Pretended(*given, **named)
        held = SimpleNamespace(ray=ray, put_data=ray.put, close=lambda: None)
        monkeypatch.setattr(driver, "Cluster", lambda address, cores: held)
        monkeypatch.setattr(driver, "check", lambda address: None)
        return ray

    return made


def fitted(engine: str, method: FedAvg, **kw: Any) -> Federation:
    federation = Federation(
        MODELS["mlp"][0],
        clients(),
        method,
        rounds=4,
        cohort=5,
        engine=engine,
        eval_every=0,
        device="cpu",
        **kw,
    )
    federation.fit()
    return federation


def bits(federation: Federation) -> bytes:
    """State and memories."""
    memories = {str(k): memory for k in range(5) if (memory := federation.memories.get(k)) is not None}
    return encode(Record(state=federation.state, memories=Record(memories)))


@pytest.mark.parametrize(
    "method", [FedAvg(batch_size=4), Scaffold(lr=0.05, batch_size=4)], ids=["fedavg", "scaffold"]
)
def test_who_dies_and_who_is_first_changes_no_bit(method: FedAvg, world: Callable[..., Pretended]) -> None:
    wanted = bits(fitted("processes", method, workers=1))
    for seed, (workers, mortality) in enumerate([(1, 0.0), (2, 0.3), (3, 0.3), (None, 0.3)]):
        ray = world(seed, mortality)
        assert bits(fitted("ray", method, workers=workers)) == wanted
        assert ray.died > 2 or not mortality
        assert ray.killed >= ray.died + (workers or 3), "nobody is left behind"


def test_clients_whose_work_ends_actors_end_the_run(world: Callable[..., Pretended]) -> None:
    world(0, 1.0)
    with pytest.raises(
        RunError, match=r"5 actors .* ended unexpectedly, one after the other: the actor is gone\n.*memory"
    ):
        fitted("ray", FedAvg(batch_size=4))


def test_a_cluster_without_room_is_an_error_and_not_a_hang(
    world: Callable[..., Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    world(cores=0.5)
    with pytest.raises(ConfigError, match="no core for an actor"):
        fitted("ray", FedAvg(batch_size=4))
    monkeypatch.setattr(_Handle, "place", False, raising=False)
    monkeypatch.setattr(_Handle, "__init__", _nowhere)
    with pytest.raises(RunError, match=r"no actor of the Ray cluster was there within 120 s\n.*0.5 cores"):
        fitted("ray", FedAvg(batch_size=4), workers=2)


def _nowhere(self: Any, world: Any, kind: Any, given: Any) -> None:
    self.world, self.calls, self.dead, self.place = world, [], False, False


def test_a_node_with_other_versions_is_refused(
    world: Callable[..., Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    world()
    monkeypatch.setattr(driver, "alike", lambda: {"atoll": "0.0.1", "torch": "2.0.0", "instructions": "AVX"})
    with pytest.raises(ConfigError, match=r"a node of the Ray cluster has atoll .*, and the driver 0.0.1"):
        fitted("ray", FedAvg(batch_size=4))


def test_what_goes_wrong_in_a_clients_work_says_where(world: Callable[..., Pretended]) -> None:
    class Fails(FedAvg):
        def finish(self, *given: Any) -> Any:
            raise KeyError("control")

    world()
    with pytest.raises(RunError, match=r"round 1, client c\d, finish: KeyError: 'control'"):
        fitted("ray", Fails(batch_size=4))


def test_clients_stay_with_an_actor_unless_it_is_busy() -> None:
    crew = Actors(None, None, CPU, None, None, 0.0, 1)  # type: ignore[arg-type]
    crew.actors = [None] * 3  # type: ignore[list-item]
    mine = [k for k in range(1000) if home(k, 3) == 1]
    assert 250 < len(mine) < 420
    other = next(k for k in range(1000) if home(k, 3) != 1)
    assert crew.pick(1, [[other], [mine[0], other]]) == 1
    assert crew.pick(1, [[other], [other]]) == 0
    far = [[other]] * (3 * AHEAD)
    assert crew.pick(1, [*far, [mine[0]]]) == 0, "parts that are early have to wait for those before them"


def test_on_a_gpu_an_actor_runs_clients_together(
    world: Callable[..., Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.engines.actor.GPU", CPU)
    world(1, 0.2)
    method = Scaffold(lr=0.05, batch_size=4)
    alone, together = fitted("loop", method), fitted("ray", method, ray_gpus=0.5, workers=2)
    assert bits(together) == bits(fitted("ray", method, ray_gpus=0.5, workers=3))
    torch.testing.assert_close(alone.state.params.flat(), together.state.params.flat(), rtol=1e-4, atol=1e-6)


# --- what lies in the store -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_data_are_read_where_they_lie(dtype: torch.dtype) -> None:
    tensor = torch.arange(35).reshape(5, 7).to(dtype)
    message, octets = packed(tensor.t())
    octets.flags.writeable = False  # as Ray gives it
    found = unpacked((message, octets))
    assert torch.equal(found, tensor.t()) and found.dtype == dtype
    assert found.data_ptr() == octets.ctypes.data


def test_a_record_comes_back_with_tensors_of_its_own() -> None:
    header, octets = written(Record(a=torch.ones(3), b=Record(c=2.5)))
    octets.flags.writeable = False
    found = read(header, octets)
    assert found.b.c == 2.5
    found.a.add_(1)
    assert octets.view(np.float32)[0] == 1


def test_a_population_travels_as_its_function() -> None:
    data = atoll.data.from_function(lambda k: (torch.full((3, 2), float(k)), torch.zeros(3).long()), 9, 2)
    assert (there := data.samples(4)) is not None
    twin: Any = copy.deepcopy(data)
    assert not twin._kept
    assert torch.equal(twin.samples(4).inputs, there.inputs)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(MissingExtraError, match=r'engine = "ray" needs ray.*\n.*atoll\[ray\]') as caught:
        fitted("ray", FedAvg())
    assert caught.value.exit_code == 3


def test_an_address_where_no_cluster_is_says_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_REACHED", 0.2)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.60.0")
    with socket.socket() as silent, socket.socket() as other:
        for each in (silent, other):
            each.bind(("127.0.0.1", 0))
        silent.listen()
        mute, closed = (f"127.0.0.1:{each.getsockname()[1]}" for each in (silent, other))
        for address, what in ((mute, "timed out"), (closed, "refused")):
            with pytest.raises(
                ConfigError, match=rf"no Ray cluster can be reached at ray_address = '{address}': .*{what}"
            ) as caught:
                fitted("ray", FedAvg(), ray_address=address)
            assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"ray_address is 'head'\n.*10.0.0.1:6379"):
        fitted("ray", FedAvg(), ray_address="head")


def test_settings_of_ray_are_for_ray() -> None:
    with pytest.raises(ConfigError, match='ray_address is for engine = "ray", and the engine is loop'):
        fitted("loop", FedAvg(), ray_address="auto")


def test_a_server_on_a_gpu_needs_actors_on_gpus() -> None:
    federation = Federation(MODELS["mlp"][0], clients(), FedAvg(), engine="loop", device="cpu")
    with pytest.raises(EngineError, match="ray_gpus"):
        driver.Ray(federation.task, federation.data, torch.device("cuda:0"))


def test_an_actor_is_what_a_worker_process_is() -> None:
    dtype = torch.get_default_dtype()
    federation = Federation(MODELS["mlp"][0], clients(), FedAvg(), engine="loop", device="cpu")
    actor = Actor(federation.task, federation.data, False, dtype)
    assert actor.hello() == driver.alike() and torch.get_num_threads() == 1
