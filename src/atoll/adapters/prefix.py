"""Prefix tuning: keys and values that every position of every block looks at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atoll.adapters.adapter import Adapter
from atoll.adapters.blocks import attentions, drawn
from atoll.errors import ConfigError

__all__ = ["Prefix"]


@dataclass(frozen=True)
class Prefix(Adapter):
    """So many learnt keys and values before those of the text, in every block.   Li and Liang, ACL 2021

    They are trained as they are, without the layers that the paper makes them of. For this package's transformers.

    Args:
        length: keys, and values, of a block.
    """

    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"adapter: length = {self.length} is not at least 1", hint="write prefix:8")

    @property
    def text(self) -> str:
        return f"prefix:{self.length}"

    def put(self, module: nn.Module, seed: int) -> None:
        for path, attention in attentions(module, f"adapter = {self.text!r}").items():
            for name in ("key", "value"):
                layer = attention.get_submodule(name)
                weight = layer.weight
                assert isinstance(weight, Tensor)
                rows = drawn((self.length, weight.shape[0]), 0.02, seed, f"{path}.{name}", weight)
                layer.register_parameter("prefix", rows)
                layer.register_forward_hook(_before)
            # Queries get rows too, so that who is before whom stays a triangle; what they find is dropped again.
            attention.get_submodule("query").register_forward_hook(partial(_blank, self.length))
            attention.get_submodule("out").register_forward_pre_hook(partial(_own, self.length))


def _before(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    prefix = layer.prefix
    assert isinstance(prefix, Tensor)
    return torch.cat([prefix.to(output.dtype).expand(*output.shape[:-2], -1, -1), output], -2)


def _blank(length: int, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    return torch.cat(
        [torch.zeros_like(output[..., :1, :]).expand(*output.shape[:-2], length, -1), output], -2
    )


def _own(length: int, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0][..., length:, :], *args[1:])
