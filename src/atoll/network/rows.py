"""Inputs without labels: public ones, and rows that somebody wants predictions for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from atoll.codec import Limits, decode, encode
from atoll.data import from_arrays
from atoll.data.files import arrays_of
from atoll.errors import CodecError, ConfigError, DataError
from atoll.network.wire import PUBLIC
from atoll.tensors import Record

__all__ = ["arrays", "packed", "unpacked"]


def arrays(path: Path) -> Tensor:
    """The array x of an .npz file, as the inputs of clients are read.  Raises DataError."""
    if path.suffix.lower() != ".npz":
        raise DataError(f"{path} is no .npz file", hint="numpy.savez(path, x=inputs), without labels")
    found = arrays_of(path)
    if "x" not in found:
        raise DataError(
            f"{path}: there is no array 'x' (it has: {', '.join(found)})", hint="store inputs as x"
        )
    if not found["x"].ndim or not len(found["x"]):
        raise DataError(f"{path}: there are no rows in x", hint="one row for each sample")
    nothing = np.zeros(len(found["x"]), np.float32)
    made = from_arrays(found["x"], nothing, classes="regression", name=path.name).train.inputs
    assert isinstance(made, Tensor)
    return made


def packed(inputs: Tensor) -> bytes:
    """Public inputs as a body.  Raises ConfigError for more than nodes take."""
    blob = encode(Record(x=inputs))
    if len(blob) > PUBLIC:
        raise ConfigError(
            f"public inputs of {len(blob):,} bytes, and every node gets them: {PUBLIC:,} at most",
            hint="take fewer of them",
        )
    return blob


def unpacked(blob: bytes) -> Tensor:
    """The inverse.  Raises CodecError for anything else."""
    found = decode(blob, limits=Limits(nbytes=PUBLIC))
    if found.keys() != {"x"} or not isinstance(found.x, Tensor) or not found.x.ndim:
        raise CodecError("these bytes are no public inputs", hint="a record of one tensor, x [n, ...]")
    return found.x
