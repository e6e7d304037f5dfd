"""Facts outlast kills, full disks and damage; what is damaged is never taken for what was written."""

from __future__ import annotations

import contextlib
import gc
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.errors import RunError
from atoll.network.journal import Journal

from .killing import killed

NODES = {
    "node/a": {"number": 0, "form": None},
    "node/b": {"number": 1, "form": {"train": 9}},
    "run/id": "0123",
}
ROUND = {f"round/3/0/{k}": {"sha256": f"{k:064x}", "size": k, "refused": None} for k in range(20)}
FACTS = NODES | ROUND


@contextlib.contextmanager
def opened(place: Path) -> Iterator[Journal]:
    journal = Journal(place / "journal.sqlite")
    try:
        yield journal
    finally:
        journal.close()


def written(place: Path, facts: dict[str, Any] = FACTS) -> Path:
    with opened(place) as journal:
        for key, value in facts.items():
            journal.put(key, value)
    return place / "journal.sqlite"


def found(place: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    with opened(place) as journal:
        return journal.items(""), journal.notices


def script(body: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", body, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- what it is for -----------------------------------------------------------------------------------------------


def test_facts_are_there_at_once_and_after_opening_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert {each.name for each in tmp_path.iterdir()} >= {"journal.sqlite", "journal.sqlite.lock"}
        assert not list(tmp_path.glob("*-shm"))  # it would have to find room to be opened on a full disk
        journal.put("node/a", {"numbers": (1, 2)})
        assert journal.get("node/a") == {"numbers": [1, 2]}  # as after a restart
        journal.put_all({"round/1/a": None, "round/1/b": 2})
        assert journal.items("round/1/") == {"round/1/a": None, "round/1/b": 2}
        journal.put("round/1/b", 3)
        assert journal.get("none", 7) == 7
    assert found(tmp_path) == ({"node/a": {"numbers": [1, 2]}, "round/1/a": None, "round/1/b": 3}, ())


def test_dropping_takes_a_fact_or_all_under_a_path_and_no_others(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.put_all(
            {f"round/1/{k}": k for k in (1, 10, 11)} | {"round/10/1": 0, "round/1": 5, "node/a": 1}
        )
        journal.drop("round/1/1")
        assert journal.items("round/1/") == {"round/1/10": 10, "round/1/11": 11}
        later = journal.put_later("round/1/12", 12)  # what was asked for before a drop is dropped with it
        journal.drop("round/1/")
        assert later.done()
        journal.drop("node/a")
        journal.drop("round/7/")  # nothing
    assert found(tmp_path) == ({"round/10/1": 0, "round/1": 5}, ())


def test_a_drop_takes_what_was_asked_for_with_it_and_leaves_what_came_after(tmp_path: Path) -> None:
    """All in one commit, whatever the order of the keys."""
    with opened(tmp_path) as journal:
        journal.put_all({"round/1/a": 1, "node/a": 1, "node/b": 1})
        before = [journal.put_later("round/1/b", 2), journal.put_later("node/c", 2)]
        drops = [journal._wish("round/1/", {}), journal._wish("node/", {})]
        after = [journal.put_later("round/1/a", 3), journal.put_later("node/b", 3)]
        for each in (*before, *drops, *after):
            each.result()
        assert journal.items("") == {"node/b": 3, "round/1/a": 3}
    assert found(tmp_path) == ({"node/b": 3, "round/1/a": 3}, ())


def test_facts_of_rounds_are_on_the_disk_and_not_in_memory(tmp_path: Path) -> None:
    """Python's live objects: a fact would be seven."""
    with opened(tmp_path) as journal:
        live = []
        for number in range(1, 4):
            journal.put_all({f"round/{number}/0/{k}": fact for k, fact in enumerate(ROUND.values())})
            journal.put_all(
                {f"round/{number}/1/{k}": {"sha256": f"{k:064x}", "size": k} for k in range(1000)}
            )
            gc.collect()
            live.append(sys.getallocatedblocks())
        assert live[2] - live[1] < 500
        assert journal.get("round/2/1/999") == {"sha256": f"{999:064x}", "size": 999}
        assert journal.known(["round/1/0/3", "round/1/0/77"]) == {"round/1/0/3": ROUND["round/3/0/3"]}
        assert list(journal.walk("round/2/1/")) == sorted(
            (f"round/2/1/{k}", {"sha256": f"{k:064x}", "size": k}) for k in range(1000)
        )
        assert (
            len(journal.items("ro")) == 3 * 1020 and not journal.items("round/4") and not journal.items("s")
        )


def test_a_fact_of_a_round_that_rots_while_the_journal_is_open_is_not_there(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.put_all(ROUND)
        assert journal._file._base is not None
        for rotten in ("'[1]'", "x'5b315d'"):  # a text, and other bytes
            journal._file._base.execute(f"UPDATE facts SET value = {rotten} WHERE key = 'round/3/0/7'")
            assert journal.get("round/3/0/7") is None
        assert journal.items("") == {key: value for key, value in ROUND.items() if key != "round/3/0/7"}


def test_facts_that_cannot_be_read_are_no_facts_that_are_not_there(tmp_path: Path) -> None:
    """Else a task that was answered would be asked for again."""
    with opened(tmp_path) as journal:
        journal.put_all(ROUND)
        assert journal._file._base is not None
        journal._file._base.execute("DROP TABLE facts")
        with pytest.raises(RunError, match="no such table"):
            journal.get("round/3/0/7")
    with pytest.raises(RunError, match="is closed"):
        journal.get("round/3/0/7")


def test_who_reads_waits_for_a_commit_and_never_sees_half_of_it(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        over, seen = threading.Event(), set[tuple[int, ...]]()

        def read() -> None:
            while not over.is_set():
                seen.add(tuple(journal.items("round/1/").values()))

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(40):
            journal.put_all({f"round/1/{k}": number for k in range(3)})
            journal.drop("round/1/")
        over.set()
        reader.join()
    assert seen <= {(), *((number,) * 3 for number in range(40))}


def test_many_threads_share_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, also where they began as two halves, each of which asks while the other's commit is written."""
    monkeypatch.setattr("atoll.network.journal._WINDOW", 0.5)  # on a busy machine, too
    with opened(tmp_path) as journal:
        sizes: list[int] = []
        begun, ended = [4], set[int]()  # of eight threads: four, then three more, then the last
        starts = [threading.Event() for _ in range(3)]
        starts[0].set()
        commit = journal._file.commit

        def held(changes: Any) -> None:
            """A slow disk: until four of the others have asked, or all of them."""
            sizes.append(len(changes))
            if len(sizes) in (2, 3):
                starts[len(sizes) - 1].set()
                begun[0] = 7 if len(sizes) == 2 else 8
            end = time.monotonic() + 5
            while len(journal._wishes) < min(4, begun[0] - len(ended) - len(changes)):
                assert time.monotonic() < end
                time.sleep(0.001)
            commit(changes)

        def work(thread: int, start: threading.Event) -> None:
            start.wait()
            for number in range(25):
                journal.put(f"round/1/{thread}/{number}", number)
            ended.add(thread)

        journal._file.commit = held  # type: ignore[method-assign]
        threads = [
            threading.Thread(target=work, args=(k, starts[0 if k < 4 else 1 if k < 7 else 2]))
            for k in range(8)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert len(sizes) <= 40  # of 200, 25 at best, and 50 where two halves take turns
    assert len(found(tmp_path)[0]) == 200


def test_what_json_does_not_hold_is_refused_to_its_caller_and_nobody_else(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        with pytest.raises(TypeError):
            journal.put("round/1", object())
        with pytest.raises(ValueError, match="key"):
            journal.put("", 1)
        journal.put("round/1", 1)


def test_closing_twice_is_closing_and_nothing_is_taken_afterwards(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    late = [journal.put_later(f"round/1/{k}", k) for k in range(10)]
    journal.close()
    journal.close()
    assert all(each.done() for each in late)
    with pytest.raises(RunError, match="closed"):
        journal.put("round/1/10", 10)
    with pytest.raises(RunError, match="closed"):
        journal.drop("round/1/")
    assert len(found(tmp_path)[0]) == 10


# --- one process, one format --------------------------------------------------------------------------------------


def test_one_process_has_it_at_a_time(tmp_path: Path) -> None:
    path = written(tmp_path)
    code = (
        "import sys, os; from pathlib import Path; from atoll.network.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); print(os.getpid(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        pid = other.stdout.readline().strip()
        with pytest.raises(RunError, match=rf"another process \(pid {pid}\) has {path}"):
            Journal(path)
        other.kill()
    with opened(tmp_path) as journal:
        assert journal.items("") == FACTS
        with pytest.raises(RunError, match="this process itself"):
            Journal(path)


@pytest.mark.parametrize("which", ["database", "copy"])
def test_what_a_newer_release_wrote_is_left_alone(tmp_path: Path, which: str) -> None:
    path = written(tmp_path)
    if which == "database":
        with contextlib.closing(sqlite3.connect(path)) as base:
            base.execute("PRAGMA user_version = 2")
    else:
        import hashlib

        line = b'{"format":2,"what":"ever"}'
        path.with_suffix(".lasting.json").write_bytes(
            line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"
        )
    before = path.read_bytes()
    with pytest.raises(RunError, match="has format 2, and this release of atoll knows 1"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_used_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").mkdir()
    for path in (tmp_path / "journal.sqlite", tmp_path / "nowhere" / "journal.sqlite"):
        with pytest.raises(RunError):
            Journal(path)


# --- kill -9 ------------------------------------------------------------------------------------------------------

WRITER = """
from pathlib import Path
from atoll.network.journal import Journal
path = Path({path!r})

def write(turn, say):
    journal = Journal(path)
    number = 0
    while True:
        key = f"round/{{turn}}/{{number}}"
        match number % 4:
            case 0: journal.put_all({{f"{{key}}/{{k}}": number for k in range(5)}})
            case 1: journal.put(f"node/{{turn}}-{{number}}", number)
            case 2:
                later = [journal.put_later(f"{{key}}/{{k}}", number) for k in range(5)]
                [each.result() for each in later]
            case 3: journal.drop(f"round/{{turn}}/{{number - 1}}/")
        say(f"{{turn}}/{{number}}")
        number += 1

def after(turn):
    journal = Journal(path)
    assert not journal.notices, journal.notices
    journal.close()
"""


def test_what_was_acknowledged_is_there_after_kill_9_and_nothing_by_half(tmp_path: Path) -> None:
    said = killed(WRITER.format(path=str(tmp_path / "journal.sqlite")), times=30, longest=0.05)
    assert len({each.split("/")[0] for each in said}) == 30 and len(said) > 60
    facts, notices = found(tmp_path)
    assert not notices
    last = {int(turn): int(number) for turn, number in (each.split("/") for each in said)}
    for turn, end in last.items():
        for number in range(end + 2):
            there = [facts[key] for k in range(5) if (key := f"round/{turn}/{number}/{k}") in facts]
            sure = number <= end  # the one after it may be there or not
            if number % 4 == 0:
                assert there == [number] * 5 or not (sure or there)
            elif number % 4 == 1:
                assert facts.get(f"node/{turn}-{number}") == number or not sure
            elif number % 4 == 2 and sure:
                assert (
                    not there if number < end else len(there) in (0, 5)
                )  # the drop that came next is one thing
        assert not [key for key in facts if key.startswith(f"round/{turn}/{end + 2}/")]


# --- full disks ---------------------------------------------------------------------------------------------------

FULL = """
import sys, resource
from pathlib import Path
from atoll.errors import RunError
from atoll.network.journal import Journal

def limit(octets): resource.setrlimit(resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))

journal, done, errors = Journal(Path(sys.argv[1]) / "journal.sqlite"), {}, 0
for kind in ("round/1", "node"):
    limit(200_000)
    for number in range(200):
        try:
            journal.put(f"{kind}/{number}", "x" * 5000)
            done[f"{kind}/{number}"] = "x" * 5000
        except RunError as error:
            assert "room" in error.hint, error
            errors += 1
    assert errors and journal.items("") == done
    errors = 0
    limit(resource.RLIM_INFINITY)
    journal.put(f"{kind}/again", "there is room")
    done[f"{kind}/again"] = "there is room"
journal.close()
journal = Journal(Path(sys.argv[1]) / "journal.sqlite")
assert journal.items("") == done and not journal.notices, journal.notices
print(len(done))
"""


def test_a_file_that_may_not_grow_is_an_error_and_what_was_there_stays(tmp_path: Path) -> None:
    assert int(script(FULL, tmp_path)) > 10
    assert not list(tmp_path.glob("*.part"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_on_a_full_disk_puts_raise_until_there_is_room(small: Path) -> None:
    (small / "ballast").write_bytes(b"x" * 300_000)
    done: dict[str, Any] = {}
    with opened(small) as journal:
        for turn in ("first", "second"):
            errors = []
            for number in range(60):
                key = f"{'node' if number % 4 == 0 else 'round/1'}/{turn}-{number}"
                try:
                    journal.put(key, "x" * 12_000)
                    done[key] = "x" * 12_000
                except RunError as error:
                    errors.append(error.hint)
            assert {*errors} == {"make room on the disk"} and journal.items("") == done
            if turn == "first":
                (small / "ballast").unlink()
    assert any("second" in key for key in done)
    facts, notices = found(small)
    assert facts == done and not notices


# --- what fails for good ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError("no more"), sqlite3.OperationalError("disk I/O error")])
def test_after_an_error_that_nobody_expected_puts_raise_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked = threading.Event()
    journal = Journal(tmp_path / "journal.sqlite")
    journal.put("round/1", 1)

    def failing(*_: Any, **__: Any) -> None:
        assert asked.wait(5)
        raise error

    monkeypatch.setattr(journal._file, "_write", failing)
    later = [journal.put_later("node/2", 2) for _ in range(3)]
    while len(journal._wishes) == 3:  # one is being written at least
        time.sleep(0.001)
    later += [journal.put_later("node/3", 3) for _ in range(3)]  # and these wait behind it
    asked.set()
    for each in later:
        with pytest.raises(RunError, match="failed"):
            each.result(timeout=5)
    with pytest.raises(RunError, match="failed"):
        journal.put("round/3", 3)
    assert journal.items("") == {"round/1": 1}
    journal.close()
    assert not list(tmp_path.glob("*.part"))
    assert found(tmp_path) == ({"round/1": 1}, ())


def test_a_connection_that_is_lost_is_the_end_until_it_is_opened_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.put("node/a", 1)
        assert journal._file._base is not None
        journal._file._base.close()
        for _ in range(2):
            with pytest.raises(RunError, match="failed"):
                journal.put("node/a", 2)
        assert journal.get("node/a") == 1
    assert found(tmp_path) == ({"node/a": 1}, ())
    assert not list(tmp_path.glob("*.part"))


# --- damage -------------------------------------------------------------------------------------------------------


def spoil(path: Path, key: str, value: bytes = b"[1]") -> None:
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        assert base.execute("UPDATE facts SET value = ? WHERE key = ?", (value, key)).rowcount == 1


def test_a_value_that_is_not_what_was_written_is_dropped_and_said(tmp_path: Path) -> None:
    path = written(tmp_path)
    spoil(path, "round/3/0/7")
    facts, notices = found(tmp_path)
    assert facts == {key: value for key, value in FACTS.items() if key != "round/3/0/7"}
    assert len(notices) == 1 and "'round/3/0/7' is not what was written" in notices[0]
    assert found(tmp_path) == (facts, ())  # said once


@pytest.mark.parametrize("wrong", [b"sound/3/0/7", b"round/3/0/\xff", b"\xffound/3/0/7"])
def test_a_key_that_is_not_what_was_written_hides_no_others(tmp_path: Path, wrong: bytes) -> None:
    """SQLite finds keys by their order, in which the wrong one does not stand."""
    path = written(tmp_path)
    content = path.read_bytes()
    assert content.count(b"round/3/0/7") == 1
    path.write_bytes(content.replace(b"round/3/0/7", wrong))
    facts, notices = found(tmp_path)
    assert facts == {key: value for key, value in FACTS.items() if key != "round/3/0/7"} and len(notices) == 1
    with opened(tmp_path) as journal:
        assert not journal.notices
        for key in FACTS:
            journal.put(key, "new")
    assert found(tmp_path) == (dict.fromkeys(FACTS, "new"), ())


def test_what_must_not_be_lost_is_taken_from_the_second_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    spoil(path, "node/b")
    spoil(path, "")
    facts, notices = found(tmp_path)
    assert facts == FACTS and len(notices) == 3
    assert found(tmp_path) == (FACTS, ())


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_the_second_file_is_written_anew_from_the_first(tmp_path: Path, how: str) -> None:
    path = written(tmp_path)
    copy = path.with_suffix(".lasting.json")
    content = copy.read_bytes()
    if how == "gone":
        copy.unlink()
    else:
        copy.write_bytes(content.replace(b'"number":1', b'"number":2'))
    facts, notices = found(tmp_path)
    assert facts == FACTS and len(notices) == (how == "damaged")
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute("DELETE FROM facts")
        base.commit()
    assert found(tmp_path)[0] == NODES


def test_what_is_damaged_in_both_files_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    copy = path.with_suffix(".lasting.json")
    copy.write_bytes(copy.read_bytes()[:-3])
    spoil(path, "node/b")
    with pytest.raises(RunError, match="does not have what it held"):
        Journal(path)
    path.write_bytes(b"this is no database, whatever it may have been" * 100)
    with pytest.raises(RunError, match="does not have what it held"):
        Journal(path)
    path.unlink()
    with pytest.raises(RunError, match="does not have what it held"):
        Journal(path)


def test_a_broken_database_is_moved_aside_and_numbers_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path)
    for number in (1, 2):
        content = bytearray(path.read_bytes())
        content[100:5000] = b"\xa5" * 4900
        path.write_bytes(content)
        facts, notices = found(tmp_path)
        assert facts == NODES
        assert f"moved to journal.sqlite.broken-{number}" in notices[0]
        assert path.with_name(f"journal.sqlite.broken-{number}").read_bytes() == content
        assert found(tmp_path) == (NODES, ())
        with opened(tmp_path) as journal:
            journal.put_all(ROUND)


def test_a_lost_database_is_said_and_numbers_are_kept(tmp_path: Path) -> None:
    written(tmp_path).unlink()
    facts, notices = found(tmp_path)
    assert facts == NODES and "is behind journal.lasting.json" in notices[0]


def snapshot(place: Path, to: Path) -> Path:
    """The files as a power cut would leave them: with their log."""
    to.mkdir()
    with opened(place) as journal:
        journal.put_all(FACTS)
        for k in range(10):
            journal.put(f"round/4/{k}", k)
        for file in place.iterdir():
            shutil.copy(file, to)
    return to


def test_the_end_of_a_log_that_is_damaged_is_said(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    there = snapshot(tmp_path / "here", tmp_path / "there")
    log = there / "journal.sqlite-wal"
    content = bytearray(log.read_bytes())
    content[-100] ^= 1  # within the last page
    log.write_bytes(content)
    facts, notices = found(there)
    assert facts == FACTS | {f"round/4/{k}": k for k in range(9)}
    assert len(notices) == 1 and "end of" in notices[0]
    assert found(there) == (facts, ())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The three files, with all in the log, and with nothing there."""
    place = tmp_path_factory.mktemp("pristine")
    (place / "here").mkdir()
    logged = snapshot(place / "here", place / "there")
    return {
        where.name: {each.name: each.read_bytes() for each in where.iterdir() if each.suffix != ".lock"}
        for where in (logged, place / "here")
    }


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_that_changes_changes_a_fact(
    tmp_path_factory: pytest.TempPathFactory, pristine: dict[str, dict[str, bytes]], data: st.DataObject
) -> None:
    """A flipped bit: facts are right or absent with a notice, nodes are right always; or the whole is refused."""
    files = dict(pristine[data.draw(st.sampled_from(sorted(pristine)))])
    file = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[file])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    place = tmp_path_factory.mktemp("flipped")
    for name, octets in (files | {file: bytes(content)}).items():
        (place / name).write_bytes(octets)
    refused = None
    try:
        facts, notices = found(place)
    except RunError as error:
        refused = error.message
    if refused is not None:
        assert "has format" in refused  # the one number that says how to read the rest
        return
    due = FACTS | {f"round/4/{k}": k for k in range(10)}
    assert {key: facts[key] for key in NODES} == NODES
    assert all(due[key] == value for key, value in facts.items())
    assert notices or facts == due


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    path = written(tmp_path)
    part = tmp_path / "own-journal.lasting.json-0011.part"
    part.write_bytes(b"half")
    assert found(tmp_path) == (FACTS, ())
    assert not part.exists() and path.exists()


def test_a_process_that_died_between_both_files_is_no_damage(tmp_path: Path) -> None:
    """The database has committed, the second file is not in place: the database is right."""
    path = written(tmp_path)
    old = path.with_suffix(".lasting.json").read_bytes()
    with opened(tmp_path) as journal:
        journal.put("node/c", 2)
        journal.drop("node/a")
    path.with_suffix(".lasting.json").write_bytes(old)
    due = {key: value for key, value in FACTS.items() if key != "node/a"} | {"node/c": 2}
    assert found(tmp_path) == (due, ())
    assert path.with_suffix(".lasting.json").read_bytes() != old
