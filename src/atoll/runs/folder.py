"""Run folders: making them, finding them, holding them against a second writer."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from atoll.errors import ConfigError, RunError, suggest
from atoll.runs.events import Event, Log, read

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["RunFolder", "default_place", "writing"]

_held: set[str] = set()  # record locks do not keep one process from locking twice


def default_place() -> Path:
    """Where runs are kept unless said otherwise: ATOLL_RUNS, or `runs` where atoll is started."""
    return Path(os.environ.get("ATOLL_RUNS") or "runs")


@contextlib.contextmanager
def writing(path: Path, what: str) -> Iterator[None]:
    """Inside, a failed write becomes an error that says what could not be written, where, and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space, then resume" if full else "choose another place with --runs (ATOLL_RUNS)"
        raise RunError(f"cannot write {what} {path}: {error.strerror or error}", hint=hint) from None


class RunFolder:
    """One run on disk. `path` is the folder; reading needs no lock, writing takes one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # --- finding and making -----------------------------------------------------------------------------------

    @staticmethod
    def create(place: str | Path, method: str) -> RunFolder:
        """A new folder `<time>-<method>-<id>` in the directory `place`.  Raises RunError if it cannot be made."""
        place = Path(place)
        with writing(place, "the run folder in"):
            place.mkdir(parents=True, exist_ok=True)
            while True:
                name = f"{time.strftime('%Y-%m-%d_%H%M%S')}-{method}-{secrets.token_hex(2)}"
                with contextlib.suppress(FileExistsError):
                    (place / name).mkdir()
                    return RunFolder(place / name)

    @staticmethod
    def find(name: str | Path, place: str | Path | None = None) -> RunFolder:
        """The run of that path, or of that name (or the beginning of one) in `place`; "last" is the newest.

        Raises ConfigError if there is none, or several begin so.
        """
        place = default_place() if place is None else Path(place)
        if (Path(name) / "events.jsonl").is_file() or (Path(name) / "config.toml").is_file():
            return RunFolder(name)
        runs = RunFolder.all(place)
        if str(name) == "last":
            if not runs:
                raise ConfigError(f"there are no runs in {place}", hint="atoll run makes one")
            return runs[-1]
        near = [each for each in runs if each.name.startswith(str(name)) or each.name.endswith(f"-{name}")]
        exact = [each for each in near if each.name == str(name)]
        if len(exact or near) == 1:
            return (exact or near)[0]
        if near:
            shown = ", ".join(each.name for each in near[:5])
            message = f"{len(near)} runs in {place} are called {name}: {shown}"
            raise ConfigError(message, hint="give more of the name")
        hint = suggest(str(name), [each.name for each in runs][-8:]) if runs else "atoll run makes one"
        raise ConfigError(f"there is no run {name} in {place}", hint=hint)

    @staticmethod
    def all(place: str | Path) -> list[RunFolder]:
        """The runs in a directory (or in directories of it, such as sweeps), oldest first."""
        place = Path(place)
        if not place.is_dir():
            return []
        found = [
            each.parent for pattern in ("*/events.jsonl", "*/*/events.jsonl") for each in place.glob(pattern)
        ]
        return [RunFolder(path) for path in sorted(found, key=_age)]

    # --- reading ----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.path.name or self.path.resolve().name

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    def log(self) -> Log:
        """The events.  Raises ConfigError where they cannot be read."""
        try:
            return read(self.events_file)
        except OSError as error:
            raise ConfigError(
                f"cannot read {self.events_file}: {error.strerror}", hint="is it a run folder?"
            ) from None

    def config(self) -> dict[str, Any]:
        """The tables and keys of config.toml.  Raises ConfigError where it cannot be read."""
        file = self.path / "config.toml"
        try:
            return tomllib.loads(file.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}", hint="is it a run folder?") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is damaged: {error}", hint="restore it, or start a new run") from None

    def audit(self) -> dict[str, Any] | None:
        """What `atoll audit` found, None where nobody asked.  Raises ConfigError where it cannot be read."""
        file = self.path / "audit" / "audit.json"
        try:
            found = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{file} is damaged: {error}", hint="remove it, or run atoll audit again"
            ) from None
        return found if isinstance(found, dict) and "page" in found else None

    def status(self, last: Event | None) -> str:
        """What state the run is in, given its last event: "finished", "running", "stopped", "failed" or "cut off"."""
        kind = last["event"] if last else ""
        if self.held():
            return "running"
        if kind == "result":
            return "finished"
        if kind == "error":
            assert last is not None
            return "stopped" if last.get("kind") in ("Interrupted", "Terminated") else "failed"
        return "cut off"

    # --- holding ----------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep others from writing, until `release` or the end of the process.  Raises RunError if another does."""
        if self._lock is not None:
            return
        file = self.path / "lock"
        key = str(self.path.resolve())
        if key in _held:
            raise self._taken("this process")
        with writing(file, "the lock"):
            handle = open(file, "a+")  # noqa: SIM115 - kept open: closing it lets go of the lock
        if not _locked(handle):
            handle.seek(0)
            owner = handle.read().strip()
            handle.close()
            raise self._taken(owner or "another process")
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
        _held.add(key)
        self._lock = handle

    def _taken(self, owner: str) -> RunError:
        return RunError(
            f"{self.path} is being written by {owner}", hint="wait for it, stop it, or start a new run"
        )

    def release(self) -> None:
        if self._lock is not None:
            _held.discard(str(self.path.resolve()))
            self._lock.close()
            self._lock = None

    def held(self) -> bool:
        """Whether some process is writing this run now."""
        file = self.path / "lock"
        if str(self.path.resolve()) in _held:
            return True
        if fcntl is None or not file.is_file():
            return False
        try:
            with open(file, "r+") as handle:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES) and os.access(file, os.W_OK)
        return False

    # --- writing ----------------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Put a file in place as a whole: it is the old one or the new one at any moment."""
        file = self.path / name
        part = self.path / f".{name}.part"
        with writing(file, "the file"):
            part.write_bytes(content)
            os.replace(part, file)

    def remove(self) -> None:
        """Delete the folder.  Raises RunError while a process writes it."""
        if self.held():
            raise RunError(f"{self.path} is still running", hint="stop it first")
        with writing(self.path, "(delete) the run folder"):
            shutil.rmtree(self.path)


def _locked(handle: IO[str]) -> bool:
    """Take the lock; for a moment a reader that asks who holds it may be in the way."""
    for _ in range(10):
        try:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(0.02)
    return False


def _age(path: Path) -> tuple[str, int, str]:
    """Sorts runs by when they were begun: the time in the name has seconds only."""
    config = path / "config.toml"
    return path.name[:17], config.stat().st_mtime_ns if config.is_file() else 0, path.name
