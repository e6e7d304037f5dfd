"""Somebody who speaks to a coordinator by hand, request for request."""

from __future__ import annotations

import hashlib
import http.client
import json
import secrets
import ssl
from pathlib import Path
from typing import Any

from atoll.data import from_clients
from atoll.network.elsewhere import form_of
from atoll.network.wire import pack


class Caller:
    """A caller of 127.0.0.1; over TLS where there is a context. `name` and `role` are said where there is none."""

    def __init__(
        self, port: int, name: str | None = None, role: str = "node", context: ssl.SSLContext | None = None
    ) -> None:
        self.port, self.context = port, context
        self.headers = {"Atoll-Session": secrets.token_hex(16)}
        if name is not None:
            self.headers |= {"Atoll-Name": name, "Atoll-Role": role}

    def line(self) -> http.client.HTTPConnection:
        if self.context is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.context)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Status, body and headers of the answer."""
        line = self.line()
        try:
            line.request(method, path, body, {**self.headers, **headers})
            answer = line.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            line.close()

    def get(self, path: str) -> Any:
        status, body, _ = self.ask("GET", path)
        assert status == 200, (status, body)
        return json.loads(body)

    # --- as a node --------------------------------------------------------------------------------------------

    def join(self, file: Path) -> int:
        """Take part with the data of a file; the number."""
        asked = {"protocols": [1], "software": "by hand", "session": self.headers["Atoll-Session"]}
        status, body, _ = self.ask("POST", "/v1/join", json.dumps(asked).encode())
        assert status == 200, body
        number = json.loads(body)["number"]
        form = form_of(from_clients({"me": file}, classes=10, test=None), 0)
        status, body, _ = self.ask("POST", "/v1/data", pack(form))
        assert status == 204, body
        return int(number)

    def task(self) -> dict[str, Any]:
        """The next task, once there is one."""
        for _ in range(6):
            status, body, _ = self.ask("GET", "/v1/task?wait=20")
            if status == 200:
                return dict(json.loads(body))
            assert status == 204, body
        raise AssertionError("no task came")

    @staticmethod
    def place(task: dict[str, Any], blob: bytes, offset: int = 0) -> str:
        """Where an answer is sent to."""
        sha256 = hashlib.sha256(blob).hexdigest()
        return f"/v1/task/{task['id']}/answer?offset={offset}&size={len(blob)}&sha256={sha256}"
