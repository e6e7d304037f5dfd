"""A blinded set that is computed once and used again."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from atoll import codec, durable
from atoll.errors import CodecError, DataError
from atoll.parties import Field, Kind
from atoll.tensors import Record
from atoll.vertical.alignment.power import Points

__all__ = ["Blinded", "load", "save"]

_FORM = Kind(
    "psi.kept",
    {
        "digest": Field("uint8", (32,)),
        "check": Field("uint8", (32,)),
        "salt": Field("uint8", (32,)),
        "secret": Field("uint8", (32,)),
        "points": Field("uint8", (None, 32)),
        "shuffle": Field("int32", (None,)),
    },
    "everything: it stays with its owner",
)


@dataclass(frozen=True)
class Blinded:
    """A party's own set under its own secret.

    Attributes:
        salt: the party's part of what the points depend on.
        points: uint8 [m, 32], in an order drawn at random.
        shuffle: which of the m distinct ids stands at each place: int32 [m].
    """

    salt: bytes
    secret: bytes
    points: Points
    shuffle: NDArray[np.int32]


def load(path: Path, digest: bytes, session: str) -> Blinded | None:
    """What was kept of these very ids for a session of that name; None where nothing was, or of others.

    A set that changed needs another secret: under the same one the others would see which points are new.

    Raises CodecError where the file is damaged.
    """
    if not path.exists():
        return None
    record = codec.decode(path.read_bytes(), limits=codec.OWN)
    _FORM.check(record, str(path))
    if _octets(record.digest) != _joined(digest, session):
        return None
    points, shuffle = record.points.numpy(), record.shuffle.numpy()
    found = Blinded(_octets(record.salt), _octets(record.secret), points, shuffle)
    if _octets(record.check) != _check(found):
        raise CodecError(f"{path} is damaged", hint="remove it; it is written anew")
    return found


def save(path: Path, digest: bytes, session: str, blinded: Blinded) -> None:
    """Write it for its owner alone (0600).  Raises DataError where the file cannot be written."""
    record = Record(
        digest=_tensor(_joined(digest, session)),
        check=_tensor(_check(blinded)),
        salt=_tensor(blinded.salt),
        secret=_tensor(blinded.secret),
        points=torch.from_numpy(blinded.points),
        shuffle=torch.from_numpy(blinded.shuffle),
    )
    try:
        durable.replaced(path, *codec.pieces(record), secret=True)
    except OSError as error:
        raise DataError(f"the blinded ids cannot be kept: {error.strerror}", hint=str(path)) from None


def _check(blinded: Blinded) -> bytes:
    digest = sha256(blinded.salt + blinded.secret)
    digest.update(np.ascontiguousarray(blinded.points).data)
    digest.update(np.ascontiguousarray(blinded.shuffle).data)
    return digest.digest()


def _joined(digest: bytes, session: str) -> bytes:
    return sha256(digest + session.encode("utf-8", "replace")).digest()


def _tensor(octets: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(octets), dtype=torch.uint8)


def _octets(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()
