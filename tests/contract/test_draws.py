"""Every draw has an address that begins with the run's seed, on the server too; changes are what methods declare."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import atoll.data
from atoll import seeds
from atoll.contract import Change, ClientData, Job, Reply, Work
from atoll.draws import states, touched, untouched
from atoll.engines.client import Client
from atoll.engines.reading import client_data, of_stage, whole_keys
from atoll.errors import AtollError, ConfigError, EngineError, RunError
from atoll.federation import Federation
from atoll.methods import METHODS, FedAvg
from atoll.task import Batch, Task
from atoll.tensors import Record, leaves
from tests.halves import fitting

ENGINES = ("loop", "batched", "processes")
CPU = torch.device("cpu")


def fixed() -> nn.Module:
    """The same initial parameters for every seed: what still differs is drawn by the run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def data(sizes: tuple[int, ...] = (9, 12, 14, 10, 8)) -> Any:
    rng = np.random.default_rng(3)
    made = {
        f"c{k}": (rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 3, n))
        for k, n in enumerate(sizes)
    }
    public = torch.from_numpy(rng.normal(size=(40, 6)).astype(np.float32))
    return atoll.data.from_clients(made, classes=3, validation=2).publish(public)


def federation(method: Any, seed: int = 0, engine: str = "loop", **settings: Any) -> Federation:
    usual = {"rounds": 3, "cohort": 5, "device": "cpu", "eval_every": 0}
    model, clients = fitting(str(method), fixed, data())
    return Federation(model(), clients, method, seed=seed, engine=engine, **{**usual, **settings})


DRAWS: dict[str, tuple[dict[str, Any], Any]] = {
    "ifca": ({}, lambda fed: fed.state.cluster_params.flat()),
    "pfedhn": ({"steps": 2}, lambda fed: fed.state.embeddings),
    "heterofl": ({"dynamic": True, "batch_size": None}, lambda fed: torch.tensor(
        [fed.method.rate(fed.state.replace(round=t), k) for t in range(9) for k in range(5)])),
    "feddf": ({"distill_steps": 3, "distill_batch": 8}, lambda fed: fed.method.reading(40, fed.population.seed, 1)[1]),
    "pfnm": ({"start": "own"}, lambda fed: fed.method.broadcast(fed.state, [0, 1]).own[1].params.flat()),
    "fedora": ({"sketch_dim": 3}, lambda fed: fed.method.enrol(fed.state, [0])[1].shared.projection),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_what_the_server_draws_follows_from_the_runs_seed(name: str) -> None:
    given, drawn = DRAWS[name]
    one, again, other = (federation(name, seed, **given) for seed in (0, 0, 1))
    for each in (one, again, other):
        each.population = each.simulation.population  # type: ignore[attr-defined]
    assert torch.equal(drawn(one), drawn(again))
    assert not torch.equal(drawn(one), drawn(other))


def test_global_generators_have_an_address_on_the_server_and_are_put_back() -> None:
    draws = {
        "torch's": lambda: float(torch.rand(())),
        "NumPy's": lambda: float(np.random.rand()),  # noqa: NPY002
        "Python's": random.random,
    }

    def drawn(seed: int, round: int) -> dict[str, float]:
        before = states()
        with seeds.scoped(seed, "update", round):
            found = {whose: draw() for whose, draw in draws.items()}
        assert touched(before) is None
        for draw in draws.values():
            draw()  # of no consequence
        return found

    one, again, other, later = drawn(0, 1), drawn(0, 1), drawn(1, 1), drawn(0, 2)
    assert one == again
    assert all(one[whose] not in (other[whose], later[whose]) for whose in draws)


def test_states_that_are_held_are_put_back_once_and_scopes_in_it_start_at_their_addresses() -> None:
    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    def several() -> list[tuple[float, float, float]]:
        found = []
        with seeds.scoped(0, "open", 1):
            found.append(drawn())
            with seeds.scoped(0, "inner"):  # whoever is in a scope goes on where they were
                found.append(drawn())
            found.append(drawn())
        with seeds.scoped(0, "settle", 1):
            found.append(drawn())
        return found

    alone, before = several(), states()
    with contextlib.suppress(KeyError), seeds.held():
        assert several() == alone
        raise KeyError
    assert touched(before) is None
    assert not seeds.free()


def test_an_address_is_the_first_number_of_its_stream() -> None:
    places = [(0, "cohort", 0, 0), (7, "x", 3, 12), (-1, "order", 2**40, 2**33), (2**63, "begin", 5, 10**9)]
    for place in places:
        assert seeds.address(*place) == int(seeds.rng(*place).integers(0, 1 << 63))


@pytest.mark.parametrize("whose", ["torch's", "NumPy's", "NumPy's normal", "Python's", "nobody's"])
def test_global_draws_of_clients_are_noticed_in_a_round_as_they_are_outside(whose: str) -> None:
    draws = {
        "torch's": lambda: torch.rand(()),
        "NumPy's": lambda: np.random.rand(),  # noqa: NPY002
        "NumPy's normal": lambda: np.random.normal(),  # noqa: NPY002
        "Python's": random.random,
        "nobody's": lambda: None,
    }
    np.random.normal()  # noqa: NPY002 - a second one is kept, and the next draw moves nothing else
    before = states()
    for place in (contextlib.nullcontext(), seeds.held()):
        with place:
            if whose == "nobody's":
                assert untouched(lambda: 3, str) == 3
                assert untouched(lambda: untouched(lambda: 3, str), str) == 3
            else:
                with pytest.raises(EngineError, match=whose.split()[0]):
                    untouched(draws[whose], str)
                with pytest.raises(EngineError, match=whose.split()[0]):
                    untouched(lambda: (draws[whose](), untouched(lambda: None, str)), str)
        assert touched(before) is None


def test_replicates_of_the_models_that_a_client_is_sent_differ() -> None:
    made = [federation("fedfomo", seed, models=1, explore=1.0) for seed in (0, 1)]
    for each in made:
        for _ in range(2):
            each.round()
    choices = [[each.method.choice(each.state, k) for k in range(5)] for each in made]  # type: ignore[attr-defined]
    assert choices[0] != choices[1]


@dataclass(frozen=True, kw_only=True)
class Draws(FedAvg):
    """Draws in `begin` and in `finish` without looking at any split."""

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        from atoll.seeds import uniform

        return super().begin(task, received, memory, data).replace(early=uniform(data.key, (3,)))

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        from atoll.seeds import uniform

        reply, _ = super().finish(task, local, data)
        return reply, Record(early=local.early, late=uniform(data.key, (3,)))


def test_begin_and_finish_have_streams_of_their_own_in_every_engine() -> None:
    assert Draws().reads == ()
    kept = []
    for engine in ENGINES:
        fed = federation(Draws(batch_size=4), engine=engine)
        fed.round()
        fed.engine.close()
        kept.append([fed.memories.get(k) for k in range(5)])
    for one, *others in zip(*kept, strict=True):
        assert one is not None
        assert not torch.equal(one.early, one.late)
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))
    assert not torch.equal(kept[0][0].early, kept[0][1].early)
    fed = federation(Draws(batch_size=4), seed=1)
    fed.round()
    again = fed.memories.get(0)
    assert again is not None and not torch.equal(again.early, kept[0][0].early)


def test_the_stream_of_a_stage_reaches_every_split() -> None:
    fed = federation("fedfomo")
    job = Job(fed.method, Work(Record()), [2], 1, 0)
    begun = client_data(fed.data, job.order(2), fed.method, CPU)
    ended = of_stage(begun, whole_keys(job, [2], "finish")[0])
    assert begun.validation is not None and ended.validation is not None
    assert torch.equal(begun.validation.key, begun.key) and torch.equal(ended.validation.key, ended.key)
    assert not torch.equal(begun.key, ended.key)


# --- changes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedora", "fedamp", "fedfomo"])
@pytest.mark.parametrize("engine", ENGINES)
def test_drift_of_methods_that_send_whole_models_is_that_of_the_change(name: str, engine: str) -> None:
    given = {"gate": "always"} if name == "fedora" else {}
    fed = federation(name, engine=engine, batch_size=4, **given)
    fed.round()
    before = {k: fed.memories.get(k) for k in range(5)}
    record = fed.round()
    fed.engine.close()
    for k, norm in zip(record.cohort, record.clients["norm"], strict=True):
        then, now = before[k], fed.memories.get(k)
        assert then is not None and now is not None
        assert norm == pytest.approx(float((now.params - then.params).norm()), rel=1e-3)
        assert norm < 0.9 * float(now.params.norm())  # that of the model itself was shown once


def test_every_change_that_is_declared_is_there() -> None:
    for name, kind in METHODS.items():
        change = kind.change
        sent = name not in ("local", "fedproto", "fedmd", "fedkseed")
        assert change is not None
        if name == "fedbn":  # refuses a model without BatchNorm, and is FedAvg but for that
            continue
        fed = federation(name, **({"adapter": "lora:2"} if kind.low_rank else {}))
        fed.round()
        work = fed.method.broadcast(fed.state, [0])
        job = Job(fed.method, work, [0], 2, 0)
        answer, _ = Client(fed.task, fed.data, CPU).answer(
            job.order(0), job.program, fed.memories.get(0), job.changed
        )
        assert (answer.probe is not None) == sent, name


def test_a_change_can_be_put_back() -> None:
    from atoll.tensors import Tensors

    values = Record(params=Tensors(w=torch.tensor([3.0, 4.0])))
    received = Record(params=Tensors(w=torch.tensor([1.0, 1.0])))
    memory = Record(params=Tensors(w=torch.tensor([2.0, 0.0])))
    for change, moved in (
        (Change("params"), [3.0, 4.0]),
        (Change("params", since="params"), [2.0, 3.0]),
        (Change("params", since="params", where="memory"), [1.0, 4.0]),
    ):
        found = change.of(values, received, memory)
        assert found is not None and found["w"].tolist() == moved
        halved = change.put(found * 0.5, values, received, memory)
        again = change.of(halved, received, memory)
        assert again is not None and again["w"].tolist() == [each / 2 for each in moved]
    assert Change("update").of(values, received, memory) is None


# --- errors ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fails(FedAvg):
    """Raises in one stage."""

    stage: str = "step"
    kind: str = "value"

    def fail(self, stage: str) -> None:
        if stage == self.stage:
            raise {"value": ValueError("no good"), "own": ConfigError("not so", hint="do this")}[self.kind]

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        self.fail("begin")
        return super().begin(task, received, memory, data)

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        self.fail("step")
        return super().step(task, local, batch)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        self.fail("finish")
        return super().finish(task, local, data)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stage", ["begin", "step", "finish"])
def test_errors_name_round_client_and_stage(engine: str, stage: str) -> None:
    fed = federation(
        Fails(stage=stage, batch_size=4), engine=engine, workers=1 if engine == "processes" else None
    )
    with pytest.raises(RunError) as caught:
        fed.fit()
    said = str(caught.value)
    assert f"round 1, client{'s' if engine == 'batched' else ''} c0" in said
    assert f", {stage}: " in said and "no good" in said
    assert fed.number == 0 and fed.memories.clients() == []


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_errors_of_atoll_keep_their_kind_and_hint(engine: str) -> None:
    with pytest.raises(AtollError) as caught:
        federation(Fails(stage="begin", kind="own", batch_size=4), engine=engine).fit()
    assert type(caught.value) is ConfigError
    assert caught.value.message.endswith("begin: not so")
    assert caught.value.hint == "do this"
    assert isinstance(caught.value.__cause__, ConfigError)


def test_an_engine_that_cannot_says_whose_work_it_was() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(x if float(x.sum()) > 0 else -x)  # type: ignore[no-any-return]

    fed = Federation(Branches(), data(), "fedavg", engine="batched", device="cpu", cohort=5, eval_every=0)
    with pytest.raises(EngineError, match=r"round 1, clients c0, c\d, c\d and 2 more, step"):
        fed.fit()
