"""Layers in parts compute what whole layers do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atoll.distributed import parse
from atoll.distributed.cutting import derive
from atoll.distributed.strategies.tensor import Tensor as Parallel
from atoll.errors import ConfigError
from tests.distributed.parallel import Block, Model, cnn, deep, flat, goes_on, known, near, net, trained


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


class Tied(nn.Module):
    """An embedding whose weights are read again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.embedding(tokens).mean(1), self.embedding.weight)


# --- plans ------------------------------------------------------------------------------------------------------------


def plan(module: nn.Module, inputs: Tensor, degree: int = 2) -> dict[str, str]:
    return derive(module, lambda each: each(inputs), degree)


def test_pairs_are_found_with_what_lies_between_them() -> None:
    found = {"0": "column", "2": "dropout:-1", "3": "row", "5": "gathered"}
    assert plan(net(), torch.randn(2, 6)) == found
    assert plan(cnn(), torch.randn(2, 1, 8, 8)) == {"0": "column", "3": "row", "6": "gathered"}
    flattened = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, 3))
    assert plan(flattened, torch.randn(2, 1, 4, 4)) == {"0": "column", "3": "row"}


def test_attention_is_cut_by_heads() -> None:
    found = plan(Block(), torch.randint(1, 12, (2, 7)))
    inside = {"self_attn": "heads", "linear1": "column", "dropout": "dropout:-1", "linear2": "row"}
    assert found == {f"block.{name}": way for name, way in inside.items()}
    written = dict.fromkeys("qkv", "column") | {"o": "row", "up": "column", "gate": "column", "down": "row"}
    assert plan(Attention(), torch.randn(2, 5, 16)) == written


def test_what_mixes_features_or_counts_them_is_between_no_pair() -> None:
    counted = plan(Attention(heads=4), torch.randn(2, 5, 16))
    assert {name for name, way in counted.items() if way != "gathered"} == {"up", "gate", "down"}
    for between in (nn.LayerNorm(8), nn.Softmax(-1)):
        assert plan(nn.Sequential(nn.Linear(6, 8), between, nn.Linear(8, 7)), torch.randn(2, 6)) == {
            "0": "gathered"
        }
    assert plan(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)), torch.randn(2, 6)) == {}
    assert plan(Tied(), torch.randint(0, 12, (2, 7))) == {}


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 4])
def test_parts_are_the_whole_dropout_included(workers: int) -> None:
    """Two copies draw as two workers with a model each."""
    run = trained(net, "tensor:2", workers)
    assert near(run, known(net, workers // 2))
    assert run.loss == pytest.approx(known(net, workers // 2).loss, abs=1e-6)


def test_a_transformers_block_in_parts_is_the_whole() -> None:
    run = trained(Block, "tensor:2", 2)
    assert near(run, known(Block))
    assert torch.equal(flat(trained(Block, "tensor:2", 2)), flat(run))


@pytest.mark.slow
@pytest.mark.parametrize("model", [net, cnn, Block])
@pytest.mark.parametrize(("strategy", "workers"), [("tensor:2", 2), ("tensor:2", 4), ("tensor:4", 4)])
def test_more_parts_and_copies_are_the_whole(model: Model, strategy: str, workers: int) -> None:
    run = trained(model, strategy, workers, steps=60)
    assert near(run, known(model, workers // parse(strategy).degree, steps=60))
    assert torch.equal(flat(trained(model, strategy, workers, steps=60)), flat(run))


def test_uneven_copies_count_for_their_samples() -> None:
    """A batch of 30 in parts of 23 and 7, a bound on the gradient, and goes of half a part."""
    run = trained(deep, "tensor:2", 4, shares="3, 1", clip=0.5, accumulate=2)
    assert near(run, known(deep, clip=0.5))


def test_bytes_are_those_of_the_sums() -> None:
    """A step of 30 samples sums what 30 x 5 numbers are twice, and gathers half of 30 x 4."""
    run = trained(net, "tensor:2", 2, steps=5, every=5)
    assert run.figures["bytes"] == 5 * 30 * 4 * (5 + 5 + 2)


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    goes_on("tensor:2", 11, tmp_path)


# --- plans of one's own, and what cannot be ---------------------------------------------------------------------------


def test_a_plan_may_be_given() -> None:
    run = trained(deep, Parallel(2, {"0": "column", "2": "row"}), 2)
    assert near(run, known(deep))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"0": "column"}, "do not compute"),
        ({"0": "column", "3": "row"}, "do not compute"),  # without the dropout between them
        ({"0": "columns"}, "cannot be cut by 'columns'"),
        ({"9": "row"}, "is no layer"),
        ({"1": "row"}, "is a Tanh"),
        ({"3": "column"}, "5 parts"),
    ],
)
@pytest.mark.slow
def test_a_plan_that_does_not_fit_is_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        trained(net, Parallel(2, given), 2)


def test_a_wrong_plan_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not compute"):
        trained(net, Parallel(2, {"0": "column", "3": "row"}), 2)  # without the dropout between them


def test_a_model_of_which_nothing_can_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer of the model can be cut in 2") as error:
        trained(lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)), "tensor:2", 2)
    assert "fsdp" in str(error.value.hint)
    with pytest.raises(ConfigError, match="needs 2 workers for each copy"):
        trained(net, "tensor:2", 3)
