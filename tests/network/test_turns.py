"""Who is told of a task, and when: never more than there are places for, in the end everybody who is there."""

from __future__ import annotations

import asyncio
import hashlib
import random
import selectors
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from atoll.network.coordinator import Coordinator, Office
from atoll.network.desk import Posted, key_of
from atoll.network.routes import Routes, plainly
from atoll.network.turns import Turns
from atoll.network.wire import Blob, Task
from tests.network.vectors.make import PLAN

NEVER = float("inf")


class Jump(selectors.SelectSelector):
    """Nobody waits: time goes on to when something is due."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time is its own."""

    def __init__(self) -> None:
        self.jump = Jump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.now


def played(scene: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(scene)


@pytest.mark.parametrize("seed", range(5))
def test_never_more_than_there_are_places_and_everybody_in_the_end(seed: int) -> None:
    """Some take long to be served, some give up and come again, some come twice."""
    draw, most, count = random.Random(seed), 3, 40

    async def scene() -> None:
        turns, served, now = Turns(most, NEVER), [0] * count, set[int]()

        async def client(at: int) -> None:
            for _ in range(2):
                await asyncio.sleep(draw.random())
                while not await turns.take(at, draw.choice([0.0, 0.5, 5.0])):
                    await asyncio.sleep(draw.random())
                now.add(at)
                assert len(now) <= len(turns) <= most
                await asyncio.sleep(draw.expovariate(10))
                now.remove(at)
                served[at] += 1
                turns.end(at)

        await asyncio.gather(*map(client, range(count)))
        assert served == [2] * count and len(turns) == 0

    played(scene())


def test_who_came_first_is_first() -> None:
    async def scene() -> None:
        turns, order = Turns(1, NEVER), list[int]()

        async def client(at: int) -> None:
            assert await turns.take(at, NEVER)
            order.append(at)
            await asyncio.sleep(1)
            turns.end(at)

        await asyncio.gather(*map(client, range(10)))
        assert order == list(range(10))

    played(scene())


def test_who_does_not_come_back_keeps_nobody_waiting_for_longer_than_a_lease() -> None:
    async def scene() -> None:
        turns, loop = Turns(2, 0.5), asyncio.get_running_loop()
        async with asyncio.timeout(100):
            for client in range(6):
                assert await turns.take(client, NEVER)
        assert loop.time() == pytest.approx(1.0, abs=0.2)
        assert len(turns) <= 2

    played(scene())


def test_while_the_coordinator_is_slow_nobody_is_taken_for_slow() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clock)
        turns = Turns(1, 0.5)
        assert await turns.take(0, NEVER)
        next_ = asyncio.create_task(turns.take(1, NEVER))
        await asyncio.sleep(0.4)
        loop.jump.now += 3  # the loop is busy with something else
        for _ in range(3):  # the timer, the place, the one who waits for it
            await asyncio.sleep(0)
        assert not next_.done()
        assert await next_

    played(scene())


def test_who_gave_up_has_not_lost_its_place() -> None:
    async def scene() -> None:
        turns = Turns(1, NEVER)
        assert await turns.take(0, 1.0)
        assert not await turns.take(1, 1.0)
        later = asyncio.create_task(turns.take(2, NEVER))
        await asyncio.sleep(0)
        turns.end(0)
        assert await turns.take(1, 0.0)
        assert not later.done()
        turns.end(1)
        assert await later

    played(scene())


# --- over the wire --------------------------------------------------------------------------------------------------


class Asking:
    """A node by hand."""

    def __init__(self, http: aiohttp.ClientSession, url: str, name: str) -> None:
        self.http, self.url = http, url
        self.headers = {"Atoll-Name": name, "Atoll-Session": name * 20}

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.http.request(method, self.url + path, headers=self.headers, **more) as answer:
            return answer.status, await answer.read()

    async def join(self) -> int:
        told = {"protocols": [1], "software": "by hand", "session": self.headers["Atoll-Session"]}
        status, body = await self.ask("POST", "/v1/join", json=told)
        assert status == 200, body
        return 0

    async def task(self) -> int:
        return (await self.ask("GET", "/v1/task?wait=20"))[0]


async def settled(routes: Routes, tasks: list[asyncio.Task[int]], told: int) -> list[asyncio.Task[int]]:
    """Who has been told, once so many have, and the others all wait in the queue."""
    while True:
        done = [each for each in tasks if each.done()]
        if len(done) == told and len(routes.turns._queue) + told == len(tasks):
            return done
        assert len(done) <= told
        await asyncio.sleep(0.01)


def test_nodes_are_told_as_places_are_free(tmp_path: Path) -> None:
    """Whose answer came, who failed, who left, and whose line was cut while it waited makes room for the next."""

    async def scene() -> None:
        office = Office(tmp_path, PLAN, 7, 7)
        coordinator = Coordinator(office, lambda *_: pytest.fail("no rounds here"))
        routes = Routes(coordinator, plainly)
        routes.turns = Turns(2, NEVER)
        routes.uploads.served = routes.turns.end
        runner = web.AppRunner(routes.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        shared = Blob(sha256=coordinator.blobs.put(b"shared"), size=6)
        try:
            async with aiohttp.ClientSession() as http, aiohttp.ClientSession() as cut:
                nodes = [Asking(cut if at == 4 else http, url, f"n{at}") for at in range(7)]
                for each in nodes:
                    await each.join()
                waits: list[asyncio.Task[int]] = []
                for at, each in enumerate(nodes):  # one after the other, so that it is known who comes next
                    waits.append(asyncio.create_task(each.task()))
                    while len(routes._news) <= at:
                        await asyncio.sleep(0.005)
                task = Task(id="1-0-0", round=1, program="train", shared=shared, most=99, cohort=7)
                fresh = [Posted(at, task, key_of(task.id, at), lambda blob: None) for at in range(7)]
                coordinator.desk.post(fresh)
                assert await settled(routes, waits, 2) == waits[:2]
                assert (await nodes[5].ask("GET", "/v1/hello"))[0] == 200

                blob = b"answer"
                place = f"/v1/task/1-0-0/answer?offset=0&size=6&sha256={hashlib.sha256(blob).hexdigest()}"
                assert (await nodes[0].ask("PUT", place, data=blob))[0] == 200
                assert await settled(routes, waits, 3) == waits[:3]
                assert (await nodes[1].ask("POST", "/v1/leave"))[0] == 204
                assert await settled(routes, waits, 4) == waits[:4]
                failed = {"kind": "spent", "reason": "no more"}
                waits[4].cancel()
                await cut.close()
                status, body = await nodes[2].ask("POST", "/v1/task/1-0-0/failure", json=failed)
                assert status == 200, body
                assert await waits[5] == 200  # and not the fifth, who is gone
                assert not waits[6].done() and len(routes.turns) == 2
                assert (await nodes[3].ask("POST", "/v1/leave"))[0] == 204
                assert await waits[6] == 200
        finally:
            await runner.cleanup()
            coordinator.close()

    asyncio.run(asyncio.wait_for(scene(), 60))
