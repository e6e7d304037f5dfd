"""Every client step can be captured: it is a pure function that keeps the form of its working state."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.utils import _pytree as pytree

from atoll.adapters import apply
from atoll.contract import ClientData, Method, Population, Program
from atoll.engines.capture import capture
from atoll.methods import (
    METHODS,
    CrossModal,
    FedAvg,
    FedKSeed,
    FedNova,
    FedProx,
    FedSGD,
    FineTune,
    QFedAvg,
    Scaffold,
)
from atoll.task import Task
from atoll.tensors import Record
from tests.halves import halved, halves

from .driver import Client, blobs, network, whole

VARIANTS: dict[str, Method] = {
    **{name: method() for name, method in METHODS.items()},
    "fedkseed": FedKSeed(steps=6, seeds=64),
    "fedavg-momentum": FedAvg(momentum=0.9),
    "fedavg-adam": FedAvg(optimizer="adam", lr=0.01, weight_decay=0.1),
    "fedavg-nesterov": FedAvg(momentum=0.9, nesterov=True, clip=0.1),
    "fedprox-gamma": FedProx(gamma=0.5, momentum=0.9),
    "scaffold-1": Scaffold(option=1, momentum=0.9),
    "fednova-all": FedNova(mu=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "fedsgd-clip": FedSGD(clip=0.1),
    "qfedavg-0": QFedAvg(q=0.0),
}


def suited(method: Method, normalised: bool, clients: Sequence[Client]) -> tuple[Task, Sequence[Client]]:
    """A task and clients, with an adapter or in two parts where the method is for such."""
    if isinstance(method, CrossModal):
        return Task(halves()), [
            Client(halved(x), y, test and (halved(test[0]), test[1]))  # type: ignore[arg-type]
            for x, y, test in clients
        ]
    task = network(normalised)
    return Task(apply(task.module, "lora:2,4")) if method.low_rank else task, clients


def started(method: Method, program: Program, normalised: bool) -> tuple[Record, ClientData]:
    """A client's working state, with nothing in it zero that need not be."""
    task, (client,) = suited(method, normalised, blobs(8, tested=4))
    assert client.test is not None
    population = Population(2, (task,), client.inputs[:1], client.inputs)
    received = method.broadcast(method.setup(task, population), [0]).received(0)
    memory = pytree.tree_map(lambda leaf: leaf + 0.01, program.remember(task, received))
    splits = {"train": whole(client.inputs, client.targets), "test": whole(*client.test)}
    splits["validation"], splits["public"] = splits["test"], splits["train"]
    data = ClientData(torch.tensor(8.0), torch.tensor(0), **{name: splits[name] for name in program.reads})
    return program.begin(task, received, memory, data), data


BUFFERED = ("fedsgd", "fedavg", "fedprox-gamma", "fednova-all", "fedbn")
PLAIN = [name for name in (*VARIANTS, "tuned") if name != "fedbn"]  # which refuses a model without BatchNorm


@pytest.mark.parametrize(
    ("name", "normalised"),
    [*((name, False) for name in PLAIN), *((name, True) for name in BUFFERED)],
)
def test_a_captured_step_is_the_step(name: str, normalised: bool) -> None:
    method = VARIANTS.get(name) or FineTune(finetune_epochs=2)
    program = method if name in VARIANTS else method.program("personal")
    task, (client,) = suited(method, normalised, blobs(8))
    cuts = [whole(client.inputs[at : at + 4], client.targets[at : at + 4]) for at in (0, 4)]
    with torch.no_grad():
        local, data = started(method, program, normalised)
        captured = capture(lambda state, batch: program.step(task, state, batch), local, cuts[0])
        before = [leaf.clone() for leaf in pytree.tree_leaves(local)]
        fast = [leaf.clone() for leaf in before]
        for batch in (cuts[0], cuts[1], cuts[0]):
            local = program.step(task, local, batch)
            fast = captured(fast, list(batch))
        slow, spec = pytree.tree_flatten(local)
        assert any(not torch.equal(a, b) for a, b in zip(slow, before, strict=True))
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
        same = program.finish(task, pytree.tree_unflatten(fast, spec), data)
        torch.testing.assert_close(
            pytree.tree_leaves(same),
            pytree.tree_leaves(program.finish(task, local, data)),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_the_client_half_changes_nothing_it_was_given(name: str) -> None:
    method = VARIANTS[name]
    task, (client,) = suited(method, True, blobs(8))
    with torch.no_grad():
        local, data = started(method, method, normalised=True)
        held = [leaf for leaf in pytree.tree_leaves((local, data)) if leaf is not None]
        given = [leaf.clone() for leaf in held]
        method.finish(task, method.step(task, local, whole(client.inputs, client.targets)), data)
        torch.testing.assert_close(held, given, rtol=0, atol=0)
