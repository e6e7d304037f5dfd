"""Gradients and moves that travel in fewer bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atoll import compress
from atoll.distributed.learner import Replica
from atoll.distributed.links import Links
from atoll.distributed.play import context_of, joined
from atoll.distributed.settings import Training
from atoll.distributed.training import prepare
from atoll.errors import ConfigError
from tests.distributed.test_strategies import alone, blobs, flat, net, trained


@pytest.mark.parametrize("codec", ["int8", "topk:0.3", pytest.param("powersgd:2", marks=pytest.mark.slow)])
def test_learns_about_as_well_with_fewer_bytes(codec: str) -> None:
    run = trained(f"compressed:{codec}", 2, steps=200, every=200)
    usual = alone(steps=200)
    assert run.accuracy is not None and usual.accuracy is not None
    assert run.accuracy > usual.accuracy - 0.08
    assert torch.equal(flat(run), flat(trained(f"compressed:{codec}", 2, steps=200, every=200)))


def test_sends_what_the_codec_gives() -> None:
    size = -(-len(flat(alone())) // 4) * 4
    run = trained("compressed:int8", 4, steps=5, every=5)
    assert run.figures["bytes"] == 5 * 3 * compress.parse("int8").nbytes((size,))


def test_what_was_applied_and_what_is_left_are_all_gradients(tmp_path: Path) -> None:
    """sum_t c(u_t) + e_T = sum_t g_t, whatever the codec drops."""
    job = prepare(Training(strategy="compressed:topk:0.1", workers=1, threads=1), net, blobs())
    with joined(0, 1, "gloo", 60, tmp_path / "meet"):
        learner = job.strategy.learner(context_of(job, links := Links(), links))
        assert isinstance(learner, Replica)
        generator = torch.Generator().manual_seed(0)
        given, applied = torch.zeros_like(learner.grads), torch.zeros_like(learner.grads)
        for step in range(20):
            gradient = torch.randn(len(given), generator=generator)
            learner.grads.copy_(gradient)
            learner.exchange(step)
            assert 0 < int((learner.grads != 0).sum()) < len(given) / 5
            given += gradient
            applied += learner.grads
        torch.testing.assert_close(applied + learner.own().error, given, rtol=0, atol=1e-4)
        assert float(learner.own().error.norm()) > 1


def test_a_codec_that_drops_nothing_is_ddp() -> None:
    run = trained("compressed:topk:1", 2)
    assert float((flat(run) - flat(alone())).abs().max()) < 1e-5


def test_moves_of_four_bits() -> None:
    run = trained("diloco:10,codec=int4", 2, steps=200, every=200)
    plain = trained("diloco:10", 2, steps=200, every=200)
    assert run.accuracy is not None and plain.accuracy is not None
    assert run.accuracy > plain.accuracy - 0.08
    assert run.figures["bytes"] < plain.figures["bytes"] / 2


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("compressed:int9", "did you mean"),
        ("compressed", "codec"),
        ("diloco:10,codec=int3", "did you mean"),
        ("diloco:10,codec=int4,overlap=2", "at once"),
    ],
)
def test_what_cannot_be(strategy: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        trained(strategy, 2)
    assert said in str(error.value)
