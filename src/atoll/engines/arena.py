"""Memory that processes share, and records in it: named tensors and numbers, nothing else."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from typing import Any

import torch
from torch import Tensor

from atoll.tensors import Record, Tensors, flatten_record, unflatten_record

__all__ = ["Arena", "Header"]

Header = list[list[Any]]
"""What lies where: [path, dtype, shape, offset] for a tensor, [path, None, value, 0] for a number."""

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)}  # fmt: skip
_ALIGN = 64
_EMPTY: dict[str, type[Any]] = {"Record": Record, "Tensors": Tensors}


class Arena:
    """A growing piece of shared memory. Made before a fork, it is common to parent and child; either may write."""

    def __init__(self) -> None:
        self.descriptor, path = tempfile.mkstemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        os.unlink(path)
        weakref.finalize(self, os.close, self.descriptor)
        self.size = 0
        self.map: mmap.mmap | None = None

    def _ensure(self, size: int) -> None:
        actual = os.fstat(self.descriptor).st_size
        if actual < size:
            os.ftruncate(self.descriptor, size)
            actual = size
        if self.size < actual:
            self.map = mmap.mmap(self.descriptor, actual)
            self.size = actual

    def write(self, record: Record) -> Header:
        """Write a record from the start of the arena; what was there is gone."""
        header: Header = []
        placed: list[tuple[Tensor, int]] = []
        offset = 0
        for path, leaf in flatten_record(record):
            if isinstance(leaf, Tensor):
                name = str(leaf.dtype).removeprefix("torch.")
                header.append([list(path), name, list(leaf.shape), offset])
                placed.append((leaf, offset))
                offset += -(-leaf.numel() * leaf.element_size() // _ALIGN) * _ALIGN
            elif isinstance(leaf, dict):
                header.append([list(path), type(leaf).__name__, [], 0])
            else:
                header.append([list(path), None, leaf, 0])
        self._ensure(offset)
        for leaf, at in placed:
            if leaf.numel():
                self._view(leaf.dtype, list(leaf.shape), at).copy_(leaf)
        return header

    def read(self, header: Header) -> Record:
        """The record that was written with this header; its tensors are views of the arena."""
        end = max((at + 8 for _, kind, _, at in header if kind in _DTYPES), default=0)
        self._ensure(end)
        items: list[tuple[tuple[str, ...], Any]] = []
        for path, kind, content, at in header:
            if kind is None:
                items.append((tuple(path), content))
            elif kind in _DTYPES:
                items.append((tuple(path), self._view(_DTYPES[kind], content, at)))
            else:
                items.append((tuple(path), _EMPTY[kind]()))
        return unflatten_record(items)

    def _view(self, dtype: torch.dtype, shape: list[int], offset: int) -> Tensor:
        count = 1
        for length in shape:
            count *= length
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        assert self.map is not None
        return torch.frombuffer(self.map, dtype=dtype, count=count, offset=offset).reshape(shape)
