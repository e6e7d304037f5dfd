"""The node's side of the wire: requests to the coordinator, again and again until they get through."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import random
import secrets
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from atoll import __version__
from atoll.errors import AtollError, ConfigError, MissingExtraError, RunError
from atoll.network.telling import Transfer, said
from atoll.network.wire import (
    VERSIONS,
    Answered,
    Beat,
    Beaten,
    Blob,
    DataForm,
    Failure,
    Joined,
    Joining,
    Message,
    Problem,
    Task,
    Verdict,
    pack,
    unpack,
)

try:
    import aiohttp
except ImportError:
    raise MissingExtraError("aiohttp", "network", "a node") from None

__all__ = ["Line", "Over", "Refused", "Replaced", "Stale", "Unjoined"]

_PIECE, _SEND = 1 << 20, 1 << 18
_WAIT = 25
_PATIENCE = 10  # seconds after which a line on which an answer is due counts as dead
_FIRST, _MOST = 0.2, 30.0  # seconds between attempts
M = TypeVar("M", bound=Message)
T = TypeVar("T")
Tell = Callable[[str], object]


class Refused(AtollError):
    """The coordinator will not have this, now or later."""


class Stale(AtollError):
    """The task is wanted no more."""


class Unjoined(AtollError):
    """The coordinator does not know this session: the node must join again."""


class Replaced(ConfigError):
    """Another process has taken this node's place."""


class Over(AtollError):
    """The run is over."""


class Line:
    """A connection to a coordinator that does not give up.

    Args:
        url: "https://host:port", or "http://127.0.0.1:port".
        context: for TLS; None without. A new one is for new connections, those of the one before are used no more.
        name: who calls, where there is no TLS.
        tell: hears when the coordinator cannot be reached, and when it can again.
    """

    def __init__(self, url: str, *, context: ssl.SSLContext | None, name: str, tell: Tell) -> None:
        self.url, self.context, self.name, self.tell = url, context, name, tell
        self.session = secrets.token_hex(16)
        self._cut = False
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Line:
        headers = {"Atoll-Session": self.session, "User-Agent": f"atoll/{__version__}"}
        if self.context is None:
            headers["Atoll-Name"] = self.name
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
        self._http = aiohttp.ClientSession(
            headers=headers,
            timeout=limits,
            auto_decompress=False,  # what comes is as long as it says
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._http is not None
        await self._http.close()

    # --- one request ------------------------------------------------------------------------------------------

    async def _asked(self, method: str, path: str, **more: Any) -> tuple[int, bytes]:
        """(status, body) of an answer that the coordinator gave.  Raises what is for good."""
        assert self._http is not None
        secured = self.context or True
        async with self._http.request(
            method, self.url + path, ssl=secured, allow_redirects=False, **more
        ) as response:
            body = await response.content.read(1 << 21)
            status = response.status
        if status < 300 or status == 410:
            return status, body
        if "json" in response.content_type and status in (400, 401, 403, 404, 409, 413):
            _refused(body)
            return status, body
        raise RunError(f"the coordinator answered {status}")

    async def _until(self, action: Callable[[], Any]) -> Any:
        """Do it, again after every failure of the line, with waits that grow and differ from node to node."""
        wait = _FIRST
        while True:
            try:
                found = await action()
            except (aiohttp.ClientError, TimeoutError, OSError, RunError) as error:
                if isinstance(error, AtollError) and not isinstance(error, RunError):
                    raise
                if isinstance(error, aiohttp.ClientConnectorCertificateError):
                    raise ConfigError(
                        f"{self.url} is not who it should be: {error}",
                        hint="atoll doctor --network tells why",
                    ) from None
                if not self._cut:
                    why = _short(error)
                    text = f"the coordinator cannot be reached ({why}); trying again"
                    self.tell(said("cut", text, reason=why))
                self._cut = True
                await asyncio.sleep(wait * (0.5 + random.random()))
                wait = min(wait * 2, _MOST)
                continue
            if self._cut:
                self.tell(said("reached", "the coordinator is there again"))
                self._cut = False
            return found

    async def _say(self, path: str, message: Message) -> tuple[int, bytes]:
        body = pack(message)
        found: tuple[int, bytes] = await self._until(
            lambda: self._asked("POST", path, data=body, headers={"Content-Type": "application/json"})
        )
        return found

    # --- what is said -----------------------------------------------------------------------------------------

    async def join(self, ed25519: str, certificate: str | None = None) -> Joined:
        """Take part, or come back, under this key for signatures.  Raises Refused."""
        message = Joining(
            protocols=VERSIONS, software=f"atoll {__version__}", session=self.session, ed25519=ed25519,
            certificate=certificate,
        )  # fmt: skip
        return unpack((await self._say("/v1/join", message))[1], Joined)

    async def announce(self, form: DataForm) -> None:
        """Say what data there are.  Raises Refused."""
        await self._say("/v1/data", form)

    async def task(self) -> Task | None:
        """What is to be done; None where there is nothing for now.  Raises Over at the end of the run."""
        limit = aiohttp.ClientTimeout(sock_connect=_PATIENCE, sock_read=_WAIT + _PATIENCE)
        status, body = await self._until(lambda: self._asked("GET", f"/v1/task?wait={_WAIT}", timeout=limit))
        if status == 410:
            raise Over("the run is over")
        return None if status == 204 else unpack(body, Task)

    async def beat(self, task: str | None, done: float | None = None) -> Beaten:
        """Give a sign of life, once; whether the task is still wanted.  Raises where the line fails."""
        body = pack(Beat(task=task, done=done))
        return unpack((await self._asked("POST", "/v1/beat", data=body))[1], Beaten)

    async def failed(self, task: str, failure: Failure) -> bool:
        """Tell that a task could not be done; whether to try once more.  Raises Stale."""
        found = unpack((await self._say(f"/v1/task/{task}/failure", failure))[1], Answered)
        return not found.done

    async def leave(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, AtollError):
            await self._asked("POST", "/v1/leave")

    # --- bodies -----------------------------------------------------------------------------------------------

    async def fetch(self, blob: Blob, to: Path) -> None:
        """Get a body into a file, from where it broke off.  Raises Stale where it is there no more."""
        if to.is_file() and to.stat().st_size == blob.size:
            return
        await self._until(lambda: self._fetched(blob, to))

    async def _fetched(self, blob: Blob, to: Path) -> None:
        assert self._http is not None
        part = to.with_name(to.name + ".part")
        there = part.stat().st_size if part.is_file() else 0
        if there > blob.size:
            part.unlink()
            there = 0
        headers = {"Range": f"bytes={there}-"} if there else {}
        if there < blob.size or not blob.size:
            place = f"{self.url}/v1/blob/{blob.sha256}"
            secured = self.context or True
            async with self._http.get(place, headers=headers, ssl=secured, allow_redirects=False) as response:
                if response.status == 404:
                    raise Stale("the task is wanted no more")
                if response.status == 409:
                    _refused(await response.content.read(1 << 21))
                if response.status not in (200, 206):
                    raise RunError(f"the coordinator answered {response.status}")
                begun = there if response.status == 206 else 0
                progress = Transfer(self.tell, "received", blob.size, begun)
                with part.open("ab" if response.status == 206 else "wb") as stream:
                    async for piece in response.content.iter_chunked(_PIECE):
                        if stream.tell() + len(piece) > blob.size:
                            raise RunError("more came than was announced")
                        stream.write(piece)
                        progress.at(stream.tell())
        if _hash(part) != blob.sha256:
            part.unlink()
            raise RunError("what came has another hash than was announced")
        part.replace(to)

    async def answer(self, task: str, body: Path | bytes, sha256: str | None = None) -> Answered:
        """Send an answer, from where it broke off, until it is accepted or refused.  Raises Stale.

        Its hash is looked for where it is not given.
        """
        if isinstance(body, bytes):
            size, sha256 = len(body), hashlib.sha256(body).hexdigest()
        else:
            size, sha256 = body.stat().st_size, sha256 or _hash(body)
        attempts = iter(range(1 << 62))

        async def sent() -> Answered:
            return await self._sent(task, body, size, sha256, ask=next(attempts) > 0 or size > _PIECE)

        found: Answered = await self._until(sent)
        return found

    async def _sent(self, task: str, body: Path | bytes, size: int, sha256: str, *, ask: bool) -> Answered:
        """Send it; `ask` first what is there already: a question costs less than a body sent for nothing."""
        place = f"/v1/task/{task}/answer"
        found = unpack((await self._asked("GET", place))[1], Answered) if ask else Answered(offset=0)
        offset = min(found.offset, size)
        progress = Transfer(self.tell, "sent", size, offset)
        while not found.done:
            more = f"?offset={offset}&size={size}&sha256={sha256}"
            status, told = await self._asked(
                "PUT", place + more, data=_pieces(body, offset, progress),
                headers={"Content-Length": str(size - offset)},
            )  # fmt: skip
            found = unpack(told, Answered)
            if status == 409 and found.offset == offset:
                raise RunError("the coordinator wants what it has")
            offset = found.offset
        return found


def _refused(body: bytes) -> None:
    """Raise what a coordinator's refusal means; return where it is none."""
    try:
        found = unpack(body, Problem)
    except AtollError:
        try:
            unpack(body, Verdict)
        except AtollError:
            return
        raise Stale("the task is wanted no more") from None
    if found.problem == "unjoined":
        raise Unjoined(found.message, hint=found.hint)
    if found.problem == "session":
        raise Replaced(found.message, hint="end one of the two; if you know of no other, its key was copied")
    raise Refused(found.message, hint=found.hint)


async def _pieces(body: Path | bytes, offset: int, progress: Transfer) -> Any:
    with io.BytesIO(body) if isinstance(body, bytes) else body.open("rb") as stream:
        stream.seek(offset)
        while piece := stream.read(_SEND):
            yield piece
            progress.at(stream.tell())


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _short(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:120]
