"""A door between a node and its coordinator, which tests may hold shut at a request of their choice."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Gate:
    """Forwards connections to a port of this machine, and keeps what was sent.

    Args:
        port: the coordinator's.

    `hold(text)` lets no request through any more in which that text stands; `held` is set when there is one.
    """

    def __init__(self, port: int) -> None:
        self.to = port
        self.held = threading.Event()
        self.sent = bytearray()
        self._text: bytes | None = None
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._open, daemon=True).start()

    def hold(self, text: str) -> None:
        self._text = text.encode()

    def free(self) -> None:
        """Let everything through again; what was held is lost."""
        self._text = None

    def _open(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._door.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.to))
                except OSError:
                    near.close()
                    continue
                self._ends += [near, far]
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                if up and self._text is not None and self._text in piece:
                    self.held.set()
                    continue  # and whatever comes behind it waits for an answer that never comes
                if up:
                    self.sent += piece
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in (self._door, *self._ends):
            with suppress(OSError):
                end.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
