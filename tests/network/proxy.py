"""A line between nodes and a coordinator that breaks as a test wants it to: a TCP proxy with switches."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Flow", "Proxy"]


@dataclass
class Flow:
    """What happens to bytes that go one way. All may be changed while they go.

    Args:
        latency: seconds that each piece takes.
        rate: bytes a second; 0 is any.
        cut: after so many bytes in all, the line is closed; None never.
        reset: closes with RST where it closes.
        hole: bytes vanish, and the line stays open.
        hole_after: after so many bytes in all, `hole` begins.
        drip: one byte at a time, with so many seconds between them; 0 not.
        flip: the byte at this place of what goes through (counted over all lines) loses its lowest bit's value.
    """

    latency: float = 0.0
    rate: float = 0.0
    cut: int | None = None
    reset: bool = False
    hole: bool = False
    hole_after: int | None = None
    drip: float = 0.0
    flip: int | None = None
    passed: int = field(default=0)
    """Bytes that went through, of all lines."""


class Proxy:
    """Listens on `port`, and speaks to `to`; `up` is the flow to the coordinator, `down` the flow from it.

    `refusing` closes new lines at once.
    """

    def __init__(self, to: int) -> None:
        self.to, self.up, self.down = to, Flow(), Flow()
        self.refusing = False
        self._stranded: set[tuple[Any, ...]] = set()
        self._lines: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    # --- switches ---------------------------------------------------------------------------------------------

    @property
    def lines(self) -> int:
        """Lines that are open."""
        return len(self._lines)

    def part(self) -> None:
        """From now on nothing comes through, and nobody is told."""
        self.up.hole = self.down.hole = True

    def strand(self) -> None:
        """Lines that there are go nowhere from now on, and stay open; new ones are sound."""
        self._call(lambda: self._stranded.update(self._lines))

    def heal(self) -> None:
        """Whatever was wrong is over; lines that were parted are closed, as a network's end would close them."""
        self.refusing = False
        for flow in (self.up, self.down):
            passed = flow.passed
            flow.__init__()  # type: ignore[misc]
            flow.passed = passed
        self.close_all()

    def close_all(self, reset: bool = False) -> None:
        """End all lines that there are."""
        self._call(lambda: [_close(each, reset) for pair in list(self._lines) for each in pair])

    def _call(self, action: Callable[[], Any]) -> None:
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(act)
        assert done.wait(10)

    # --- the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._line, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        await self._end.wait()
        server.close()
        tasks = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in self._ends:  # also those that had more to send
            each.transport.abort()
        await asyncio.sleep(0)

    async def _line(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._ends.add(back)
        if self.refusing:
            _close(back, reset=True)
            return
        try:
            far, forth = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            _close(back, reset=True)
            return
        self._ends.add(forth)
        pair = back, forth
        self._lines.add(pair)
        try:
            await asyncio.gather(
                self._flow(near, forth, self.up, pair), self._flow(far, back, self.down, pair)
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._lines.discard(pair)
            for each in pair:
                _close(each)

    async def _flow(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, flow: Flow, pair: tuple[Any, ...]
    ) -> None:
        while piece := await source.read(1 if flow.drip else 1 << 14):
            if flow.hole or pair in self._stranded:
                continue
            if flow.hole_after is not None and flow.passed + len(piece) > flow.hole_after:
                piece, flow.hole = piece[: max(0, flow.hole_after - flow.passed)], True
            if wait := flow.latency + flow.drip + (len(piece) / flow.rate if flow.rate else 0.0):
                await asyncio.sleep(wait)
            if flow.flip is not None and flow.passed <= flow.flip < flow.passed + len(piece):
                at = flow.flip - flow.passed
                piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
            ends = flow.cut is not None and flow.passed + len(piece) >= flow.cut
            if ends:
                piece = piece[: max(0, (flow.cut or 0) - flow.passed)]
            flow.passed += len(piece)
            sink.write(piece)
            await sink.drain()
            if ends:
                flow.cut = None
                for each in pair:
                    _close(each, flow.reset)
                return
        if not flow.hole and pair not in self._stranded:
            with contextlib.suppress(OSError):
                sink.write_eof()


def _close(writer: asyncio.StreamWriter, reset: bool = False) -> None:
    """End a line, with FIN or with RST."""
    if reset:
        found = writer.get_extra_info("socket")
        if found is not None:
            with contextlib.suppress(OSError):
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()
    else:
        writer.close()
