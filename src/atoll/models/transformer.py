"""Transformers for text."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atoll.errors import ConfigError

__all__ = ["GPT", "gpt"]


class Attention(nn.Module):
    """Causal attention of several heads: each position looks at those before it.   Vaswani et al., NeurIPS 2017"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (-1, self.size)).transpose(-3, -2)  # as many heads as this worker has
            for part in (self.query, self.key, self.value)
        )
        looked = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.out(looked.transpose(-3, -2).flatten(-2))
        return mixed


class Block(nn.Module):
    """Attention, then two linear layers at each position; both added to what came in, behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_wide = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        added: Tensor = x + self.wide(self.before_wide(x))
        return added


class Embedding(nn.Module):
    """Tokens [b, t] to vectors [b, t, width]: what a token is, plus where it stands."""

    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[-1], device=tokens.device)
        found: Tensor = self.token(tokens) + self.position(places)
        return found


class GPT(nn.Sequential):
    """Tokens [b, t] (integers) to logits [b, t, vocabulary]: at each position, the token that comes next.

    A decoder as in Radford et al. 2019 (GPT-2): LayerNorm before each part, GELU, learnt positions, and an output layer
    of its own. It is a chain of `Embedding`, `Block`s, a LayerNorm and a linear layer, which can be cut in stages.

    Args:
        vocabulary: tokens.
        context: positions at most.
        layers: blocks.
        width: of the vectors.
        heads: of the attention, which divide the width.

    Raises ConfigError where they do not.
    """

    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int) -> None:
        if width % heads:
            raise ConfigError(
                f"gpt: a width of {width} cannot be divided among {heads} heads", hint="gpt:4,128,4 is usual"
            )
        super().__init__(
            Embedding(vocabulary, context, width),
            *(Block(width, heads) for _ in range(layers)),
            nn.LayerNorm(width),
            nn.Linear(width, vocabulary, bias=False),
        )
        for name, value in self.named_parameters():
            if value.ndim == 2:
                ends_a_branch = name.endswith(("out.weight", "wide.2.weight"))
                nn.init.normal_(value, 0.0, 0.02 / math.sqrt(2 * layers) if ends_a_branch else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(value)


def gpt(vocabulary: int = 256, context: int = 128, layers: int = 4, width: int = 128, heads: int = 4) -> GPT:
    """A small `GPT`; with its usual size, on bytes, 0.87 million parameters."""
    return GPT(vocabulary, context, layers, width, heads)
