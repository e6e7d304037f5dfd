"""Transformers for text as they are made since Llama: no biases, no learnt positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atoll.errors import ConfigError

__all__ = ["Llama", "llama"]

BASE = 10_000.0
"""Of rotary positions: the longest wave is so many times as long as the shortest."""


class Norm(nn.Module):
    """x / rms(x), times a weight for each feature.   Zhang and Sennrich, NeurIPS 2019"""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotated(x: Tensor, base: float = BASE) -> Tensor:
    """Queries or keys [..., t, size], each pair of features turned by an angle that grows with the position.

    Their products then depend on how far apart positions are. Feature i goes with i + size / 2, at base^(-2 i / size).
    Su et al., RoFormer, 2021
    """
    half = x.shape[-1] // 2
    waves = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    places = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    angles = places.unsqueeze(-1) * waves
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
    """Causal attention with rotary positions, in which several heads look with one key.   Ainslie et al., EMNLP 2023"""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.size = width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (-1, self.size)).transpose(-3, -2)
            for part in (self.query, self.key, self.value)
        )
        shared = q.shape[-3] // k.shape[-3]  # heads of a group
        q, k = rotated(q), rotated(k)
        if shared > 1:
            k, v = (each.repeat_interleave(shared, -3) for each in (k, v))
        looked = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.out(looked.transpose(-3, -2).flatten(-2))
        return mixed


class Gated(nn.Module):
    """SwiGLU: out(silu(gate(x)) * wide(x)).   Shazeer, 2020"""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.wide = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(F.silu(self.gate(x)) * self.wide(x))
        return found


class Block(nn.Module):
    """Attention, then SwiGLU at each position; both added to what came in, behind a norm."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.before_attention, self.before_gated = Norm(width), Norm(width)
        self.attention, self.gated = Attention(width, heads, groups), Gated(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        added: Tensor = x + self.gated(self.before_gated(x))
        return added


class Llama(nn.Sequential):
    """Tokens [b, t] (integers) to logits [b, t, vocabulary]: at each position, the token that comes next.

    A decoder as in Touvron et al. 2023: RMSNorm before each part, rotary positions, SwiGLU, no bias, an output layer of
    its own; keys and values of grouped heads as in Llama 2. Texts of any length fit. It is a chain of an embedding,
    blocks, a norm and a linear layer, which can be cut in stages.

    Args:
        vocabulary: tokens.
        layers: blocks.
        width: of the vectors.
        heads: of the attention, which divide the width into even parts.
        groups: keys and values, which divide the heads; half as many as heads by default.
        hidden: of SwiGLU; by default 8 / 3 of the width, in full eights.

    Raises ConfigError where they do not divide.
    """

    def __init__(
        self,
        vocabulary: int,
        layers: int,
        width: int,
        heads: int,
        groups: int | None = None,
        hidden: int | None = None,
    ) -> None:
        groups = groups or max(1, heads // 2)
        if width % (2 * heads):
            raise ConfigError(
                f"llama: a width of {width} cannot be divided among {heads} heads of an even size",
                hint="llama:4,128,4 is usual",
            )
        if heads % groups:
            raise ConfigError(
                f"llama: {heads} heads cannot share {groups} keys", hint="llama:4,128,4,2 is usual"
            )
        hidden = hidden or 8 * math.ceil(width / 3)
        super().__init__(
            nn.Embedding(vocabulary, width),
            *(Block(width, heads, groups, hidden) for _ in range(layers)),
            Norm(width),
            nn.Linear(width, vocabulary, bias=False),
        )
        for name, value in self.named_parameters():
            if value.ndim == 2:
                ends_a_branch = name.endswith("out.weight")
                nn.init.normal_(value, 0.0, 0.02 / math.sqrt(2 * layers) if ends_a_branch else 0.02)


def llama(
    vocabulary: int = 256, layers: int = 4, width: int = 128, heads: int = 4, groups: int | None = None
) -> Llama:
    """A small `Llama`; with its usual size, on bytes, 0.79 million parameters."""
    return Llama(vocabulary, layers, width, heads, groups)
