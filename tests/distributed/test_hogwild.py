"""Hogwild: parameters in common memory, stepped without locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import atoll
from atoll.distributed.free.common import Common
from atoll.distributed.free.keeping import _replica
from atoll.distributed.settings import Training
from atoll.distributed.training import prepare
from tests.distributed.test_strategies import alone, blobs, flat, net, trained


def test_one_worker_is_plain_training_to_the_bit() -> None:
    run = trained("hogwild", 1, optimizer="sgd:0,0.01")
    assert torch.equal(flat(run), flat(alone(optimizer="sgd:0,0.01")))
    assert run.figures["staleness"] == 0


def test_a_step_is_one_of_each_worker() -> None:
    run = trained("hogwild", 3, optimizer="sgd", shares="3, 2, 1", shards="iid", test=None)
    assert run.figures["steps"] == 60 and run.figures["rounds"] == 2
    assert run.loss is not None and run.loss < 1.0


def test_both_step_the_same_parameters() -> None:
    """Two models in one process: what one writes the other computes with, statistics in buffers too."""
    training = Training.read(strategy="hogwild", workers=2, steps=4, batch=30, test=None)
    job = prepare(training, lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)), blobs())
    kept, first, second = _replica(job), _replica(job, 0), _replica(job, 1)
    common = Common(job, kept)
    common.begin(kept, 0, 0)
    common.room.lay(first)
    common.room.lay(second)
    assert torch.equal(flat_of(first.module), flat_of(kept.module))
    first.step(0, job.reading.share(0, 0), 0.1)
    assert torch.equal(flat_of(first.module), flat_of(second.module))
    assert not torch.equal(flat_of(first.module), flat_of(kept.module))
    assert int(second.module.state_dict()["0.num_batches_tracked"]) == 1


def flat_of(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def test_a_run_goes_on(tmp_path: Path) -> None:
    given = {"workers": 1, "batch": 30, "every": 10, "threads": 1}
    half = atoll.train(net, blobs(), "hogwild", steps=20, runs=str(tmp_path), **given)
    assert half.folder is not None
    on = atoll.train(net, blobs(), "hogwild", steps=40, runs=str(tmp_path), resume=half.folder.path, **given)
    assert torch.equal(flat(on), flat(atoll.train(net, blobs(), "hogwild", steps=40, **given)))


def test_torchrun_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RANK", "0")
    with pytest.raises(atoll.ConfigError, match="starts its processes itself"):
        atoll.train(net, blobs(), "hogwild", workers=2, steps=2)
