"""Files that last: written beside their place, synced, then given their name."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["beside", "replaced", "sync"]


def sync(directory: Path) -> None:
    """Make what was created, renamed or removed in a directory last through a power cut."""
    if os.name == "nt":
        return  # directories cannot be opened there
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def beside(path: Path, *content: Any, durable: bool = True, secret: bool = False) -> Path:
    """Write what `path` is to hold into a file of its own in the same directory, which a rename then puts in place.

    Content are bytes, or iterators of them. A `secret` file is its owner's alone (0600). Nothing stays behind where it
    fails. Raises OSError.
    """
    part = path.with_name(f"own-{path.name}-{secrets.token_hex(4)}.part")
    mode = 0o600 if secret else 0o666  # what the umask leaves of it
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            for piece in content:
                stream.writelines(piece if isinstance(piece, Iterator) else (piece,))
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def replaced(path: Path, *content: Any, secret: bool = False) -> None:
    """Put a file in place that is whole, and on the disk when this returns. Raises OSError."""
    beside(path, *content, secret=secret).replace(path)
    sync(path.parent)
