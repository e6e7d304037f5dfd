"""Judging as a program that clients run, and the pass over all test data at once: the same figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import atoll
import atoll.data
from atoll.federation import Federation
from atoll.rounds.alarm import Alarm
from atoll.rounds.evaluation import Evaluation, Spread
from atoll.rounds.history import Round


def clients(regression: bool = False, tested: int = 7) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    made = {}
    for k, n in enumerate((9, 15, 20, 4)):
        x = rng.normal(size=(n + tested * (k + 1), 6)).astype(np.float32)
        y = x[:, 0].astype(np.float32) if regression else rng.integers(0, 3, len(x))
        made[f"c{k}"] = {"train": (x[:n], y[:n]), "test": (x[n:], y[n:])}
    return made


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("method", ["fedavg", "fedper", "fedamp"])
def test_the_pooled_pass_is_what_clients_answer_who_judge_themselves(method: str, regression: bool) -> None:
    data = atoll.data.from_clients(clients(regression), **({} if regression else {"classes": 3}))
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1 if regression else 3))
    if regression:
        model = nn.Sequential(model, nn.Flatten(0))
    fed = Federation(model, data, method, rounds=2, batch_size=4, device="cpu", engine="loop")
    fed.round()
    judge, (params, buffers) = fed.judge, fed.method.model(fed.state)
    assert data.pool("test") is not None and judge.clients == [0, 1, 2, 3]
    measured = {} if data.test_set is None else judge.measures(params, buffers, data.test_set)
    pooled = judge.pooled(params, buffers, judge.clients, measured)
    asked = judge.asked(fed.method, params, buffers, judge.clients, fed.number)
    assert pooled.keys() == asked.keys() == {0, 1, 2, 3}
    for client, (count, sums) in pooled.items():
        assert asked[client][0] == count
        assert asked[client][1].keys() == sums.keys()
        for name, value in sums.items():
            assert asked[client][1][name] == pytest.approx(value, rel=1e-5)


def test_a_population_made_on_demand_judges_itself() -> None:
    held = list(clients().values())
    whole = {str(k): each for k, each in enumerate(held)}
    lazy = atoll.data.from_function(
        lambda k: held[k], clients=4, classes=3, size=lambda k: len(held[k]["train"][0])
    )
    found = []
    for data in (atoll.data.from_clients(whole, classes=3), lazy):
        torch.manual_seed(0)
        fed = Federation(nn.Linear(6, 3), data, "fedavg", rounds=1, batch_size=4, device="cpu", engine="loop")
        found.append(fed.evaluate())
    for name, spread in found[0].clients.items():
        assert found[1].clients[name].mean == pytest.approx(spread.mean, rel=1e-5)
    assert found[0].each["clients"]["loss"].keys() == found[1].each["clients"]["loss"].keys()


def test_judging_leaves_no_trace() -> None:
    data = atoll.data.from_clients(clients(), classes=3)
    fed = Federation(
        nn.Linear(6, 3), data, "ditto", rounds=2, cohort=2, batch_size=4, device="cpu", engine="loop"
    )
    record = fed.round()
    known = {k: fed.memories.get(k) for k in fed.memories.clients()}
    assert list(known) == list(record.cohort) and len(fed.judge.clients) == 4
    first, second = fed.evaluate(), fed.evaluate()
    assert first == second
    assert {k: fed.memories.get(k) for k in fed.memories.clients()} == known


def patients() -> dict[str, np.ndarray[Any, Any]]:
    """400 people measured in years and in the units of blood; who is ill follows from two of the columns."""
    generator = np.random.default_rng(0)
    age, pressure, lipids = (generator.normal(*each, 400) for each in ((60, 12), (135, 20), (220, 45)))
    ill = (age - 60) / 12 + (pressure - 135) / 20 + generator.normal(0, 0.7, 400) > 0
    return {"age": age, "pressure": pressure, "lipids": lipids, "ill": ill.astype(int)}


@pytest.mark.parametrize("scale", [None, "age:60:12, pressure:135:20, lipids:220:45", "federated"])
def test_a_model_that_gives_everybody_one_class_is_told_of(
    scale: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    data = atoll.data.from_frame(patients(), "ill", scale=scale).partition("iid", clients=8)
    fed = Federation(lambda: atoll.models.mlp(3, 32, 2), data, rounds=12, lr=0.1, engine="loop", device="cpu")
    run = fed.fit()
    told = [event["message"] for event in fed.events() if event["event"] == "problem"]
    if scale is None:
        assert run.accuracy < 0.6
        assert len(told) == 1
        assert "from round 1 to 10 the global model has predicted one class for every test sample" in told[0]
        assert "raw units" in told[0] and "(scale)" in told[0]
        assert "one class: from round 1" in caplog.text
    else:
        assert run.accuracy > 0.8
        assert not told


def test_one_class_is_told_of_once_and_after_ten_rounds_in_a_row() -> None:
    def told(only: list[int | None], personal: bool = False) -> list[int]:
        alarm, spread = Alarm(), {"loss": Spread.of([1.0], [1])} if personal else {}
        found = [
            Round(at, [0], evaluation=Evaluation(only=each, personal=spread))
            for at, each in enumerate(only, 1)
        ]
        return [record.number for record in found if alarm.notice(record)]

    assert told([2] * 25) == [10]
    assert told([2] * 9 + [None] + [0] * 9) == []
    assert told([2] * 9 + [None] + [0] * 10) == [20]
    assert told([2] * 25, personal=True) == []


def test_one_class_is_what_the_model_says_and_not_what_it_is_right_about() -> None:
    x = torch.eye(3).repeat(4, 1)
    y = torch.arange(3).repeat(4)
    fed = Federation(
        nn.Linear(3, 3, bias=True), atoll.data.from_clients([(x, y), (x, y)], classes=3), device="cpu"
    )
    weights = {
        "one": (torch.zeros(3, 3), torch.tensor([0.0, 5, 0])),
        "others wrong": (torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]), torch.zeros(3)),
        "right": (torch.eye(3), torch.zeros(3)),
    }
    found = {}
    for name, (weight, bias) in weights.items():
        params, buffers = fed.method.model(fed.state)
        params = params.map(lambda t, w=weight, b=bias: w if t.ndim == 2 else b)
        test = fed.data.test_set
        assert test is not None
        found[name] = fed.judge._only_class(params, buffers, fed.judge.measures(params, buffers, test), test)
    assert found == {"one": 1, "others wrong": None, "right": None}
