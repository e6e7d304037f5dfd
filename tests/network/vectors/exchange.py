"""A whole exchange between one node and a coordinator, request by request: one round, and its evaluation."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import torch
from aiohttp import web

from atoll.codec import decode, encode
from atoll.contract import Order
from atoll.data import FederatedData, from_arrays, from_clients
from atoll.engines.client import Client
from atoll.experiment import Experiment
from atoll.network.coordinator import Coordinator, Deployment, Office
from atoll.network.elsewhere import Elsewhere, form_of
from atoll.network.journal import Journal
from atoll.network.routes import Routes, plainly
from atoll.network.wire import Beat, Failure, Joining, Task, pack, unpack
from atoll.tensors import Record
from tests.network.vectors.make import PLAN

RUN = "00112233aabbccdd"
SESSION = "0123456789abcdef"


def samples() -> tuple[Any, Any, Any, Any]:
    """(inputs, labels) to train on [10, 4] and to test on [4, 4], of two classes."""
    x = torch.tensor([[(3 * i + 5 * j) % 7 / 4 - 0.75 for j in range(4)] for i in range(14)])
    y = (x[:, 0] + x[:, 1] > x[:, 2]).long()
    return x[:10].numpy(), y[:10].numpy(), x[10:].numpy(), y[10:].numpy()


def data() -> FederatedData:
    x, y, tested, labels = samples()
    return from_clients({"ann": from_arrays(x, y, (tested, labels), 2)}, name="vectors")


def answer(client: Client, task: Task, received: Record, method: Any) -> bytes:
    """What a node answers to a task: the plain twin of every engine."""
    order = Order(0, task.round, PLAN.seed, task.program, received, task.epochs, task.limit)
    return encode(client.answer(order, method.program(task.program), None)[0].to_record())


class Tape:
    """Requests of a node, and what was answered, in order."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http, self.url = http, url
        self.steps: list[dict[str, Any]] = []

    async def ask(
        self, what: str, method: str, path: str, body: bytes = b"", session: str = SESSION
    ) -> bytes:
        headers = {"Atoll-Name": "ann", "Atoll-Session": session}
        async with self.http.request(method, self.url + path, data=body or None, headers=headers) as found:
            answered, status = await found.read(), found.status
        octets = method == "PUT"
        self.steps.append(
            {
                "what": what,
                "request": {"method": method, "path": path, "headers": headers, **_shown(body, octets)},
                "response": {
                    "status": status,
                    **_shown(answered, path.startswith("/v1/blob/") and status == 200),
                },
            }
        )
        return answered


def _shown(body: bytes, octets: bool) -> dict[str, str]:
    if not body and not octets:
        return {}
    return {"bytes": body.hex()} if octets else {"text": body.decode()}


def exchange() -> dict[str, Any]:
    """The exchange, with the data that the node holds. Numbers may differ in last bits from machine to machine."""
    with tempfile.TemporaryDirectory() as place:
        return asyncio.run(_exchanged(Path(place)))


async def _exchanged(place: Path) -> dict[str, Any]:
    journal = Journal(place / "journal.sqlite")
    journal.put("run/id", RUN)
    journal.close()
    experiment = Experiment.read(
        data="nodes.csv", label="kind", classes=2, method="fedavg", model=PLAN.model, rounds=1, seed=PLAN.seed,
        engine="loop", runs="none", **{key: PLAN.hyper[key] for key in ("lr", "epochs", "batch_size")},
    )  # fmt: skip

    def build(elsewhere: Elsewhere, nodes: Deployment, callbacks: Sequence[Any]) -> Any:
        federation = experiment.federate(elsewhere, callbacks, nodes=nodes)
        built.append(federation)
        return federation

    built: list[Any] = []
    coordinator = Coordinator(Office(place, PLAN, 1, 1), build)
    runner = web.AppRunner(Routes(coordinator, plainly).application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    coordinator.start()
    try:
        async with aiohttp.ClientSession() as http:
            tape = Tape(http, f"http://127.0.0.1:{runner.addresses[0][1]}")
            await _round(tape, built)
            await asyncio.to_thread(coordinator._thread.join)
            await tape.ask("the run is over", "GET", "/v1/task?wait=0")
            await tape.ask("the node leaves", "POST", "/v1/leave")
    finally:
        await coordinator.stop()
        await runner.cleanup()
        coordinator.close()
    if coordinator.error is not None:
        raise coordinator.error
    x, y, tested, labels = samples()
    held = {"train": [x.tolist(), y.tolist()], "test": [tested.tolist(), labels.tolist()]}
    return {"data": held, "steps": tape.steps}


async def _round(tape: Tape, built: list[Any]) -> None:
    await tape.ask("who is there", "GET", "/v1/hello")
    early = b'{"task":null,"done":null}'
    await tape.ask("a beat before joining is refused", "POST", "/v1/beat", early)
    joining = Joining(protocols=(1,), software="mine 1", session=SESSION)
    await tape.ask("the node joins", "POST", "/v1/join", pack(joining))
    await tape.ask("another session is none", "POST", "/v1/beat", early, session="another-session-")
    held = data()
    await tape.ask("the node says what it has", "POST", "/v1/data", pack(form_of(held, 0)))
    task = unpack(await tape.ask("a task comes", "GET", "/v1/task?wait=25"), Task)
    simulation = built[0].simulation
    client = Client(simulation.engine.task, held, torch.device("cpu"))
    place = f"/v1/task/{task.id}"
    body = await tape.ask("its body", "GET", f"/v1/blob/{task.shared.sha256}")
    await tape.ask("a body that is not there", "GET", f"/v1/blob/{'0' * 64}")
    await tape.ask("a sign of life", "POST", "/v1/beat", pack(Beat(task=task.id, done=0.5)))
    await tape.ask(
        "the node fails once", "POST", f"{place}/failure", pack(Failure(kind="raised", reason="no power"))
    )
    blob = answer(client, task, decode(body), simulation.method)
    query = f"size={len(blob)}&sha256={hashlib.sha256(blob).hexdigest()}"
    await tape.ask("nothing has arrived yet", "GET", f"{place}/answer")
    await tape.ask("a part of the answer", "PUT", f"{place}/answer?offset=0&{query}", blob[:1000])
    await tape.ask("from the wrong place", "PUT", f"{place}/answer?offset=0&{query}", blob[:1000])
    await tape.ask("where to go on", "GET", f"{place}/answer")
    await tape.ask("the rest", "PUT", f"{place}/answer?offset=1000&{query}", blob[1000:])
    await tape.ask(
        "once more, as it was not heard", "PUT", f"{place}/answer?offset=1000&{query}", blob[1000:]
    )
    judged = unpack(await tape.ask("the next task", "GET", "/v1/task?wait=25"), Task)
    body = await tape.ask("its body", "GET", f"/v1/blob/{judged.shared.sha256}")
    await tape.ask("an answer to a task that never was", "GET", "/v1/task/9-9-9/answer")
    blob = answer(client, judged, decode(body), simulation.method)
    longer = f"offset=0&size=9000&sha256={'0' * 64}"
    await tape.ask(
        "of an answer that is given up", "PUT", f"/v1/task/{judged.id}/answer?{longer}", bytes(600)
    )
    query = f"offset=0&size={len(blob)}&sha256={hashlib.sha256(blob).hexdigest()}"
    await tape.ask(
        "other bytes than announced", "PUT", f"/v1/task/{judged.id}/answer?{query}", blob[:-1] + b"\x01"
    )
    await tape.ask("the figures", "PUT", f"/v1/task/{judged.id}/answer?{query}", blob)
