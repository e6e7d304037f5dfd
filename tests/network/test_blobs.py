"""Bodies are whole or not there, whoever writes them and whatever ends it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from atoll.errors import DataError, RunError
from atoll.network.blobs import Blobs

from .killing import killed

BODY = bytes(range(256)) * 400
NAME = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "deep" / "bodies")


def files(blobs: Blobs) -> set[str]:
    return {each.name for each in blobs.place.iterdir()}


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is synced, in order; the syncs are done."""
    names: list[str] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    return names


def test_a_body_has_the_name_of_its_bytes(blobs: Blobs) -> None:
    assert blobs.put(BODY) == NAME and blobs.put(BODY) == NAME and files(blobs) == {NAME}
    assert blobs.path(NAME).read_bytes() == BODY and blobs.whole(NAME)
    assert blobs.put(b"") == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("durable", [True, False])
def test_the_same_bytes_from_many_threads_are_one_body(blobs: Blobs, durable: bool) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(10):
                blobs.put(BODY + bytes([number]), durable=durable)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors
    names = {hashlib.sha256(BODY + bytes([number])).hexdigest() for number in range(10)}
    assert files(blobs) == names and all(map(blobs.whole, names))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks /proc which file a handle is")
def test_what_must_last_is_synced_with_its_directory_and_what_can_be_made_again_is_not(
    blobs: Blobs, synced: list[str]
) -> None:
    blobs.put(BODY, durable=False)
    assert synced == []
    blobs.put(BODY)  # now it must last
    assert synced == [NAME, "bodies"]
    blobs.put(BODY)
    blobs.put(BODY, durable=False)
    assert synced == [NAME, "bodies"]
    del synced[:]
    blobs.put(b"another")
    assert len(synced) == 2 and synced[0].endswith(".part") and synced[1] == "bodies"
    del synced[:]
    Blobs(blobs.place).put(BODY)  # of another process: who knows
    assert synced == [NAME, "bodies"]


def test_bytes_that_went_bad_are_seen_and_written_again(blobs: Blobs) -> None:
    blobs.put(BODY)
    content = bytearray(BODY)
    content[1000] ^= 1
    blobs.path(NAME).write_bytes(content)
    assert not blobs.whole(NAME)
    again = Blobs(blobs.place)  # a power cut may have left a name without its bytes
    assert again.put(BODY) == NAME and again.whole(NAME)
    again.path(NAME).unlink()
    assert not again.whole(NAME)
    assert again.put(BODY) == NAME and again.whole(NAME)


def test_what_had_begun_to_arrive_goes_on_after_a_restart(blobs: Blobs) -> None:
    with blobs.part("7-3-0-0").open("ab") as stream:
        stream.write(BODY[:500])
    blobs = Blobs(blobs.place)
    blobs.only([])
    part = blobs.part("7-3-0-0")
    assert part.stat().st_size == 500
    with part.open("ab") as stream:
        stream.write(BODY[500:])
    blobs.keep(part, NAME)
    assert files(blobs) == {NAME} and blobs.whole(NAME)


def test_only_what_is_wanted_stays_and_no_old_parts(blobs: Blobs) -> None:
    other = blobs.put(b"other")
    blobs.put(BODY)
    for name, age in (("fresh", 0.0), ("late", 23 * 3600.0), ("stale", 25 * 3600.0)):
        blobs.part(name).write_bytes(b"half")
        os.utime(blobs.part(name), (time.time() - age,) * 2)
    blobs.only([NAME, "f" * 64])
    assert files(blobs) == {NAME, "fresh.part", "late.part"}
    assert blobs.put(b"other") == other and blobs.whole(other)


def test_names_from_outside_are_no_paths(blobs: Blobs) -> None:
    for name in ("", "../journal.sqlite", NAME.upper(), NAME[1:], f"{NAME}\n", "a/b"):
        with pytest.raises(DataError, match="no SHA-256"):
            blobs.path(name)
    for name in ("", "../x", "/x", ".hidden", "a/b"):
        with pytest.raises(DataError, match="no name of a part"):
            blobs.part(name)


FULL = """
import resource, sys
from pathlib import Path
from atoll.errors import RunError
from atoll.network.blobs import Blobs
blobs = Blobs(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    blobs.put(b"x" * 100_000)
except RunError as error:
    assert error.hint == "make room on the disk"
    assert not list(blobs.place.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert blobs.whole(blobs.put(b"x" * 100_000))
    print("as it should be")
"""


def test_where_there_is_no_room_nothing_stays_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "as it should be\n", done.stderr


def test_a_place_that_cannot_be_used_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError):
        Blobs(tmp_path / "file")
    blobs = Blobs(tmp_path / "bodies")
    with pytest.raises(RunError):
        blobs.keep(blobs.part("nothing"), NAME)


WRITER = """
import hashlib
from pathlib import Path
from atoll.network.blobs import Blobs
place = Path({path!r})

def write(turn, say):
    blobs, number = Blobs(place), 0
    while True:
        say(blobs.put(bytes([turn, number % 256]) * 100_000, durable=number % 2 == 0))
        number += 1

def after(turn):
    pass
"""


def test_a_body_with_its_name_is_whole_after_kill_9(blobs: Blobs) -> None:
    said = killed(WRITER.format(path=str(blobs.place)), times=20, longest=0.02)
    names = {name for name in files(blobs) if not name.endswith(".part")}
    assert {*said} <= names and all(map(blobs.whole, names))
