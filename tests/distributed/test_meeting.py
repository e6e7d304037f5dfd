"""Local SGD and DiLoCo: federated averaging among workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import atoll
from atoll.distributed.strategies.diloco import DiLoCo
from atoll.errors import ConfigError
from atoll.methods.fedopt import FedOpt
from tests.distributed.test_strategies import alone, blobs, flat, net, trained


def test_one_local_step_and_a_plain_outer_step_are_ddp() -> None:
    run = trained("diloco:1,lr=1,momentum=0", 2, optimizer="sgd")
    assert float((flat(run) - flat(alone(optimizer="sgd"))).abs().max()) < 1e-5
    for shares in (None, "3, 1"):  # a worker counts for the samples that it has read
        other = trained("local:1", 2, optimizer="sgd", shares=shares)
        assert float((flat(other) - flat(run)).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("inner", "own", "near"),
    [
        ("sgd", {}, 0.0),
        ("sgd:0.9", {"momentum": 0.9}, 0.0),
        ("adamw:0.01", {"optimizer": "adamw", "weight_decay": 0.01}, 1e-4),  # a fused kernel, and the formula
    ],
)
def test_is_fedopt_with_everybody_present(inner: str, own: dict[str, Any], near: float) -> None:
    """Two workers with 64 samples each, 4 steps of 16 an epoch, 6 meetings; and two clients that do the same.

    Inner states stay where they are from one meeting to the next, and from one round to the next.
    """
    data = blobs(128)
    run = atoll.train(
        net,
        data,
        "diloco:4",
        workers=2,
        shards="iid",
        test=None,
        steps=24,
        batch=32,
        lr=0.01,
        seed=5,
        threads=1,
        optimizer=inner,
    )
    divided = data.partition("iid", clients=2, seed=5, test=None)
    outer, step = DiLoCo().outer()
    method = FedOpt(
        lr=0.01, batch_size=16, server_optimizer="nesterov:0.9", server_lr=step, keep_optimizer=True, **own
    )
    assert method.server_solver() == outer
    federated = atoll.Federation(net, divided, method, rounds=6, cohort=2, seed=5, engine="loop").fit()
    for mine, theirs in zip(run.model.parameters(), federated.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=near)
    if own:
        forgetful = replace(method, keep_optimizer=False)
        other = atoll.Federation(net, divided, forgetful, rounds=6, cohort=2, seed=5, engine="loop").fit()
        far = zip(run.model.parameters(), other.model.parameters(), strict=True)
        assert not all(torch.allclose(mine, theirs, rtol=0, atol=1e-3) for mine, theirs in far)


def test_sends_so_many_times_less() -> None:
    size = len(flat(alone()))
    often, seldom = trained("local:1", 2, steps=40), trained("local:20", 2, steps=40)
    assert often.figures["bytes"] == 20 * seldom.figures["bytes"]
    assert seldom.figures["bytes"] == 2 * (size + size % 2 + 1) * 4  # with the samples that they have read


def test_the_first_steps_together() -> None:
    """All of them together are DDP."""
    run = trained("local:10,60", 2)
    assert float((flat(run) - flat(alone())).abs().max()) < 1e-5


def test_fragments_meet_in_turn_and_learn() -> None:
    """Four tensors in two fragments, whose meetings take three steps."""
    run = trained("diloco:10,fragments=2,overlap=3", 2, steps=200, every=100, optimizer="adamw", lr=0.01)
    assert run.accuracy is not None and alone(steps=200).accuracy is not None
    assert run.accuracy > alone(steps=200).accuracy - 0.08
    assert torch.equal(
        flat(run),
        flat(trained("diloco:10,fragments=2,overlap=3", 2, steps=200, every=100, optimizer="adamw", lr=0.01)),
    )


@pytest.mark.parametrize(
    ("strategy", "settings", "said"),
    [
        ("diloco:7", {}, "steps = 60 is no multiple of 7"),
        ("diloco:10,overlap=10", {}, "a meeting takes 10 steps"),
        ("diloco:10,fragments=11", {}, "11 fragments"),
        ("diloco:0", {}, "every"),
    ],
)
def test_what_cannot_be(strategy: str, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        trained(strategy, 2, **settings)
