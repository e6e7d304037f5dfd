"""A pretended accelerator: tensors that say they live on another device, and are computed on the CPU.

Inside `Pretended`, device "meta" behaves as CUDA does where that can be told without one: tensors asked for by that
name say that they are on its first device, which compares unequal to the name alone; tensors of two devices do not meet
in an operation (but for numbers in elementwise ones, and indices), have no storage to be looked at, and are copied
where somebody asks. Values are those of the CPU to the bit. What crosses, and what makes the host wait, is counted.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
DEVICE = torch.device("meta", 0)

_ACROSS = {aten._to_copy.default, aten.copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
_WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default}


class There(Tensor):
    """A tensor on the pretended device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        with torch.inference_mode(False):  # a slice of a usual tensor is one, in inference mode too
            made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
                dtype=inner.dtype, device=DEVICE,
            )  # fmt: skip
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"There({self.inner!r})"

    def tolist(self) -> Any:  # torch's own knows no subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {}, None)


class Pretended(TorchDispatchMode):
    """Inside, tensors can be on `DEVICE`.

    `up` and `down` count copies to the device and from it, `waits` whatever else the host waits for; all by the place
    in Atoll that asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.up: Counter[str] = Counter()
        self.down: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode operations come here before they are taken apart
            parts = func.decompose(*args, **(kwargs or {}))
        return _computed(func, args, kwargs or {}, self) if parts is NotImplemented else parts

    def reset(self) -> None:
        self.up.clear(), self.down.clear(), self.waits.clear()


class _Values(TorchFunctionMode):
    """Makes tensors of Python values on the CPU first: on "meta" they would have none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor:
            return torch.tensor(*args[1:], dtype=kwargs.get("dtype", args[0].dtype)).to(args[0].device)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1], dtype=torch.int64), *args[2:]
        return func(*args, **kwargs)


@contextmanager
def pretended() -> Iterator[Pretended]:
    """Inside, tensors can be on `DEVICE`; gives what is counted."""
    with _Values(), Pretended() as counted:
        yield counted


def _where() -> str:
    own = [f for f in traceback.extract_stack() if "/src/atoll/" in f.filename]
    return f"{own[-1].filename.split('/src/atoll/')[1]}:{own[-1].name}" if own else "elsewhere"


def _computed(func: Any, args: Any, kwargs: Any, mode: Pretended | None) -> Any:
    given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(leaf, There) for leaf in given)
    asked = kwargs.get("device")
    if asked is None and not there:
        return func(*args, **kwargs)
    to = there if asked is None else torch.device(asked).type == DEVICE.type
    if not there and not to:
        return func(*args, **kwargs)
    if there and func not in _ACROSS:
        _check(func, args, given)
    if mode is not None:
        if func is aten._to_copy.default and there != to:
            (mode.up if to else mode.down)[_where()] += 1
        elif func is aten.copy_.default and isinstance(args[0], There) != isinstance(args[1], There):
            (mode.up if isinstance(args[0], There) else mode.down)[_where()] += 1
        elif there and func in _WAITS:
            mode.waits[_where()] += 1
    bare_args, bare = pytree.tree_map_only(There, lambda leaf: leaf.inner, (args, kwargs))
    if asked is not None:
        bare["device"] = "cpu"
    found = func(*bare_args, **bare)
    if func is aten.copy_.default:
        return args[0]
    if not to:
        return found.clone() if isinstance(found, Tensor) and func is aten._to_copy.default else found
    found = pytree.tree_map_only(Tensor, There, found)
    return return_and_correct_aliasing(func, args, kwargs, found)


def _check(func: Any, args: Any, given: list[Tensor]) -> None:
    """Refuse what a device refuses."""
    strays = [leaf for leaf in given if not isinstance(leaf, There)]
    written = func._schema.is_mutable and not isinstance(args[0], There)
    if func in _INDEXED and isinstance(args[0], There):
        strays = [leaf for leaf in strays if func is not aten.index.Tensor and leaf is args[2] and leaf.ndim]
    elif torch.Tag.pointwise in func.tags and not written:
        strays = [leaf for leaf in strays if leaf.ndim]
    if strays:
        raise RuntimeError(f"Expected all tensors to be on the same device, in {func}")
