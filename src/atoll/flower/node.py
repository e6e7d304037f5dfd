"""A SuperNode's part: Flower starts a process for every message, which is a node of the run for as long as that takes.

What it does is `atoll.network.node`'s, with the same worker, policy, memories and files; only the line is another, on
which everything that the server says has come already, and all that the node says goes back in one reply.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from atoll import __version__
from atoll.errors import AtollError, ConfigError, RunError
from atoll.flower.envelope import Bodies, Facts, body, opened, sealed
from atoll.flower.fitting import fits_or_ends
from atoll.flower.staying import Staying
from atoll.network.computing import usable
from atoll.network.hand import Hand
from atoll.network.line import Line, Over, Stale
from atoll.network.node import Node, Station
from atoll.network.shelf import Shelf
from atoll.network.signing import Signer
from atoll.network.wire import (
    NAME,
    VERSIONS,
    Answered,
    Beaten,
    Blob,
    DataForm,
    Failure,
    Joined,
    Joining,
    Task,
    pack,
    unpack,
)
from atoll.network.worker import Begin, Declined, Do, Done, Failed, Ready, _Work, failed

__all__ = ["client_app"]

_PATIENCE = 60.0
"""Seconds for which a visit waits for the one before it, whose SuperNode has ended and which ends with it."""

_QUIET = ("joined", "over")
"""What a node tells that is no news where it comes and goes with each message."""

Data = str | Path | Callable[[Any], Any]


def client_app(
    data: Data | None = None,
    *,
    place: str | Path | None = None,
    code: Sequence[str] = (),
    policy: str | Path | None = None,
    device: str = "auto",
) -> Any:
    """The ClientApp of a Flower project whose server is `server_app`.

    Args:
        data: what the node trains on: a .csv, .tsv, .parquet or .npz file, a folder with the files train and test, or a
            function that is called with Flower's `Context` and returns what `atoll.data.from_clients` takes as a
            client.
        place: the node's directory, which must outlast its process: memories, what it has spent of its privacy, its
            key. By default ``~/.atoll/nodes/NAME``.
        code: code of the app's own that the server may name ("app:net").
        policy: a file that says what the node allows.
        device: what it computes on.

    Each SuperNode may say its own: ``--node-config 'name="north" data="/data/north.csv" place="/var/lib/north"'``, and
    `policy` and `device` likewise. It needs a name, which stays the same from start to start: `name`, or
    Flower's `partition-id`, which makes it "partition-0".

    Ends the process, with what to install, for a release of Flower that does not fit (2) and where there is none (3).
    """
    fits_or_ends()
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    usual = {"place": place, "policy": policy, "device": device}

    def visited(message: Any, context: Any) -> Any:
        settings = {**{key: each for key, each in usual.items() if each is not None}, **context.node_config}
        given = settings.get("data", data)
        try:
            make = partial(given, context) if callable(given) else None
            reply = _answered(message.content, settings, given, code, make)
        except AtollError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            hint = {} if error.hint is None else {"hint": error.hint}
            reply = sealed({"refused": error.message, **hint})
        return Message(reply, reply_to=message)

    app = ClientApp()
    for kind in (app.query, app.train, app.evaluate):
        kind()(visited)
    return app


def _answered(
    content: Any, settings: Mapping[str, Any], data: Data | None, code: Sequence[str], make: Any
) -> Any:
    """What a node says to a message.  Raises AtollError."""
    facts, bodies = opened(content)
    station = _station(settings, data, code)
    if "joined" not in facts:
        station.place.mkdir(parents=True, exist_ok=True)
        joining = Joining(
            protocols=VERSIONS, software=f"atoll {__version__}",
            session=hashlib.sha256(station.name.encode()).hexdigest(), ed25519=Signer(station.place).public.hex(),
        )  # fmt: skip
        return sealed({"name": station.name, "joining": pack(joining)})
    line = _Said(station, facts, bodies)
    asyncio.run(_Visit(station, line, make).run())
    return sealed(line.facts, {name: body(blob) for name, blob in line.bodies.items()})


def _station(settings: Mapping[str, Any], data: Data | None, code: Sequence[str]) -> Station:
    """How the node is set.  Raises ConfigError."""
    name = settings.get("name")
    if name is None and "partition-id" in settings:
        name = f"partition-{settings['partition-id']}"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            "a SuperNode has no name" if name is None else f"{name!r} is no name of a node",
            hint="flower-supernode --node-config 'name=\"hospital-a\"': small letters, digits and -",
        )
    if data is None:
        raise ConfigError(
            f"{name} has no data",
            hint="flower-supernode --node-config 'data=\"/data/a.csv\"', or client_app(data=...)",
        )
    if callable(data):
        source = f"{data.__module__}:{getattr(data, '__name__', 'data')}"
    else:
        source = str(Path(data).resolve())
        if not Path(source).exists():
            raise ConfigError(f"{name}: there is no file {source}", hint="a CSV, Parquet or NPZ file")
    device = str(settings.get("device", "auto"))
    if device != "auto":
        usable(device)
    policy = settings.get("policy")
    return Station(
        url="Flower", name=name, source=source, device=device, tell=_tell, admitted=dict.fromkeys(code, "code"),
        place=Path(settings.get("place") or Path.home() / ".atoll" / "nodes" / name),
        policy=None if policy is None else str(Path(policy).resolve()),
    )  # fmt: skip


def _tell(text: str) -> None:
    if getattr(text, "event", None) not in _QUIET:
        print(text, flush=True)


class _Visit(Node):
    """A node for as long as one message takes; `make` gives its data, where these are no file."""

    def __init__(self, station: Station, line: _Said, make: Callable[[], Any] | None) -> None:
        super().__init__(station)
        self._said, self._make = line, make

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            if self._lock is not None:
                self._lock.close()

    def hold(self) -> None:
        """Be the only process that is this node, once the one before has ended."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return super().hold()
            except RunError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def line(self) -> Line:
        return self._said

    def shelved(self, place: Path) -> Shelf:
        return _Shelf(place)

    def hand(self, joined: Joined) -> Hand:
        begin = self.begin(joined)
        return Staying(begin, sys.path) if self._make is None else _Here(begin, self._make)


class _Shelf(Shelf):
    """Keeps an answer until there is another one: whether a reply got through, a visit does not hear."""

    def forget(self, task: str) -> None:
        for other in self.answers():
            if other != task:
                super().forget(other)


class _Here(Hand):
    """The worker is this process, where the app's own function makes the data and needs what Flower has told it."""

    def __init__(self, begin: Begin, make: Callable[[], Any] | None) -> None:
        super().__init__(begin)
        self._make = make

    async def ready(self) -> Ready:
        try:
            self._work = _Work(self.begin, self._make)
            return self._work.ready()
        except Exception as error:
            found = failed(error)
            raise RunError(found.message, hint=found.hint) from error

    async def do(self, do: Do) -> Done | Declined | Failed:
        try:
            return self._work.do(do)
        except Exception as error:
            return failed(error)


class _Said(Line):
    """The line of a visit: a message that has come, and what becomes the reply to it.

    `facts` and `bodies` are the reply's.
    """

    def __init__(self, station: Station, said: Facts, bodies: Bodies) -> None:
        super().__init__(station.url, context=None, name=station.name, tell=station.tell)
        self._task = unpack(_message(said, "task"), Task) if "task" in said else None
        self._joined = unpack(_message(said, "joined"), Joined)
        self._come = {hashlib.sha256(blob).hexdigest(): blob for blob in bodies.values()}
        self.facts: Facts = {}
        self.bodies: Bodies = {}

    async def __aenter__(self) -> _Said:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def join(self, ed25519: str, certificate: str | None = None) -> Joined:
        return self._joined

    async def announce(self, form: DataForm) -> None:
        self.facts["form"] = pack(form)

    async def task(self) -> Task | None:
        task, self._task = self._task, None
        if task is None:
            raise Over("the message is answered")
        self.facts["task"] = task.id
        return task

    async def beat(self, task: str | None, done: float | None = None) -> Beaten:
        return Beaten(wanted=True, round=0, state="")

    async def failed(self, task: str, failure: Failure) -> bool:
        self.facts["failure"] = pack(failure)
        return False

    async def leave(self) -> None: ...

    async def fetch(self, blob: Blob, to: Path) -> None:
        if blob.sha256 not in self._come:
            raise Stale("a body of the task is not in the message")
        to.write_bytes(self._come[blob.sha256])

    async def answer(self, task: str, body: Path | bytes, sha256: str | None = None) -> Answered:
        self.bodies["answer"] = found = body if isinstance(body, bytes) else body.read_bytes()
        return Answered(offset=len(found), done=True)


def _message(facts: Facts, key: str) -> bytes:
    found = facts[key]
    return found if isinstance(found, bytes) else found.encode()
