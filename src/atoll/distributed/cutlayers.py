"""Layers of which each of several workers holds a part.   Shoeybi et al., 2019 (Megatron-LM), section 3

Parameters are torch's DTensors, which know how to become whole; what a layer computes is written on local parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from atoll.distributed.cutting import CONVOLUTIONS
from atoll.distributed.links import Links
from atoll.errors import ConfigError

__all__ = ["cut"]

# --- what passes between workers --------------------------------------------------------------------------------------


class _Copied(torch.autograd.Function):
    """The same for everybody, and the sum of everybody's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, links: Links) -> Tensor:
        ctx.links = links
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.links.sum(grads[0].clone(memory_format=torch.contiguous_format)), None


class _Summed(torch.autograd.Function):
    """The sum of what workers have, and the same gradient for everybody."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, links: Links) -> Tensor:
        return links.sum(value.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


class _Gathered(torch.autograd.Function):
    """What workers have, one after the other along a dimension; of the gradient each takes its own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, links: Links, dim: int) -> Tensor:
        ctx.links, ctx.dim = links, dim
        part = value.movedim(dim, 0).contiguous()
        room = part.new_empty(links.size * len(part), *part.shape[1:])
        return links.gathered(part, room).movedim(0, dim).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0].chunk(ctx.links.size, ctx.dim)[ctx.links.rank].contiguous(), None, None


def _copied(value: Tensor, links: Links) -> Tensor:
    found: Tensor = _Copied.apply(value, links)  # type: ignore[no-untyped-call]
    return found


def _summed(value: Tensor, links: Links) -> Tensor:
    found: Tensor = _Summed.apply(value, links)  # type: ignore[no-untyped-call]
    return found


# --- layers -----------------------------------------------------------------------------------------------------------


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def _apply(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    compute = layer._conv_forward if isinstance(layer, CONVOLUTIONS) else F.linear
    found: Tensor = compute(x, weight, bias)
    return found


def _column(layer: Any, links: Links, x: Tensor) -> Tensor:
    return _apply(layer, _copied(x, links), _local(layer.weight), _local(layer.bias))


def _gathered(layer: Any, links: Links, x: Tensor) -> Tensor:
    dim = 1 if isinstance(layer, CONVOLUTIONS) else x.ndim - 1
    found: Tensor = _Gathered.apply(_column(layer, links, x), links, dim)  # type: ignore[no-untyped-call]
    return found


def _row(layer: Any, links: Links, x: Tensor) -> Tensor:
    found, bias = _summed(_apply(layer, x, _local(layer.weight), None), links), layer.bias
    if bias is not None:
        found = found + (bias if layer.weight.ndim == 2 else bias.view(-1, *[1] * (layer.weight.ndim - 2)))
    return found


def _vocabulary(layer: Any, links: Links, x: Tensor) -> Tensor:
    weight = _local(layer.weight)
    at = x - links.rank * len(weight)
    here = (at >= 0) & (at < len(weight))
    rows = F.embedding(at.where(here, 0), weight)
    if layer.padding_idx is not None:
        rows = torch.where((x == layer.padding_idx)[..., None], rows.detach(), rows)
    return _summed(rows * here[..., None], links)


def _dropout(layer: Any, links: Links, x: Tensor, *, dim: int) -> Tensor:
    """Everybody draws for the whole, and takes its own part."""
    if not layer.training or not layer.p:
        return x
    shape = list(x.shape)
    shape[dim] *= links.size
    mask = F.dropout(x.new_ones(shape), layer.p)
    return x * mask.chunk(links.size, dim)[links.rank]


def _heads(
    layer: Any,
    links: Links,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As `nn.MultiheadAttention`, of each worker's own heads; the weights of attention are not given."""
    given = [
        _copied(each if layer.batch_first else each.transpose(0, 1), links) for each in (query, key, value)
    ]
    weight, bias = _local(layer.in_proj_weight), _local(layer.in_proj_bias)  # [3, E / W, E], [3, E / W]
    q, k, v = (
        F.linear(each, weight[at], None if bias is None else bias[at])
        .unflatten(-1, (-1, layer.head_dim))  # type: ignore[no-untyped-call]
        .transpose(1, 2)
        for at, each in enumerate(given)
    )
    mask = _mask(attn_mask, key_padding_mask, q.dtype)
    found = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
    found = _summed(F.linear(found, _local(layer.out_proj.weight)), links)
    if layer.out_proj.bias is not None:
        found = found + layer.out_proj.bias
    return found if layer.batch_first else found.transpose(0, 1), None


def _mask(attention: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Both masks, to be added: [B or 1, 1, T or 1, S]."""
    total: Tensor | None = None
    for mask, where in ((attention, (None, None)), (padding, (slice(None), None, None))):
        if mask is not None:
            lies: Tensor = (
                mask.new_zeros(mask.shape, dtype=dtype).masked_fill(mask, -torch.inf)
                if mask.dtype == torch.bool
                else mask.to(dtype)
            )
            lies = lies[where]
            total = lies if total is None else total + lies
    return total


_WAYS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, int]]] = {
    "column": (_column, (nn.Linear, *CONVOLUTIONS), {"weight": 0, "bias": 0}),
    "gathered": (_gathered, (nn.Linear, *CONVOLUTIONS), {"weight": 0, "bias": 0}),
    "row": (_row, (nn.Linear, *CONVOLUTIONS), {"weight": 1}),
    "vocabulary": (_vocabulary, (nn.Embedding,), {"weight": 0}),
    "heads": (
        _heads,
        (nn.MultiheadAttention,),
        {"in_proj_weight": 1, "in_proj_bias": 1, "out_proj.weight": 1},
    ),
    "dropout": (_dropout, (nn.Dropout,), {}),
}
"""By name: the forward, of which layers, and along which dimension each parameter is cut."""


def cut(module: nn.Module, name: str, way: str, mesh: DeviceMesh, links: Links) -> None:
    """Leave in a layer the part of this worker, as `cutting.derive` names the ways.  Raises ConfigError."""
    kind, _, dim = way.partition(":")
    if kind not in _WAYS:
        raise ConfigError(f"plan: {name!r} cannot be cut by {way!r}", hint=f"known: {', '.join(_WAYS)}")
    forward, kinds, dims = _WAYS[kind]
    layer: Any = dict(module.named_modules()).get(name)
    if not isinstance(layer, kinds):
        what = "is no layer of the model" if layer is None else f"is a {type(layer).__name__}"
        raise ConfigError(
            f"plan: {name!r} {what}, and {kind!r} is a way to cut {' or '.join(k.__name__ for k in kinds)}",
            hint="name layers as named_modules() does",
        )
    for path, along in dims.items():
        inside, _, own = path.rpartition(".")
        holder = layer.get_submodule(inside)
        value = getattr(holder, own)
        if value is None:
            continue
        whole = value.detach()
        whole = whole.view(3, -1, *whole.shape[1:]) if kind == "heads" and not inside else whole
        if whole.shape[along] % links.size:
            raise ConfigError(
                f"plan: {name}.{path} has {whole.shape[along]} parts, which {links.size} workers cannot divide",
                hint="leave the layer out of the plan",
            )
        part = whole.chunk(links.size, along)[links.rank].clone(memory_format=torch.contiguous_format)
        held = DTensor.from_local(part, mesh, [Shard(along)], run_check=False)
        setattr(holder, own, nn.Parameter(held, value.requires_grad))
    given = {"dim": int(dim or -1)} if kind == "dropout" else {}
    layer.forward = partial(forward, layer, links, **given)
