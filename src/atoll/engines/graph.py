"""Reading a traced graph: what a node is, its shape and type, and whose storage it may share."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["aten", "device_of", "dtype_of", "is_call", "is_view", "root", "shape_of"]

aten = torch.ops.aten


def is_call(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def shape_of(node: Any) -> tuple[int, ...] | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def dtype_of(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, Tensor) else None


def device_of(node: Any) -> str | None:
    """The kind of device that the first of an operation's results is on."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    values = value if isinstance(value, (tuple, list)) else [value]
    return next((each.device.type for each in values if isinstance(each, Tensor)), None)


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
