"""Blocks of transformers whose backward pass computes them again: activations of one at a time, not of all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from torch import Tensor, nn
from torch.func import functional_call

from atoll.errors import ConfigError
from atoll.gradient import recomputed

__all__ = ["blocks", "computed_again"]


def blocks(module: nn.Module) -> list[nn.Module]:
    """What has an attention as this package's transformers have it, and goes from one tensor to another.

    Raises ConfigError where there is none.
    """
    found = [
        each
        for each in module.modules()
        if all(hasattr(each._modules.get("attention"), part) for part in ("query", "key", "value", "out"))
        and len(inspect.signature(each.forward).parameters) == 1
    ]
    if not found:
        raise ConfigError(
            f"recompute = true: {type(module).__name__} has no blocks as this package's transformers have them",
            hint='choose model="gpt" or "llama", or accumulate=4, which saves activations of any model',
        )
    return found


@contextmanager
def computed_again(
    layers: list[nn.Module], draws: Callable[[], int], within: Callable[[int], AbstractContextManager[object]]
) -> Iterator[None]:
    """Inside, gradients through these blocks keep what came into them, and nothing else of them.

    Args:
        draws: how many random numbers the model has asked for so far.
        within: the surroundings in which a block draws from the so-manieth on what it drew the first time.
    """

    def forward(layer: nn.Module, first: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        held = _Forward(layer)
        state = {**dict(held.named_parameters()), **dict(held.named_buffers())}  # those of this call
        drawn = draws()

        def again(x: Tensor) -> Tensor:
            with within(drawn):
                found: Tensor = functional_call(held, state, (x,), tie_weights=False)
                return found

        return recomputed(first, again, x)

    for layer in layers:
        layer.__dict__["forward"] = partial(forward, layer, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


class _Forward(nn.Module):
    """A block without the hooks around it, which stay where the block is called."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer.forward(x)
        return found
