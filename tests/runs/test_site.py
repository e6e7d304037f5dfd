"""The server of the live page: what it answers, to whom, and that a reader misses nothing and reads nothing twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientTimeout
from aiohttp.test_utils import TestServer
from yarl import URL

from atoll.runs.digest import compact
from atoll.runs.events import Event, encode
from atoll.runs.site import application

from .synthetic import log, write

NAME = "2026-11-21_081233-fedavg-a3f1"
SWEPT = "2026-12-01_000000-fedprox-b2b2"


def session(
    place: Path, use: Callable[[ClientSession, URL], Awaitable[None]], host: str = "127.0.0.1"
) -> None:
    """Start a server, use it, end it."""

    async def whole() -> None:
        async with (
            TestServer(application(place, host)) as server,
            ClientSession(timeout=ClientTimeout(total=20)) as client,
        ):
            await use(client, server.make_url("/"))

    asyncio.run(whole())


async def messages(client: ClientSession, url: URL, **headers: str) -> AsyncIterator[dict[str, str]]:
    """Server-sent events as {field: text}."""
    async with client.get(url, headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        rest = b""
        async for chunk, _ in answer.content.iter_chunks():
            *whole, rest = (rest + chunk).split(b"\n\n")
            for block in whole:
                fields = dict(
                    line.split(": ", 1) for line in block.decode().splitlines() if not line.startswith(":")
                )
                if "data" in fields:
                    yield fields


async def take(stream: AsyncIterator[dict[str, str]], count: int) -> list[dict[str, str]]:
    """So many messages; a state that is told on the way does not count."""
    found: list[dict[str, str]] = []
    while len(found) < count:
        message = await asyncio.wait_for(anext(stream), 10)
        if message.get("event") != "status":
            found.append(message)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write(tmp_path / "runs" / NAME, log(rounds=5))
    swept = log(rounds=3, method="fedprox", ending=None, name=SWEPT)
    write(tmp_path / "runs" / "sweep" / SWEPT, swept)
    (tmp_path / "secret").mkdir()
    write(tmp_path / "secret" / "run", log(rounds=1))
    return tmp_path / "runs"


# --- pages and lists ----------------------------------------------------------------------------------------


def test_the_list_of_runs(place: Path) -> None:
    async def use(client: ClientSession, url: URL) -> None:
        async with client.get(url / "runs.json") as answer:
            found = await answer.json()
        first, second = found["runs"]
        assert first["name"] == f"sweep/{SWEPT}"
        assert (first["status"], first["round"], first["rounds"]) == ("cut off", 3, 3)
        assert second["name"] == NAME
        assert (second["status"], second["method"], second["data"]) == ("finished", "fedavg", "digits")
        last = [e for e in log(rounds=5) if e["event"] == "round"][-1]
        assert second["value"] == pytest.approx(last["evaluation"]["clients"]["accuracy"]["mean"])
        assert found["only"] is None

    session(place, use)


def test_a_glance_at_an_odd_log(place: Path) -> None:
    events = list(log(rounds=9, planned=20, ending="DivergedError"))
    cut = [e for e in events if e.get("round", 0) <= 7 or e["event"] in ("start", "error")]
    resume = {"event": "resume", "time": 0.0, "round": 4, "rounds": 30}
    file = write(place / "odd", [*cut, resume])
    with open(file, "ab") as out:
        out.write(
            b'{"event": "rou\nnull\n[]\n{"event": "problem", "time": 0.0}\n{"event": "round", "round": 5'
        )

    async def use(client: ClientSession, url: URL) -> None:
        async with client.get(url / "runs.json") as answer:
            (found,) = [run for run in (await answer.json())["runs"] if run["name"] == "odd"]
        assert (found["status"], found["round"], found["rounds"]) == ("cut off", 4, 30)
        fourth = next(e for e in events if e["event"] == "round" and e["round"] == 4)
        assert found["value"] == pytest.approx(fourth["evaluation"]["clients"]["accuracy"]["mean"])

    session(place, use)


def test_one_run_alone(place: Path) -> None:
    async def use(client: ClientSession, url: URL) -> None:
        async with client.get(url / "runs.json") as answer:
            found = await answer.json()
        assert found["only"] == NAME
        (snapshot,) = await take(messages(client, url / "runs" / NAME / "events"), 1)
        assert snapshot["event"] == "snapshot"

    session(place / NAME, use)


def test_the_page_and_its_parts(place: Path) -> None:
    async def use(client: ClientSession, url: URL) -> None:
        for path, kind in (
            ("", "text/html"),
            ("app.js", "text/javascript"),
            ("vendor/uPlot.min.css", "text/css"),
        ):
            async with client.get(url.join(URL(path))) as answer:
                assert answer.status == 200
                assert answer.content_type.replace("application/", "text/") == kind
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert "//" not in policy

    session(place, use)


def test_a_comparison(place: Path) -> None:
    async def use(client: ClientSession, url: URL) -> None:
        names = [NAME, f"sweep/{SWEPT}"]
        async with client.get((url / "compare.json").with_query([("run", name) for name in names])) as answer:
            found = await answer.json()
        assert sorted(name for group in found["comparison"]["groups"] for name in group["runs"]) == names
        assert [run["name"] for run in found["runs"]] == names
        for query in ([("run", "../secret/run")], [("run", NAME), ("run", "x")]):
            async with client.get((url / "compare.json").with_query(query)) as answer:
                assert answer.status == 404
        async with client.get(url / "compare.json") as answer:
            assert answer.status == 409

    session(place, use)


# --- who may ask for what -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../secret/run/events",
        "/runs/..%2fsecret%2frun/events",
        "/runs/%2e%2e/secret/run/events",
        "/runs/./2026-11-21_081233-fedavg-a3f1/events",
        "/runs//etc/events",
        "/runs/{secret}/events",
        "/runs/nothing/events",
        "/../secret/run/events.jsonl",
        "/..%2f..%2fserve.py",
        "/vendor/..%2f..%2fserve.py",
        "/runs/2026-11-21_081233-fedavg-a3f1/events.jsonl",
        "/nothing",
    ],
)
def test_names_lead_nowhere_else(place: Path, path: str) -> None:
    async def use(client: ClientSession, url: URL) -> None:
        asked = path.replace("{secret}", str(place.parent / "secret" / "run").replace("/", "%2f"))
        reader, writer = await asyncio.open_connection("127.0.0.1", url.port)
        writer.write(
            f"GET {asked} HTTP/1.1\r\nHost: 127.0.0.1:{url.port}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
        assert answer.split(b"\r\n", 1)[0] == b"HTTP/1.1 404 Not Found"
        assert b"fedavg" not in answer
        assert b"import" not in answer

    session(place, use)


@pytest.mark.parametrize(
    ("listens", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:{port}", 200),
        ("127.0.0.1", "LOCALHOST:{port}", 200),
        ("127.0.0.1", "[::1]:{port}", 200),
        ("127.0.0.1", "[::1]", 200),
        ("127.0.0.1", "rebound.example:{port}", 403),
        ("127.0.0.1", "rebound.example", 403),
        ("127.0.0.1", "127.0.0.1.rebound.example:{port}", 403),
        ("lab.example", "lab.example:{port}", 200),
        ("lab.example", "rebound.example:{port}", 403),
        ("0.0.0.0", "lab.example:{port}", 200),
    ],
)
def test_only_its_own_names_are_answered(place: Path, listens: str, host: str, status: int) -> None:
    async def use(client: ClientSession, url: URL) -> None:
        for path in ("", "runs.json", f"runs/{NAME}/events"):
            async with client.get(
                url.join(URL(path)), headers={"Host": host.format(port=url.port)}
            ) as answer:
                assert answer.status == status

    session(place, use, listens)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_tells(place: Path, method: str) -> None:
    async def use(client: ClientSession, url: URL) -> None:
        for path in ("", "runs.json", f"runs/{NAME}/events"):
            async with client.request(method, url.join(URL(path))) as answer:
                assert answer.status == 405

    session(place, use)


# --- the stream ---------------------------------------------------------------------------------------------


def test_a_snapshot_then_every_line(place: Path) -> None:
    events = list(log(rounds=8))
    file = write(place / "live", events[:10])

    async def use(client: ClientSession, url: URL) -> None:
        stream = messages(client, url / "runs" / "live" / "events")
        (snapshot,) = await take(stream, 1)
        assert snapshot["event"] == "snapshot"
        assert int(snapshot["id"]) == file.stat().st_size
        content = json.loads(snapshot["data"])
        assert content["status"] == "cut off"
        assert content["events"] == json.loads(json.dumps(compact(events[:10])))
        for event in events[10:]:
            line = encode(event)
            half = len(line) // 2
            with open(file, "ab") as out:
                out.write(line[:half])
                out.flush()
                await asyncio.sleep(0.02)
                out.write(line[half:])
        after = int(snapshot["id"])
        for event, message in zip(events[10:], await take(stream, len(events) - 10), strict=True):
            after += len(encode(event))
            assert "event" not in message
            assert message["data"].encode() + b"\n" == encode(event)
            assert int(message["id"]) == after
        await stream.aclose()  # type: ignore[attr-defined]

    session(place, use)


def test_an_unfinished_line_waits(place: Path) -> None:
    events = list(log(rounds=2))
    file = write(place / "live", events[:3])
    line = encode(events[3])
    with open(file, "ab") as out:
        out.write(line[:-1])

    async def use(client: ClientSession, url: URL) -> None:
        stream = messages(client, url / "runs" / "live" / "events")
        (snapshot,) = await take(stream, 1)
        assert int(snapshot["id"]) == file.stat().st_size - len(line) + 1
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.8)

    session(place, use)

    async def then(client: ClientSession, url: URL) -> None:
        with open(file, "ab") as out:
            out.write(b"\n" + b'{"event": "cut\n' + encode(events[4]))
        before = str(file.stat().st_size - len(line) - 15 - len(encode(events[4])))
        stream = messages(client, url / "runs" / "live" / "events", **{"Last-Event-ID": before})
        first, second = await take(stream, 2)
        assert json.loads(first["data"]) == events[3]
        assert json.loads(second["data"]) == json.loads(encode(events[4]))  # the damaged line is passed over
        assert int(second["id"]) == file.stat().st_size

    session(place, then)


def test_whoever_comes_back_gets_what_was_missed(place: Path) -> None:
    lines = (place / NAME / "events.jsonl").read_bytes().splitlines(keepends=True)
    ends = [sum(map(len, lines[: count + 1])) for count in range(len(lines))]

    async def use(client: ClientSession, url: URL) -> None:
        for index in range(0, len(lines) - 1, 3):
            for ask in ({"Last-Event-ID": str(ends[index])}, {"after": str(ends[index])}):
                path = url / "runs" / NAME / "events"
                if "after" in ask:
                    stream = messages(client, path.with_query(ask))
                else:
                    stream = messages(client, path, **ask)
                found = await take(stream, len(lines) - index - 1)
                assert [m["data"].encode() + b"\n" for m in found] == lines[index + 1 :]
                assert [int(m["id"]) for m in found] == ends[index + 1 :]
                await stream.aclose()  # type: ignore[attr-defined]

    session(place, use)


@pytest.mark.parametrize("place_of", ["7", "99999999", "-1", "x", "٣"])
def test_whoever_comes_back_to_no_line_begins_anew(place: Path, place_of: str) -> None:
    async def use(client: ClientSession, url: URL) -> None:
        stream = messages(client, (url / "runs" / NAME / "events").with_query(after=place_of))
        (snapshot,) = await take(stream, 1)
        assert snapshot["event"] == "snapshot"

    session(place, use)


def test_a_log_that_was_replaced_or_removed(place: Path) -> None:
    file = write(place / "live", log(rounds=4))

    async def use(client: ClientSession, url: URL) -> None:
        stream = messages(client, url / "runs" / "live" / "events")
        await take(stream, 1)
        write(place / "live", list(log(rounds=4))[:5])
        (again,) = await take(stream, 1)
        assert again["event"] == "snapshot"
        assert int(again["id"]) == file.stat().st_size
        file.unlink()
        (gone,) = await take(stream, 1)
        assert gone["event"] == "gone"

    session(place, use)


def test_resumed_runs_begin_without_their_void_rounds(place: Path) -> None:
    events = [e for e in log(rounds=6, ending="Interrupted") if e["event"] in ("start", "round", "error")]
    resume: Event = {"event": "resume", "time": 0.0, "round": 3, "rounds": 9}
    write(place / "live", [*events, resume])

    async def use(client: ClientSession, url: URL) -> None:
        (snapshot,) = await take(messages(client, url / "runs" / "live" / "events"), 1)
        found = json.loads(snapshot["data"])["events"]
        assert [e["round"] for e in found if e["event"] == "round"] == [1, 2, 3]
        assert [e["event"] for e in found][-1] == "resume"

    session(place, use)


def test_the_state_of_the_run_is_told(place: Path) -> None:
    write(place / "live", log(rounds=2, ending=None))
    code = (
        "import sys; from atoll.runs.folder import RunFolder; "
        "run = RunFolder(sys.argv[1]); run.hold(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place / "live")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"

        async def use(client: ClientSession, url: URL) -> None:
            stream = messages(client, url / "runs" / "live" / "events")
            snapshot = await asyncio.wait_for(anext(stream), 10)
            assert json.loads(snapshot["data"])["status"] == "running"
            assert owner.stdin is not None
            owner.stdin.close()
            owner.wait(10)
            message = await asyncio.wait_for(anext(stream), 10)
            assert message == {"event": "status", "data": '{"status":"cut off"}'}

        session(place, use)
