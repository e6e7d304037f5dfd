"""A node of which only the line is real: it sends the answer in a file whenever it is asked for one, and curl the same.

    python benchmarks/network_upload.py PORT INVITATION TEMPLATE

In the directory it is started in, curl sends the file to the address in `other.txt` with the node's certificate. Prints
what was seen as a line of JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from network_clients import FORM, Template

from atoll.network.identity import Identity
from atoll.network.line import Line, Over
from atoll.network.tls import client_context
from atoll.network.wire import DataForm


def curl(address: str, identity: Identity, path: Path) -> float:
    """Seconds for which curl sends a file."""
    command = [
        "curl",
        "-sS",
        "-f",
        "-T",
        str(path),
        "--cacert",
        str(identity.ca),
        "--cert",
        str(identity.pem),
    ]
    command += ["--key", str(identity.pem), "-H", "Expect:", "-w", "%{time_total} %{http_code}", address]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(found.stdout.split()[0])


async def main(port: int, invitation: str, template: str) -> dict[str, Any]:
    identity = Identity(Path("identity"))
    await identity.enrol("127.0.0.1", port, invitation)
    context, path = client_context(identity), Path("mine")
    line = Line(f"https://127.0.0.1:{port}", context=context, name="node", tell=lambda text: None)
    own: list[float] = []
    others: list[float] = []
    cpu: list[float] = []
    print("ready", flush=True)
    while not Path("other.txt").is_file():
        await asyncio.sleep(0.05)
    other = Path("other.txt").read_text()
    async with line:
        joined = await line.join(hashlib.sha256(b"key").hexdigest())
        known = Template(Path(template))
        path.write_bytes(known.of(joined.number) + known.rest)
        await line.announce(msgspec.convert(FORM, DataForm, strict=False))
        while True:
            try:
                task = await line.task()
            except Over:
                await line.leave()
                break
            if task is None:
                continue
            await line.fetch(task.shared, Path("body"))
            Path("body").unlink()
            others.append(await asyncio.to_thread(curl, other, identity, path))
            since, spent = time.perf_counter(), time.process_time()
            found = await line.answer(task.id, path)
            own.append(time.perf_counter() - since)
            cpu.append(time.process_time() - spent)
            assert found.done and found.refused is None, found
    size = path.stat().st_size

    def rates(seconds: list[float]) -> list[float]:
        found = [size / each / 1e6 for each in seconds[1:]]
        return [statistics.median(found), min(found), max(found)]

    ratios = [theirs / ours for ours, theirs in zip(own[1:], others[1:], strict=True)]
    return {
        "bytes": size, "uploads": len(own) - 1, "node_mb_s": rates(own), "nginx_mb_s": rates(others),
        "ratio": [statistics.median(ratios), min(ratios), max(ratios)], "node_cpu": statistics.median(cpu[1:]),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))))
