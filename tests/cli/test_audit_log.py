"""`atoll audit-log`: one screen, and an exit code that says whether a log is what was written."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from atoll.network.auditlog import NAME, AuditLog, head

from .conftest import Atoll


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    with contextlib.closing(AuditLog(path, "run-1")) as writer:
        writer.write("joined", name="node-a", number=0)
        writer.write("refused", said="\x1b[2J", name="é")
    return path


def cut(path: Path, first: int, last: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[first:last]))


def test_a_log_is_verified_and_a_head_that_was_noted_with_it(atoll: Atoll, log: Path) -> None:
    noted = head(log)
    for place in (log, log.parent):
        code, out, _ = atoll("audit-log", "verify", str(place))
        assert (
            code == 0 and "audit.jsonl: sound" in out and "records  3" in out and f"head     {noted}" in out
        )
    assert atoll("audit-log", "verify", str(log), "--head", str(noted)).code == 0
    cut(log, 0, 2)
    assert atoll("audit-log", "verify", str(log)).code == 0  # and it says what it cannot see
    code, out, _ = atoll("audit-log", "verify", str(log), "--head", str(noted))
    assert code == 1 and "NOT SOUND" in out and "problem  the end is cut off after line 2" in out


def test_a_log_is_shown_and_does_not_steer_the_terminal(atoll: Atoll, log: Path) -> None:
    code, out, err = atoll("audit-log", "show", str(log.parent))
    begun, joined, refused = out.splitlines()
    assert code == 0 and not err
    assert 'run="run-1"' in begun and joined.endswith('joined        name="node-a" number=0')
    assert r'said="\u001b[2J" name="\u00e9"' in refused and "\x1b" not in out
    code, out, _ = atoll("audit-log", "show", str(log), "--json")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["begun", "joined", "refused"]


def test_what_is_shown_of_a_damaged_log_says_so(atoll: Atoll, log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b"node-a", b"node-b"))
    code, out, err = atoll("audit-log", "show", str(log))
    assert code == 1 and "line 2 is not what was written" in err and "line 2 was changed" in err
    assert len(out.splitlines()) == 2
    cut(log, 1, 3)
    assert atoll("audit-log", "show", str(log)).code == 1


def test_mistakes_are_told(atoll: Atoll, log: Path, tmp_path: Path) -> None:
    code, _, err = atoll("audit-log", "verify", str(tmp_path / "nowhere"))
    assert code == 2 and "there is no audit log" in err and "hint" in err
    code, _, err = atoll("audit-log", "verify", str(log), "--head", "12")
    assert code == 2 and "'12' is no head of an audit log" in err
