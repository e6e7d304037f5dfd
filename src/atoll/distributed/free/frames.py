"""What workers, servers and the keeper of a run say to each other: a header of fixed length, then bytes.

The sockets are files in a directory of the run's own, which no other user can enter, and whoever connects shows the
run's token first. Gradients and parameters lie in memory that a worker and its servers have in common (`Room`), so that
of these only the header travels. Nothing in a header is trusted: a size is checked against what is expected before it
counts.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from pathlib import Path
from typing import NamedTuple

from atoll.errors import ConfigError

__all__ = [
    "ASK", "END", "GO", "HEAD", "HELLO", "LOAD", "PUSH", "TOKEN", "WHOLE",
    "Frame", "Line", "Refused", "listen",
]  # fmt: skip

HELLO, PUSH, GO, LOAD, ASK, WHOLE, END = range(1, 8)
"""Who comes; a gradient; parameters and what to read next; a state to begin with; the wish for one; one; no more."""

TOKEN = 32  # bytes
_MAGIC = b"AtPS"
_HEADER = struct.Struct("<4sBxHIIqqddQQ")
HEAD = _HEADER.size


class Refused(ConnectionError):
    """The other side is not who it should be, or says what makes no sense."""


class Frame(NamedTuple):
    """A header.

    Args:
        kind: what it is.
        worker: whose; the keeper of the run is one above the last worker.
        part, step: of the batch that was read, or is to be read; a step of -1 says that there is none.
        samples, loss: how many were read, and the sum of their losses.
        version: updates that were in the parameters.
        waited, memory: seconds that the worker's last exchange took, and bytes of it at its peak.
        size: bytes that follow; of a gradient or parameters, those that lie in the room.
    """

    kind: int
    worker: int = 0
    part: int = 0
    samples: int = 0
    step: int = 0
    version: int = 0
    loss: float = 0.0
    waited: float = 0.0
    memory: int = 0
    size: int = 0

    def packed(self) -> bytes:
        """As it travels."""
        return _HEADER.pack(_MAGIC, *self)

    @classmethod
    def read(cls, head: bytes | bytearray | memoryview) -> Frame:
        """The other way.  Raises Refused."""
        magic, *fields = _HEADER.unpack(head)
        frame = cls(*fields)
        if magic != _MAGIC or not HELLO <= frame.kind <= END:
            raise Refused("these are not the frames of a parameter server")
        if math.isnan(frame.waited) or frame.waited < 0:
            raise Refused("a time is no number")
        return frame


def listen(path: Path) -> socket.socket:
    """A socket that waits for others of this machine.  Raises ConfigError where the path is too long for one."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
    except OSError as error:
        made.close()
        raise ConfigError(f"no socket can be made at {path}: {error}", hint="set TMPDIR=/tmp") from None
    made.listen(256)
    made.setblocking(False)
    return made


class Line:
    """A connection to a server: a system call a message, as far as the system takes it in one.

    Args:
        room: a descriptor of memory to hand over; the keeper has none.
        step: where another server has the worker begin.

    Raises ConnectionError where the server is gone, or does not answer in `timeout` seconds.
    """

    def __init__(
        self, path: Path, token: bytes, worker: int, timeout: float, room: int | None = None, step: int = -1
    ) -> None:
        self.timeout = timeout
        self._socket = _connected(path, timeout)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, option, limit)
        self._head = memoryview(bytearray(HEAD))
        hello = Frame(HELLO, worker, step=step, size=TOKEN).packed() + token
        socket.send_fds(self._socket, [hello], [] if room is None else [room])

    def patient(self) -> None:
        """Wait for answers as long as it takes."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))

    def send(self, frame: Frame, payload: bytes = b"") -> None:
        """A header and what follows."""
        try:
            self._socket.sendall(frame._replace(size=len(payload)).packed() + payload)
        except BlockingIOError:
            raise self._silent() from None

    def push(self, frame: Frame) -> None:
        """A header; its bytes are in the room."""
        self._socket.sendall(frame.packed())

    def told(self, size: int) -> Frame:
        """The header of new parameters, so many bytes of them in the room."""
        self._filled(self._head)
        frame = Frame.read(self._head)
        if (frame.kind, frame.size) != (GO, size):
            raise Refused(f"{frame.size} bytes of kind {frame.kind} came, and {size} parameters' were due")
        return frame

    def blob(self, kind: int, limit: int) -> bytearray:
        """Bytes of any number up to a limit, with a header of that kind."""
        self._filled(self._head)
        frame = Frame.read(self._head)
        if frame.kind != kind or frame.size > limit:
            raise Refused(
                f"{frame.size} bytes of kind {frame.kind} came, and at most {limit} of {kind} were due"
            )
        found = bytearray(frame.size)
        self._filled(memoryview(found))
        return found

    def _filled(self, room: memoryview) -> None:
        done = 0
        try:
            while done < len(room):
                got = self._socket.recv_into(room[done:], 0, socket.MSG_WAITALL)
                if not got:
                    raise ConnectionError("a parameter server has closed the connection")
                done += got
        except BlockingIOError:
            raise self._silent() from None

    def _silent(self) -> ConnectionError:
        return ConnectionError(f"a parameter server has not answered for {self.timeout:g} s")

    def close(self) -> None:
        """Nothing more will be said."""
        self._socket.close()


def _connected(path: Path, timeout: float) -> socket.socket:
    """A connection to a server that may have yet to begin."""
    deadline = time.monotonic() + timeout
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(str(path))
            return made
        except (FileNotFoundError, ConnectionRefusedError):
            made.close()
            if time.monotonic() > deadline:
                raise ConnectionError(f"no parameter server has come in {timeout:g} s") from None
            time.sleep(0.01)
