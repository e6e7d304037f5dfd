"""Flower's NumPyClients in a federation: what FedAvg's clients would do, done by them, gives FedAvg."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

import atoll
from atoll.errors import ConfigError, EngineError
from atoll.flower import NumPyClients

X = [torch.randn(6 + 3 * k, 4, generator=torch.Generator().manual_seed(k)) for k in range(3)]
Y = [(each.sum(1) > 0).long() for each in X]


def net() -> torch.nn.Module:
    return torch.nn.Linear(4, 2)


class Client:
    """One full-batch step of gradient descent, as a user of Flower would write it."""

    def __init__(self, number: int) -> None:
        self.net, self.x, self.y = net(), X[number], Y[number]

    def _take(self, parameters: list[Any]) -> None:
        names = self.net.state_dict()
        self.net.load_state_dict(
            {name: torch.from_numpy(one) for name, one in zip(names, parameters, strict=True)}
        )

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
        self._take(parameters)
        loss = functional.cross_entropy(self.net(self.x), self.y)
        gradients = torch.autograd.grad(loss, list(self.net.parameters()))
        with torch.no_grad():
            for value, gradient in zip(self.net.parameters(), gradients, strict=True):
                value -= config["lr"] * gradient
        arrays = [each.numpy() for each in self.net.state_dict().values()]
        return arrays, len(self.x), {"train_loss": float(loss.detach())}

    def evaluate(self, parameters: list[Any], config: dict[str, Any]) -> Any:
        self._take(parameters)
        outputs = self.net(self.x).detach()
        right = (outputs.argmax(1) == self.y).float().mean()
        return float(functional.cross_entropy(outputs, self.y)), len(self.x), {"accuracy": float(right)}


def federation(client: Callable[[Any], Any], method: str = "fedavg", **settings: Any) -> atoll.Federation:
    nodes = NumPyClients(client, 3, inputs=(4,), classes=2)
    return atoll.Federation(net, nodes.data, method, nodes=nodes, rounds=3, lr=0.5, runs=None, **settings)


def made(context: SimpleNamespace) -> Client:
    return Client(context.node_config["partition-id"])


@pytest.mark.parametrize("method", ["fedavg", "fedadam", "fedavgm"])
def test_they_train_what_clients_of_atoll_train(method: str) -> None:
    found = federation(made, method)
    found.fit(progress=False)
    data = atoll.data.from_clients(list(zip(X, Y, strict=True)), test=None, classes=2)
    due = atoll.Federation(net, data, method, rounds=3, lr=0.5, batch_size=None, engine="loop", runs=None)
    due.fit(progress=False)
    for name, value in due.state.params.items():
        torch.testing.assert_close(found.state.params[name], value)
    assert [each.loss for each in found.history] == pytest.approx(
        [each.loss for each in due.history], rel=1e-5
    )


def test_they_judge_the_model_by_their_own_samples() -> None:
    run = federation(made)
    run.fit(progress=False)
    spread = run.evaluate().clients["accuracy"]
    params = run.state.params
    each = [
        float(((x @ params["weight"].T + params["bias"]).argmax(1) == y).float().mean())
        for x, y in zip(X, Y, strict=True)
    ]
    assert spread.mean == pytest.approx(sum(each) / 3)


def test_a_method_with_a_client_half_of_its_own_is_refused() -> None:
    for method in ("scaffold", "ditto", "fedprox"):
        with pytest.raises(ConfigError, match="client half of its own") as told:
            federation(made, method)
        assert told.value.hint is not None and "fedadam" in told.value.hint


def test_what_a_client_does_wrong_is_told_by_its_name() -> None:
    class Short(Client):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
            arrays, count, told = super().fit(parameters, config)
            return arrays[:1], count, told

    class Raising(Client):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
            raise ValueError("no such file")

    class Untold(Client):
        def evaluate(self, parameters: list[Any], config: dict[str, Any]) -> Any:
            return 0.5, 3, {}

    for kind, said in (
        (Short, "partition-0: fit gave 1 arrays, and the model has 2"),
        (Raising, "round 1, partition-0: fit raised ValueError: no such file"),
        (Untold, "evaluate tells no 'accuracy'"),
    ):
        with pytest.raises(EngineError, match=said):
            federation(lambda context, kind=kind: kind(context.node_config["partition-id"])).fit(
                progress=False
            )
    with pytest.raises(ConfigError, match="has no fit"):
        federation(lambda context: object()).fit(progress=False)
