"""A node of which only the line is real: it sends the answer in a file whenever it is asked for one, and curl the same.

    python benchmarks/network_upload.py PORT INVITATION TEMPLATE

In the directory it is started in, curl sends the file to the address in `other.txt` with the node's certificate; the
process numbers of the coordinator and of the server at that address follow there. Prints what was seen as a line of
JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
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


def processor(pid: str) -> float:
    """Processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children() -> float:
    """Processor seconds of the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def main(port: int, invitation: str, template: str) -> dict[str, Any]:
    identity = Identity(Path("identity"))
    await identity.enrol("127.0.0.1", port, invitation)
    context, path = client_context(identity), Path("mine")
    line = Line(f"https://127.0.0.1:{port}", context=context, name="node", tell=lambda text: None)
    own: list[float] = []
    others: list[float] = []
    cpu: dict[str, list[float]] = {"node": [], "coordinator": [], "curl": [], "nginx": []}
    print("ready", flush=True)
    while not Path("other.txt").is_file():
        await asyncio.sleep(0.05)
    other, *pids = Path("other.txt").read_text().split()
    async with line:
        joined = await line.join(hashlib.sha256(b"key").hexdigest())
        known = Template(Path(template))
        content = known.of(joined.number) + known.rest
        sha256 = hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        del content
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
            spent = children(), processor(pids[1])
            others.append(await asyncio.to_thread(curl, other, identity, path))
            cpu["curl"].append(children() - spent[0])
            cpu["nginx"].append(processor(pids[1]) - spent[1])
            spent, since = (time.process_time(), processor(pids[0])), time.perf_counter()
            found = await line.answer(task.id, path, sha256)  # as a node's worker hands it over
            own.append(time.perf_counter() - since)
            cpu["node"].append(time.process_time() - spent[0])
            cpu["coordinator"].append(processor(pids[0]) - spent[1])
            assert found.done and found.refused is None, found
    size = path.stat().st_size

    def spread(found: list[float]) -> list[float]:
        return [statistics.median(found), min(found), max(found)]

    def rates(seconds: list[float]) -> list[float]:
        return spread([size / each / 1e6 for each in seconds[1:]])

    ratios = [theirs / ours for ours, theirs in zip(own[1:], others[1:], strict=True)]
    return {
        "bytes": size, "uploads": len(own) - 1, "node_mb_s": rates(own), "nginx_mb_s": rates(others),
        "ratio": spread(ratios), "cpu": {name: spread(spent[1:]) for name, spent in cpu.items()},
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))))
