"""What arrives is in the file, in order and hashed, however it was cut."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.network import incoming
from atoll.network.incoming import Incoming


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_STEP", 50)
    monkeypatch.setattr(incoming, "_BEHIND", 200)


async def received(path: Path, pieces: Sequence[bytes], pause: float | None = 0.0) -> str:
    """The hash that was found; other threads get the time to look in between where there is a pause."""
    made = Incoming(path)
    try:
        for piece in pieces:
            made.take(piece)
            if pause is not None:
                await asyncio.sleep(pause)
        await made.caught_up()
        found = await asyncio.to_thread(made.ended)
        made.sync()
        assert made.size == path.stat().st_size
        return found
    finally:
        await made.close()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.binary(max_size=300),
    pieces=st.lists(st.binary(min_size=1, max_size=120), max_size=20),
    pause=st.sampled_from([None, 0.0, 0.0005]),
)
def test_pieces_of_any_size_go_on_from_what_is_there(
    tmp_path: Path, before: bytes, pieces: list[bytes], pause: float | None
) -> None:
    path, whole = tmp_path / "part", before + b"".join(pieces)
    path.write_bytes(before)
    assert asyncio.run(received(path, pieces, pause)) == hashlib.sha256(whole).hexdigest()
    assert path.read_bytes() == whole


def test_what_is_hashed_and_synced_while_the_rest_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    monkeypatch.setattr(incoming.os, "fsync", lambda handle: done.append(os.fstat(handle).st_size))

    async def come() -> None:
        made = Incoming(tmp_path / "part")
        for _ in range(10):
            made.take(b"x" * 60)
            await made.caught_up()
        assert made._hashed == 600 and done == [240, 480]
        made.take(b"x" * 30)
        await made.close()

    asyncio.run(come())


def test_what_came_before_a_line_broke_is_there(tmp_path: Path) -> None:
    async def broken() -> None:
        made = Incoming(tmp_path / "part")
        try:
            for at in range(7):
                made.take(bytes([at]) * 33)
            raise ConnectionResetError
        finally:
            await made.close()

    with pytest.raises(ConnectionResetError):
        asyncio.run(broken())
    assert (tmp_path / "part").read_bytes() == b"".join(bytes([at]) * 33 for at in range(7))


def test_a_file_is_not_let_go_of_while_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file might get its number."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(made: Incoming, upto: int) -> None:
        begun.set()
        assert go_on.wait(10)
        assert not made._stream.closed

    monkeypatch.setattr(Incoming, "_hash", slow)

    async def closing() -> None:
        made = Incoming(tmp_path / "part")
        made.take(b"x" * 60)
        ended = asyncio.create_task(made.close())
        await asyncio.to_thread(begun.wait)
        await asyncio.sleep(0)
        assert not ended.done()
        go_on.set()
        await ended
        assert made._stream.closed

    asyncio.run(closing())


@pytest.mark.parametrize("where", ["fsync", "preadv"])
def test_a_disk_that_fails_behind_is_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def failing(*_: object) -> int:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(incoming.os, where, failing)
    for pause in (None, 0.001):
        with pytest.raises(OSError, match="input/output"):
            asyncio.run(received(tmp_path / "part", [b"x" * 60] * 9, pause))


def test_a_file_that_has_lost_its_end_is_no_answer(tmp_path: Path) -> None:
    async def come() -> None:
        made = Incoming(tmp_path / "part")
        made.take(b"x" * 40)
        os.truncate(tmp_path / "part", 10)
        try:
            made.ended()
        finally:
            await made.close()

    with pytest.raises(OSError, match="lost its end"):
        asyncio.run(come())


def test_a_sync_that_failed_once_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system says it once; what was to be written may be gone, and the next sync knows nothing of it."""
    calls: list[int] = []

    def once(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            raise OSError(5, "input/output error")

    monkeypatch.setattr(incoming.os, "fsync", once)
    with pytest.raises(OSError, match="input/output"):
        asyncio.run(received(tmp_path / "part", [b"x" * 60] * 20, 0.005))
    assert len(calls) == 1
