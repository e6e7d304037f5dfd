"""Prompt tuning: vectors that stand before every text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atoll.adapters.adapter import Adapter
from atoll.adapters.blocks import drawn, embedding
from atoll.errors import ConfigError

__all__ = ["Prompt"]


@dataclass(frozen=True)
class Prompt(Adapter):
    """So many learnt vectors before the embedded tokens of every text.   Lester et al., EMNLP 2021

    Outputs are those of the text's own positions. The vectors start as random ones of the spread that the model's own
    embeddings have. For chains that begin with an embedding, as this package's transformers do.

    Args:
        length: vectors.
    """

    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"adapter: length = {self.length} is not at least 1", hint="write prompt:8")

    @property
    def text(self) -> str:
        return f"prompt:{self.length}"

    def put(self, module: nn.Module, seed: int) -> None:
        first, vectors = embedding(module, f"adapter = {self.text!r}")
        spread = float(vectors.detach().float().std())
        first.register_parameter(
            "prompt", drawn((self.length, vectors.shape[1]), spread, seed, "prompt", vectors)
        )
        first.register_forward_hook(_before)
        module.register_forward_hook(partial(_own, self.length))


def _before(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    prompt = layer.prompt
    assert isinstance(prompt, Tensor)
    return torch.cat([prompt.to(output.dtype).expand(*output.shape[:-2], -1, -1), output], -2)


def _own(length: int, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output[..., length:, :]
