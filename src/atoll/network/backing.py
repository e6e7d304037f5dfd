"""Large records that a file stands behind: the system may take their memory back, and read it again."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

from torch import nn

from atoll.codec import OWN, Layout, outline
from atoll.network.disk import trouble
from atoll.tensors import Record, Tensors, nbytes

__all__ = ["backed", "rest"]

_LARGE = 1 << 25
"""Bytes from which on it is worth a file."""

_ALIGN = 64  # as torch aligns its own memory: sums can depend on that


def backed(record: Record, place: Path) -> Record:
    """The same record; where it is large, its tensors are views of a file in this directory, which has no name.

    The file ends with the last view. It is not synced: it is memory, and nothing that lasts.

    Raises RunError where there is no room for it.
    """
    if nbytes(record) < _LARGE:
        return record
    header, tensors = outline(record)
    layout = Layout(header, OWN, _ALIGN)
    try:
        with tempfile.TemporaryFile(dir=place) as stream:
            os.posix_fallocate(stream.fileno(), 0, layout.size)  # a page without room would end the process
            memory = mmap.mmap(stream.fileno(), layout.size)
    except OSError as error:
        raise trouble(place, error) from error
    layout.write(memory, tensors)
    return layout.view(memory)


def rest(module: nn.Module, place: Path) -> None:
    """Lay what a large module has into such a file.  Raises RunError."""
    parts = [*module.parameters(), *module.buffers()]
    held = Record(parts=Tensors({str(at): each.data for at, each in enumerate(parts)}))
    for each, data in zip(parts, backed(held, place).parts.values(), strict=True):
        each.data = data
