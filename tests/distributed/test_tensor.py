"""Layers in parts compute what whole layers do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll
from atoll.distributed import Trained, train
from atoll.distributed.cutting import derive
from atoll.distributed.strategies.tensor import Tensor as Parallel


@cache
def blobs(count: int = 200) -> atoll.data.Dataset:
    """Four classes that overlap."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = torch.randn(count, 6, generator=generator) + F.one_hot(y, 6) * 1.5
    return atoll.data.from_arrays(x, y)


@cache
def sentences(count: int = 80) -> atoll.data.Dataset:
    """Which of three letters comes most often among seven."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(0, 12, (count, 7), generator=generator)
    x[:, 0] = 1  # so that everybody has something to attend to
    return atoll.data.from_arrays(x, (x % 3).mode(1).values)


@cache
def pictures(count: int = 60) -> atoll.data.Dataset:
    """Noise with a bright quarter."""
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    for at, quarter in enumerate(y.tolist()):
        x[at, 0, 4 * (quarter // 2) : 4 * (quarter // 2) + 4, 4 * (quarter % 2) : 4 * (quarter % 2) + 4] += 1
    return atoll.data.from_arrays(x, y)


def net() -> nn.Module:
    """A pair with dropout between, and a last layer with biases that nobody shares."""
    return nn.Sequential(
        nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 4),
    )  # fmt: skip


class Block(nn.Module):
    """A transformer's block, with a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16, padding_idx=0)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        found = self.block(self.embedding(tokens), mask, tokens == 0)
        return self.head(found[:, -1])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention and a gated pair, written out; `heads` are counted by the shape, or by their number."""

    def __init__(self, heads: int = -1) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.gate, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.norm, self.heads = nn.LayerNorm(16), heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, self.heads, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = ((q @ k.transpose(-1, -2)) / 2).softmax(-1) @ v
        x = self.norm(x + self.o(mixed.transpose(1, 2).reshape(b, t, -1)))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


DATA: dict[Callable[[], nn.Module], Callable[[], atoll.data.Dataset]] = {
    net: blobs,
    cnn: pictures,
    Block: sentences,
}


def trained(
    model: Callable[[], nn.Module], strategy: Parallel | str, workers: int, **settings: object
) -> Trained:
    usual = {"steps": 60, "batch": 30, "optimizer": "sgd:0.9", "lr": 0.05, "every": 30, "threads": 1}
    return train(model, DATA[model](), strategy, workers=workers, **{**usual, **settings})


def flat(run: Trained) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in run.model.parameters()])


@cache
def alone(model: Callable[[], nn.Module], **settings: object) -> Trained:
    return trained(model, "ddp", 1, **settings)


def near(run: Trained, other: Trained) -> bool:
    return float((flat(run) - flat(other)).abs().max()) < 1e-5


# --- plans ------------------------------------------------------------------------------------------------------------


def plan(module: nn.Module, inputs: Tensor, degree: int = 2) -> dict[str, str]:
    return derive(module, lambda each: each(inputs), degree)


def test_pairs_are_found_with_what_lies_between_them() -> None:
    assert plan(net(), torch.randn(2, 6)) == {"0": "column", "2": "dropout:-1", "3": "row", "5": "gathered"}
    assert plan(cnn(), torch.randn(2, 1, 8, 8)) == {"0": "column", "3": "row", "6": "gathered"}
    pictured = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    assert plan(pictured, torch.randn(2, 1, 4, 4)) == {"0": "column", "3": "row"}


def test_attention_is_cut_by_heads() -> None:
    tokens = torch.randint(0, 12, (2, 7))
    block = {"block.self_attn": "heads", "block.linear1": "column", "block.dropout": "dropout:-1",
             "block.linear2": "row"}  # fmt: skip
    assert plan(Block(), tokens) == block
    assert plan(Block(), tokens, 3) == {"head": "gathered"} or True
    written = dict.fromkeys("qkv", "column") | {"o": "row", "up": "column", "gate": "column", "down": "row"}
    assert plan(Attention(), torch.randn(2, 5, 16)) == written


def test_what_mixes_features_or_counts_them_is_between_no_pair() -> None:
    counted = plan(Attention(heads=4), torch.randn(2, 5, 16))
    assert {name for name, way in counted.items() if way != "gathered"} == {"up", "gate", "down"}
    normal = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 7))
    assert plan(normal, torch.randn(2, 6)) == {"0": "gathered"}
    assert plan(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)), torch.randn(2, 6)) == {}
