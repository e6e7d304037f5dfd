"""Captured steps by form: a step is traced once for each form of working state and batch it meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atoll.contract import Program
from atoll.engines import stages
from atoll.engines.capture import Captured, capture
from atoll.machine import give_back
from atoll.task import Batch, Task
from atoll.tensors import Record, nbytes

__all__ = ["Steps", "form", "padded_width", "whole_batch"]

_LARGE = 32 << 20  # bytes of a working state, from which on what its capture took is given back


def form(tree: Any) -> tuple[Any, ...]:
    """Structure, shapes and types of a pytree; numbers count by value."""
    leaves, spec = pytree.tree_flatten(tree)
    return (
        str(spec),
        *((tuple(v.shape), v.dtype, v.device) if isinstance(v, Tensor) else v for v in leaves),
    )


class Steps:
    """A cache of captured steps."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.known: dict[Any, Captured] = {}
        self._changed: dict[Any, set[int]] = {}

    def single(self, program: Program, local: Record, batch: list[Any]) -> Captured:
        """The step of one client; `batch` as `whole_batch` reads it."""
        return self.find((program, form(local), form(batch)), self.step(program), local, batch)

    def step(self, program: Program) -> Callable[[Any, Any], Any]:
        """The step as a function of (working state, batch as a list)."""
        return lambda local, batch: stages.step(program, self.task, local, whole_batch(batch))

    def changed(self, program: Program, local: Record, batch: list[Any]) -> set[int]:
        """Which leaves of the working state a step replaces, found by taking one."""
        key = (program, "changed", form(local), form(batch))
        if key not in self._changed:
            with torch.no_grad():
                new = pytree.tree_leaves(self.step(program)(local, batch))
            old = pytree.tree_leaves(local)
            self._changed[key] = {at for at, (a, b) in enumerate(zip(old, new, strict=True)) if a is not b}
        return self._changed[key]

    def find(self, key: Any, function: Callable[[Any, Any], Any], state: Any, batch: list[Any]) -> Captured:
        """The captured step under this key; `function` is captured if there is none yet."""
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = capture(function, state, batch)
            if nbytes(state) >= _LARGE:  # gradients of all clients at once, which a captured step never has
                give_back()
        return found


def whole_batch(batch: list[Any]) -> Batch:
    """A batch from [inputs, targets, key], all rows real, or [inputs, targets, key, mask].

    Steps on full batches, nearly all of them, are captured without a mask: what depends on it is then constant.
    """
    inputs, targets, key, *mask = batch
    return Batch(inputs, targets, mask[0] if mask else torch.ones(len(targets), device=targets.device), key)


def padded_width(width: int) -> int:
    """The next size of batch that is captured: exact up to 64, then in steps of about a quarter."""
    if width <= 64:
        return width
    grain = 1 << (width.bit_length() - 3)
    return -(-width // grain) * grain
