"""Several workers compute what one computes on the union batch."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import atoll
from atoll.distributed import Trained, Training, train

SAME = ["ddp", "ring", "zero1", "fsdp"]
"""Strategies that are synchronous and exact."""


@cache
def blobs(count: int = 200) -> atoll.data.Dataset:
    """Four classes that overlap."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = torch.randn(count, 6, generator=generator) + torch.nn.functional.one_hot(y, 6) * 1.5
    return atoll.data.from_arrays(x, y)


def net() -> nn.Module:
    """An odd number of parameters, so that padding is needed."""
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))


def trained(strategy: str, workers: int, **settings: object) -> Trained:
    usual = {"steps": 60, "batch": 30, "optimizer": "sgd:0.9", "lr": 0.05, "every": 30, "threads": 1}
    return train(net, blobs(), strategy, workers=workers, **{**usual, **settings})


def flat(run: Trained) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in run.model.parameters()])


@cache
def alone(**settings: object) -> Trained:
    return trained("ddp", 1, **settings)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", SAME)
def test_is_one_process_on_the_union_batch(strategy: str, workers: int) -> None:
    run = trained(strategy, workers)
    assert float((flat(run) - flat(alone())).abs().max()) < 1e-5
    assert run.accuracy == alone().accuracy
    assert torch.equal(flat(trained(strategy, workers)), flat(run))


@pytest.mark.parametrize("strategy", SAME)
def test_uneven_parts_count_for_their_samples(strategy: str) -> None:
    """A batch of 30 in parts of 23 and 7, and at the end of an epoch 10 samples in two parts."""
    run = trained(strategy, 2, shares="3, 1", clip=0.5, accumulate=2)
    assert float((flat(run) - flat(alone(clip=0.5))).abs().max()) < 1e-5


def test_a_ring_sends_exactly_what_it_must() -> None:
    size = -(-len(flat(alone())) // 4) * 4
    run = trained("ring", 4, steps=5, every=5)
    assert run.figures["bytes"] == 5 * 2 * 3 / 4 * size * 4


def test_schedules_are_multiplied() -> None:
    found = Training(schedule="warmup:10 + cosine:100")
    assert [found.factor(step) for step in (0, 9, 50)] == pytest.approx([0.1, 0.98, 0.5], abs=0.001)
