"""Reading a traced graph: what a node is, its shape and type, and whose storage it may share."""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

__all__ = ["Form", "aten", "device_of", "dtype_of", "form_of", "is_call", "is_view", "root", "shape_of"]

aten = torch.ops.aten


class Form(NamedTuple):
    """What is known of a tensor before the graph runs: `meta["val"]` of a node that gives one."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def blank(self) -> Tensor:
        """Zeros of this form in main memory, to find out what an operation gives.

        Not on torch's device without memory: there `relu` and others are Python, and import the compiler.
        """
        reach = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        room = torch.zeros(reach if math.prod(self.shape) else 0, dtype=self.dtype)
        return room.as_strided(self.shape, self.stride)


def form_of(value: Tensor) -> Form:
    return Form(tuple(value.shape), value.dtype, value.device, value.stride())


def is_call(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def shape_of(node: Any) -> tuple[int, ...] | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.shape if isinstance(value, Form) else None


def dtype_of(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, Form) else None


def device_of(node: Any) -> str | None:
    """The kind of device that the first of an operation's results is on."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    values = [value] if isinstance(value, Form) or value is None else value
    return next((each.device.type for each in values if isinstance(each, Form)), None)


def is_view(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function":
        return False
    if target is operator.getitem:
        return True
    schema = getattr(target, "_schema", None)
    return schema is not None and any(argument.alias_info is not None for argument in schema.arguments)


def root(node: fx.Node) -> fx.Node:
    """The node whose storage this one may share."""
    while is_view(node):
        node = node.args[0]  # type: ignore[assignment]
    return node
