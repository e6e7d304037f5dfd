"""Gradients and moves that travel in fewer bytes."""

from __future__ import annotations

import pytest
import torch

from atoll import compress
from atoll.errors import ConfigError
from tests.distributed.test_strategies import alone, flat, trained


@pytest.mark.parametrize("codec", ["int8", "topk:0.3", "powersgd:2"])
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


def test_all_that_is_lost_is_made_up_for() -> None:
    """With a codec that loses nothing but what rounding does, it is DDP; without feedback top-k falls behind."""
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
