"""`atoll join`: what it says before it calls anybody."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.cli.join import Wish, station_of
from atoll.errors import ConfigError, RunError
from atoll.network.line import Line
from atoll.network.wire import Blob
from tests.network.commands import command


def test_data_that_are_not_there_are_told_at_once(tmp_path: Path) -> None:
    """A coordinator may not be there for hours: nobody waits for it to hear of a wrong name."""
    file = tmp_path / "patients.csv"
    code, _, said = command(
        "join", "127.0.0.1:1", "--plain", "--name", "ann", "--data", str(file), "--approve"
    )
    assert code == 2 and f"--data {file}: there is no such file" in said


def test_code_of_ones_own_leaves_the_node_its_name(tmp_path: Path) -> None:
    data = str(tmp_path / "a.csv")
    wish = Wish("127.0.0.1:1", data, "ann", str(tmp_path), plain=True, code=["model=nets:Small"])
    station = station_of(wish, "127.0.0.1", 1, None)
    assert (station.name, station.admitted) == ("ann", {"nets:Small": "model"})
    with pytest.raises(ConfigError, match="--code nets"):
        station_of(replace(wish, code=["nets"]), "127.0.0.1", 1, None)


async def _told(answer: bytes, play: Callable[[Line], Awaitable[None]]) -> list[str]:
    """Let a node talk to somebody who always answers this; the paths that it asked for."""
    asked: list[str] = []

    async def answered(read: asyncio.StreamReader, write: asyncio.StreamWriter) -> None:
        asked.append((await read.readuntil(b"\r\n\r\n")).decode().split()[1])
        write.write(answer)
        await write.drain()
        write.close()

    async with await asyncio.start_server(answered, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Line(f"http://127.0.0.1:{port}", context=None, name="ann", tell=str) as line:
            await play(line)
    return asked


def test_a_node_is_not_sent_elsewhere(tmp_path: Path) -> None:
    """Whoever answers in the coordinator's place cannot have a node say to others what it says to it."""

    async def play(line: Line) -> None:
        with pytest.raises(RunError, match="answered 307"):
            await line.beat(None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await line.fetch(Blob(sha256="0" * 64, size=3), tmp_path / "body")

    answer = b"HTTP/1.1 307 x\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    asked = asyncio.run(_told(answer, play))
    assert len(asked) >= 2 and "/elsewhere" not in asked


def test_a_node_unpacks_nothing(tmp_path: Path) -> None:
    """A body that comes compressed is not the one that was announced, whatever it would be unpacked."""
    body = bytes(1 << 20)
    packed = gzip.compress(body)

    async def play(line: Line) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await line.fetch(
                    Blob(sha256=hashlib.sha256(body).hexdigest(), size=len(body)), tmp_path / "body"
                )

    head = f"HTTP/1.1 200 x\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\nConnection: close\r\n\r\n"
    asyncio.run(_told(head.encode() + packed, play))
    assert not (tmp_path / "body").exists()
