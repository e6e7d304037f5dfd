"""`atoll ca`: an authority from the command line."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path

import pytest
from aiohttp import web

from atoll.network.authority import Authority
from atoll.network.enrolment import enrolment_routes
from atoll.network.identity import Identity
from atoll.network.tls import server_context

from .conftest import Atoll

TOKEN = re.compile(r"atoll1\.hospital-a\.[a-z2-7]{26}\.[0-9a-f]{32}")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATOLL_CA", str(tmp_path / "ca"))
    return tmp_path / "ca"


def test_from_nothing_to_an_invitation_and_back(atoll: Atoll, place: Path) -> None:
    made = atoll("ca", "init")
    assert made.code == 0 and Authority(place).fingerprint in made.out
    again = atoll("ca", "init")
    assert again.code == 2 and "has an authority" in again.err
    invited = atoll("ca", "invite", "hospital-a")
    token, _, line = invited.out.splitlines()
    assert TOKEN.fullmatch(token)
    assert line == f"on the other machine: atoll join HOST:PORT --invitation {token} --data FILE"
    (entry,) = (json.loads(line) for line in atoll("ca", "list", "--json").out.splitlines())
    assert (entry["name"], entry["role"], entry["state"]) == ("hospital-a", "node", "invited")
    assert "hospital-a  node  invited" in atoll("ca", "list").out
    assert atoll("ca", "revoke", "hospital-a").code == 0
    assert "nobody is invited" in atoll("ca", "list").out
    server = atoll("ca", "server", "localhost", "127.0.0.1")
    assert server.code == 0 and "localhost, 127.0.0.1" in server.out and (place / "server.pem").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("invite", "Hospital"), "is no name"),
        (("invite", "a", "--role", "nod"), "did you mean 'node'"),
        (("invite", "a", "--days", "0"), "--days 7"),
        (("invite", "a", "--days", "nan"), "--days 7"),
        (("revoke", "hospital"), "nobody is called 'hospital'"),
        (("server", "host:80"), "without a port"),
        (("list", "--ca", "nowhere"), "atoll ca init makes one"),
        (("enrol", "localhost", "--invitation", "x", "--keys", "keys"), "is not HOST:PORT"),
        (("enrol", "localhost:1", "--invitation", "x", "--keys", "keys"), "this is no invitation"),
    ],
)
def test_mistakes(atoll: Atoll, place: Path, words: tuple[str, ...], said: str) -> None:
    Authority.init(place)
    done = atoll("ca", *words)
    assert done.code == 2
    assert done.err.startswith("error: ") and "\n hint: " in done.err and said in done.err


def test_an_operator_takes_up_an_invitation(atoll: Atoll, place: Path, tmp_path: Path) -> None:
    authority = Authority.init(place)
    ready, ended, port = threading.Event(), asyncio.Event(), 0
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        nonlocal port
        site = web.Application()
        site.add_routes(enrolment_routes(authority))
        runner = web.AppRunner(site, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(
            runner, "127.0.0.1", 0, ssl_context=server_context(authority, ["localhost"])
        ).start()
        port = runner.addresses[0][1]
        ready.set()
        await ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        invited = atoll("ca", "invite", "alice", "--role", "operator").out
        token, line = invited.splitlines()[0], invited.splitlines()[-1]
        assert line == f"on the other machine: atoll ca enrol HOST:PORT --invitation {token} --keys DIR"
        keys = tmp_path / "alice"
        enrolled = atoll("ca", "enrol", f"localhost:{port}", "--invitation", token, "--keys", str(keys))
        assert enrolled.code == 0 and enrolled.out.startswith("you are alice, operator, until ")
        known = Identity(keys).known
        assert known is not None and known.role == "operator"
        thief = atoll(
            "ca", "enrol", f"localhost:{port}", "--invitation", token, "--keys", str(tmp_path / "x")
        )
        assert thief.code == 2 and "has been used" in thief.err
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
    gone = atoll("ca", "enrol", f"localhost:{port}", "--invitation", token, "--keys", str(tmp_path / "y"))
    assert gone.code == 2 and f"nothing listens on localhost:{port}" in gone.err
