"""A toy of each room that is to come, through the doors that it will use: a transform, a reducer, a round by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import atoll.data
from atoll.callbacks import Callback
from atoll.codec import decode, encode
from atoll.contract import (
    Answer,
    Around,
    Change,
    Channel,
    ClientData,
    Memories,
    Order,
    Outcome,
    Program,
    Reducer,
    Replies,
    Reply,
    Total,
    Work,
)
from atoll.engines import Batched, Engine
from atoll.engines.client import Client
from atoll.federation import Federation
from atoll.methods import FedAvg, Fedora
from atoll.rounds.cohort import Cohort
from atoll.rounds.history import Round
from atoll.rounds.round import ServerRound
from atoll.task import Task
from atoll.tensors import Record, leaves

ENGINES = ("loop", "batched", "processes")


def data(sizes: Sequence[int] = (9, 30, 14, 22, 5, 17, 11)) -> Any:
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(6, 3))
    made = {}
    for at, n in enumerate(sizes):
        x = rng.normal(size=(n, 6)).astype(np.float32)
        made[f"site{at}"] = {"train": (x, (x @ weights).argmax(1)), "test": (x, (x @ weights).argmax(1))}
    return atoll.data.from_clients(made, classes=3, validation=2)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def federation(method: Any = "fedavg", engine: str = "loop", **settings: Any) -> Federation:
    usual = {"rounds": 4, "cohort": 4, "seed": 5, "device": "cpu", "batch_size": 4, "eval_every": 2}
    return Federation(network, data(), method, engine=engine, **{**usual, **settings})


def bits(record: Record) -> list[bytes]:
    return [v.numpy().tobytes() if isinstance(v, Tensor) else repr(v).encode() for v in leaves(record)]


# --- a transform ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip(Around):
    """Shorten the change to `norm`, and count how often that was needed."""

    norm: float = 1.0

    def own(self, task: Task, received: Record) -> Record:
        return Record(times=torch.zeros(()))

    def send(
        self, reply: Reply, received: Record, memory: Record, own: Record, key: Tensor
    ) -> tuple[Reply, Record]:
        assert self.change is not None
        change = self.change.of(reply.values, received, memory)
        assert change is not None
        factor = (self.norm / change.norm()).clamp(max=1)
        sent = self.change.put(change * factor, reply.values, received, memory)
        return reply._replace(values=sent), own.replace(times=own.times + (factor < 1))


@dataclass(frozen=True)
class Clipping(Channel):
    """The channel of one transform."""

    norm: float

    def program(self, name: str, inner: Program, change: Change | None) -> Around:
        return Clip(inner, change, self.norm) if name == "train" else Around(inner, change)


METHODS = {"fedavg": {}, "scaffold": {}, "fedora": {"gate": "always"}, "fedamp": {}}


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=pytest.mark.slow if name in ("fedavg", "fedora") else ()) for name in METHODS],
)
def test_a_transform_works_in_all_engines_with_a_memory_of_its_own(method: str) -> None:
    made = [federation(method, engine, channel=Clipping(0.01), **METHODS[method]) for engine in ENGINES]
    runs = [each.fit() for each in made]
    for each in made[1:]:
        for a, b in zip(leaves(made[0].state), leaves(each.state), strict=True):
            if isinstance(a, Tensor):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    last = [record for record in runs[0].rounds if record.clients][-1]
    assert max(last.clients["norm"]) == pytest.approx(0.01, rel=1e-3)  # exact for so small a model
    free = federation(method, **METHODS[method]).fit()
    assert max(free.rounds[-1].clients["norm"]) > 0.1
    took_part = {client for record in runs[0].rounds for client in record.cohort}
    for each in made:
        assert set(each.memories.clients()) == took_part
        counted = {k: int(each.memories.get(k).channel.times) for k in took_part}  # type: ignore[union-attr]
        assert counted == {k: sum(k in record.cohort for record in runs[0].rounds) for k in took_part}
        alone = each.memories.get(min(took_part))
        assert alone is not None and ("method" in alone) == (method != "fedavg")
    assert made[0].personal("site0").eval()(torch.zeros(2, 6)).shape == (2, 3)


def test_a_transform_that_does_nothing_changes_no_bit() -> None:
    @dataclass(frozen=True)
    class Nothing(Clipping):
        def program(self, name: str, inner: Program, change: Change | None) -> Around:
            return Around(inner, change)

    for method in ("fedavg", "scaffold", "ditto", "fedora"):
        through, plain = federation(method, channel=Nothing(1)), federation(method)
        assert through.fit().evaluation == plain.fit().evaluation
        assert bits(through.state) == bits(plain.state)


def test_a_transformed_step_is_captured_once() -> None:
    fed = Federation(
        network,
        data((10,) * 6),
        "fedavg",
        engine="batched",
        channel=Clipping(0.05),
        batch_size=4,
        device="cpu",
    )
    counts = []
    for _ in range(3):
        fed.round()
        assert isinstance(fed.engine, Batched)
        counts.append(len(fed.engine.steps.known))
    assert counts[0] == counts[2] > 0


class StopAfter(Callback):
    def __init__(self, number: int) -> None:
        self.number = number

    def on_round_end(self, federation: Federation, record: Round) -> None:
        if record.number == self.number:
            federation.stop()


@pytest.mark.parametrize("method", ["scaffold", "fedora"])
def test_what_a_transform_remembers_survives_a_resumed_run(method: str, tmp_path: Path) -> None:
    channel = Clipping(0.05)
    whole = federation(method, channel=channel, checkpoint=1)
    whole.fit()
    federation(method, channel=channel, checkpoint=1, runs=tmp_path, callbacks=[StopAfter(2)]).fit()
    again = federation(method, channel=channel, checkpoint=1, runs=tmp_path).resume()
    again.fit()
    assert bits(again.state) == bits(whole.state)
    for client in whole.memories.clients():
        one, other = whole.memories.get(client), again.memories.get(client)
        assert one is not None and other is not None
        assert bits(one) == bits(other)


# --- a reducer ------------------------------------------------------------------------------------------------------

MODULUS = 2**31 - 1


class ModularSum(Total):
    """Whole numbers, added up modulo a prime."""

    def contribution(self, reply: Reply) -> Record:
        return Record(masked=reply.values.masked.clone())

    def combine(self, total: Record, more: Record) -> Record:
        return Record(masked=(total.masked + more.masked) % MODULUS)


@dataclass(frozen=True, kw_only=True)
class Counted(FedAvg):
    """Sends every weight as a whole number that wraps around, and the server reads the sum."""

    def reducer(self, work: Work) -> Reducer:
        return ModularSum()

    def expects(self, state: Record) -> Record:
        return Record()

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        fixed = (reply.values["update"].flat().double() * 2**20).round().to(torch.int64) % MODULUS
        return reply._replace(values=Record(masked=fixed), weight=torch.ones_like(reply.weight)), memory

    def update(self, state: Record, replies: Replies) -> Record:
        total = replies.mean.masked
        signed = torch.where(total > MODULUS // 2, total - MODULUS, total)
        mean = (signed.double() / 2**20 / replies.count).float()
        return state.replace(params=state.params + state.params.unflat(mean), round=state.round + 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_reducer_of_ones_own_works_in_all_engines_with_partial_sums(engine: str) -> None:
    more = data(tuple(range(5, 80)))  # more clients than runs: parts are summed before they are merged
    settings: dict[str, Any] = {"rounds": 2, "cohort": 70, "seed": 5, "device": "cpu", "eval_every": 0}
    fed = Federation(network, more, Counted(batch_size=16), engine=engine, workers=2, **settings)
    fed.fit()
    uniform = Federation(network, more, Uniform(batch_size=16), engine="loop", **settings)
    uniform.fit()
    gap = (fed.state.params.flat() - uniform.state.params.flat()).abs().max()
    assert 0 < float(gap) < 2e-6  # a step of the grid of fixed-point numbers is 1e-6


@dataclass(frozen=True, kw_only=True)
class Uniform(FedAvg):
    """Clients count equally; buffers stay as they were."""

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        return reply._replace(weight=torch.ones_like(reply.weight)), memory

    def update(self, state: Record, replies: Replies) -> Record:
        return super().update(state, replies).replace(buffers=state.buffers)


# --- a round by hand ------------------------------------------------------------------------------------------------


class Wired(Engine):
    """Every order and every answer crosses a stream of bytes, and answers come in scrambled order."""

    name: ClassVar[str] = "wired"
    order = np.random.default_rng(1)

    def run(self, job: Any, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        raise AssertionError("this engine plays whole rounds")

    def play(self, round: ServerRound, memories: Memories) -> int:
        """Play a round to its end; how many bytes it took."""
        half, sent = Client(self.task, self.data, self.device), 0
        while round.job is not None:
            orders = [encode(order.to_record()) for order in round.orders()]
            self.order.shuffle(orders)
            for blob in orders:
                order = Order.of_record(decode(blob))
                program = round.job.program  # a client knows the method
                answer, memory = half.answer(order, program, memories.get(order.client))
                back = encode(answer.to_record())
                sent += len(blob) + len(back)
                outcome = round.deliver(Answer.of_record(decode(back)))
                if memory and not outcome.refused:
                    memories.put(order.client, memory)
            assert round.missing == []
            round.close()
        return sent


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedora", "fedamp", "heterofl", "ditto", "cfl"])
def test_a_round_by_hand_over_bytes_in_any_order_is_the_simulated_one_to_the_bit(method: str) -> None:
    simulated, by_hand = federation(method), federation(method)
    wire = Wired(by_hand.task, by_hand.data, torch.device("cpu"))
    now = by_hand.simulation
    for number in range(1, 4):
        simulated.round()
        cohort, _ = now.cohorts.enlist(number, now.progress.choice)
        round = ServerRound(now.method, now.population, now.state, cohort, number, by_hand.seed)
        assert wire.play(round, now.memories) > round.bytes_up + round.bytes_down > 0
        now.state = round.state
        now.memories.commit()
        assert bits(now.state) == bits(simulated.state)
    for client in simulated.memories.clients():
        one, other = simulated.memories.get(client), now.memories.get(client)
        assert one is not None and other is not None and bits(one) == bits(other)


def test_a_round_knows_who_has_answered_and_takes_no_answer_twice() -> None:
    fed = federation(Fedora(gate="always", batch_size=4), batch_size=4)
    now = fed.simulation
    round = ServerRound(now.method, now.population, now.state, Cohort([1, 3, 4]), 1, 5)
    half = Client(fed.task, fed.data, torch.device("cpu"))
    assert (round.phase, round.missing) == ("enrol", [1, 3, 4])
    for order in reversed(round.orders()):
        round.deliver(half.answer(order, round.job.program, None)[0])  # type: ignore[union-attr]
    round.close()
    assert (round.phase, round.missing) == ("train", [1, 3, 4])
    answers = {order.client: half.answer(order, now.method, None)[0] for order in round.orders()}
    assert round.deliver(answers[4]).refused is None
    assert round.missing == [1, 3]
    with pytest.raises(ValueError, match="4 has answered before"):
        round.deliver(answers[4])
    with pytest.raises(KeyError):
        round.deliver(answers[1]._replace(client=2))
    round.deliver(answers[1])
    before = bits(now.state)
    round.close()  # client 3 never came
    assert (round.phase, round.missing) == ("over", [])
    assert sorted(k for k in round.state.models) == ["1", "4"]
    assert bits(now.state) == before  # the state it began with is not touched


def test_whoever_is_missing_does_not_change_the_order_of_sums() -> None:
    fed = federation()
    now, half = fed.simulation, Client(fed.task, fed.data, torch.device("cpu"))
    states = []
    for order in ([0, 2, 5, 6], [6, 5, 2, 0]):
        round = ServerRound(now.method, now.population, now.state, Cohort([0, 1, 2, 5, 6]), 1, 5)
        orders = {each.client: each for each in round.orders()}
        for client in order:  # client 1 is missing
            round.deliver(half.answer(orders[client], now.method, None)[0])
        round.close()
        states.append(bits(round.state))
    assert states[0] == states[1]
