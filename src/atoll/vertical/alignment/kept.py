"""A blinded set that is computed once and used again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import torch

from atoll import codec, durable
from atoll.errors import CodecError, DataError
from atoll.parties import Field, Kind
from atoll.tensors import Record
from atoll.vertical.alignment.columns import Column, Scratch
from atoll.vertical.alignment.curve import BYTES

__all__ = ["Blinded", "load", "save"]

_HEAD = Kind(
    "psi.kept",
    {
        "digest": Field("uint8", (32,)),
        "check": Field("uint8", (32,)),
        "salt": Field("uint8", (32,)),
        "secret": Field("uint8", (32,)),
        "count": Field("int"),
    },
    "everything: it stays with its owner",
)
"""What stands before points and rows, after its length in 8 bytes."""

_MOST = 1 << 13


@dataclass(frozen=True)
class Blinded:
    """A party's own set under its own secret.

    Attributes:
        salt: the party's part of what the points depend on.
        points: uint8 [m, 32], in an order drawn at random.
        rows: the first row of the id at each place: int32 [m].
    """

    salt: bytes
    secret: bytes
    points: Column
    rows: Column


def load(path: Path, digest: bytes, session: str, scratch: Scratch) -> Blinded | None:
    """What was kept of these very ids for a session of that name; None where nothing was, or of others.

    A set that changed needs another secret: under the same one the others would see which points are new.

    Raises CodecError where the file is damaged.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        head, start = _head(file, path)
        if _octets(head.digest) != _joined(digest, session):
            return None
        points = Column(_again(file), "u1", BYTES, start, head.count)
        rows = Column(_again(file), "<i4", 0, start + BYTES * head.count, head.count)
        found = Blinded(_octets(head.salt), _octets(head.secret), scratch.kept(points), scratch.kept(rows))
        whole = os.fstat(file.fileno()).st_size == start + (BYTES + 4) * head.count
    if not whole or _octets(head.check) != _check(found, scratch.chunk):
        raise _damaged(path)
    return found


def save(path: Path, digest: bytes, session: str, blinded: Blinded, chunk: int) -> None:
    """Write it for its owner alone (0600).  Raises DataError where the file cannot be written."""
    head = codec.encode(
        Record(
            digest=_tensor(_joined(digest, session)),
            check=_tensor(_check(blinded, chunk)),
            salt=_tensor(blinded.salt),
            secret=_tensor(blinded.secret),
            count=len(blinded.points),
        )
    )
    try:
        durable.replaced(path, len(head).to_bytes(8, "little"), head, _content(blinded, chunk), secret=True)
    except OSError as error:
        raise DataError(f"the blinded ids cannot be kept: {error.strerror}", hint=str(path)) from None


def _head(file: IO[bytes], path: Path) -> tuple[Record, int]:
    """What stands at the beginning, and where it ends."""
    size = int.from_bytes(file.read(8), "little")
    try:
        head = codec.decode(file.read(min(size, _MOST)))
        _HEAD.check(head, str(path))
    except CodecError:
        raise _damaged(path) from None
    if head.count < 0:
        raise _damaged(path)
    return head, 8 + size


def _damaged(path: Path) -> CodecError:
    return CodecError(f"{path} is damaged, or no set that was kept", hint="remove it; it is written anew")


def _again(file: IO[bytes]) -> IO[bytes]:
    """The same file, with a place in it of its own to buffer."""
    return os.fdopen(os.dup(file.fileno()), "rb")


def _content(blinded: Blinded, chunk: int) -> Iterator[memoryview]:
    for some in chain(blinded.points.pieces(chunk), blinded.rows.pieces(chunk)):
        yield np.ascontiguousarray(some).data.cast("B")


def _check(blinded: Blinded, chunk: int) -> bytes:
    digest = sha256(blinded.salt + blinded.secret)
    for some in _content(blinded, chunk):
        digest.update(some)
    return digest.digest()


def _joined(digest: bytes, session: str) -> bytes:
    return sha256(digest + session.encode("utf-8", "replace")).digest()


def _tensor(octets: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(octets), dtype=torch.uint8)


def _octets(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()
