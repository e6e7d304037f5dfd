"""A checked header, and its tensors: where they lie in a file or in shared memory, how they get there and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from atoll.codec.header import DTYPES, LEVELS, SAID, SCALARS, Header, Limits, Node, refuse, short, where
from atoll.tensors import RESERVED, Record, Tensors, fields_of

__all__ = ["Layout"]

_WIDTHS = {code: dtype.itemsize for code, dtype in DTYPES.items()}
_SCALARS = {scalar.kind: scalar for scalar in SCALARS.values()}
_STORED = {
    code: np.dtype(np.int16 if code == "BF16" else str(dtype).removeprefix("torch."))
    for code, dtype in DTYPES.items()
}
_MOST = (1 << 63) - 1  # torch counts in 64 bits


class Slot(msgspec.Struct, gc=False):
    """Where a tensor belongs."""

    level: dict[str, Any]
    path: tuple[str, ...]
    name: str
    kind: str
    shape: list[int]
    nbytes: int

    def __str__(self) -> str:
        return where((*self.path, self.name))


class Layout:
    """A checked header, and where each of its tensors lies among the bytes.

    The widest numbers come first, one tensor after the other from multiples of `align` bytes: 1 in a file, which may
    have no gaps, 64 in memory that is worked on. `size` is how many bytes they take. Nothing of that size is made here.
    Raises CodecError for a header that describes no record, or one beyond the limits.
    """

    def __init__(self, header: Header, limits: Limits, align: int = 1) -> None:
        self.header = header
        self.record = Record()
        self.slots: list[Slot] = []
        self._understand(limits)
        widths = [_WIDTHS[slot.kind] for slot in self.slots]
        self.order = sorted(range(len(widths)), key=widths.__getitem__, reverse=True)
        self.offsets = [0] * len(widths)
        self.size = 0
        for at in self.order:
            self.offsets[at] = self.size
            self.size += -(-self.slots[at].nbytes // align) * align

    def _understand(self, limits: Limits) -> None:
        """Make the record, its tensors still missing, and a slot for each of them."""
        header = self.header
        if not header or header[0].kind != "record" or header[0].name:
            refuse("the header does not begin with a record")
        if len(header) - 1 > limits.fields:
            refuse(f"the record has {len(header) - 1} fields, and the limit is {limits.fields}")
        level = fields_of(self.record)
        path: tuple[str, ...] = ()
        left, total = _count(header[0], path), 0
        above: list[tuple[dict[str, Any], tuple[str, ...], int]] = []
        for node in header[1:]:
            name, kind, content = node.name, node.kind, node.content
            while not left and above:
                level, path, left = above.pop()
            if not left:
                refuse(f"{where((name,))} comes after the last field of the record")
            left -= 1
            if len(name) > limits.name:
                refuse(f"{where((*path, name))}: the name has {len(name)} characters, limit {limits.name}")
            if name in level:
                refuse(f"{where((*path, name))} is there twice")
            if name in RESERVED and type(level) is not Tensors:
                refuse(f"{where((*path, name))} has a name that no field of a Record can have")
            if kind in DTYPES:
                nbytes = _nbytes(node, path, limits)
                total += nbytes
                if total > limits.nbytes:
                    refuse(f"with {where((*path, name))} there are {total} bytes, limit {limits.nbytes}")
                level[name] = None
                self.slots.append(Slot(level, path, name, kind, content, nbytes))  # type: ignore[arg-type]
            elif type(level) is Tensors:
                refuse(f"{where((*path, name))} is {short(kind)} in a Tensors, which holds tensors")
            elif kind in LEVELS:
                if len(above) >= limits.depth:
                    refuse(f"{where((*path, name))} is deeper than {limits.depth} levels")
                below: Record | Tensors = LEVELS[kind]()
                level[name] = below
                above.append((level, path, left))
                level, path = fields_of(below), (*path, name)
                left = _count(node, path)
            else:
                level[name] = _scalar(node, path, limits)
        if left or any(more for _, _, more in above):
            refuse(f"{where(path)} ends before all its fields are there")

    def head(self) -> bytes:
        """The header as it stands in a file, padded to a multiple of 8 bytes."""
        nodes = _json([(node.name, node.kind, node.content) for node in self.header])
        table: dict[str, Any] = {"__metadata__": {"record": nodes}}
        for at, (slot, start) in enumerate(zip(self.slots, self.offsets, strict=True)):
            ends = (start, start + slot.nbytes)
            table[str(at)] = {"dtype": slot.kind, "shape": slot.shape, "data_offsets": ends}
        text = _json(table).encode()
        return text + b" " * (-len(text) % 8)

    def copied(self, blob: Any, start: int) -> Record:
        """The record with tensors of its own, copied out of bytes in which they begin at `start`."""
        for slot, offset in zip(self.slots, self.offsets, strict=True):
            made = torch.empty(slot.shape, dtype=DTYPES[slot.kind])
            if slot.nbytes:
                source = np.ndarray(slot.shape, _STORED[slot.kind], blob, start + offset)
                if slot.kind == "BOOL":
                    _check_truth(slot, source.view(np.uint8))
                array(made)[...] = source
            slot.level[slot.name] = made
        return self.record

    def view(self, buffer: Any, checked: bool = False) -> Record:
        """The record with tensors that are views of a writable buffer; `checked` refuses what is no truth value."""
        self._reach(buffer)
        for slot, offset in zip(self.slots, self.offsets, strict=True):
            if checked and slot.kind == "BOOL":
                _check_truth(slot, np.ndarray(slot.shape, np.uint8, buffer, offset))
            slot.level[slot.name] = _window(buffer, slot, offset)
        return self.record

    def write(self, buffer: Any, tensors: Sequence[Tensor]) -> None:
        """Copy tensors, in the order of the header, into a writable buffer."""
        self._reach(buffer)
        for slot, offset, tensor in zip(self.slots, self.offsets, tensors, strict=True):
            if slot.nbytes:
                _window(buffer, slot, offset).copy_(tensor)

    def _reach(self, buffer: Any) -> None:
        if len(buffer) < self.size:
            refuse(f"the tensors take {self.size} bytes, and the buffer has {len(buffer)}")


def _check_truth(slot: Slot, octets: Any) -> None:
    if octets.size and octets.max() > 1:
        refuse(f"{slot} has truth values that are neither 0 nor 1")


def array(tensor: Tensor) -> Any:
    """The numbers of a contiguous tensor in main memory, in a type that NumPy knows and as wide."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _window(buffer: Any, slot: Slot, offset: int) -> Tensor:
    """A piece of a buffer as a tensor. By way of NumPy: torch takes seven times as long for the same."""
    if not slot.nbytes:
        return torch.empty(slot.shape, dtype=DTYPES[slot.kind])
    found = torch.from_numpy(np.ndarray(slot.shape, _STORED[slot.kind], buffer, offset))
    return found.view(torch.bfloat16) if slot.kind == "BF16" else found


def _count(node: Node, path: tuple[str, ...]) -> int:
    """How many fields a level has."""
    if type(node.content) is not int or node.content < 0:
        refuse(f"{where(path)} has {short(node.content)} for the number of its fields")
    return node.content


def _nbytes(node: Node, path: tuple[str, ...], limits: Limits) -> int:
    """Bytes of a tensor, whose shape must be one that torch can have."""
    shape = node.content
    if type(shape) is not list or len(shape) > limits.dimensions:
        refuse(f"{where((*path, node.name))} has {short(shape)} for up to {limits.dimensions} dimensions")
    nbytes = extent = _WIDTHS[node.kind]
    for length in shape:
        nbytes *= length
        extent *= length or 1  # strides count dimensions even where there are no numbers
        if length < 0 or extent > _MOST:
            refuse(f"{where((*path, node.name))} has the impossible shape {short(shape)}")
    return nbytes


def _scalar(node: Node, path: tuple[str, ...], limits: Limits) -> Any:
    text, scalar = node.content, _SCALARS.get(node.kind)
    if scalar is None:
        refuse(f"{where((*path, node.name))} is of an unknown kind, {short(node.kind)}")
    if type(text) is str and len(text) <= limits.text:
        try:
            value = scalar.read(text)
            if scalar.write(value) == text:
                return value
        except (ValueError, OverflowError):
            pass
    due = f"{SAID[node.kind]} of up to {limits.text} characters"
    refuse(f"{where((*path, node.name))} is not {due}: {short(text)}")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
