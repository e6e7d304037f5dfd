"""An audit log shows whatever was done to it, and loses nothing that was acknowledged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.errors import ConfigError, RunError
from atoll.network.auditlog import NAME, AuditLog, Head, head, verify
from atoll.network.chain import GENESIS, chained, lines, stated

from .killing import killed

EVENTS = 12


@contextlib.contextmanager
def opened(path: Path, run: str = "run-1") -> Iterator[AuditLog]:
    log = AuditLog(path, run)
    try:
        yield log
    finally:
        log.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    with opened(path) as writer:
        for number in range(EVENTS - 1):
            writer.write("joined", name=f"node-{number}", number=number)
    return path


def changed(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(lines))
    return path


def split(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


# --- what is written ----------------------------------------------------------------------------------------------


def test_a_line_is_json_and_names_the_one_before(log: Path) -> None:
    written = split(log)
    assert len(written) == EVENTS
    before = GENESIS
    for number, line in enumerate(written):
        record = json.loads(line)
        assert list(record) == ["seq", "time", "event", "facts", "prev", "sum"]
        assert record["seq"] == number and record["prev"] == before
        when = datetime.fromisoformat(record["time"])
        assert when.tzinfo == UTC and abs(datetime.now(UTC) - when) < timedelta(minutes=5)
        before = hashlib.sha256(line[:-1]).hexdigest()
    assert json.loads(written[0])["facts"] == {"run": "run-1", "format": 1}
    assert json.loads(written[3])["facts"] == {"name": "node-2", "number": 2}
    assert head(log) == Head(EVENTS - 1, before)
    assert verify(log) == (True, EVENTS, None, head(log))


def test_it_goes_on_where_it_ended(log: Path) -> None:
    noted = head(log)
    with opened(log) as writer:
        assert writer.head == noted
        writer.write("event", event="of that name", self=1)
        assert writer.head == head(log)
    assert verify(log, noted) == (True, EVENTS + 1, None, head(log))


def test_many_threads_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with opened(path) as writer:
        threads = [
            threading.Thread(target=lambda k=k: [writer.write("e", thread=k, number=i) for i in range(30)])
            for k in range(8)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert verify(path).records == 241 and verify(path).ok
    for k in range(8):
        numbers = [each.facts["number"] for each in lines(path) if each and each.facts.get("thread") == k]
        assert numbers == list(range(30))


def test_whatever_comes_from_outside_can_be_written_down(log: Path) -> None:
    said = ['a\nb"}', "\udc80\x1b[2J", "\u2028é", {"\ud800": [float("nan"), None]}]
    with opened(log) as writer:
        writer.write("refused", said=said)
        with pytest.raises(TypeError):
            writer.write("refused", said=object())
    assert verify(log) == (True, EVENTS + 1, None, head(log))
    *_, last = lines(log)
    assert last is not None and last.facts["said"][0] == 'a\nb"}'
    assert last.facts["said"][1] == "\\udc80\x1b[2J"


def test_one_process_one_run_and_no_broken_chain(log: Path) -> None:
    with opened(log), pytest.raises(RunError, match="this process itself has"):
        AuditLog(log, "run-1")
    with pytest.raises(RunError, match="is of run 'run-1', not 'run-2'"):
        AuditLog(log, "run-2")
    with opened(log) as writer:
        pass
    writer.close()
    with pytest.raises(RunError, match="closed"):
        writer.write("late")
    changed(log, split(log)[:4] + split(log)[5:])
    before = log.read_bytes()
    with pytest.raises(RunError, match="record 4 was removed before line 5"):
        AuditLog(log, "run-1")
    changed(log, [])
    with pytest.raises(RunError, match="emptied"):
        AuditLog(log, "run-1")
    assert before
    first, _ = chained(0, GENESIS, stated("begun", {"run": "run-1", "format": 2}))
    changed(log, [first])
    with pytest.raises(RunError, match="has format 2"):
        AuditLog(log, "run-1")


# --- what is noticed ----------------------------------------------------------------------------------------------


def forged(before: bytes, seq: int) -> bytes:
    return chained(seq, hashlib.sha256(before[:-1]).hexdigest(), stated("joined", {"name": "mallory"}))[0]


def test_what_was_done_is_said(log: Path) -> None:
    sound = split(log)
    cases = {
        "line 3 was changed": [*sound[:2], sound[2].replace(b"node-1", b"node-7"), *sound[3:]],
        "record 2 was removed before line 3": sound[:2] + sound[3:],
        "records 2 to 4 were removed before line 3": sound[:2] + sound[5:],
        "records 2 to 6 were removed before line 3": [*sound[:2], forged(sound[1], 7)],
        "line 3 was put in, or moved: record 1": [*sound[:2], sound[1], *sound[2:]],
        "line 3 was put in: the one after it": [*sound[:2], b"{}\n", *sound[2:]],
        "line 4 was put in, or moved: record 2": [*sound[:2], forged(sound[1], 2), *sound[2:]],
        "line 4 was put in place of another": [*sound[:2], forged(sound[1], 2), *sound[3:]],
        "lines were reordered: line 3 holds record 3, line 4 record 2": [
            *sound[:2], sound[3], sound[2], *sound[4:],
        ],
        "the beginning was cut off: line 1 is record 2": sound[2:],
        "no record at all": [],
        f"line {EVENTS} has no end": [*sound[:-1], sound[-1][:-1]],
        "line 1 has no end": [sound[0][:50]],
    }  # fmt: skip
    for problem, damaged in cases.items():
        verdict = verify(changed(log, damaged))
        assert not verdict.ok and verdict.problem is not None and problem in verdict.problem, verdict
        assert verdict.records == (verdict.head.seq + 1 if verdict.head else 0)


def test_an_end_that_was_cut_off_is_seen_against_a_head_that_was_noted(log: Path) -> None:
    noted, sound = head(log), split(log)
    assert noted is not None
    assert verify(changed(log, sound[:-2])).ok  # the chain alone cannot tell
    verdict = verify(log, noted)
    assert not verdict.ok
    assert (
        verdict.problem
        == f"the end is cut off after line {EVENTS - 2}: there were {EVENTS} when its head was noted"
    )
    before, again = sound[0], [sound[0]]
    again += [before := forged(before, seq) for seq in range(1, EVENTS + 3)]  # all of it written anew
    assert verify(changed(log, again)).ok
    assert "another than when its head was noted" in str(verify(log, noted).problem)
    assert Head.parse(f" {noted}\n") == noted
    for text in ("", "1", f"x:{noted.hash}", f"1:{noted.hash[1:]}", f"1:{noted.hash.upper()}"):
        with pytest.raises(ConfigError, match="no head"):
            Head.parse(text)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / NAME
    with opened(path) as writer:
        for number in range(5):
            writer.write("joined", name=f"node-{number}", said=["ü", None, {"a": 1.5}])
    return path


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_one_change_is_found(sound: Path, data: st.DataObject) -> None:
    """A byte changed, put in or taken out; lines swapped, doubled, put in; lines taken out, at the end with a head."""
    path = sound.with_name("changed.jsonl")
    content, rows, noted = sound.read_bytes(), split(sound), head(sound)
    kind = data.draw(
        st.sampled_from(["byte", "insert", "delete", "cut", "swap", "double", "garbage", "remove"])
    )
    at = data.draw(st.integers(0, len(content) - 1))
    row, other = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=2, max_size=2, unique=True))
    octet = data.draw(st.integers(0, 255).filter(lambda octet: octet != content[at]))
    match kind:
        case "byte":
            path.write_bytes(content[:at] + bytes([octet]) + content[at + 1 :])
        case "insert":
            path.write_bytes(content[:at] + bytes([octet]) + content[at:])
        case "delete":
            path.write_bytes(content[:at] + content[at + 1 :])
        case "cut":
            path.write_bytes(content[:at])
        case "swap":
            rows[row], rows[other] = rows[other], rows[row]
            changed(path, rows)
        case "double":
            changed(path, [*rows[:row], rows[other], *rows[row:]])
        case "garbage":
            changed(
                path,
                [*rows[:row], data.draw(st.binary(max_size=80)).replace(b"\n", b"") + b"\n", *rows[row:]],
            )
        case "remove":
            changed(path, rows[:row] + rows[row + 1 :])
    verdict = verify(path, noted)
    assert not verdict.ok and verdict.problem
    at_the_end = (kind == "remove" and row == len(rows) - 1) or (
        kind == "cut" and content[:at].endswith(b"\n")
    )
    assert at_the_end or not verify(path).ok
    with contextlib.suppress(RunError), opened(path) as writer:  # opening heals nothing but a torn end
        assert writer.head.seq < len(rows) + 1
        assert not verify(path, noted).ok


# --- kills and full disks -----------------------------------------------------------------------------------------

WRITER = """
import threading
from pathlib import Path
from atoll.network.auditlog import AuditLog, verify
path = Path({path!r})

def write(turn, say):
    log = AuditLog(path, "run-1")
    def work(thread):
        number = 0
        while True:
            log.write("step", turn=turn, thread=thread, number=number, room="x" * 3000)
            say(f"{{turn}}/{{thread}}/{{number}}")
            number += 1
    for thread in range(3):
        threading.Thread(target=work, args=(thread,)).start()
    threading.Event().wait()

def after(turn):
    AuditLog(path, "run-1").close()
    verdict = verify(path)
    assert verdict.ok, verdict
"""


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / NAME
    said = killed(WRITER.format(path=str(path)), times=30, longest=0.04)
    assert len({each.split("/")[0] for each in said}) == 30
    facts = [each.facts for each in lines(path) if each and each.event == "step"]
    there = [f"{each['turn']}/{each['thread']}/{each['number']}" for each in facts]
    assert {*said} <= {*there} and len({*there}) == len(there)


@pytest.mark.parametrize("kept", [1, 100, 5000])
def test_a_torn_end_is_cut_off_and_that_is_a_record(log: Path, kept: int) -> None:
    noted = head(log)
    with opened(log) as writer:
        writer.write("long", text="x" * 6000)
    rows = split(log)
    changed(log, [*rows[:-1], rows[-1][:kept]])
    assert "no end" in str(verify(log).problem)
    with opened(log) as writer:
        writer.write("next")
    assert verify(log, noted).ok
    *_, cut, _ = lines(log)
    assert cut is not None and cut.event == "cut" and cut.facts["octets"] == kept
    assert rows[-1].startswith(cut.facts["text"].encode()) and len(cut.facts["text"]) == min(kept, 2000)


FULL = """
import sys, resource
from pathlib import Path
from atoll.errors import RunError
from atoll.network.auditlog import AuditLog, verify

def limit(octets): resource.setrlimit(resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))

path = Path(sys.argv[1])
log, written, errors = AuditLog(path, "run-1"), 1, 0
limit(20_000)
for number in range(40):
    try:
        log.write("step", room="x" * 1000)
        written += 1
    except RunError as error:
        assert error.hint == "make room on the disk"
        errors += 1
    verdict = verify(path)
    assert verdict.ok and verdict.records == written
limit(resource.RLIM_INFINITY)
log.write("again")
assert errors and verify(path).records == written + 1
"""


def test_what_finds_no_room_is_not_there_and_the_next_is(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / NAME)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
