"""Large results of torch's operations in files without names: memory that the system may take back, and read again.

A server whose model is larger than its memory makes sums, new states and copies of that size, in methods that know
nothing of it. Inside `Mapped` each large tensor that an operation makes lies in a file of its own, mapped, whoever asks
for it. The operations are the same, and so are their bits.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from atoll.errors import RunError

__all__ = ["LARGE", "Mapped", "mapping"]

LARGE = 1 << 20
"""Bytes from which on a tensor is worth a file: below, headers and pages that are half full would count."""

_HERE = threading.local()

_FORMS = {"empty": None, "zeros": 0, "ones": 1}
"""What begins the names of operations that make tensors of a form, and what is in them then."""


class Mapped(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, large tensors that this thread makes lie in files in `place`. Each thread needs one of its own.

    The files have no names, and end with the last tensor in them. They are not synced: they are memory, and nothing
    that lasts. Whatever an operation needs beside its result is in memory as always, which is about a tensor's size.

    Args:
        place: a directory on a disk with room for what is made.
        least: bytes of a tensor that gets a file.

    Operations raise RunError where there is no room.
    """

    def __init__(self, place: Path, least: int = LARGE) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place, self.least = place, least

    def blank(self, shape: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None = None) -> Tensor:
        """A tensor of zeros in a file."""
        form = torch.empty(0, dtype=dtype)
        extent = _extent(shape, stride) * dtype.itemsize
        handle, name = -1, ""
        try:
            handle, name = tempfile.mkstemp(prefix="own-", suffix=".part", dir=self.place)
            os.posix_fallocate(handle, 0, max(extent, 1))  # a page without room would end the process
            storage = torch.UntypedStorage.from_file(name, True, extent)
        except OSError as error:
            hint = "make room on the disk, or look after who may write there"
            raise RunError(f"{self.place}: {(error.strerror or str(error)).lower()}", hint=hint) from error
        finally:
            if name:
                os.close(handle)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        return form.set_(storage, 0, tuple(shape), tuple(stride or _strides(shape)))  # type: ignore[arg-type]

    # --- what torch calls -------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it takes importing it, for seconds and 70 MB

    def __enter__(self) -> Mapped:
        _modes().append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _modes().pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        way = _way(func)
        if way is None:
            return func(*args, **kwargs)
        if way is _formed:
            return self._formed(func, args, kwargs)
        if isinstance(way, torch._ops.OpOverload):
            given = [each for each in args if isinstance(each, Tensor) and each.ndim]
            if given and _alike(given) and given[0].nbytes >= self.least:
                return self._written(func, way, args, kwargs)
        if way is _copied and _plain(args[0]) and args[0].is_contiguous() and not _elsewhere(args, kwargs):
            dtype = kwargs.get("dtype") or args[0].dtype
            if args[0].numel() * dtype.itemsize >= self.least:
                return self.blank(args[0].shape, dtype).copy_(args[0])
        found = func(*args, **kwargs)
        if isinstance(found, Tensor) and (not _plain(found) or found.nbytes < self.least):
            return found
        given = [each for each in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(each, Tensor)]
        known = {each.untyped_storage().data_ptr() for each in given if _plain(each)}

        def laid(value: Any) -> Any:
            if not isinstance(value, Tensor) or not _plain(value) or value.nbytes < self.least:
                return value
            if value.untyped_storage().data_ptr() in known:  # a view
                return value
            return self._like(value).copy_(value)

        return pytree.tree_map(laid, found)

    def _like(self, form: Tensor) -> Tensor:
        return self.blank(form.shape, form.dtype, form.stride())

    def _formed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """A tensor of a form, with the same number everywhere or with any."""
        lists = [each for each in args if isinstance(each, list | tuple)]
        numbers = _extent(lists[0], None) if lists else args[0].numel()
        if 8 * numbers < self.least or _elsewhere(args, kwargs):
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        if lists:  # the type of none is that of many
            none = func(*([0] if isinstance(each, list | tuple) else each for each in args), **kwargs)
            shape, stride = lists[0], lists[1] if lists[1:] else None
        else:
            none = func(args[0].new_empty(0), *args[1:], **kwargs)
            like = torch.empty_like(args[0], device="meta", memory_format=kwargs.get("memory_format"))
            shape, stride = like.shape, like.stride()
        if _extent(shape, stride) * none.itemsize < self.least:
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        made, number = self.blank(shape, none.dtype, stride), _filled(func, args, kwargs)
        return made.fill_(number) if number else made

    def _written(self, func: Any, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation that goes number by number gives, written where it is to lie."""
        large = next(each for each in args if isinstance(each, Tensor) and each.ndim)
        one = [each.new_zeros(1) if isinstance(each, Tensor) and each.ndim else each for each in args]
        dtype = func(*one, **kwargs).dtype
        return out(*args, **kwargs, out=self.blank(large.shape, dtype))


def mapping() -> Mapped | None:
    """What this thread is inside of; None where tensors lie where they always do."""
    modes = _modes()
    return modes[-1] if modes else None


def _modes() -> list[Mapped]:
    found: list[Mapped] = _HERE.__dict__.setdefault("modes", [])
    return found


@lru_cache(None)
def _way(func: Any) -> Callable[..., Any] | bool | None:
    """What is done with an operation: nothing (None), the form with `out` of one that goes number by number, or its
    result is looked at (True).
    """
    schema = func._schema
    if any(each.alias_info is not None for each in schema.returns):
        return None  # views, and what writes into its arguments
    if not any("Tensor" in str(each.type) for each in schema.returns):
        return None
    name = schema.name.partition("::")[2].removeprefix("new_")
    if name.partition("_")[0] in {*_FORMS, "full"} and any(
        each.name == "device" for each in schema.arguments
    ):
        return _formed
    if name in ("clone", "_to_copy"):
        return _copied
    if torch.Tag.pointwise in func.tags and len(schema.returns) == 1:
        return next(_outs(func), True)
    return True


def _formed() -> None:
    """Stands for operations that make tensors of a form."""


def _copied() -> None:
    """Stands for operations that make the same again."""


def _outs(func: Any) -> Iterator[Any]:
    """The forms of an operation that write where they are told, and are the operation itself."""
    wanted = [(each.name, str(each.type)) for each in func._schema.arguments]
    packet = func.overloadpacket
    for name in packet.overloads():
        if name == "out" or name.endswith("_out"):
            each = getattr(packet, name)
            if torch.Tag.generated in each.tags:
                continue  # makes its result anew, and copies it
            arguments = [(one.name, str(one.type)) for one in each._schema.arguments]
            if arguments[:-1] == wanted and arguments[-1][0] == "out":
                yield each


def _filled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The number that an operation fills a tensor with, None for any."""
    name = func._schema.name.partition("::")[2].removeprefix("new_").partition("_")[0]
    if name in _FORMS:
        return _FORMS[name]
    at = [each.name for each in func._schema.arguments].index("fill_value")
    return args[at] if at < len(args) else kwargs["fill_value"]


def _elsewhere(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a tensor of a form is to lie on another device, or in another order than its numbers."""
    like = args[0] if args and isinstance(args[0], Tensor) else None
    device = kwargs.get("device") or ("cpu" if like is None else like.device)
    ordered = kwargs.get("memory_format") in (None, torch.contiguous_format, torch.preserve_format)
    dense = kwargs.get("layout") in (None, torch.strided) and (like is None or _strided(like))
    return torch.device(device).type != "cpu" or not (ordered and dense)


def _alike(given: list[Tensor]) -> bool:
    """Whether what an operation makes of tensors number by number lies as they do, all in their order."""
    return all(_plain(each) and each.is_contiguous() and each.shape == given[0].shape for each in given)


def _plain(value: Tensor) -> bool:
    return type(value) is Tensor and _strided(value) and value.device.type == "cpu"


def _strided(value: Tensor) -> bool:
    return value.layout is torch.strided and not value.is_quantized


def _strides(shape: Sequence[int]) -> list[int]:
    found, step = [], 1
    for length in reversed(shape):
        found.append(step)
        step *= max(length, 1)
    return found[::-1]


def _extent(shape: Sequence[int], stride: Sequence[int] | None) -> int:
    """How many numbers there are from the first to the last in memory."""
    if 0 in shape:
        return 0
    steps = _strides(shape) if stride is None else stride
    return 1 + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
