"""The one codec of records: memories on disk, checkpoints, workers' arenas, and whatever comes from another machine.

A record becomes a safetensors file. Its metadata hold a header that says what each field is, in order and level by
level; so names mean nothing to the codec, and numbers keep their type. One record has one encoding, to the byte:
`decode` writes the header anew from what it has understood, and refuses bytes that differ.

Nothing in the bytes is trusted. Limits are checked before anything of the size that they claim is made, and whatever is
wrong is a `CodecError` that names the field.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import msgspec

from atoll.codec.form import Form
from atoll.codec.header import OWN, Header, Limits, outline, refuse, short
from atoll.codec.layout import Layout, array
from atoll.errors import CodecError
from atoll.tensors import Record

__all__ = [
    "OWN",
    "Form",
    "Header",
    "Layout",
    "Limits",
    "decode",
    "encode",
    "outline",
    "pieces",
    "read",
    "viewed",
]


def encode(record: Record) -> bytes:
    """A record as a safetensors file, the same bytes for equal records.

    Tensors may be views, share memory and lie on any device; what comes back is contiguous and shares nothing. (Other
    programs may refuse a file whose header is longer than 100 MB: some 400,000 tensors.) Raises CodecError for what a
    record cannot hold.
    """
    return b"".join(pieces(record))


def pieces(record: Record) -> list[Any]:
    """What `encode` gives, as bytes and arrays one after the other: nothing of a contiguous tensor is copied."""
    header, tensors = outline(record)
    layout = Layout(header, OWN)
    head = layout.head()
    if len(head) > OWN.header:
        raise CodecError(f"the record has {len(header)} fields, too many for one file", hint="divide it")
    parts = [array(tensors[at].detach().cpu().contiguous()) for at in layout.order]
    return [len(head).to_bytes(8, "little"), head, *(_octets(part) for part in parts if part.size)]


def _octets(part: Any) -> memoryview:
    return memoryview(part.reshape(-1)).cast("B")


def decode(blob: Any, form: Form | None = None, limits: Limits = Limits()) -> Record:  # noqa: B008 - frozen
    """The record that `encode` wrote, of bytes or a mapped file. Its tensors own their memory, aligned as torch aligns
    it: sums depend on that.

    `form` is what the receiver expects; no tensor is made before it fits. Raises CodecError for any other bytes.
    """
    layout, start = _laid_out(blob, form, limits)
    return layout.copied(blob, start)


def read(path: Path) -> Record:
    """The record in a file that this program has written; nothing of the file is held beside it.

    Raises OSError where it cannot be read, CodecError (or ValueError for an empty file) where it is damaged.
    """
    with path.open("rb") as stream:
        return decode(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), limits=OWN)


def viewed(buffer: Any, limits: Limits = Limits()) -> Record:  # noqa: B008 - frozen
    """The same, with tensors that are views of a writable buffer, aligned as they lie in it.

    For what is looked at once, such as a file mapped into memory: nothing is copied. Raises CodecError as `decode`
    does.
    """
    layout, start = _laid_out(buffer, None, limits)
    return layout.view(memoryview(buffer)[start:], checked=True)


def _laid_out(blob: Any, form: Form | None, limits: Limits) -> tuple[Layout, int]:
    """Checked bytes: what is in them, and where the tensors begin."""
    if len(blob) > limits.nbytes:
        refuse(f"there are {len(blob)} bytes, and the limit is {limits.nbytes}")
    start = 8 + int.from_bytes(blob[:8], "little")
    if start - 8 > limits.header:
        refuse(f"the header has {start - 8} bytes, and the limit is {limits.header}")
    if start > len(blob):
        refuse(f"there are {len(blob)} bytes, and the header alone ends at {start}")
    head = bytes(blob[8:start])
    layout = Layout(_header(head), limits)
    if layout.head() != head:
        refuse(_difference(head, layout))
    if len(blob) - start != layout.size:
        refuse(f"the tensors take {layout.size} bytes, and there are {len(blob) - start}")
    if form is not None:
        for slot in layout.slots:
            slot.level[slot.name] = Form(slot.kind, tuple(slot.shape))
        form.check(layout.record)
    return layout, start


class _Metadata(msgspec.Struct):
    record: str


class _Head(msgspec.Struct):
    metadata: _Metadata = msgspec.field(name="__metadata__")


_HEAD = msgspec.json.Decoder(_Head)
_NODES = msgspec.json.Decoder(Header)


class _Entry(msgspec.Struct):
    dtype: str = ""
    shape: list[int] = []
    data_offsets: list[int] = []


def _header(head: bytes) -> Header:
    """The header in the metadata. The table beside it is only skipped: it follows from the header."""
    try:
        return _NODES.decode(_HEAD.decode(head).metadata.record)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        refuse(f"the header cannot be read: {error}")


def _difference(head: bytes, layout: Layout) -> str:
    """What is wrong with a head that is not the one which belongs to its record."""
    try:
        table = msgspec.json.decode(head, type=dict[str, _Entry])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return f"the table of tensors cannot be read: {error}"
    del table["__metadata__"]
    for at, (slot, start) in enumerate(zip(layout.slots, layout.offsets, strict=True)):
        entry = table.pop(str(at), None)
        if entry is None:
            return f"{slot} is not in the table of tensors"
        for what, found, due in (
            ("dtype", entry.dtype, slot.kind),
            ("shape", entry.shape, slot.shape),
            ("bytes", entry.data_offsets, [start, start + slot.nbytes]),
        ):
            if found != due:
                return f"{slot} has {what} {short(found)} in the table of tensors, and {due} in the record"
    if table:
        return f"the table has a tensor {short(next(iter(table)))}, and the record has not"
    return "the header has a name twice, further metadata, or another spelling than Atoll's"
