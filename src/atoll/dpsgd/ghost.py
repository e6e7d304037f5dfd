"""The same sums without a gradient for every sample: from what layers read and what flows back to them.

A linear layer's gradient for a sample is a product of two things that a pass over the batch has anyway: what the layer
read, a [t, in], and the gradient of its output, g [t, out]. Its squared norm is |a|^2 |g|^2 for t = 1 (Goodfellow
2015), sum((a a') * (g g')) for any t (Li et al. 2022, "ghost clipping"), and the clipped sum is (c g)' a: no dearer
than the plain gradient, and without a second pass backwards (Bu et al. 2023, "book-keeping"). Convolutions are linear
in patches. A model with parameters elsewhere, or that uses one twice, is `Unsuited`; `persample` takes any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from atoll.dpsgd.persample import factors
from atoll.gradient import LEAN, gradients_at
from atoll.task import Batch, Task
from atoll.tensors import Tensors

__all__ = ["Unsuited", "clipped_sum"]

Sums = Callable[[Tensor], dict[str, Tensor]]
Rule = Callable[..., tuple[Tensor, Sums]]


class Unsuited(Exception):
    """The model has parameters outside the layers known here."""


def clipped_sum(task: Task, params: Tensors, buffers: Tensors, batch: Batch, clip: float) -> Tensors:
    """sum_i g_i min(1, clip / |g_i|) over the real samples of a batch, as `persample.clipped_sum`.  Raises Unsuited."""
    if not LEAN:
        raise Unsuited
    uses: list[Use] = []

    def objective(params: Tensors) -> tuple[Tensor, list[Tensor], list[Any]]:
        with _Watched(params, len(batch.mask)) as watched:
            outputs, _ = task.called(params, buffers, batch.inputs, batch)
        uses.extend(watched.uses)
        losses = task.losses(outputs, batch.targets)
        return torch.sum(losses * batch.mask), [use.output for use in uses], [use.read for use in uses]

    flows, reads = gradients_at(objective, params)
    parts = [use.rule(read, flow, **use.settings) for use, read, flow in zip(uses, reads, flows, strict=True)]
    squares = sum((square for square, _ in parts), torch.zeros_like(batch.mask))
    scale = factors(squares, batch.mask, clip)
    sums: dict[str, Tensor] = {}
    for use, (_, total) in zip(uses, parts, strict=True):
        made = total(scale)
        sums |= {name: made[role] for role, name in use.names.items()}
    return params.map_names(
        lambda name, value: sums[name].to(value.dtype) if name in sums else torch.zeros_like(value)
    )


class Use(NamedTuple):
    """A layer of parameters in a forward pass."""

    rule: Rule
    names: Mapping[str, str]
    """Which parameter is the "weight", which the "bias"."""
    read: Tensor
    output: Tensor
    settings: Mapping[str, Any]


class _Watched(TorchFunctionMode):
    """Notes what layers read and give. `rows` is how many samples there are, on the first axis."""

    def __init__(self, params: Tensors, rows: int) -> None:
        super().__init__()
        self.names = {id(value): name for name, value in params.items()}
        self.rows = rows
        self.uses: list[Use] = []
        self.seen: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("inplace"):  # it would write over what a layer gave
            kwargs = {**kwargs, "inplace": False}
        if not any(id(each) in self.names for each in pytree.tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        known = _KNOWN.get(func)
        if known is None:
            if getattr(func, "__name__", "") == "__get__":  # its shape, its dtype
                return func(*args, **kwargs)
            raise Unsuited
        return known(self, func, *args, **kwargs)

    def note(
        self,
        rule: Rule,
        weight: Tensor | None,
        bias: Tensor | None,
        read: Tensor,
        output: Tensor,
        **settings: Any,
    ) -> Tensor:
        """A layer's output, which is noted with what the layer read."""
        given = {"weight": weight, "bias": bias}
        names = {
            role: self.names[id(part)]
            for role, part in given.items()
            if part is not None and id(part) in self.names
        }
        if read.shape[0] != self.rows or not self.seen.isdisjoint(names.values()):
            raise Unsuited
        self.seen.update(names.values())
        self.uses.append(Use(rule, names, read, output, {"roles": frozenset(names), **settings}))
        return output


# --- layers: what they give, then squared norms [b] and sums of their gradients -------------------------------------


def _linear(
    watched: _Watched, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return watched.note(_of_linear, weight, bias, input, func(input, weight, bias))


def _of_linear(read: Tensor, flow: Tensor, roles: frozenset[str]) -> tuple[Tensor, Sums]:
    if read.ndim > 2:
        return _of_positions(read.flatten(1, -2), flow.flatten(1, -2), roles)
    square = flow.square().sum(1)
    norm = square * (read.square().sum(1) * ("weight" in roles) + ("bias" in roles))

    def sums(scale: Tensor) -> dict[str, Tensor]:
        kept = _kept(scale, flow)
        return {"weight": kept.t() @ _sound(scale, read), "bias": kept.sum(0)}

    return norm, sums


def _of_positions(read: Tensor, flow: Tensor, roles: frozenset[str]) -> tuple[Tensor, Sums]:
    """Of a linear layer at several positions: `read` [b, t, in], `flow` [b, t, out]."""
    bias = flow.sum(1)
    norm = bias.square().sum(1) * ("bias" in roles)
    each: Tensor | None = None
    if "weight" in roles:
        if 2 * read.shape[1] ** 2 <= read.shape[2] * flow.shape[2]:
            norm = norm + (read @ read.transpose(1, 2) * (flow @ flow.transpose(1, 2))).sum((1, 2)).clamp(
                min=0
            )
        else:
            each = (flow.transpose(1, 2) @ read).flatten(1)
            norm = norm + each.square().sum(1)

    def sums(scale: Tensor) -> dict[str, Tensor]:
        if each is None:
            weight = _kept(scale, flow).flatten(0, 1).t() @ _sound(scale, read).flatten(0, 1)
        else:
            weight = (scale @ _sound(scale, each)).reshape(flow.shape[2], read.shape[2])
        return {"weight": weight, "bias": scale @ _sound(scale, bias)}

    return norm, sums


def _conv2d(
    watched: _Watched,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups != 1 or isinstance(padding, str) or input.ndim != 4:
        raise Unsuited
    output = func(input, weight, bias, stride, padding, dilation, groups)
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    return watched.note(_of_conv2d, weight, bias, input, output, shape=weight.shape, window=window)


def _of_conv2d(
    read: Tensor, flow: Tensor, roles: frozenset[str], shape: torch.Size, window: Mapping[str, Any]
) -> tuple[Tensor, Sums]:
    patches = F.unfold(read, shape[2:], **window).transpose(1, 2)
    norm, of_patches = _of_positions(patches, flow.flatten(2).transpose(1, 2), roles)

    def sums(scale: Tensor) -> dict[str, Tensor]:
        made = of_patches(scale)
        return {"weight": made["weight"].reshape(shape), "bias": made["bias"]}

    return norm, sums


def _group_norm(
    watched: _Watched,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    normed = func(input, num_groups, None, None, eps)
    shape = (-1, *(1,) * (input.ndim - 2))
    output = normed if weight is None else normed * weight.reshape(shape)
    output = output if bias is None else output + bias.reshape(shape)
    return watched.note(_of_scale, weight, bias, normed, output, axes=tuple(range(2, input.ndim)))


def _layer_norm(
    watched: _Watched,
    func: Any,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    normed = func(input, normalized_shape, None, None, eps)
    output = normed if weight is None else normed * weight
    output = output if bias is None else output + bias
    axes = tuple(range(1, input.ndim - len(normalized_shape)))
    return watched.note(_of_scale, weight, bias, normed, output, axes=axes)


def _of_scale(
    read: Tensor, flow: Tensor, roles: frozenset[str], axes: tuple[int, ...]
) -> tuple[Tensor, Sums]:
    """Of a scale and a shift along some axes: their gradients are small enough to have them for every sample."""
    found = {"weight": flow * read, "bias": flow}
    each = {role: (value.sum(axes) if axes else value) for role, value in found.items() if role in roles}
    norm = sum(
        (value.flatten(1).square().sum(1) for value in each.values()), torch.zeros_like(flow.flatten(1)[:, 0])
    )

    def sums(scale: Tensor) -> dict[str, Tensor]:
        return {
            role: (scale @ _sound(scale, value).flatten(1)).reshape(value.shape[1:])
            for role, value in each.items()
        }

    return norm, sums


def _embedding(
    watched: _Watched,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq or sparse or id(weight) not in watched.names:
        raise Unsuited
    output = func(input, weight, padding_idx)
    silent = None if padding_idx is None else padding_idx % len(weight)
    return watched.note(_of_embedding, weight, None, input, output, shape=weight.shape, silent=silent)


def _of_embedding(
    read: Tensor, flow: Tensor, roles: frozenset[str], shape: torch.Size, silent: int | None
) -> tuple[Tensor, Sums]:
    words, flow = read.reshape(len(read), -1), flow.reshape(len(read), -1, shape[1])
    if silent is not None:
        flow = torch.where((words != silent).unsqueeze(-1), flow, 0.0)
    same = words.unsqueeze(2) == words.unsqueeze(1)
    norm = torch.where(same, flow @ flow.transpose(1, 2), 0.0).sum((1, 2)).clamp(min=0)

    def sums(scale: Tensor) -> dict[str, Tensor]:
        kept = _kept(scale, flow).flatten(0, 1)
        return {"weight": kept.new_zeros(shape).index_add(0, words.flatten(), kept)}

    return norm, sums


def _column(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *(1,) * (like.ndim - 1))


def _kept(scale: Tensor, values: Tensor) -> Tensor:
    """Rows times their factor; those of factor 0 are 0, whatever they hold."""
    return torch.where(_column(scale, values) > 0, values * _column(scale, values), 0.0)


def _sound(scale: Tensor, values: Tensor) -> Tensor:
    """Rows, but 0 where the factor is 0."""
    return torch.where(_column(scale, values) > 0, values, 0.0)


_KNOWN: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    torch.conv2d: _conv2d,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.embedding: _embedding,
}
