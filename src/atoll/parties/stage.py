"""All roles of a protocol in one process, one at a time, in an order that depends on nothing but what they say."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from atoll.parties.link import Link, PartyError
from atoll.parties.transcript import Transcript

__all__ = ["Played", "Role", "play"]

Role = Callable[[Link], Awaitable[Any]]


@dataclass(frozen=True)
class Played:
    """What the roles returned, by party, and what was said."""

    results: Mapping[str, Any]
    transcript: Transcript


def play(roles: Mapping[str, Role], keep: bool = False, transcript: Transcript | None = None) -> Played:
    """Run all roles to their ends.

    Args:
        roles: by the names of the parties.
        keep: whether the transcript keeps the messages themselves.
        transcript: where messages are counted as they go; a new one by default.

    Raises what the first role that failed raised; PartyError where all wait for each other.
    """
    stage = _Stage(roles, Transcript(keep) if transcript is None else transcript)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(stage.run())
    return _elsewhere(stage.run())  # in a notebook a loop is running here already


def _elsewhere(work: Coroutine[Any, Any, Played]) -> Played:
    found: list[Played] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="atoll-parties")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


class _Stage:
    def __init__(self, roles: Mapping[str, Role], transcript: Transcript) -> None:
        self.roles, self.transcript = roles, transcript
        self.pipes = {(a, b): _Queue(self, a) for a in roles for b in roles if a != b}
        self.waiting, self.running = 0, len(roles)

    async def run(self) -> Played:
        tasks = {name: asyncio.create_task(self._play(name, role)) for name, role in self.roles.items()}
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
            failed = [task for task in tasks.values() if task.done() and task.exception() is not None]
            # What others say of a party that is gone is worth less than its own words.
            failed.sort(key=lambda task: isinstance(task.exception(), PartyError))
            if failed:
                raise failed[0].exception()  # type: ignore[misc]
            return Played({name: task.result() for name, task in tasks.items()}, self.transcript)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _play(self, name: str, role: Role) -> Any:
        ways = {
            other: _Way(self.pipes[name, other], self.pipes[other, name])
            for other in self.roles
            if other != name
        }
        # Each message counts once: at its sender.
        link = Link(name, ways, _Sender(self.transcript, name))
        try:
            return await role(link)
        finally:
            self.running -= 1
            self.look()

    def look(self) -> None:
        """Whether somebody can go on; else all who wait are told."""
        if (
            self.running
            and self.waiting == self.running
            and not any(pipe.due for pipe in self.pipes.values())
        ):
            for pipe in self.pipes.values():
                pipe.give_up()


class _Sender(Transcript):
    """Adds to a stage's transcript what one party sends, and not what it receives."""

    def __init__(self, whole: Transcript, name: str) -> None:
        super().__init__()
        self._whole, self._name = whole, name

    def add(self, sender: str, *args: Any, **more: Any) -> None:
        if sender == self._name:
            self._whole.add(sender, *args, **more)


class _Queue:
    """Messages from one party to another."""

    def __init__(self, stage: _Stage, sender: str) -> None:
        self.stage, self.sender = stage, sender
        self.messages: deque[tuple[bytes, bytes]] = deque()
        self.come: asyncio.Future[None] | None = None

    @property
    def due(self) -> bool:
        """Whether somebody waits for this and it is there."""
        return self.come is not None and bool(self.messages)

    def put(self, message: tuple[bytes, bytes]) -> None:
        self.messages.append(message)
        if self.come is not None and not self.come.done():
            self.come.set_result(None)

    async def get(self) -> tuple[bytes, bytes]:
        if not self.messages:
            self.come = asyncio.get_running_loop().create_future()
            self.stage.waiting += 1
            try:
                self.stage.look()
                await self.come
            finally:
                self.stage.waiting -= 1
                self.come = None
        return self.messages.popleft()

    def give_up(self) -> None:
        if self.come is not None and not self.come.done():
            self.come.set_exception(
                PartyError(f"{self.sender} sends nothing more, and all wait for each other")
            )


class _Way:
    """One party's way to and from another."""

    def __init__(self, there: _Queue, back: _Queue) -> None:
        self.there, self.back = there, back

    async def put(self, head: bytes, body: bytes) -> None:
        self.there.put((head, body))
        await asyncio.sleep(0)  # the others' turn

    async def get(self) -> tuple[bytes, bytes]:
        return await self.back.get()
