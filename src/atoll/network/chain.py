"""Who did what and when: lines that are only ever added, each bound to the one before it.

A line is JSON: ``{"seq":2,"time":"...Z","event":"joined","facts":{...},"prev":"...","sum":"..."}``. `prev` is the
SHA-256 of the line before (without its end), 64 zeros in the first, whose event is "begun" and whose facts name the
run; `sum` is the SHA-256 of the line up to and without ``,"sum"``, so that damage to the last line is seen, too.

What this shows, and what not: a line that was changed, taken out, put in or moved breaks the chain. Whole records
that were cut off the end do not, and whoever can write the file can compute the whole chain anew. For both, note
`head` elsewhere now and then (in the other parties' files, on paper): `verify` holds the log against it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from atoll.errors import ConfigError

__all__ = [
    "FORMAT",
    "GENESIS",
    "Head",
    "Record",
    "Verdict",
    "chained",
    "head",
    "lines",
    "stated",
    "torn",
    "verified",
    "verify",
]

FORMAT = 1
GENESIS = "0" * 64


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """One line."""

    seq: int
    time: str
    event: str
    facts: dict[str, Any]
    prev: str
    sum: str


class Head(NamedTuple):
    """The last record of a log: all that is before it follows from its hash."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read `str(head)`.  Raises ConfigError."""
        if not (found := re.fullmatch(r"(\d{1,15}):([0-9a-f]{64})", text.strip())):
            raise ConfigError(f"{text!r} is no head of an audit log", hint="SEQ:HASH, as `verify` shows it")
        return cls(int(found[1]), found[2])


class Verdict(NamedTuple):
    """What `verify` found: how many records are sound from the beginning, and what is wrong with the next one."""

    ok: bool
    records: int
    problem: str | None
    head: Head | None
    """The last sound record."""


# --- writing ------------------------------------------------------------------------------------------------


def stated(event: str, facts: dict[str, Any]) -> bytes:
    """The middle of a line: what is known before its turn has come."""
    time = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    try:
        said = msgspec.json.encode({"event": event, "facts": facts})
    except UnicodeEncodeError:  # what came from outside may hold what is no character
        said = msgspec.json.encode(_readable({"event": event, "facts": facts}))
    return b'"time":"%s",%s' % (time.encode(), said[1:-1])


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(each) for key, each in value.items()}
    return [_readable(each) for each in value] if isinstance(value, list | tuple) else value


def chained(seq: int, prev: str, body: bytes) -> tuple[bytes, str]:
    """A line with its end, and its hash."""
    said = b'{"seq":%d,%s,"prev":"%s"' % (seq, body, prev.encode())
    line = said + b',"sum":"%s"}' % hashlib.sha256(said).hexdigest().encode()
    return line + b"\n", hashlib.sha256(line).hexdigest()


# --- reading ------------------------------------------------------------------------------------------------


def lines(path: Path) -> Iterator[Record | None]:
    """The records of a log, None for a line that is none or not what was written.  Raises ConfigError."""
    return (_record(line) for line in _whole(path))


def head(path: Path) -> Head | None:
    """The last record of a log, to be noted elsewhere; None where its last line is none.  Raises ConfigError."""
    last = b""
    for line in _whole(path):
        last = line
    record = _record(last)
    return None if record is None else Head(record.seq, hashlib.sha256(last).hexdigest())


def verify(path: Path, head: Head | tuple[int, str] | None = None) -> Verdict:
    """Whether a log is what was written into it: every line, in this order, from the first on.

    That whole records were cut off the end is seen only against a `head` that was noted after they were written.

    Raises ConfigError where there is no such file.
    """
    return verified(path, None if head is None else Head(*head))


def verified(path: Path, noted: Head | None, *, torn_too: bool = False) -> Verdict:
    """As `verify`; a last line without an end may be let pass."""
    last: Head | None = None
    for number, line in enumerate(_whole(path), 1):
        record = _record(line)
        expected = (0, GENESIS) if last is None else (last.seq + 1, last.hash)
        if record is None or (record.seq, record.prev) != expected:
            return Verdict(False, number - 1, _diagnosed(path, number, last), last)
        last = Head(record.seq, hashlib.sha256(line).hexdigest())
        if noted is not None and noted.seq == last.seq and noted != last:
            changed = f"line {number} is another than when its head was noted: the log was written anew"
            return Verdict(False, number - 1, changed, last)
    count = 0 if last is None else last.seq + 1
    problem = None
    if not torn_too and torn(path):
        problem = (
            f"line {count + 1} has no end: a process was killed while it wrote (opening the log cuts it off and"
            " records that), or it was changed"
        )
    elif last is None:
        problem = "there is no record at all: the log was emptied"
    elif noted is not None and noted.seq > last.seq:
        problem = f"the end is cut off after line {count}: there were {noted.seq + 1} when its head was noted"
    return Verdict(problem is None, count, problem, last)


def _diagnosed(path: Path, number: int, before: Head | None) -> str:
    """What became of the first line that does not follow from the one before it."""
    found = list(lines(path))
    record, due = found[number - 1], 0 if before is None else before.seq + 1
    prev = GENESIS if before is None else before.hash
    seqs = [each.seq if each else None for each in found]
    if record is None:
        after = found[number] if number < len(found) else None
        if after is not None and (after.seq, after.prev) == (due, prev):
            return f"line {number} was put in: the one after it follows from the one before it"
        return f"line {number} was changed: it is not what was written"
    if record.seq < due:
        return (
            f"line {number} was put in, or moved: record {record.seq} stands in line {record.seq + 1} already"
        )
    if record.seq == due:
        return f"line {number} was put in place of another: it does not follow from the one before it"
    if due in seqs[number:]:
        return f"lines were reordered: line {number} holds record {record.seq}, line {seqs.index(due) + 1} record {due}"
    if before is None:
        return f"the beginning was cut off: line 1 is record {record.seq}"
    gone = f"record {due} was" if record.seq == due + 1 else f"records {due} to {record.seq - 1} were"
    return f"{gone} removed before line {number}"


def _record(line: bytes) -> Record | None:
    said, mark, _ = line.rpartition(b',"sum":"')
    if not mark or line != said + b',"sum":"%s"}' % hashlib.sha256(said).hexdigest().encode():
        return None
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _whole(path: Path) -> Iterator[bytes]:
    """The lines that have an end, without it."""
    try:
        with path.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield line[:-1]
    except OSError as error:
        raise ConfigError(
            f"{path}: {(error.strerror or str(error)).lower()}", hint="give the log of a run"
        ) from error


def torn(path: Path) -> bytes:
    """What stands behind the last line that has an end."""
    line = b""
    with path.open("rb") as stream:
        for line in stream:  # noqa: B007
            pass
    return b"" if line.endswith(b"\n") else line
