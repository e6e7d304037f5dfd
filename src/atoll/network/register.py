"""What an authority has written down: whom it invited, what it certified, what it took back. One file, for that all of
it changes at once; several processes may use it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from atoll.network.certificates import IdentityError
from atoll.network.keyfiles import keep, locked

__all__ = ["Invited", "Issued", "Register"]


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Invited(_Strict):
    """An invitation, under the name that is invited. Of the secret only its hash is kept; `ends` in seconds since 1970.

    `key` is the hash of the key that it was spent for, `certificate` what was made for it.
    """

    role: str
    digest: str
    ends: float
    key: str | None = None
    certificate: str | None = None


class Issued(_Strict):
    """A certificate, under its serial."""

    name: str
    role: str
    begins: float
    ends: float
    key: str


class Entries(_Strict):
    version: Literal[1] = 1
    invitations: dict[str, Invited] = msgspec.field(default_factory=dict)
    issued: dict[str, Issued] = msgspec.field(default_factory=dict)
    revoked: dict[str, float] = msgspec.field(default_factory=dict)
    """When, by serial."""


class Register:
    """The file of entries.

    Raises IdentityError where it is missing or damaged: then nobody is known, for nobody can tell who was revoked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: tuple[tuple[int, ...], Entries] | None = None

    def read(self) -> Entries:
        """What stands there now, not to be changed. The file is read again only when it is another."""
        seen = self._seen
        try:
            if seen is not None and seen[0] == _stamp(os.stat(self.path)):
                return seen[1]
            with self._lock, self.path.open("rb") as stream:
                stamp = _stamp(os.fstat(stream.fileno()))
                entries = msgspec.json.decode(stream.read(), type=Entries)
                self._seen = stamp, entries
                return entries
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise IdentityError(
                "register",
                f"the authority's register {self.path} cannot be read: {error}",
                hint="restore it from a copy; without it, nobody can tell who was revoked",
            ) from None

    @contextmanager
    def change(self) -> Iterator[Entries]:
        """Entries to change, alone among threads and processes: on the disk when this ends, untouched on an error."""
        with locked(self.path.parent):
            entries = msgspec.json.decode(msgspec.json.encode(self.read()), type=Entries)
            yield entries
            self.write(entries)

    def write(self, entries: Entries) -> None:
        keep(self.path, msgspec.json.format(msgspec.json.encode(entries), indent=1), secret=True)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mtime_ns, found.st_size, found.st_ino
