"""A server's end of a connection, which never waits for the other side."""

from __future__ import annotations

import hmac
import socket

from atoll.distributed.free.frames import HEAD, HELLO, TOKEN, Frame, Refused, rest

__all__ = ["Peer"]


class Peer:
    """Who has connected: a stranger until the token is shown, then a worker or the keeper of the run.

    `worker` is its number then. `expects` are the kinds of frames that are welcome, each with the bytes that it brings
    at most; where `room` is given a frame brings exactly what fills it, and is read into it. A frame that is not
    welcome ends the connection: whoever sends raises Refused here.
    """

    def __init__(self, connection: socket.socket, token: bytes) -> None:
        connection.setblocking(False)
        self.socket, self._token = connection, token
        self.worker: int | None = None
        self.expects: dict[int, int] = {HELLO: TOKEN}
        self.room: memoryview | None = None
        self.received = 0  # bytes of all frames
        self._head = memoryview(bytearray(HEAD))
        self._frame: Frame | None = None
        self._body: memoryview | None = None
        self._done = 0
        self._out: list[memoryview] = []

    # --- what comes ---------------------------------------------------------------------------------------------

    def read(self) -> tuple[Frame, memoryview] | None:
        """What has come, once it is whole.  Raises EOFError at its end, Refused for what is not welcome."""
        body = self.room if self._frame is None else self._body
        parts = [self._head] if body is None else [self._head, body]
        try:
            done = self.socket.recvmsg_into(rest(parts, self._done))[0]
        except BlockingIOError:
            return None
        if not done:
            raise EOFError
        if not self.expects:
            raise Refused("more came before there was an answer")
        self._done += done
        if self._frame is None:
            if self._done < HEAD:
                return None
            self._frame = self._checked(Frame.read(self._head))
            self._body = self.room if self.room is not None else memoryview(bytearray(self._frame.size))
        assert self._body is not None
        if self._done < HEAD + self._frame.size:
            return None
        frame, body = self._frame, self._body
        self.received += self._done
        self._frame, self._body, self._done = None, None, 0
        if frame.kind == HELLO and not hmac.compare_digest(body, self._token):
            raise Refused("the token is wrong")
        return frame, body

    def _checked(self, frame: Frame) -> Frame:
        most = self.expects.get(frame.kind, -1)
        due = frame.size == most if self.room is not None or frame.kind == HELLO else frame.size <= most
        if not due:
            raise Refused(f"{frame.size} bytes of kind {frame.kind} came, and {most} were due")
        if self.worker is not None and frame.worker != self.worker:
            raise Refused(f"worker {self.worker} says that it is {frame.worker}")
        return frame

    # --- what goes ----------------------------------------------------------------------------------------------

    def write(self, frame: Frame, payload: memoryview) -> None:
        """Send as much as the system takes now, and keep a copy of the rest: what it is a view of may change."""
        parts = [memoryview(frame._replace(size=len(payload)).packed()), payload]
        if not self._out:
            parts = rest(parts, self._sent(parts))
        self._out += [memoryview(bytes(part)) for part in parts]

    def flush(self) -> None:
        """Send what was kept, as far as the system takes it."""
        self._out = rest(self._out, self._sent(self._out))

    def _sent(self, parts: list[memoryview]) -> int:
        try:
            return self.socket.sendmsg(parts)
        except BlockingIOError:
            return 0

    @property
    def full(self) -> bool:
        """Whether there is more to send."""
        return bool(self._out)
