"""Bottleneck adapters: two small layers behind each part of a block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atoll.adapters.adapter import Adapter
from atoll.adapters.blocks import drawn, sublayers
from atoll.errors import ConfigError

__all__ = ["Bottleneck"]


@dataclass(frozen=True)
class Bottleneck(Adapter):
    """h + U gelu(D h) behind attention and wide layers of each block.   Houlsby et al., ICML 2019

    U starts at zero, so that at first nothing is added. For this package's transformers.

    Args:
        size: of the bottleneck, the rows of D.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"adapter: size = {self.size} is not at least 1", hint="write bottleneck:16")

    @property
    def text(self) -> str:
        return f"bottleneck:{self.size}"

    def put(self, module: nn.Module, seed: int) -> None:
        for path, (block, name, width) in sublayers(module, f"adapter = {self.text!r}").items():
            own = _Added(width, self.size, seed, path, next(block.parameters()))
            block.add_module(
                f"after_{name}", own
            )  # a part may be a chain, which would run what is put into it
            block.get_submodule(name).register_forward_hook(partial(_behind, own))


class _Added(nn.Module):
    """D [size, width] and U [width, size], each with its bias."""

    def __init__(self, width: int, size: int, seed: int, path: str, like: Tensor) -> None:
        super().__init__()
        self.down = drawn((size, width), width**-0.5, seed, path, like)
        self.down_bias = nn.Parameter(torch.zeros_like(self.down[:, 0]))
        self.up = nn.Parameter(torch.zeros_like(self.down.t()))
        self.up_bias = nn.Parameter(torch.zeros_like(self.down[0]))

    def forward(self, h: Tensor) -> Tensor:
        inner = F.gelu(F.linear(h.to(self.down.dtype), self.down, self.down_bias))
        return h + F.linear(inner, self.up, self.up_bias).to(h.dtype)


def _behind(own: _Added, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    found: Tensor = own(output)
    return found
