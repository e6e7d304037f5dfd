"""Stages one after the other compute what the whole model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from atoll.distributed import parse
from atoll.distributed.staging import chain, divided
from atoll.distributed.strategies.pipeline import Pipeline
from atoll.errors import ConfigError
from tests.distributed.parallel import DATA, Model, cnn, deep, flat, goes_on, known, near, pictures, trained

# --- stages -----------------------------------------------------------------------------------------------------------


def names(module: nn.Module, inputs: Tensor, count: int) -> list[list[str]]:
    return [[layer.name for layer in stage] for stage in divided(chain(module, inputs), count)]


class Residual(nn.Module):
    """What its children give is added to what it got."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, value: Tensor) -> Tensor:
        return value + self.second(self.first(value))  # type: ignore[no-any-return]


class Tower(nn.Module):
    """A loop over blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.blocks = nn.ModuleList(Residual(6) for _ in range(3))

    def forward(self, value: Tensor) -> Tensor:
        for block in self.blocks:
            value = block(value)
        return self.head(value)  # type: ignore[no-any-return]


def test_stages_cost_about_the_same() -> None:
    wide = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 4))
    assert names(wide, torch.randn(2, 6), 2) == [["0", "1"], ["2", "3", "4"]]
    inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    nested = nn.Sequential(nn.Flatten(), inner, nn.Linear(8, 8), nn.Linear(8, 4))
    assert names(nested, torch.randn(2, 6, 1), 3) == [["0", "1.0", "1.1"], ["2"], ["3"]]


class Written(nn.Module):
    """A forward that does things of its own between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(16, 4), nn.Conv2d(1, 8, 3, padding=1)
        self.second, self.shift = nn.Conv2d(8, 4, 3), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, value: Tensor) -> Tensor:
        value = F.max_pool2d(F.relu(self.first(value)), 2)
        value = F.dropout(F.relu(self.second(value) + self.shift), 0.0, self.training)
        return self.last(value.view(value.size(0), -1))  # type: ignore[no-any-return]


class Branching(Residual):
    """Cannot be traced."""

    def forward(self, value: Tensor) -> Tensor:
        return super().forward(value) if value.mean() > 0 else value


DATA[Written] = pictures


def test_a_forward_that_is_no_chain_is_traced_into_one() -> None:
    stages = names(Written(), torch.randn(2, 1, 8, 8), 2)
    assert [stage[0] for stage in stages] == ["first", "second"]


def test_layers_come_in_the_order_of_their_use() -> None:
    assert names(Tower(), torch.randn(2, 6), 2) == [["blocks.0", "blocks.1"], ["blocks.2", "head"]]


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "strategy", "workers"),
    [
        (cnn, "pipeline:2,3,gpipe", 2),
        (Tower, "pipeline:2,4", 4),
        (deep, "pipeline:2,2,interleaved", 2),
        (Written, "pipeline:2,2", 2),
    ],
)
def test_stages_are_the_whole(
    model: Model, strategy: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 30 and 10, which 4 parts do not divide. Nothing is pickled on the way."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError

    for each in ("send_object_list", "recv_object_list", "broadcast_object_list", "all_gather_object"):
        monkeypatch.setattr(dist, each, refused)
    run = trained(model, strategy, workers)
    assert near(run, known(model))
    assert run.loss == pytest.approx(known(model).loss, abs=1e-6)
    assert run.figures["bubble"] == pytest.approx(parse(strategy).bubble)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("model", [deep, cnn])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
@pytest.mark.parametrize(("stages", "workers"), [(2, 2), (2, 4), (4, 4)])
def test_all_schedules_are_the_whole(model: Model, schedule: str, stages: int, workers: int) -> None:
    layers = {deep: 4, cnn: 3}[model]
    strategy = Pipeline(stages, 4, schedule)
    if layers < stages * strategy.each:
        pytest.skip("more stages than layers")
    run = trained(model, strategy, workers, steps=60)
    assert near(run, known(model, steps=60))
    assert torch.equal(flat(trained(model, strategy, workers, steps=60)), flat(run))


def test_uneven_copies_count_for_their_samples() -> None:
    """A batch of 30 in parts of 23 and 7, a bound on the gradient, and goes of half a part."""
    run = trained(deep, "pipeline:2,3", 4, shares="3, 1", clip=0.5, accumulate=2)
    assert near(run, known(deep, clip=0.5))


def test_bytes_are_those_of_activations_and_gradients() -> None:
    """Of the second layer's 7 numbers 30 a step go on, and as many gradients back."""
    run = trained(deep, Pipeline(2, 3, cuts=("4",)), 2, steps=5, every=5)
    assert run.figures["bytes"] == 5 * 30 * 7 * 4


class Kept(nn.Module):
    """Writes down what a dropout keeps, the first time."""

    def __init__(self, note: Path) -> None:
        super().__init__()
        self.note = note

    def forward(self, value: Tensor) -> Tensor:
        kept = F.dropout(torch.ones_like(value), 0.5, self.training)
        if self.training and not self.note.exists():
            self.note.write_bytes(kept.numpy().tobytes())
        return value * kept


def test_stages_draw_dropouts_of_their_own(tmp_path: Path) -> None:
    """With the draws of the step in both stages they would drop the same units."""

    def dropping() -> nn.Module:
        first, second = Kept(tmp_path / "first"), Kept(tmp_path / "second")
        return nn.Sequential(nn.Linear(6, 8), first, nn.Linear(8, 8), second, nn.Linear(8, 4))

    strategy = Pipeline(2, 3, cuts=("2",))
    run = trained(dropping, strategy, 2, steps=3, every=3)
    assert (tmp_path / "first").read_bytes() != (tmp_path / "second").read_bytes()
    assert torch.equal(flat(trained(dropping, strategy, 2, steps=3, every=3)), flat(run))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pipeline:2,3,gpipe", "pipeline:2,2,interleaved"])
def test_a_killed_run_goes_on(strategy: str, tmp_path: Path) -> None:
    goes_on(strategy, 20, tmp_path)


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_bubbles() -> None:
    assert Pipeline(4, 8).bubble == 3 / 11
    assert Pipeline(4, 8, "interleaved").bubble == 3 / 19
    assert Pipeline(4, 8, "interleaved", 3).bubble == 3 / 27


@pytest.mark.parametrize("text", ["pipeline:2,4,1f1b", "pipeline:3,6,gpipe", "pipeline:2,4,interleaved,3"])
def test_texts_say_what_there_is(text: str) -> None:
    assert parse(text).text == text
    assert parse("pipeline:3").text == "pipeline:3,6,1f1b"


@pytest.mark.parametrize(
    ("strategy", "workers", "batch", "says"),
    [
        ("pipeline:1", 2, 30, "whole number at least 2"),
        ("pipeline:2,4,zigzag", 2, 30, "gpipe or 1f1b or interleaved"),
        ("pipeline:2", 3, 30, "needs 2 workers for each copy"),
        ("pipeline:4,2", 4, 30, "2 parts cannot fill 4 stages"),
        ("pipeline:2,3,interleaved", 2, 30, "multiple of 2"),
        ("pipeline:2,8", 4, 12, "no 8 parts"),
        ("pipeline:2,4,gpipe,2", 2, 30, "chunks are for interleaved"),
    ],
)
def test_settings_that_do_not_fit_are_refused(strategy: str, workers: int, batch: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        trained(deep, strategy, workers, batch=batch)


def test_a_model_that_is_no_chain_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no chain of layers"):
        chain(Branching(6), torch.randn(2, 6))
    with pytest.raises(ConfigError, match="is no chain"):
        trained(lambda: Branching(6), "pipeline:2,2", 2)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 layers with parameters, too few for 8 stages"):
        divided(chain(deep(), torch.randn(2, 6)), 8)
    with pytest.raises(ConfigError, match="cuts = 9: 2 stages need the names of 1 layers"):
        trained(deep, Pipeline(2, cuts=("9",)), 2)
