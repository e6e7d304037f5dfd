"""What arrives is in the file, in order and hashed, however it was cut."""

from __future__ import annotations

import asyncio
import hashlib
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
    monkeypatch.setattr(incoming, "_BATCH", 50)
    monkeypatch.setattr(incoming, "_BEHIND", 200)


async def received(path: Path, pieces: Sequence[bytes]) -> str:
    """The hash that was found."""
    made = Incoming(path)
    try:
        for piece in pieces:
            await made.take(piece)
        await made.caught_up()
        found = await asyncio.to_thread(made.ended)
        made.sync()
        assert made.size == path.stat().st_size
        return found
    finally:
        await made.close()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.binary(max_size=300), pieces=st.lists(st.binary(min_size=1, max_size=120), max_size=20))
def test_pieces_of_any_size_go_on_from_what_is_there(
    tmp_path: Path, before: bytes, pieces: list[bytes]
) -> None:
    path, whole = tmp_path / "part", before + b"".join(pieces)
    path.write_bytes(before)
    assert asyncio.run(received(path, pieces)) == hashlib.sha256(whole).hexdigest()
    assert path.read_bytes() == whole


def test_what_came_before_a_line_broke_is_there(tmp_path: Path) -> None:
    async def broken() -> None:
        made = Incoming(tmp_path / "part")
        try:
            for at in range(7):
                await made.take(bytes([at]) * 33)
            raise ConnectionResetError
        finally:
            await made.close()

    with pytest.raises(ConnectionResetError):
        asyncio.run(broken())
    assert (tmp_path / "part").read_bytes() == b"".join(bytes([at]) * 33 for at in range(7))


def test_who_is_cancelled_leaves_all_that_came_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a batch is being written and the next one waits for it."""
    begun, go_on = threading.Event(), threading.Event()
    write = Incoming._write

    def slow(made: Incoming, batch: list[bytes]) -> None:
        begun.set()
        assert go_on.wait(10)
        write(made, batch)

    monkeypatch.setattr(Incoming, "_write", slow)

    async def take() -> None:
        made = Incoming(tmp_path / "part")
        try:
            for at in range(4):
                await made.take(bytes([at]) * 60)
        finally:
            await made.close()

    async def cancelled() -> None:
        taking = asyncio.create_task(take())
        await asyncio.to_thread(begun.wait)
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await taking

    asyncio.run(cancelled())
    found = (tmp_path / "part").read_bytes()
    assert found == b"".join(bytes([at]) * 60 for at in range(len(found) // 60)) and len(found) >= 60


@pytest.mark.parametrize("whole", [True, False])
def test_after_an_error_nothing_is_written_behind_the_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    written = 0

    def full(made: Incoming, batch: list[bytes]) -> None:
        nonlocal written
        written += 1
        if written == 2:
            if not whole:
                made._stream.write(batch[0][:7])
            raise OSError(28, "no space left on device")
        for piece in batch:
            made._stream.write(piece)

    monkeypatch.setattr(Incoming, "_write", full)
    with pytest.raises(OSError, match="no space"):
        asyncio.run(received(tmp_path / "part", [bytes([at]) * 60 for at in range(9)]))
    assert (tmp_path / "part").read_bytes() == b"\0" * 60 + (b"" if whole else b"\1" * 7)
    assert written == 2


def test_a_disk_that_fails_behind_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(handle: int) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(incoming.os, "fsync", failing)
    with pytest.raises(OSError, match="input/output"):
        asyncio.run(received(tmp_path / "part", [b"x" * 60] * 9))
