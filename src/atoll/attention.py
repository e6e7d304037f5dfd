"""Attention whose dropout is the client's stream's: what a module's calls of it are replaced by."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll.draws import Drawn, dropout
from atoll.errors import EngineError

__all__ = ["attention", "multi_head"]


def attention(
    pure: Drawn,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    batched: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Scaled dot-product attention; with dropout it is spelt out, so that the dropout is the stream's.

    So it is in half precision where clients are `batched`: what torch takes it apart into there is cast in parts.
    """
    names = ("attn_mask", "dropout_p", "is_causal")
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    p = 0.0 if pure.stream is None else float(kwargs.get("dropout_p") or 0.0)
    apart = batched and torch.is_autocast_enabled(query.device.type) and not kwargs.get("enable_gqa")
    if p == 0.0 and not apart:
        return F.scaled_dot_product_attention(query, key, value, **{**kwargs, "dropout_p": 0.0})
    if kwargs.get("enable_gqa"):
        raise EngineError(
            "attention dropout with grouped queries cannot be made pure", hint="set dropout to 0"
        )
    scale = kwargs.get("scale") or query.shape[-1] ** -0.5
    scores = query @ key.transpose(-2, -1) * scale
    mask = kwargs.get("attn_mask")
    if kwargs.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return dropout(pure, torch.softmax(scores, -1), p) @ value


def multi_head(
    pure: Drawn,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    **kwargs: Any,
) -> Any:
    """Multi-head attention (Vaswani et al. 2017). Without dropout torch's own; with it, spelt out for the stream."""
    if not training or dropout_p == 0.0:
        return func(
            query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v,
            add_zero_attn, 0.0, out_proj_weight, out_proj_bias, training, **kwargs,
        )  # fmt: skip
    if in_proj_weight is None or bias_k is not None or add_zero_attn or query.ndim != 3:
        raise EngineError("this attention layer's dropout cannot be made pure", hint="set its dropout to 0")
    weights = in_proj_weight.chunk(3)
    biases = in_proj_bias.chunk(3) if in_proj_bias is not None else (None, None, None)

    def heads(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # [t, b, e] -> [b, h, t, e/h]
        projected = F.linear(x, weight, bias)
        return projected.reshape(*x.shape[:2], num_heads, -1).permute(1, 2, 0, 3)

    q, k, v = (heads(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    mask = kwargs.get("attn_mask")
    padding = kwargs.get("key_padding_mask")
    bias = torch.zeros((), dtype=q.dtype, device=q.device)
    if mask is not None and mask.ndim == 3:  # one mask a head
        mask = mask.reshape(-1, num_heads, *mask.shape[1:])
    if padding is not None:
        padding = padding[:, None, None, :]
    for part in (mask, padding):
        if part is not None:
            bias = bias + (
                torch.zeros_like(part, dtype=q.dtype).masked_fill(part, -math.inf)
                if part.dtype == torch.bool
                else part
            )
    weight = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias, -1)
    mixed = (dropout(pure, weight, dropout_p) @ v).permute(2, 0, 1, 3).flatten(2)
    output = F.linear(mixed, out_proj_weight, out_proj_bias)
    if not kwargs.get("need_weights", True):
        return output, None
    return output, weight.mean(1) if kwargs.get("average_attn_weights", True) else weight
