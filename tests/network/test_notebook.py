"""What a coordinator tells: records that are owed, hashes of models, refusals without a flood, sentences and JSON."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import atoll
from atoll.codec import encode
from atoll.errors import RunError
from atoll.network import telling
from atoll.network.chain import lines
from atoll.network.notebook import Histogram, Notebook
from atoll.network.telling import Teller, Transfer, said
from atoll.network.told import Told
from atoll.network.wire import Problem, pack
from atoll.network.witness import Witness


@pytest.fixture
def book(tmp_path: Path) -> Any:
    made = Notebook(tmp_path, "run")
    yield made
    made.close()


def written(place: Path) -> list[tuple[str, dict[str, Any]]]:
    found = [each for each in lines(place / "audit.jsonl") if each is not None]
    return [(each.event, each.facts) for each in found[1:]]


def test_what_is_owed_comes_first(book: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room a note waits, and keeps its place; who must write is told."""
    with monkeypatch.context() as full:

        def refuse(*_: object, **__: object) -> None:
            raise RunError("the disk is full")

        full.setattr(book.log, "write", refuse)
        book.note("one", n=1)
        with pytest.raises(RunError):
            book.write("never")
    book.note("two")
    assert written(tmp_path) == [("one", {"n": 1}), ("two", {})]


def test_pauses_are_written_once(book: Notebook, tmp_path: Path) -> None:
    for state in ("round 1: paused, a", "round 1: paused, b", "round 1: beginning", "over"):
        book.state(state)
    assert [event for event, _ in written(tmp_path)] == ["run-paused", "run-goes-on"]


def test_models_are_named_by_their_hash(book: Notebook, tmp_path: Path) -> None:
    data = atoll.data.load("digits").partition("iid", clients=2, seed=0)
    model = atoll.models.build("logistic", (1, 8, 8), 10)
    federation = atoll.Federation(model, data, "fedavg", rounds=2, engine="loop", callbacks=[Told(book)])
    federation.fit(progress=False)
    found = written(tmp_path)
    assert [event for event, _ in found] == ["run-begun", "round-committed", "round-committed"]
    assert found[-1][1]["model"] == hashlib.sha256(encode(federation.state)).hexdigest()
    assert found[1][1]["model"] != found[2][1]["model"]
    assert sum(book.phases["round"].counts) == 2


def test_refusals_are_counted_and_not_all_written(book: Notebook, tmp_path: Path) -> None:
    witness = Witness(book)

    async def refused(request: web.Request) -> web.Response:
        body = pack(Problem(problem="revoked", message="the certificate of eve was revoked"))
        return web.Response(status=403, body=body, content_type="application/json")

    async def ask(times: int) -> None:
        site = web.Application()
        witness.install(site)
        site.router.add_get("/v1/task", refused)
        async with TestClient(TestServer(site)) as client:
            for _ in range(times):
                assert (await client.get("/v1/task")).status == 403

    asyncio.run(ask(50))
    assert book.refusals["revoked"] == 50
    ((event, facts),) = written(tmp_path)
    assert event == "refused" and facts["problem"] == "revoked" and facts["times"] == 1
    for key, (_, count) in list(witness._said.items()):
        witness._said[key] = (-1e9, count)  # an hour later
    asyncio.run(ask(1))
    assert written(tmp_path)[1][1]["times"] == 50


def test_classes_of_a_histogram() -> None:
    found = Histogram()
    for seconds in (0.0, 0.01, 0.011, 1e9):
        found.add(seconds)
    assert found.counts[0] == 2 and found.counts[1] == 1 and found.counts[-1] == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_sentences_and_json() -> None:
    people, programs = io.StringIO(), io.StringIO()
    for teller in (Teller(stream=people), Teller(json=True, stream=programs)):
        teller(said("trained", "round 1: trained", round=1))
        teller("a plain word")
        teller.event("joined", {"node": "a"})
    assert people.getvalue() == "round 1: trained\na plain word\n"
    found = [json.loads(line) for line in programs.getvalue().splitlines()]
    assert [each["event"] for each in found] == ["trained", "said", "joined"]
    assert found[0]["facts"] == {"round": 1, "text": "round 1: trained"}


def test_large_bodies_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(telling.time, "monotonic", lambda: now[0])
    stream, terminal = io.StringIO(), Terminal()
    for out in (stream, terminal):
        transfer = Transfer(Teller(stream=out), "sent", 100_000_000, 10_000_000)
        for there in range(20_000_000, 100_000_001, 10_000_000):
            now[0] += 1.0
            transfer.at(there)
    told = stream.getvalue().splitlines()
    assert told[0] == "sent 30 of 100 MB, 30 %, 10.0 MB/s" and told[-1].startswith(
        "sent 100 of 100 MB, 100 %"
    )
    assert len(told) == 5
    assert terminal.getvalue().count("\n") == 1 and "\r" in terminal.getvalue()
    small = io.StringIO()
    Transfer(Teller(stream=small), "sent", 1000).at(1000)
    assert not small.getvalue()
