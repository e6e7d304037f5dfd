"""Memory that processes share, and records in it: named tensors and numbers, nothing else."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref

from atoll.codec import OWN, Header, Layout, outline
from atoll.tensors import Record

__all__ = ["Arena"]

_ALIGN = 64  # as torch aligns its own memory: sums can depend on that


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
        """Write a record from the start of the arena; what was there is gone.  Raises CodecError."""
        header, tensors = outline(record)
        layout = Layout(header, OWN, _ALIGN)
        self._ensure(layout.size)
        layout.write(self.map or b"", tensors)
        return header

    def read(self, header: Header) -> Record:
        """The record that was written with this header; its tensors are views of the arena.  Raises CodecError."""
        layout = Layout(header, OWN, _ALIGN)
        self._ensure(layout.size)
        return layout.view(self.map or b"")
