"""Lines that break, stall, crawl or are too many; between a coordinator and real nodes, or bare clients."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.network.faults.bench import Bench, Wound, bench
from tests.network.faults.test_fault_restart import over, peers
from tests.network.liar import Caller
from tests.network.proxy import Proxy

SLOW = pytest.mark.slow


def ended(made: Bench, names: tuple[str, ...] = ("coordinator", "ann")) -> None:
    """Everybody ends well."""
    assert [made.wait(name) for name in names] == [0] * len(names)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("before it fetches", marks=SLOW),
        pytest.param("while it trains", marks=SLOW),
        "before it sends",
        pytest.param("after it has sent", marks=SLOW),
    ],
)
def test_node_killed(tmp_path: Path, moment: str) -> None:
    """R4. SIGKILL of a node before it fetches a body, while it trains, before it sends, after the acknowledgement.

    Started again it takes up its task: what was trained is sent and not trained again; its worker has died with it.
    """
    wound = {
        "before it fetches": Wound("atoll.network.line:Line.fetch"),
        "while it trains": Wound("atoll.network.hand:send", "kill:0.3", 2),
        "before it sends": Wound("atoll.network.line:Line.answer"),
        "after it has sent": Wound("atoll.network.shelf:Shelf.forget"),
    }[moment]
    with bench(tmp_path, model="mlp:64", epochs=8, rounds=2) as made:
        made.start("coordinator")
        _, (thread,) = peers(made, "bob")
        made.start("ann", wounds=[wound])
        assert made.dead("ann", 60) == -signal.SIGKILL
        trained = list((made.place / "ann").glob("*/answers/1-0-0"))
        assert len(trained) == (moment in ("before it sends", "after it has sent"))
        made.start("ann")
        ended(made)
        thread.join(30)
        assert made.same()


def test_cut_in_upload(tmp_path: Path) -> None:
    """R4. The line is cut with a reset in the middle of an upload, and the node is killed before it is back.

    What has arrived is kept. The node sends the rest, from the offset, of the answer that it had written down.
    """
    # One round: the answer of a second might have gone the same way before anybody looks.
    with bench(tmp_path, model="mlp:64", rounds=1) as made, Proxy(made.port) as proxy:
        made.start("coordinator")
        _, (thread,) = peers(made, "bob")
        proxy.up.hole_after = 12_000
        made.start("ann", port=proxy.port)
        for _ in made.ticks(60, "half an upload"):
            if proxy.up.hole:
                break
        proxy.close_all(reset=True)
        made.kill("ann")
        parts = list((made.place / "coordinator" / "bodies").glob("0-1-0-0.part"))
        assert len(parts) == 1 and 0 < parts[0].stat().st_size < 12_000
        there = parts[0].stat().st_size
        answer = next((made.place / "ann").glob("*/answers/1-0-0"))
        size = answer.stat().st_size
        proxy.heal()
        proxy.up.passed = 0
        made.start("ann", port=proxy.port, values={"atoll.network.line:_PIECE": 4096})
        for _ in made.ticks(60, "the rest of it"):
            if "round/1/0/0" in made.facts():
                break
        assert proxy.up.passed < size - there + 6_000, "the whole answer was sent again"
        ended(made)
        thread.join(30)
        assert made.same()


def test_unheard(tmp_path: Path) -> None:
    """R4. The answer is stored, and the line breaks before the node hears of it.

    The node sends again, hears that it is there, and goes on; it counts once.
    """
    with bench(tmp_path, rounds=2) as made, Proxy(made.port) as proxy:
        made.start("coordinator", wounds=[Wound("atoll.network.desk:Desk.accept", "sleep:1.0", 1, True)])
        made.start("ann", port=proxy.port)
        bob = made.peer("bob")
        bob.join()
        for _ in made.ticks(60, "ann's answer"):
            if "round/1/0/0" in made.facts():
                break
        proxy.close_all(reset=True)
        thread = bob.begin()
        ended(made)
        thread.join(30)
        assert made.log("ann").count("round 1: trained and sent") == 1
        assert made.same()


@pytest.mark.parametrize("seconds", [2.0, pytest.param(5.0, marks=SLOW)])
def test_parted(tmp_path: Path, seconds: float) -> None:
    """R5. A node's network is gone for seconds, while the others wait for it.

    It says so once, comes back by itself, and the round ends with everybody.
    """
    with bench(tmp_path, rounds=2) as made, Proxy(made.port) as proxy:
        made.start("coordinator")
        made.start("ann", port=proxy.port)
        made.until("joined as ann", "ann", 60)
        proxy.part()
        proxy.refusing = True
        _, (thread,) = peers(made, "bob")
        time.sleep(seconds / 2)
        proxy.close_all(reset=True)
        time.sleep(seconds / 2)
        assert made.status()["round"] == 0
        proxy.heal()
        ended(made)
        thread.join(30)
        assert made.log("ann").count("cannot be reached") == 1
        assert "is there again" in made.log("ann")
        assert made.same()


@SLOW
def test_parted_too_long(tmp_path: Path) -> None:
    """R5. A node is away for longer than the round's deadline.

    The round ends with those that answered. What the node had is refused as stale; it gets the task of the round that
    is played now, and counts again.
    """
    with bench(tmp_path, rounds=3, deadline=6, quorum=1) as made, Proxy(made.port) as proxy:
        made.start("coordinator")
        bob = made.peer("bob")
        bob.join()
        made.start("ann", port=proxy.port, wounds=[Wound("atoll.network.line:Line.answer", "sleep:1")])
        for _ in made.ticks(60, "ann's answer"):
            if list((made.place / "ann").glob("*/answers/1-0-0")):
                break
        proxy.part()
        proxy.refusing = True
        bob.answer()
        made.round(1, 30)
        proxy.heal()
        made.until("came too late", "ann")
        thread = bob.begin()
        ended(made)
        thread.join(30)
        assert "round 1: trained and sent" not in made.log("ann")
        assert "trained and sent 3-0-0" in made.log("ann")


@SLOW
def test_replaced(tmp_path: Path) -> None:
    """R17. Another process joins under the name of a node that is at work.

    The node that was there says so and stops, with exit status 2; it does not take the name back.
    """
    with bench(tmp_path) as made:
        made.start("coordinator")
        made.start("ann")
        made.until("joined as ann", "ann", 60)
        found, threads = peers(made)
        assert made.wait("ann") == 2
        assert "another process has joined as ann" in made.log("ann")
        over(made, found, threads)


def test_half_open(tmp_path: Path) -> None:
    """R7. A line is dead, and neither side has heard so: a node that waits for a task, an upload that stands still.

    The node gives the line up a few seconds after an answer was due, and asks again on another. A new upload ends the
    one that stands still, and goes on from its end.
    """
    patience = {"atoll.network.line:_WAIT": 1, "atoll.network.line:_PATIENCE": 1}
    with bench(tmp_path, rounds=2) as made, Proxy(made.port) as proxy:
        made.start("coordinator")
        made.start("ann", port=proxy.port, values=patience)
        made.until("joined as ann", "ann", 60)
        proxy.strand()
        made.until("cannot be reached", "ann", 20)
        bob = made.peer("bob")
        bob.join()
        task = bob.wanted()
        blob = bob.honest(task)
        sha256 = hashlib.sha256(blob).hexdigest()
        head = (
            f"PUT /v1/task/{task.id}/answer?offset=0&size={len(blob)}&sha256={sha256} HTTP/1.1\r\nHost: x\r\n"
        )
        head += "".join(f"{key}: {value}\r\n" for key, value in bob.headers.items())
        with socket.create_connection(("127.0.0.1", made.port)) as dead:
            dead.sendall(f"{head}Content-Length: {len(blob)}\r\n\r\n".encode() + blob[:1000])
            time.sleep(0.3)
            found = bob.send(task, blob)
            assert (found.status, found.json["offset"]) == (409, 1000)
            assert bob.send(task, blob[1000:], offset=1000, size=len(blob), sha256=sha256).json["done"]
        bob.shelf.forget(task.id)
        thread = bob.begin()
        ended(made)
        thread.join(30)
        assert made.same()


@SLOW
def test_slow(tmp_path: Path) -> None:
    """R8. A line with 250 ms of latency each way and 64 kB/s, that is cut twice.

    The run takes longer, and that is all.
    """
    with bench(tmp_path, model="mlp:64", rounds=2) as made, Proxy(made.port) as proxy:
        proxy.up.latency = proxy.down.latency = 0.25
        proxy.up.rate = proxy.down.rate = 64e3
        proxy.up.cut = 15_000
        made.start("coordinator")
        made.start("ann", port=proxy.port)
        _, (thread,) = peers(made, "bob")
        made.round(1)
        proxy.down.cut = proxy.down.passed + 9_000
        ended(made)
        thread.join(30)
        assert made.same()


@SLOW
def test_flipped(tmp_path: Path) -> None:
    """R9. A bit of what a node fetches, and one of what it sends, is flipped on the way.

    The hash does not fit: it is fetched, or sent, again. (TLS would end the line; this is what is behind it.)
    """
    with bench(tmp_path, model="mlp:64", rounds=2) as made, Proxy(made.port) as proxy:
        proxy.down.flip, proxy.up.flip = 12_000, 12_000
        made.start("coordinator")
        made.start("ann", port=proxy.port)
        _, (thread,) = peers(made, "bob")
        ended(made)
        thread.join(30)
        assert "another hash" in made.log("ann") and "422" in made.log("ann")
        assert made.same()


@contextlib.contextmanager
def loris(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections that send a header, a byte at a time, for ever."""
    lines = []
    for _ in range(count):
        line = socket.create_connection(("127.0.0.1", port), timeout=10)
        line.sendall(b"GET /v1/hello HTTP/1.1\r\nX-")
        lines.append(line)
    ending = threading.Event()

    def drip() -> None:
        while not ending.wait(0.3):
            for line in lines:
                with contextlib.suppress(OSError):
                    line.send(b"a")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ending.set()
        thread.join()
        for line in lines:
            line.close()


def reaped(lines: list[socket.socket]) -> int:
    """Connections that the other side has ended."""
    found = 0
    for line in lines:
        line.setblocking(False)
        try:
            found += line.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            pass
        except OSError:
            found += 1
    return found


def test_slow_loris(tmp_path: Path) -> None:
    """R20. 300 connections that send a header a byte at a time, and 100 that send nothing.

    They are ended after seconds. Others are answered meanwhile: the 99th percentile of a control request stays below
    250 ms (in proportion more where the machine has other work), and the run goes on.
    """
    with bench(tmp_path) as made:
        made.start("coordinator", values={"atoll.network.lines:QUIET": 2.0})
        found, threads = peers(made, "ann")  # without bob the run cannot end before the lines do
        caller = Caller(made.port, None)
        with loris(made.port, 300) as lines, contextlib.ExitStack() as stack:
            idle = [
                stack.enter_context(socket.create_connection(("127.0.0.1", made.port))) for _ in range(100)
            ]
            times = []
            for _ in range(100):
                start = time.perf_counter()
                assert caller.ask("GET", "/v1/hello").status == 200
                times.append(time.perf_counter() - start)
            assert sorted(times)[98] < 0.25 * max(1.0, os.getloadavg()[0] / 2), sorted(times)[90:]
            for _ in made.ticks(20, "the end of idle connections"):
                if reaped(lines) == 300 and reaped(idle) == 100:
                    break
            bob, more = peers(made, "bob")
            over(made, found + bob, threads + more)


def test_few_files(tmp_path: Path) -> None:
    """R22. The coordinator may open 96 files, and 200 connections want to stay open.

    Those that do nothing are ended to make room; nodes are served, and the run ends with the simulation's model.
    """
    with bench(tmp_path) as made:
        made.start("coordinator", limits={"RLIMIT_NOFILE": 96})
        with loris(made.port, 200):
            found, threads = peers(made)
            over(made, found, threads)


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=SLOW)])
def test_herd(tmp_path: Path, count: int) -> None:
    """R25. Many nodes that come back at once after a restart of the coordinator, and leave and come three times.

    All are answered; nobody gets another's place; memory does not grow with what has gone.
    """
    names = [f"n{at}" for at in range(count)]
    with bench(tmp_path, names[:2], clients=count) as made:
        text = (made.place / "run.toml").read_text().replace('nodes = ["n0", "n1"]', "min_clients = 2")
        (made.place / "run.toml").write_text(text)
        made.start("coordinator")
        first = made.peer("n0")
        first.join()
        form = first.form
        crowd = [Caller(made.port, name) for name in names[1:]]
        numbers: dict[str, set[int]] = {}

        def come(each: Caller) -> None:
            from atoll.network.wire import Joining, pack

            for _ in range(20):
                with contextlib.suppress(OSError):
                    found = each.ask(
                        "POST", "/v1/join", pack(Joining(protocols=(1,), software="x", session=each.session))
                    )
                    assert found.status == 200, found
                    numbers.setdefault(str(each.name), set()).add(found.json["number"])
                    assert each.ask("POST", "/v1/data", pack(form)).status == 204
                    return
                time.sleep(0.1)

        def all_come() -> None:
            threads = [threading.Thread(target=come, args=(each,)) for each in crowd]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)

        all_come()
        for _ in made.ticks(60, "the first round"):
            if made.status().get("state", "").startswith("round 1: 0 of"):
                break
        rss = made.processes["coordinator"].rss  # with all that a run needs
        made.kill("coordinator")
        made.start("coordinator")
        for _ in range(3):
            all_come()
            for each in crowd[::2]:
                assert each.ask("POST", "/v1/leave").status == 204
        assert len(numbers) == count - 1 and all(len(each) == 1 for each in numbers.values())
        assert len({next(iter(each)) for each in numbers.values()}) == count - 1
        assert made.processes["coordinator"].rss < rss + (24 << 20)
        assert len(made.status()["nodes"]) == count
