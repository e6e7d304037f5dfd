"""A server's end of a connection, which never waits for the other side."""

from __future__ import annotations

import hmac
import os
import socket

from atoll.distributed.free.frames import HEAD, HELLO, PUSH, TOKEN, Frame, Refused

__all__ = ["Peer"]


class Peer:
    """Who has connected: a stranger until the token is shown, then a worker or the keeper of the run.

    `worker` is its number then, `descriptor` of the memory that it has handed over. `expects` are the kinds of frames
    that are welcome now, each with the bytes that it must have (a gradient, a token) or may have at most. Any other
    frame ends the connection, before a byte of what it brings is read.
    """

    def __init__(self, connection: socket.socket, token: bytes) -> None:
        connection.setblocking(False)
        self.socket, self._token = connection, token
        self.worker: int | None = None
        self.descriptor: int | None = None
        self.expects: dict[int, int] = {HELLO: TOKEN}
        self._frame: Frame | None = None
        self._room = memoryview(bytearray(HEAD))
        self._done = 0
        self._out = memoryview(b"")

    # --- what comes ---------------------------------------------------------------------------------------------

    def read(self) -> tuple[Frame, memoryview] | None:
        """What has come, once it is whole.  Raises EOFError at its end, Refused for what is not welcome."""
        while True:
            try:
                done = self._received()
            except BlockingIOError:
                return None
            if not done:
                raise EOFError
            self._done += done
            if self._done < len(self._room):
                continue
            self._done = 0
            if self._frame is None:
                frame = self._checked(Frame.read(self._room))
                if frame.kind == PUSH or not frame.size:
                    return frame, memoryview(b"")
                self._frame, self._room = frame, memoryview(bytearray(frame.size))
                continue
            frame, body = self._frame, self._room
            self._frame, self._room = None, memoryview(bytearray(HEAD))
            if frame.kind == HELLO and not hmac.compare_digest(body, self._token):
                raise Refused("the token is wrong")
            return frame, body

    def _received(self) -> int:
        if self.worker is not None:
            return self.socket.recv_into(self._room[self._done :])
        given, descriptors, _, _ = socket.recv_fds(self.socket, len(self._room) - self._done, 1)
        for each in descriptors:
            self.let_go()
            self.descriptor = each
        self._room[self._done : self._done + len(given)] = given
        return len(given)

    def _checked(self, frame: Frame) -> Frame:
        most = self.expects.get(frame.kind)
        if most is None:
            raise Refused(f"a frame of kind {frame.kind} is not welcome now")
        exact = frame.kind in (HELLO, PUSH)
        if frame.size > most or (exact and frame.size != most):
            raise Refused(f"{frame.size} bytes of kind {frame.kind} came, and {most} were due")
        if self.worker is not None and frame.worker != self.worker:
            raise Refused(f"worker {self.worker} says that it is {frame.worker}")
        return frame

    # --- what goes ----------------------------------------------------------------------------------------------

    def write(self, frame: Frame, payload: bytes = b"") -> None:
        """Send as much as the system takes now, and keep the rest."""
        self._out = memoryview(bytes(self._out) + frame.packed() + payload)
        self.flush()

    def flush(self) -> None:
        """Send what was kept, as far as the system takes it."""
        try:
            self._out = self._out[self.socket.send(self._out) :]
        except BlockingIOError:
            return

    @property
    def full(self) -> bool:
        """Whether there is more to send."""
        return len(self._out) > 0

    def close(self) -> None:
        """The connection is over."""
        self.socket.close()
        self.let_go()

    def let_go(self) -> None:
        """The descriptor that was handed over is not needed."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
