"""Bare clients of the wire, many in one process: they ask for work, read the model, answer what stands in a file.

    python benchmarks/network_clients.py PORT COUNT TEMPLATE CHURN

TEMPLATE is an answer of client 0x3e7, as `atoll.codec` writes it; each client sends it with its own number in the
header. CHURN is the share of clients whose session ends after a round and who join anew. No torch, no library: a
thousand clients must not cost more than the coordinator that is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

FEATURES, SAMPLES = 784, 600
FORM = {
    "inputs": [{"name": "", "dtype": "F32", "shape": [FEATURES]}],
    "targets": {"name": "", "dtype": "I64", "shape": []},
    "classes": 10, "train": SAMPLES, "validation": None, "test": None, "named": False,
}  # fmt: skip
NUMBER = b"0x3e7"
PIECE = 1 << 18


class Template:
    """An answer that any client can give: only the head differs."""

    def __init__(self, path: Path) -> None:
        blob = path.read_bytes()
        start = 8 + int.from_bytes(blob[:8], "little")
        self.head, self.rest = blob[8:start].rstrip(b" "), memoryview(blob)[start:]
        assert self.head.count(NUMBER) == 1

    def of(self, number: int) -> bytes:
        """The beginning of a client's answer."""
        head = self.head.replace(NUMBER, hex(number).encode())
        head += b" " * (-len(head) % 8)
        return len(head).to_bytes(8, "little") + head


class Client:
    """One client: a connection, a name, a session."""

    def __init__(self, port: int, at: int, template: Template) -> None:
        self.port, self.name, self.template = port, f"c{at:04d}", template
        self.session, self.sessions = f"{at:016d}", 0
        self.read: Any = None
        self.write: Any = None

    async def ask(self, method: str, path: str, *body: bytes | memoryview) -> tuple[int, bytes]:
        """(status, the first bytes of the body); a large body is read and left."""
        if self.write is None:
            self.read, self.write = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 16)
        size = sum(map(len, body))
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nAtoll-Name: {self.name}\r\nAtoll-Session: {self.session}\r\n"
            f"Content-Length: {size}\r\nContent-Type: application/json\r\n\r\n"
        )
        self.write.write(head.encode())
        for part in body:
            for start in range(0, len(part), PIECE):
                self.write.write(part[start : start + PIECE])
                await self.write.drain()
        head = await self.read.readuntil(b"\r\n\r\n")
        status, left, found = int(head[9:12]), 0, b""
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                left = int(value)
        while left:
            piece = await self.read.read(min(left, PIECE))
            if not piece:
                raise ConnectionError("the coordinator closed the connection")
            found, left = found + piece if len(found) < PIECE else found, left - len(piece)
        return status, found

    async def close(self) -> None:
        if self.write is not None:
            self.write.close()
            with contextlib.suppress(OSError):
                await self.write.wait_closed()
        self.write = None

    async def join(self) -> None:
        self.sessions += 1
        self.session = f"{self.name}{self.sessions:020d}"
        joining = {"protocols": [1], "software": "bare", "session": self.session}
        status, body = await self.ask("POST", "/v1/join", json.dumps(joining).encode())
        assert status == 200, body
        self.head = self.template.of(json.loads(body)["number"])
        sha = hashlib.sha256(self.head)
        sha.update(self.template.rest)
        self.sha256 = sha.hexdigest()
        status, body = await self.ask("POST", "/v1/data", json.dumps(FORM).encode())
        assert status == 204, body

    async def play(self, churn: float) -> int:
        """Take part until the run is over; how many sessions there were."""
        size, gone = len(self.head) + len(self.template.rest), random.Random(self.name)
        while True:
            status, body = await self.ask("GET", "/v1/task?wait=25")
            if status == 410:
                await self.ask("POST", "/v1/leave")
                await self.close()
                return self.sessions
            if status == 204:
                continue
            assert status == 200, body
            task = json.loads(body)
            status, body = await self.ask("GET", f"/v1/blob/{task['shared']['sha256']}")
            assert status == 200, body
            place = f"/v1/task/{task['id']}/answer?offset=0&size={size}&sha256={self.sha256}"
            while True:
                try:
                    status, body = await self.ask("PUT", place, self.head, self.template.rest)
                except ConnectionError:  # the same, said before all was sent
                    status = 503
                if status != 503:  # no room for it just now
                    break
                await self.close()
                await asyncio.sleep(0.5 + gone.random())
            assert status == 200 and not json.loads(body)["refused"], (status, body)
            if self.name != "c0000" and gone.random() < churn:
                await self.ask("POST", "/v1/leave")
                await self.close()
                await self.join()


async def main(port: int, count: int, path: str, churn: float) -> None:
    template = Template(Path(path))
    clients = [Client(port, at, template) for at in range(count)]
    for start in range(0, count, 50):
        await asyncio.gather(*(each.join() for each in clients[start : start + 50]))
    sessions = await asyncio.gather(*(each.play(churn) for each in clients))
    print(sum(sessions))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
