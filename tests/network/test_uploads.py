"""An answer over a real line: what is taken, from where, how much, and what lasts before a node is told so."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientError, ClientResponse, ClientSession, TCPConnector, web

from atoll.network import uploads
from atoll.network.blobs import Blobs
from atoll.network.desk import Desk, Posted, key_of
from atoll.network.journal import Journal
from atoll.network.uploads import Uploads
from atoll.network.wire import Blob, Task

BODY = bytes(range(256)) * 16
HASH = hashlib.sha256(BODY).hexdigest()


class Here:
    """A coordinator's desk with one open task of each of two nodes, and the door for their answers."""

    def __init__(self, place: Path, refused: str | None = None, program: str = "train") -> None:
        self.journal, self.blobs = Journal(place / "journal.sqlite"), Blobs(place / "bodies")
        self.desk = Desk(self.journal, self.blobs)
        shared = Blob(sha256=self.blobs.put(b"w"), size=1)
        self.posted = [
            Posted(number, task, key_of(task.id, number), lambda blob: refused)
            for number in (0, 1)
            for task in [Task(id="3-0-0", round=3, program=program, most=8192, cohort=2, shared=shared)]
        ]
        self.desk.post(self.posted)
        self.served: list[int] = []
        coordinator: Any = SimpleNamespace(desk=self.desk, blobs=self.blobs, journal=self.journal)
        self.uploads = Uploads(coordinator, lambda request: int(request.headers["node"]), self.served.append)

    @property
    def parts(self) -> list[bytes]:
        return [each.read_bytes() for each in sorted(self.blobs.place.glob("*.part"))]

    def play(self, talk: Callable[[ClientSession, str], Awaitable[None]]) -> None:
        """Talk to it at an address."""

        async def served() -> None:
            app = web.Application()
            app.router.add_put("/{id}", self.uploads.answer)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            try:
                assert site._server is not None
                port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
                async with ClientSession(connector=TCPConnector(force_close=True)) as session:
                    await talk(session, f"http://127.0.0.1:{port}/3-0-0")
            finally:
                await runner.cleanup()
                self.journal.close()

        asyncio.run(served())


async def put(
    session: ClientSession, url: str, body: Any, offset: Any = 0, size: Any = 4096, sha256: str = HASH,
    node: int = 0,
) -> ClientResponse:  # fmt: skip
    asked = {"offset": str(offset), "size": str(size), "sha256": sha256}
    async with session.put(url, params=asked, data=body, headers={"node": str(node)}) as response:
        await response.read()
        return response


def test_what_is_there_lasts_before_it_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes, then their name, then the fact; and meanwhile nobody takes the body for one that nothing names."""
    here, order = Here(tmp_path), list[str]()
    fsync, keep, accept = os.fsync, here.blobs.keep, here.desk.accept
    where = here.blobs.place / "0-3-0-0.part"

    def syncing(handle: int) -> None:
        if where.is_file() and os.fstat(handle).st_ino == where.stat().st_ino:
            order.append("bytes")
        fsync(handle)

    def keeping(part: Path, sha256: str) -> None:
        keep(part, sha256)
        here.desk.tidy(3)
        assert here.blobs.whole(sha256)
        order.append("name")

    def accepting(*given: Any, **more: Any) -> None:
        order.append("fact")
        accept(*given, **more)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(here.blobs, "keep", keeping)
    monkeypatch.setattr(here.desk, "accept", accepting)

    async def talk(session: ClientSession, url: str) -> None:
        assert (await put(session, url, BODY)).status == 200

    here.play(talk)
    assert order == ["bytes", "name", "fact"]
    assert here.blobs.whole(HASH) and not here.parts and here.served == [0, 0]


def test_what_is_no_answer_leaves_nothing(tmp_path: Path) -> None:
    here = Here(tmp_path)

    async def talk(session: ClientSession, url: str) -> None:
        assert (await put(session, url, BODY, size=8193)).status == 413
        assert here.parts == []
        for wrong in ({"size": len(BODY) - 1}, {"sha256": "0" * 64}):
            assert (await put(session, url, BODY, **wrong)).status == (413 if "size" in wrong else 422)
            assert here.parts == [] and here.desk.open(0, "3-0-0") is not None
        for unsaid in (
            {"offset": -1}, {"size": 0, "offset": 0}, {"offset": 5000}, {"sha256": HASH[:-1]},
            {"sha256": HASH.upper()}, {"sha256": "../" + HASH[3:]}, {"size": "many"},
        ):  # fmt: skip
            assert (await put(session, url, b"", **unsaid)).status == 400
        assert (await put(session, url, BODY)).status == 200

    here.play(talk)
    assert here.blobs.whole(HASH)


def test_an_answer_that_is_refused_is_written_down_and_not_kept(tmp_path: Path) -> None:
    here = Here(tmp_path, refused="its weight is nan")
    facts: list[Any] = []

    async def talk(session: ClientSession, url: str) -> None:
        assert (await put(session, url, BODY)).status == 200
        facts.append(here.journal.get(here.posted[0].key))

    here.play(talk)
    assert facts == [{"sha256": None, "size": len(BODY), "refused": "its weight is nan"}]
    assert here.parts == [] and not here.blobs.whole(HASH)


def test_an_answer_goes_on_from_where_it_is(tmp_path: Path) -> None:
    here = Here(tmp_path)

    async def talk(session: ClientSession, url: str) -> None:
        assert (await put(session, url, BODY[:1000])).status == 202
        assert (await put(session, url, BODY[999:], offset=999)).status == 409
        assert here.parts == [BODY[:1000]]
        # Another answer that is shorter than what is there begins anew.
        assert (await put(session, url, b"ab", size=3, sha256="1" * 64)).status == 202
        assert here.parts == [b"ab"]
        assert (await put(session, url, BODY[2:], offset=2)).status == 422  # of two answers
        assert (await put(session, url, BODY)).status == 200

    here.play(talk)
    assert here.blobs.whole(HASH)


def test_there_is_room_for_so_much_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that begins again ends its upload before; one that says nothing is told so, and the room is free."""
    monkeypatch.setattr(uploads, "_ROOM", 5000)
    monkeypatch.setattr(uploads, "SILENT", 0.3)
    here = Here(tmp_path)

    async def slow() -> Any:
        yield BODY[:100]
        await asyncio.sleep(30)

    async def talk(session: ClientSession, url: str) -> None:
        first = asyncio.create_task(put(session, url, slow()))
        while not here.uploads._arriving:
            await asyncio.sleep(0.005)
        other = await put(session, url, BODY, node=1)
        assert (other.status, other.headers["Retry-After"]) == (503, "1")
        again = asyncio.create_task(put(session, url, slow(), offset=100))
        with pytest.raises(ClientError):  # its line is cut
            await first
        assert (await again).status == 408
        assert not here.uploads._arriving
        assert (await put(session, url, BODY, node=1)).status == 200

    here.play(talk)


@pytest.mark.parametrize("wanted", [True, False])
def test_how_quickly_an_answer_came_is_written_down(wanted: bool, tmp_path: Path) -> None:
    """Where somebody looks at it: of who sends slowly and of who does not."""
    here, found = Here(tmp_path), dict[int, float | None]()
    here.desk.speeds.wanted = wanted

    async def slowly() -> AsyncIterator[bytes]:
        for at in range(0, 4096, 1024):
            yield BODY[at : at + 1024]
            await asyncio.sleep(0.05)

    async def talk(session: ClientSession, url: str) -> None:
        assert (await put(session, url, slowly())).status == 200
        assert (await put(session, url, BODY, node=1)).status == 200
        for node in (0, 1):
            fact = here.journal.get(f"speed/{node}")
            found[node] = None if fact is None else fact["rate"]

    here.play(talk)
    if not wanted:
        assert found == {0: None, 1: None}
        return
    assert found[0] is not None and found[1] is not None
    assert found[0] < 4096 / 0.1  # three pauses at least, of which a machine that is busy makes longer ones
    assert found[1] > found[0]


def test_what_counts_of_an_upload_is_what_came_by_the_last_line(tmp_path: Path) -> None:
    """And how long the node worked before, which began when it took the task."""
    here = Here(tmp_path)
    here.desk.speeds.wanted = True
    here.posted[0].taken = time.perf_counter() - 5.0

    async def rest() -> AsyncIterator[bytes]:
        yield BODY[4000:4050]
        await asyncio.sleep(0.05)
        yield BODY[4050:]

    async def talk(session: ClientSession, url: str) -> None:
        assert (await put(session, url, BODY[:4000])).status == 202
        assert (await put(session, url, rest(), offset=4000)).status == 200
        fact = here.journal.get("speed/0")
        assert fact["rate"] < 96 / 0.04
        assert 5.0 <= fact["before"] < 60

    here.play(talk)


def test_judging_says_nothing_of_how_quickly_models_come(tmp_path: Path) -> None:
    here = Here(tmp_path, program="evaluate")
    here.desk.speeds.wanted = True

    async def talk(session: ClientSession, url: str) -> None:
        assert (await put(session, url, BODY)).status == 200
        assert here.journal.get("speed/0") is None

    here.play(talk)


def test_what_is_written_down_of_an_upload_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The disk is waited for in a thread: others are answered meanwhile."""
    here, threads = Here(tmp_path), list[bool]()
    measured = here.desk.speeds.measured

    def measuring(*given: Any) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        measured(*given)

    here.desk.speeds.measured = measuring  # type: ignore[method-assign]

    async def talk(session: ClientSession, url: str) -> None:
        assert (await put(session, url, BODY)).status == 200

    here.play(talk)
    assert threads == [False]
