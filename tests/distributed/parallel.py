"""Small models and data for the strategies by which several workers hold one model."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll
from atoll.distributed import Strategy, Trained, train
from atoll.errors import RunError

Model = Callable[[], nn.Module]


@cache
def blobs(count: int = 200) -> atoll.data.Dataset:
    """Four classes that overlap."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = torch.randn(count, 6, generator=generator) + F.one_hot(y, 6) * 1.5
    return atoll.data.from_arrays(x, y)


@cache
def sentences(count: int = 80) -> atoll.data.Dataset:
    """Seven letters, and which of three kinds is the most frequent."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(0, 12, (count, 7), generator=generator)
    x[:, 0] = 1  # so that everybody has something to attend to
    return atoll.data.from_arrays(x, (x % 3).mode(1).values)


@cache
def pictures(count: int = 60) -> atoll.data.Dataset:
    """Noise with a bright quarter."""
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(0, 4, (count,), generator=generator)
    bright = F.one_hot(y, 4).float().view(-1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return atoll.data.from_arrays(torch.randn(count, 1, 8, 8, generator=generator) + bright, y)


def net() -> nn.Module:
    """A pair with dropout between, and a last layer without a partner."""
    return nn.Sequential(
        nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4)
    )


def deep() -> nn.Module:
    """Four layers that learn."""
    return nn.Sequential(
        nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 4)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 4),
    )  # fmt: skip


class Block(nn.Module):
    """A transformer's block, with masks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16, padding_idx=0)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.block(self.embedding(tokens), later, tokens == 0)[:, -1])  # type: ignore[no-any-return]


DATA: dict[Model, Callable[[], atoll.data.Dataset]] = {
    net: blobs, deep: blobs, cnn: pictures, Block: sentences,
}  # fmt: skip


def trained(model: Model, strategy: Strategy | str, workers: int, **settings: Any) -> Trained:
    usual = {"steps": 20, "batch": 30, "optimizer": "sgd:0.9", "lr": 0.05, "every": 10, "threads": 1}
    return train(model, DATA.get(model, blobs)(), strategy, workers=workers, **{**usual, **settings})


@cache
def known(model: Model, workers: int = 1, **settings: Any) -> Trained:
    """By workers that have a model each."""
    return trained(model, "ddp", workers, **settings)


def flat(run: Trained) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in run.model.parameters()])


def near(run: Trained, other: Trained) -> bool:
    return float((flat(run) - flat(other)).abs().max()) < 1e-5 and run.accuracy == other.accuracy


class _Dies(nn.Module):
    """Ends its process by a signal in one of its calls, once."""

    def __init__(self, call: int, note: Path) -> None:
        super().__init__()
        self.left, self.note = call, note

    def forward(self, value: Tensor) -> Tensor:
        self.left -= 1
        if not self.left and not self.note.exists():
            self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return value


def goes_on(strategy: str, call: int, place: Path) -> None:
    """A worker is killed in mid-run; the run is taken up to the same bits, and by twice as many to the rounding."""

    def mortal() -> nn.Module:
        return nn.Sequential(deep(), _Dies(call, place / "died"))

    settings = {"steps": 12, "every": 3, "optimizer": "adamw", "lr": 0.01}
    with pytest.raises(RunError, match="SIGKILL"):
        trained(mortal, strategy, 2, runs=str(place / "runs"), **settings)
    (folder,) = (place / "runs").glob("*/events.jsonl")
    shutil.copytree(folder.parent, place / "more" / folder.parent.name)
    whole = trained(mortal, strategy, 2, **settings)
    again = trained(mortal, strategy, 2, runs=str(place / "runs"), resume=folder.parent, **settings)
    assert again.figures["steps"] == 12
    assert torch.equal(flat(again), flat(whole))
    more = trained(
        mortal, strategy, 4, runs=str(place / "more"), resume=place / "more" / folder.parent.name, **settings
    )
    assert near(more, whole)
