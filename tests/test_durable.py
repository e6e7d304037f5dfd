"""Files that last: what is synced, and in which order, before a write is called done."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.durable import beside, replaced
from atoll.network.keyfiles import keep


@pytest.mark.parametrize("write", [replaced, keep])
def test_a_file_and_then_its_name_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    """The bytes before the name is given, the directory after that."""
    done: list[tuple[str, bool]] = []
    real, path = os.fsync, tmp_path / "file"

    def synced(handle: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        done.append((kind, path.exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", synced)
    write(path, b"bytes")
    assert path.read_bytes() == b"bytes" and done == [("file", False), ("directory", True)]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("secret", [False, True])
def test_a_secret_is_never_there_for_others(tmp_path: Path, secret: bool) -> None:
    part = beside(tmp_path / "file", b"bytes", secret=secret)
    assert (stat.S_IMODE(part.stat().st_mode) == 0o600) is secret
