"""Seeds and scalars: what they replay, what they cost, and that they learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import atoll.data
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import FedKSeed
from atoll.methods.adapters.fedkseed import direction, replayed
from atoll.seeds import fold
from atoll.tensors import nbytes
from tests.methods.driver import Client, Played


def data() -> Any:
    generator = torch.Generator().manual_seed(1)
    made = {}
    for k, n in enumerate((14, 9, 12)):
        x = torch.randn(n, 6, generator=generator)
        made[f"c{k}"] = (x, (x[:, :3]).argmax(1))
    return atoll.data.from_clients(made, classes=3, test=0.2)


def federation(engine: str = "loop", **settings: Any) -> Federation:
    settings = {"rounds": 3, "steps": 8, "seeds": 32, "batch_size": 4, "lr": 0.02, **settings}
    return Federation(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
        data(), "fedkseed", engine=engine, device="cpu", eval_every=0, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("adapter", [None, "lora:2"])
def test_the_replay_is_the_model_to_the_bit(adapter: str | None) -> None:
    made = federation(adapter=adapter)
    made.fit(progress=False)
    state, start = made.state, made.task.initial()[0]
    assert int((state.sums != 0).sum()) > 3
    replay = replayed(start, state.sums, state.key)
    for name, value in state.params.items():
        assert torch.equal(replay[name], value)
        assert not torch.equal(start[name], value)
    sent = made.method.broadcast(state, [0])
    assert sent.travels is not None and "params" not in sent.travels
    there = made.method.begin(made.task, sent.travels, atoll.Record(), None).params
    assert all(torch.equal(there[name], value) for name, value in state.params.items())


def test_a_sum_of_what_was_sent_is_the_walk() -> None:
    """One client that is alone: the server's model is the client's own, but for rounding."""
    made = federation(rounds=1, cohort=1, steps=5)
    made.fit(progress=False)
    state, found = made.state, made.task.initial()[0]
    for j in range(32):
        found = found + direction(found, fold(state.key, j)) * state.sums[j]
    assert all(torch.allclose(found[n], v, atol=1e-6) for n, v in state.params.items())


@pytest.mark.parametrize("width", [8, 4096])
def test_a_round_takes_less_than_18_kb_whatever_the_model(width: int) -> None:
    method = FedKSeed()
    task = atoll.Task(nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)))
    state = method.setup(task, atoll.Population(2, (task,)))
    down, up = method.broadcast(state, [0]).nbytes(0), nbytes(method.expects(state))
    assert down + up == 4096 * 4 + 12 + 200 * 6 < 18_000


def test_bytes_of_a_run() -> None:
    told = federation().fit(progress=False).to_dict()
    assert told["bytes_up"] == 3 * 3 * 8 * 6
    assert told["bytes_down"] == 3 * 3 * (32 * 4 + 12)


def played(**settings: Any) -> Played:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = atoll.Task(nn.Linear(6, 3))
    generator = torch.Generator().manual_seed(1)
    people = [Client(torch.randn(n, 6, generator=generator), torch.arange(n) % 3) for n in (9, 5)]
    return Played(FedKSeed(**{"steps": 8, "seeds": 32, "batch_size": 4, **settings}), task, people)


def test_a_client_counts_for_no_more_than_it_has() -> None:
    made = played()
    made.round()
    assert [float(made.sent[k].weight) for k in range(2)] == [9, 5]


def test_an_index_that_nobody_drew_breaks_no_run() -> None:
    made = played()
    work = made.method.broadcast(made.state, [0, 1])
    reducer = made.method.reducer(work)
    for k in range(2):
        reply, _ = made.client(k, made.method, work.received(k))
        index = torch.tensor([-1, -32768, 32, 32767] * 2, dtype=torch.int16)
        reducer.add(k, reply._replace(values=reply.values.replace(index=index)))
    found = reducer.result()
    assert found is not None
    after = made.method.update(made.state, found)
    assert set(torch.nonzero(after.sums).flatten().tolist()) <= {31, 0}


@pytest.mark.slow
def test_it_learns() -> None:
    made = federation(rounds=8, steps=20, seeds=256, lr=0.03)
    losses = [each.loss for each in made.fit(progress=False).rounds]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seeds": 0}, "between 1 and 32768"),
        ({"seeds": 32769}, "between 1 and 32768"),
        ({"eps": 0.0}, "above 0"),
        ({"lr": 0.0}, "above 0"),
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"schedule": "cosin:3"}, "unknown schedule"),
    ],
)
def test_what_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FedKSeed(**settings)
