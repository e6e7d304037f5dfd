"""A client of the wire without a node around it: it can be honest, and it can say anything at all."""

from __future__ import annotations

import hashlib
import http.client
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from atoll.codec import OWN, decode, encode
from atoll.network.shelf import Shelf
from atoll.network.wire import VERSIONS, Answered, Blob, DataForm, Failure, Joined, Joining, Task, pack
from atoll.network.worker import Begin, Do, Ready, _Work
from atoll.tensors import Record, Tensors

__all__ = ["Caller", "Peer", "Said", "edited"]


_ONE = threading.Lock()
"""Work draws from the process's streams: one peer at a time."""


class Said(NamedTuple):
    """What was answered."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body) if self.body else None


class Caller:
    """Requests under a name, each on a connection of its own."""

    def __init__(self, port: int, name: str | None, role: str = "node") -> None:
        self.port, self.name, self.role = port, name, role
        self.session = secrets.token_hex(16)

    @property
    def headers(self) -> dict[str, str]:
        found = {"Atoll-Session": self.session}
        return found | ({"Atoll-Name": self.name, "Atoll-Role": self.role} if self.name else {})

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 40.0,
    ) -> Said:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            line.request(method, path, body, {**self.headers, **(headers or {})})
            answer = line.getresponse()
            return Said(answer.status, answer.read())
        finally:
            line.close()

    def raw(self, blob: bytes, timeout: float = 10.0) -> bytes:
        """Bytes as they are, and what comes back until the line is closed or nothing comes."""
        found = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as line:
            try:
                line.sendall(blob)
                while piece := line.recv(1 << 16):
                    found += piece
            except (TimeoutError, ConnectionError):
                pass
        return found


class Peer(Caller):
    """Does what a node does, step by step, as the test wants it."""

    def __init__(self, port: int, name: str, source: str, place: Path) -> None:
        super().__init__(port, name)
        self.source, self.shelf = source, Shelf(place)
        self.problem: AssertionError | None = None
        """What ended `play`."""
        self.rounds: list[str] = []
        self._work: _Work | None = None
        self._stop = threading.Event()

    def join(self, **changes: Any) -> Joined:
        """Come, or come back, with the data that are here."""
        message = Joining(protocols=VERSIONS, software="peer", session=self.session)
        found = self.ask("POST", "/v1/join", pack(msgspec.structs.replace(message, **changes)))
        assert found.status == 200, found
        joined = msgspec.json.decode(found.body, type=Joined)
        self.number = joined.number
        if self._work is None:
            assert self.name is not None
            self._work = _Work(
                Begin(joined.plan, self.source, joined.number, self.name, str(self.shelf.place))
            )
        told = self.ask("POST", "/v1/data", pack(self.ready.form))
        assert told.status == 204, told
        return joined

    @property
    def ready(self) -> Ready:
        assert self._work is not None
        return self._work.ready()

    @property
    def form(self) -> DataForm:
        return self.ready.form

    def task(self, wait: float = 10.0) -> Task | None:
        """What is asked; None where nothing is, or the run is over."""
        found = self.ask("GET", f"/v1/task?wait={wait}")
        if found.status in (204, 410):
            return None
        assert found.status == 200, found
        return msgspec.json.decode(found.body, type=Task)

    def wanted(self, seconds: float = 20.0) -> Task:
        """The task that must come."""
        found = self.task(seconds)
        assert found is not None, "no task came"
        return found

    def fetched(self, blob: Blob) -> Path:
        path = self.shelf.body(blob.sha256)
        if not path.is_file():
            found = self.ask("GET", f"/v1/blob/{blob.sha256}")
            assert found.status == 200, found
            path.write_bytes(found.body)
        return path

    def honest(self, task: Task) -> bytes:
        """The answer that an honest node gives."""
        assert self._work is not None
        path, after = self.shelf.answer(task.id), self.shelf.memory(task.id)
        if path.is_file():
            return path.read_bytes()
        own = None if task.own is None else str(self.fetched(task.own))
        memory = None if task.memory is None else str(self.shelf.memory(task.memory))
        shared = str(self.fetched(task.shared))
        with _ONE:
            vector = str(self.shelf.vector(task.id, task.model))
            self._work.do(Do(task, shared, own, memory, str(path), str(after), vector))
        if task.program == "train":
            self.rounds.append(task.id)
        return path.read_bytes()

    def send(self, task: Task | str, blob: bytes, **query: Any) -> Said:
        """Send an answer; `query` in place of the true offset, size and hash."""
        name = task if isinstance(task, str) else task.id
        told = {"offset": 0, "size": len(blob), "sha256": hashlib.sha256(blob).hexdigest(), **query}
        more = "&".join(f"{key}={value}" for key, value in told.items() if value is not None)
        return self.ask("PUT", f"/v1/task/{name}/answer?{more}", blob)

    def delivered(self, task: Task) -> Said:
        """Send an honest answer, from where the coordinator says that it has it."""
        blob = self.honest(task)
        found = self.send(task, blob)
        if found.status == 409 and "offset" in found.json:
            offset, sha256 = found.json["offset"], hashlib.sha256(blob).hexdigest()
            found = self.send(task, blob[offset:], offset=offset, size=len(blob), sha256=sha256)
        return found

    def answer(self) -> Task | None:
        """Do the next task honestly, whatever it is."""
        task = self.task()
        if task is not None:
            found = self.send(task, self.honest(task))
            assert found.status == 200, found
            assert msgspec.json.decode(found.body, type=Answered).refused is None, found
            self.shelf.forget(task.id)
        return task

    def failed(self, task: Task, kind: str = "raised", reason: str = "it broke") -> Said:
        return self.ask("POST", f"/v1/task/{task.id}/failure", pack(Failure(kind=kind, reason=reason)))  # type: ignore[arg-type]

    # --- in the background ------------------------------------------------------------------------------------

    def play(self) -> None:
        """Take part until the run is over, joining again whenever the coordinator was away."""
        while not self._stop.is_set():
            try:
                found = self.ask("GET", "/v1/task?wait=2")
                if found.status == 410:
                    self.ask("POST", "/v1/leave")
                    return
                if found.status in (401, 409):
                    self.join()
                elif found.status == 200:
                    task = msgspec.json.decode(found.body, type=Task)
                    if self.delivered(task).status == 200:
                        self.shelf.forget(task.id)
            except (OSError, http.client.HTTPException):
                self._stop.wait(0.1)
            except AssertionError as error:
                self.problem = error
                return

    def begin(self) -> threading.Thread:
        """`play` in a thread."""
        thread = threading.Thread(target=self.play, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        self._stop.set()

    def pause(self, thread: threading.Thread) -> None:
        """End `play`, for now."""
        self._stop.set()
        thread.join(60)
        self._stop.clear()


def edited(blob: bytes, change: Callable[[Record], Record]) -> bytes:
    """The bytes of an answer whose reply was changed."""
    found = decode(blob, limits=OWN)
    return encode(found.replace(reply=change(found.reply)))


def poisoned(value: float) -> Callable[[Record], Record]:
    """The first number of the first tensor that is sent becomes this one."""

    def change(reply: Record) -> Record:
        def hit(level: Any) -> Any:
            for name, each in level.items():
                if isinstance(each, torch.Tensor) and each.is_floating_point() and each.numel():
                    other = each.clone()
                    other.view(-1)[0] = value
                    return (
                        level.replace(**{name: other})
                        if isinstance(level, Record)
                        else _put(level, name, other)
                    )
                if isinstance(each, Record | Tensors) and (inner := hit(each)) is not None:
                    return level.replace(**{name: inner})
            return None

        sent = hit(reply.sent)
        assert sent is not None
        return reply.replace(sent=sent)

    return change


def _put(level: Tensors, name: str, value: torch.Tensor) -> Tensors:
    return Tensors({**level, name: value})
