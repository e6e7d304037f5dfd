"""Peers without a server, and workers that train one model: the same, where everybody hears everybody in every step."""

from __future__ import annotations

import copy

import torch
from torch import nn

import atoll
from atoll.distributed import train

STEPS, LR = 12, 0.3


def test_dpsgd_with_one_step_on_the_complete_graph_is_ddp() -> None:
    """Two processes that sum gradients, and two peers that step and then average: each on half of all samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        start = atoll.models.mlp(64, 16, 10)
    data = atoll.data.load("digits")
    halves = data.partition("iid", clients=2, seed=0)
    assert [halves.size(peer) for peer in range(2)] == [data.train.count / 2] * 2
    ddp = train(
        copy.deepcopy(start), data, "ddp", workers=2, batch=data.train.count, steps=STEPS, every=STEPS, optimizer="sgd",
        lr=LR, threads=1,
    )  # fmt: skip
    peers = atoll.Federation(
        copy.deepcopy(start), halves, "dpsgd", topology="complete", rounds=STEPS,
        lr=LR, batch_size=None, eval_every=0, engine="loop",
    )  # fmt: skip
    peers.fit(progress=False)
    moved = float((flat(ddp.model) - flat(start)).norm())
    assert moved > 0.1
    for row in peers.state.peers.model:
        torch.testing.assert_close(row, flat(ddp.model), rtol=0, atol=1e-6)


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])
