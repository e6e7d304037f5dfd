"""Where tensors of large models lie: in files, of which the system keeps in memory what there is room for."""

from __future__ import annotations

import contextlib
from pathlib import Path

from atoll.mapped import Mapped

__all__ = ["backed"]

_LARGE = 1 << 25
"""Bytes of a model from which on it is worth files."""

_PART = 1 << 20
"""Bytes of a tensor from which on it gets a file of its own."""


def backed(place: Path, size: int | None = None) -> contextlib.AbstractContextManager[object]:
    """Inside, tensors that this thread makes lie in files in this directory, where they are large.

    Where what the work goes about has so few bytes (`size`) that files do not pay, nothing is done.
    """
    if size is not None and size < _LARGE:
        return contextlib.nullcontext()
    return Mapped(place, _PART)
