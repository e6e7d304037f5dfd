"""Downloading the catalogue's files from a mirror: checked, atomic, and nothing but the standard library."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from atoll.errors import DataError

from .catalogue import data_root, entry

__all__ = ["fetch"]

_CHUNK = 1 << 18
Progress = Callable[[str, int, int | None], None]


def fetch(
    name: str,
    base_url: str | None = None,
    root: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download the files of a catalogue dataset and return the data root they are in.

    Args:
        name: see `catalogue`.
        base_url: a mirror that has each file at ``base_url/PATH``, PATH as in the entry's `files`; by default
            the environment variable ``ATOLL_DATA_URL``.
        root: where to put them; by default ``ATOLL_DATA``, else the cache.
        progress: called with (path, bytes so far, bytes in all or None) as a file arrives.

    Files that are there with the right SHA-256 are not downloaded again. A file appears under its name only
    when it is whole and its checksum agrees; otherwise `DataError` is raised and nothing of it stays.
    `DataError` also says where the data comes from originally when there is no mirror to ask.
    """
    item = entry(name)
    if root is None and item.package is not None:
        installed = Path(item.package[1])
        if all((installed / path).is_file() for path in item.files):
            return installed
    place = Path(root).expanduser() if root is not None else data_root()
    wanted = {path: sha for path, sha in item.files.items() if _digest(place / path) != sha}
    if not wanted:
        return place
    mirror = base_url if base_url is not None else os.environ.get("ATOLL_DATA_URL", "")
    if not mirror:
        raise DataError(
            f"{name}: there is no mirror to download from. {item.origin()}",
            hint=f"get them there and put them below {place}, or name a mirror with --from URL or ATOLL_DATA_URL",
        )
    if not mirror.startswith(("http://", "https://", "file://")):
        raise DataError(
            f"{mirror!r} is not a web address", hint="it starts with https://, http:// or file://"
        )
    for path, sha in wanted.items():
        _download(f"{mirror.rstrip('/')}/{path}", place / path, path, sha, progress)
    return place


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(url: str, target: Path, path: str, expected: str, progress: Progress | None) -> None:
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        temporary = Path(made)
        digest, done = hashlib.sha256(), 0
        with os.fdopen(handle, "wb") as stream, urllib.request.urlopen(url, timeout=60) as answer:
            length = answer.headers.get("Content-Length")
            total = int(length) if length is not None else None
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(path, done, total)
        if digest.hexdigest() != expected:
            raise DataError(
                f"{url}: the checksum is {digest.hexdigest()[:16]}..., expected {expected[:16]}...; "
                f"{done:,} bytes were thrown away",
                hint="the transfer was cut off, or the mirror has another version of the file",
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except (urllib.error.URLError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{url}: cannot be downloaded ({error})", hint="check the address and the folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
