"""Nodes that lie, on one coordinator: each lie costs the liar its round and nobody else anything."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from atoll.network.wire import Joining, Task, pack
from atoll.tensors import Record, Tensors
from tests.network.faults.bench import Bench, Twin, bench
from tests.network.liar import Caller, edited, poisoned

Change = Callable[[Record], Record]


class Court:
    """A coordinator, two honest nodes and a liar. The twin is a simulation of the honest ones alone: whatever the liar
    says, the next round must begin with the twin's bits."""

    def __init__(self, made: Bench) -> None:
        self.made = made
        made.start("coordinator")
        self.twin = Twin(made, made.names[:2])
        self.ann, self.bob, self.liar = (made.peer(name) for name in made.names)
        for each in (self.ann, self.bob, self.liar):
            each.join()

    def task(self) -> Task:
        """What the liar is asked in this round, whose beginning is the twin's."""
        task = self.liar.wanted()
        assert task.shared.sha256 == self.twin.broadcast()
        return task

    def close(self, task: Task, refused: bool = True) -> None:
        """The honest ones answer, and the next round begins as the twin's does."""
        if not refused:  # the liar has had no answer taken: it gives up
            for _ in range(3):
                self.liar.failed(task)
        self.ann.answer()
        self.bob.answer()
        self.twin.round()
        again = self.task()
        assert again.round == task.round + 1

    def rejected(self, blob: bytes, task: Task) -> str:
        """These bytes are refused as an answer, for a reason that is given."""
        found = self.liar.send(task, blob)
        assert found.status == 200, found
        assert found.json["done"] and found.json["refused"], found
        return str(found.json["refused"])


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    with bench(tmp_path_factory.mktemp("court"), names=("ann", "bob", "cat"), rounds=1000) as made:
        yield Court(made)


def _sent(change: Callable[[Record], Record]) -> Change:
    return lambda reply: reply.replace(sent=change(reply.sent))


def _first(sent: Record) -> tuple[str, Tensors]:
    return next((name, value) for name, value in sent.items() if isinstance(value, Tensors))


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Changes the tensors of the model that is sent."""

    def act(sent: Record) -> Record:
        name, found = _first(sent)
        other = dict(found)
        change(other)
        return sent.replace(**{name: Tensors(other)})

    return _sent(act)


def _weight(value: Any) -> Change:
    return lambda reply: reply.replace(weight=value)


def _key(each: dict[str, torch.Tensor]) -> str:
    return next(iter(each))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(court: Court, value: float) -> None:
    """R12. One number of an update is NaN or infinite.

    The answer is refused with the tensor's name; the model is that of the others.
    """
    task = court.task()
    assert "non-finite" in court.rejected(edited(court.liar.honest(task), poisoned(value)), task)
    court.close(task)


@pytest.mark.parametrize("value", [3e38, -1e38, 1e20])
def test_huge(court: Court, value: float) -> None:
    """R12. One number of an update is 3e38, 1e38 or 1e20: finite, but its square is not, nor sums with it.

    The answer is refused with the number; the model is that of the others.
    """
    task = court.task()
    assert "the number" in court.rejected(edited(court.liar.honest(task), poisoned(value)), task)
    court.close(task)


_SHAPES: dict[str, Change] = {
    "a shape": _tensors(lambda t: t.update({_key(t): t[_key(t)].reshape(-1)[:3]})),
    "a dtype": _tensors(lambda t: t.update({_key(t): t[_key(t)].double()})),
    "integers": _tensors(lambda t: t.update({_key(t): t[_key(t)].long()})),
    "a tensor less": _tensors(lambda t: t.pop(_key(t))),
    "a tensor more": _tensors(lambda t: t.update(extra=torch.zeros(2))),
    "a field less": _sent(lambda sent: Record({k: v for k, v in sent.items() if k != _first(sent)[0]})),
    "a field more": _sent(lambda sent: sent.replace(extra=torch.zeros(2))),
    "many dimensions": _tensors(lambda t: t.update({_key(t): t[_key(t)].reshape(*[1] * 15, -1)})),
    "a number for tensors": _sent(lambda sent: sent.replace(**{_first(sent)[0]: 1.0})),
}


@pytest.mark.parametrize("what", _SHAPES)
def test_misshapen(court: Court, what: str) -> None:
    """R13. An update with another shape, type or set of tensors than was asked for.

    It is refused before it is summed, with the name of what differs.
    """
    task = court.task()
    assert court.rejected(edited(court.liar.honest(task), _SHAPES[what]), task)
    court.close(task)


def test_many_tensors(court: Court) -> None:
    """R13. An answer of 300,000 empty tensors, and one of 36,000.

    The header's limit refuses them in milliseconds, before a tensor is made.
    """
    task = court.task()
    found = court.liar.send(task, _header(300_000))
    assert found.status == 413, found  # far beyond the bytes that an answer may have
    start = time.perf_counter()
    blob = _header(36_000)
    assert len(blob) < task.most
    assert "fields" in court.rejected(blob, task) or "header" in court.liar.send(task, blob).json["refused"]
    assert time.perf_counter() - start < 3.0
    court.close(task)


def _header(tensors: int) -> bytes:
    """The beginning of a record of so many empty tensors."""
    nodes: list[Any] = [["", "record", tensors], *([str(at), "F32", [0]] for at in range(tensors))]
    head = msgspec.json.encode({"__metadata__": {"record": msgspec.json.encode(nodes).decode()}})
    return len(head).to_bytes(8, "little") + head


_WEIGHTS = {
    "NaN": torch.tensor(float("nan")), "-1": torch.tensor(-1.0), "-0.5": torch.tensor(-0.5),
    "1e13": torch.tensor(1e13), "infinite": torch.tensor(float("inf")), "a bool": torch.tensor(True),
    "a number": 3.0, "two": torch.ones(2),
}  # fmt: skip


@pytest.mark.parametrize("what", _WEIGHTS)
def test_weights(court: Court, what: str) -> None:
    """R14. An answer whose weight is NaN, negative, immense, a bool or no tensor.

    It is refused; nobody's weight is guessed.
    """
    task = court.task()
    assert court.rejected(edited(court.liar.honest(task), _weight(_WEIGHTS[what])), task)
    court.close(task)


def test_weight_zero(court: Court) -> None:
    """R14. An answer whose weight is 0.

    It is taken, and counts for nothing: the model is that of the others.
    """
    task = court.task()
    found = court.liar.send(task, edited(court.liar.honest(task), _weight(torch.tensor(0.0))))
    assert found.json["done"] and found.json["refused"] is None
    court.close(task)


def test_not_a_number_of_its_own(court: Court) -> None:
    """R12. A figure that a node reports beside its update is NaN.

    The answer is refused: figures are written down and shown.
    """
    task = court.task()

    def change(reply: Record) -> Record:
        return reply.replace(metrics=reply.metrics.replace(loss=torch.tensor(float("nan"))))

    assert "loss" in court.rejected(edited(court.liar.honest(task), change), task)
    court.close(task)


def test_replayed(court: Court) -> None:
    """R15. The bytes of an earlier round, of another node, and of the same round a second time.

    Another node's bytes are refused by the number in them; an earlier task's name is stale, or already answered; the
    same bytes a second time are acknowledged and count once.
    """
    task = court.task()
    old = court.liar.honest(task)
    assert "no answer of this client" in court.rejected(court.ann.honest(court.ann.wanted()), task)
    court.close(task)
    after = court.task()
    assert court.liar.send(task, old).json["refused"]  # what became of it stands
    with_old_name = court.liar.ask(
        "PUT", f"/v1/task/0-0-0/answer?offset=0&size={len(old)}&sha256={hashlib.sha256(old).hexdigest()}", old
    )
    assert (with_old_name.status, with_old_name.json["problem"]) == (409, "stale")
    first = court.ann.wanted()
    blob = court.ann.honest(first)
    assert [court.ann.send(first, blob).json["done"] for _ in range(2)] == [True, True]
    court.ann.shelf.forget(first.id)
    for _ in range(3):
        court.liar.failed(after)
    court.bob.answer()
    court.twin.round()
    court.task()


@pytest.mark.parametrize("move", [-2, 1, 1000])
def test_other_rounds(court: Court, move: int) -> None:
    """R16. An answer to a task of an earlier round, and of one that has not begun.

    It is refused as stale, with the round that is asked now; the node's true task stays open.
    """
    task = court.task()
    round = max(0, task.round + move)
    name = f"{round}-0-0"
    found = court.liar.send(name, court.liar.honest(task))
    if round == task.round + move and move < 0 and found.status == 200:
        assert found.json["done"]  # what became of it is known
    else:
        assert (found.status, found.json["problem"], found.json["round"]) == (409, "stale", task.round)
    assert court.liar.wanted() == task
    court.close(task, refused=False)


def test_twice(court: Court) -> None:
    """R17. A second process joins under the name of one that is there.

    The newest counts. The other is told that it was replaced, and cannot answer any more; never do both.
    """
    task = court.task()
    blob = court.liar.honest(task)
    second = court.made.peer("cat")
    second.join()
    found = court.liar.send(task, blob)
    assert (found.status, found.json["problem"]) == (409, "session")
    assert second.wanted() == task
    court.liar.session = second.session
    court.close(task, refused=False)


def test_others(court: Court) -> None:
    """R19. A node asks for operators' calls; answers another node's task; calls without joining, or without a name.

    Nothing of it is done, and each is told why.
    """
    task = court.task()
    found = court.liar.ask("POST", "/v1/admin/stop")
    assert found.status in (403, 404)
    stranger = Caller(court.made.port, "eve")
    assert stranger.ask("GET", "/v1/task").status == 409
    assert (
        stranger.ask("POST", "/v1/join", pack(Joining(protocols=(1,), software="x", session="e" * 32))).status
        == 400
    )
    assert Caller(court.made.port, None).ask("GET", "/v1/status").status == 401
    assert Caller(court.made.port, "cat", "auditor").ask("GET", "/v1/task").status == 403
    blob = edited(court.ann.honest(court.ann.wanted()), lambda reply: reply)
    assert court.rejected(blob, task)  # in ann's name, over the liar's line
    court.close(task)


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_damaged(court: Court, kind: str) -> None:
    """R9. An upload that is cut short, and one with a flipped bit.

    A part is kept, and the node goes on from its end; wrong bytes have another hash, and are asked for again. The
    answer counts in the end.
    """
    task = court.task()
    blob = court.liar.honest(task)
    sha256 = hashlib.sha256(blob).hexdigest()
    if kind == "truncated":
        found = court.liar.send(task, blob[:700], size=len(blob), sha256=sha256)
        assert (found.status, found.json["offset"]) == (202, 700)
        found = court.liar.send(task, blob[700:900], offset=500, size=len(blob), sha256=sha256)
        assert (found.status, found.json["offset"]) == (409, 700)
        place = f"/v1/task/{task.id}/answer"
        assert court.liar.ask("GET", place).json["offset"] == 700
        other = edited(blob, _weight(torch.tensor(0.0)))
        found = court.liar.send(task, other[700:], offset=700, size=len(blob), sha256=sha256)
    else:
        found = court.liar.send(task, blob[:900] + bytes([blob[900] ^ 1]) + blob[901:], sha256=sha256)
    assert (found.status, found.json["problem"]) == (422, "hash")
    assert court.liar.wanted() == task  # it is not held against the node
    found = court.liar.send(task, edited(blob, _weight(torch.tensor(0.0))))
    assert found.json["done"] and found.json["refused"] is None
    court.close(task)


def test_oversized(court: Court) -> None:
    """R10. An answer that says it is too large; one that is larger than it says; a message without end.

    All are cut off with 413, and the coordinator's memory stays where it is.
    """
    task, process = court.task(), court.made.processes["coordinator"]
    before = process.rss
    large = bytes(16 << 20)
    assert court.liar.send(task, b"", size=1 << 40, sha256="0" * 64).status == 413
    for blob in (large, large):
        with contextlib.suppress(OSError):  # it may have closed the line on the rest
            assert court.liar.send(task, blob, size=1000).status == 413
    for path in ("/v1/beat", "/v1/join", "/v1/data"):
        with contextlib.suppress(OSError):
            assert court.liar.ask("POST", path, large).status == 413
    chunked = b"PUT /v1/task/%s/answer?offset=0&size=1000&sha256=%s HTTP/1.1\r\nHost: x\r\nAtoll-Name: cat\r\n" % (
        task.id.encode(), b"0" * 64,
    ) + b"Atoll-Session: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % court.liar.session.encode()  # fmt: skip
    said = court.liar.raw(chunked + b"2000\r\n" + bytes(0x2000) + b"\r\n", timeout=1.5)
    assert said == b"" or b" 413 " in said.split(b"\r\n")[0]
    assert process.rss - before < 12 << 20
    court.close(task, refused=False)


def test_compressed(court: Court) -> None:
    """R11. A small body that says it is compressed, and would be a large one.

    Nothing is unpacked: it is refused with 415, and the coordinator's memory stays where it is.
    """
    task, process = court.task(), court.made.processes["coordinator"]
    before, bomb = process.peak, gzip.compress(bytes(256 << 20))
    packed = {"Content-Encoding": "gzip"}
    assert court.liar.ask("POST", "/v1/data", bomb, packed).status == 415
    place = f"/v1/task/{task.id}/answer?offset=0&size={len(bomb)}&sha256={hashlib.sha256(bomb).hexdigest()}"
    assert court.liar.ask("PUT", place, bomb, packed).status == 415
    assert process.peak - before < 12 << 20
    court.close(task, refused=False)


def test_unmasked(tmp_path: Path) -> None:
    """R12. Under secure aggregation a node sends its update as it is, and not under masks.

    It is refused before anybody looks at it: a coordinator takes nothing that was not to leave the node.
    """
    with bench(tmp_path, names=("ann", "bob", "cat"), channel="secagg") as made:
        made.start("coordinator")
        ann, *_ = found = [made.peer(name) for name in made.names]
        for each in found:
            each.join()
        task = ann.wanted()
        update = Record(update=Tensors(w=torch.zeros(3)))
        reply = ann.send(task, edited(ann.honest(task), lambda reply: reply.replace(sent=update)))
        assert "not to leave the node but under masks" in reply.json["refused"], reply


def test_versions(court: Court) -> None:
    """R28. A node that speaks another version of the protocol, several of them, or says what this one does not know.

    Versions in common are found; without one, and for unknown fields, the refusal names both sides' versions.
    """
    task = court.task()
    session = court.liar.session
    for protocols, status in (((0,), 400), ((2, 3), 400), ((), 400), ((1, 2, 99), 200)):
        found = court.liar.ask(
            "POST", "/v1/join", pack(Joining(protocols=protocols, software="x", session=session))
        )
        assert found.status == status, found
        if status == 400:
            assert "versions" in found.json["message"] and "install" in found.json["hint"]
        else:
            assert found.json["protocol"] == 1
    newer = msgspec.json.encode({"protocols": [1], "software": "x", "session": session, "later": True})
    assert court.liar.ask("POST", "/v1/join", newer).status == 400
    court.close(task, refused=False)


def _malformed(random_: random.Random, sound: list[bytes]) -> bytes:
    """A body that is wrong somewhere: noise, or a sound one that was cut, changed, repeated or nested."""
    base = random_.choice(sound)
    at = random_.randrange(len(base) + 1)
    match random_.randrange(7):
        case 0:
            return random_.randbytes(random_.randrange(200))
        case 1:
            return base[:at]
        case 2:
            return base[:at] + random_.randbytes(random_.randrange(1, 9)) + base[at:]
        case 3:
            return b"[" * random_.randrange(1, 5000) + base
        case 4:
            return (
                base[:at] + bytes([base[at] ^ (1 << random_.randrange(8))]) + base[at + 1 :]
                if at < len(base)
                else b""
            )
        case 5:
            return base.replace(b"1", b"9" * random_.randrange(1, 400)) + b" "
        case _:
            return base + base


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("who", ["cat", None])
def test_malformed(court: Court, who: str | None, count: int) -> None:
    """R29. Malformed bodies, paths and queries, 10,000 from a node that has joined and 10,000 from nobody.

    No answer is a 5xx, nothing hangs, memory stays where it is, and the run goes on as if nothing had been sent.
    """
    import http.client

    task, process = court.task(), court.made.processes["coordinator"]
    before = process.rss
    random_, answers = random.Random(29), 0
    sound = [
        pack(court.liar.form), b'{"task":"1-0-0","done":0.5}', b'{"kind":"raised","reason":"x"}',
        pack(Joining(protocols=(1,), software="x", session="s" * 32)), court.liar.honest(task)[:2000],
    ]  # fmt: skip
    caller = court.liar if who else Caller(court.made.port, None)
    line = http.client.HTTPConnection("127.0.0.1", court.made.port, timeout=20)
    routes = [
        ("POST", "/v1/beat"), ("POST", "/v1/data"), ("POST", "/v1/join"), ("POST", f"/v1/task/{task.id}x/failure"),
        ("PUT", "/v1/task/{id}/answer?offset={a}&size={b}&sha256={c}"), ("GET", "/v1/task?wait={text}"),
        ("GET", "/v1/task/{id}/answer"), ("GET", "/v1/blob/{c}"), ("POST", "/v1/{text}"),
    ]  # fmt: skip
    for _ in range(count):
        method, path = random_.choice(routes)
        path = path.format(
            id=random_.choice([task.id, "1-0-0", "9-9-9-x", "-", "0" * 50]),
            a=random_.choice([0, -1, 5, "x", 1 << 70, "1e3", ""]),
            b=random_.choice([0, -1, "nan", 1 << 70, "", 1 << 50]),
            c=random_.choice(["0" * 64, "f" * 63, "..", "%2e%2e%2f", "A" * 64]),
            text=random_.choice(["nan", "-1", "inf", "x", "1e999", "%00", "0x1"]),
        )
        body = None if method == "GET" else _malformed(random_, sound)
        if path == "/v1/join" or (path == "/v1/data" and who):
            body = body and body[:-1]  # one that happens to be sound would be obeyed
        try:
            line.request(method, path, body, caller.headers)
            answer = line.getresponse()
            answer.read()
        except TimeoutError:
            raise  # it hangs
        except (http.client.HTTPException, OSError):
            line.close()  # the other side has closed it on bytes that it did not read
            continue
        answers += 1
        assert answer.status < 500, (method, path, body, answer.status)
    line.close()
    assert answers > 0.5 * count
    assert process.rss - before < 48 << 20
    court.liar.join()
    court.close(task, refused=False)


def test_unchanged(court: Court) -> None:
    """R33. An update whose last tensor is NaN, after all the others were sound.

    The whole of it is looked at before any of it is added: the model of the others is the same to the bit.
    """
    task = court.task()

    def last(tensors: dict[str, torch.Tensor]) -> None:
        key = list(tensors)[-1]
        value = tensors[key].clone()
        value.view(-1)[-1] = float("nan")
        tensors[key] = value

    assert court.rejected(edited(court.liar.honest(task), _tensors(last)), task)
    court.close(task)


def test_written_down(court: Court) -> None:
    """R12. A refused answer is written down: who, in which round, and why.

    The run's events name the node and the reason.
    """
    task = court.task()
    court.rejected(edited(court.liar.honest(task), poisoned(float("nan"))), task)
    court.close(task)
    events = next((court.made.place / "coordinator" / "runs").glob("*/events.jsonl")).read_text()
    rounds = [msgspec.json.decode(each) for each in events.splitlines()]
    found = next(each for each in rounds if each["event"] == "round" and each["round"] == task.round)
    assert "non-finite" in str(found["refused"])


def test_source(court: Court) -> None:
    """R29. Requests that are no HTTP: noise, a header without end, a body that is announced twice.

    The line is closed with 400 or without a word; others notice nothing.
    """
    task = court.task()
    for blob in (
        b"\x16\x03\x01\x02\x00\x01\x00" + bytes(500),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/hello HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /v1/beat HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/beat HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.0\r\n\r\n",
    ):
        said = court.liar.raw(blob, timeout=2.0)
        assert said == b"" or said.split(b" ")[1] in (b"400", b"401", b"404", b"431", b"413"), said[:200]
    court.close(task, refused=False)
