"""What attacks do to learning, and what helps against them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import atoll
from atoll.federation import Federation
from atoll.results import Run

MNIST = Path(os.environ.get("ATOLL_DATA", "absent")) / "mnist"


@cache
def digits() -> Any:
    return atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=20, alpha=1.0), seed=0)


def federation(data: Any, **settings: Any) -> Federation:
    inputs = data.example().inputs[0].numel()
    usual = {"cohort": 20, "seed": 1, "device": "cpu", "engine": "loop", "eval_every": 0, "workers": 1}
    return Federation(lambda: atoll.models.mlp(inputs, 64, 10), data, "fedavg", **{**usual, **settings})


def fitted(data: Any, **settings: Any) -> Run:
    return federation(data, **settings).fit(progress=False)


def test_a_mean_falls_to_turned_signs_and_a_trimmed_mean_of_mixed_updates_does_not() -> None:
    usual = {"rounds": 6, "lr": 0.5, "batch_size": 16, "engine": "batched"}
    lies = {**usual, "attackers": 4, "attack": "signflip"}
    plain, fallen = fitted(digits(), **usual).accuracy, fitted(digits(), **lies).accuracy
    held = fitted(digits(), aggregate="nnm + trimmed:4", **lies).accuracy
    assert plain is not None and fallen is not None and held is not None
    assert plain - fallen > 0.3
    assert plain - held < 0.05


@pytest.mark.parametrize("rule", ["nnm + krum:4", "cclip:1"])
def test_who_knows_the_rule_moves_the_server_no_less(rule: str) -> None:
    """One round: how far from the model without attackers, whose mean the harm is measured from."""
    usual = {"rounds": 1, "lr": 0.3, "batch_size": None}
    clients = [str(client) for client in range(16)]

    def moved(**settings: Any) -> torch.Tensor:
        made = federation(digits(), **{**usual, **settings})
        made.fit(progress=False)
        return made.state.params.flat().double()  # type: ignore[no-any-return]

    lies = {"attackers": ["16", "17", "18", "19"], "aggregate": rule}
    named = dict.fromkeys(clients, 1) | dict.fromkeys(lies["attackers"], 0)
    mean = atoll.FederatedData.weigh(digits(), named)
    made = federation(mean, **usual)
    made.fit(progress=False)
    honest = made.state.params.flat().double()
    for fixed, optimal in (("ipm", "optimal-ipm"), ("alie", "optimal-alie")):
        harm = [float((moved(attack=each, **lies) - honest).norm()) for each in (fixed, optimal)]
        assert harm[1] >= harm[0] - 1e-6


# --- MNIST ----------------------------------------------------------------------------------------------------------


@cache
def mnist() -> Any:
    return atoll.data.load("mnist").partition(atoll.data.Dirichlet(clients=20, alpha=1.0), seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.exists(), reason="ATOLL_DATA has no mnist")
def test_a_backdoor_succeeds_and_a_norm_bound_with_weak_noise_closes_it() -> None:
    usual = {"rounds": 15, "lr": 0.1, "batch_size": 50, "engine": "processes"}
    lies = {"attackers": 0.1, "attack": "backdoor:0 + scaling:5"}
    plain = fitted(mnist(), **usual)
    open_, closed = (
        fitted(mnist(), **usual, **lies),
        fitted(mnist(), **usual, **lies, aggregate="bound:0.6,0.001"),
    )
    assert plain.accuracy is not None and open_.accuracy is not None and closed.accuracy is not None
    assert open_.attack_success is not None and closed.attack_success is not None
    assert open_.attack_success > 0.9 and plain.accuracy - open_.accuracy < 0.02
    assert closed.attack_success < 0.1 and plain.accuracy - closed.accuracy < 0.02


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.exists(), reason="ATOLL_DATA has no mnist")
def test_a_mean_of_mnist_falls_to_turned_signs() -> None:
    usual = {"rounds": 10, "lr": 0.1, "batch_size": 50, "engine": "processes"}
    plain, fallen = fitted(mnist(), **usual), fitted(mnist(), **usual, attackers=4, attack="signflip")
    assert plain.accuracy is not None and fallen.accuracy is not None
    assert plain.accuracy - fallen.accuracy > 0.3
