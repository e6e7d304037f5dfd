"""Parties at the two ends of sockets: the same roles, who is who, and what happens when one is gone."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
import torch

from atoll.errors import ConfigError, DataError
from atoll.parties import Field, Kind, Link, PartyError, Transcript, play
from atoll.parties import wired as wired_module
from atoll.parties.framed import Address
from atoll.parties.link import VERSION
from atoll.parties.wired import meet
from atoll.tensors import Record

NUMBERS = Kind("test.numbers", {"x": Field("float64", (None,))}, "numbers")
SUM = Kind("test.sum", {"sum": Field("float64", ())}, "their sum")
LARGE = 1 << 19  # numbers: more than any buffer between two sockets holds


def free() -> Address:
    return several(1)[0]


def several(count: int) -> list[Address]:
    """Places to listen at, no two alike."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [Address("127.0.0.1", each.getsockname()[1]) for each in sockets]


async def swapping(link: Link) -> float:
    """Everybody sends everybody much, before anybody reads."""
    for other in link.others:
        await link.send(
            other, NUMBERS, Record(x=torch.full((LARGE,), float(len(link.name)), dtype=torch.float64))
        )
    total = 0.0
    for other in link.others:
        got = await link.receive(other, NUMBERS)
        total += float(got.x.sum())
        await link.send(other, SUM, Record(sum=got.x.sum()))
    for other in link.others:
        await link.receive(other, SUM)
    return total


async def wired(
    names: list[str], role: Callable[[Link], Awaitable[Any]], patience: float = 30
) -> tuple[list[Any], list[Transcript]]:
    addresses = {**dict(zip(names, several(len(names)), strict=True)), names[-1]: None}
    transcripts = [Transcript() for _ in names]

    async def party(name: str, transcript: Transcript) -> Any:
        async with meet(name, addresses, None, transcript, patience) as link:
            return await role(link)

    return await asyncio.gather(*map(party, names, transcripts), return_exceptions=True), transcripts


def test_sockets_and_one_process_give_the_same() -> None:
    names = ["a", "bb", "ccc"]
    found, transcripts = asyncio.run(wired(names, swapping))
    played = play(dict.fromkeys(names, swapping))
    assert found == [played.results[name] for name in names] == [5.0 * LARGE, 4.0 * LARGE, 3.0 * LARGE]
    # Each end counts what it sends and what it receives: all together twice what one process has.
    assert (
        sum(t.nbytes()["test.numbers"] for t in transcripts) == 2 * played.transcript.nbytes()["test.numbers"]
    )


def test_a_failure_is_told_to_the_others() -> None:
    async def failing(link: Link) -> None:
        if link.name == "a":
            raise ConfigError("trees = 0 is none")
        await link.receive("a", NUMBERS)

    found, _ = asyncio.run(wired(["a", "b"], failing))
    assert [str(each) for each in found] == ["trees = 0 is none", "a has ended: trees = 0 is none"]


def test_nothing_of_data_is_told_with_a_failure() -> None:
    async def failing(link: Link) -> None:
        if link.name == "a":
            raise DataError("column 'income' has no values")
        await link.receive("a", NUMBERS)

    found, _ = asyncio.run(wired(["a", "b"], failing))
    assert str(found[0]) == "column 'income' has no values"
    assert "a has ended" in str(found[1])
    assert "income" not in str(found[1])


def test_one_who_is_gone_is_named_at_once() -> None:
    async def leaving(link: Link) -> None:
        if link.name == "b":
            await link.receive("a", NUMBERS)

    found, _ = asyncio.run(asyncio.wait_for(wired(["a", "b"], leaving), 10))
    assert isinstance(found[1], PartyError)
    assert "a is gone" in str(found[1])


def test_nobody_is_read_further_ahead_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wired_module, "_AHEAD", 100_000)
    x, count = torch.zeros(1000, dtype=torch.float64), 400
    ahead: list[int] = []

    async def eager(link: Link) -> float:
        if link.name == "a":
            sending = [await link.send("b", NUMBERS, Record(x=x)) for _ in range(count)]
            return float(len(sending))
        await asyncio.sleep(0.5)  # nothing is asked for
        ahead.append(link._pipes["a"]._ahead)  # type: ignore[attr-defined]
        return sum([len((await link.receive("a", NUMBERS)).x) for _ in range(count)])

    found, _ = asyncio.run(wired(["a", "b"], eager))
    assert found == [count, 1000 * count]
    assert 0 < ahead[0] < 120_000


def test_who_is_at_an_address_must_be_who_is_expected_there() -> None:
    where = {"a": free(), "b": free(), "c": None}

    async def party(name: str, addresses: Any) -> None:
        async with meet(name, addresses, None, patience=3):
            pass

    async def crossed() -> Any:
        wrong = {"a": where["b"], "b": where["a"], "c": None}
        return await asyncio.gather(
            party("a", where), party("b", where), party("c", wrong), return_exceptions=True
        )

    found = asyncio.run(crossed())
    assert isinstance(found[2], PartyError)
    assert "is b, and a is expected there" in str(found[2])


def test_a_head_that_ends_nothing_is_no_last_word() -> None:
    """Whatever stands in the messages of one who is gone, its end is told in our words."""
    where = free()

    async def listening() -> None:
        async with meet("a", {"a": where, "b": None}, None, patience=5) as link:
            while True:
                await link.send("b", NUMBERS, Record(x=torch.zeros(LARGE, dtype=torch.float64)))

    async def calling() -> None:
        await asyncio.sleep(0.2)
        _, writer = await asyncio.open_connection(where.host, where.port)
        head = b'{"!": "!"}'
        writer.write(hello("b") + struct.pack("<IQ", len(head), 0) + head)
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.transport.abort()

    async def both() -> Any:
        return await asyncio.gather(listening(), calling(), return_exceptions=True)

    found = asyncio.run(both())
    assert isinstance(found[0], PartyError), found
    assert "head cannot be read" in str(found[0])


def test_who_does_not_come_is_named() -> None:
    async def alone() -> None:
        async with meet("a", {"a": free(), "b": None}, None, patience=0.3):
            pass

    with pytest.raises(PartyError, match=r"b did not come within 0\.3 s"):
        asyncio.run(alone())


def test_plain_text_stays_on_this_machine() -> None:
    async def far() -> None:
        async with meet("a", {"a": Address("192.0.2.1", 9000), "b": None}, None):
            pass

    with pytest.raises(ConfigError, match="plain text stays"):
        asyncio.run(far())


def hello(name: str, version: int = VERSION) -> bytes:
    blob = msgspec.json.encode({"name": name, "version": version})
    return struct.pack("<IQ", len(blob), 0) + blob


@pytest.mark.parametrize(
    ("opening", "then", "problem"),
    [
        (hello("b", VERSION + 1), b"", "b speaks version"),
        (hello("stranger"), b"", "stranger called, and is not expected"),
        (struct.pack("<IQ", 3, 0) + b"???", b"", "does not speak like a party"),
        (hello("b"), struct.pack("<IQ", 10, 1 << 40), "announced a message of"),
        (hello("b"), struct.pack("<IQ", 3, 0) + b"[1]", "head cannot be read"),
        (hello("b"), struct.pack("<IQ", 20, 5) + b"[0", "b is gone"),
    ],
)
def test_what_is_no_party_is_refused(opening: bytes, then: bytes, problem: str) -> None:
    where = free()

    async def listening() -> None:
        async with meet("a", {"a": where, "b": None}, None, patience=10) as link:
            await link.receive("b", NUMBERS)

    async def calling() -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection(where.host, where.port)
                break
            except OSError:
                await asyncio.sleep(0.05)
        writer.write(opening + then)
        writer.write_eof()
        await asyncio.sleep(0.3)
        writer.close()

    async def both() -> Any:
        return await asyncio.gather(listening(), calling(), return_exceptions=True)

    found = asyncio.run(both())
    assert isinstance(found[0], PartyError), found
    assert problem in str(found[0])


@pytest.mark.parametrize("text", ["bank.example.org", ":9000", "bank:0", "bank:port", "bank:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        Address.parse(text)


def test_addresses_are_read() -> None:
    assert str(Address.parse("bank.example.org:9000")) == "bank.example.org:9000"
    assert Address.parse("[::1]:9000") == Address("::1", 9000)


def test_who_calls_and_says_nothing_is_let_go_with_the_meeting() -> None:
    where = free()
    closed = []

    async def listening() -> None:
        async with meet("a", {"a": where, "b": None}, None, patience=0.5):
            pass

    async def silent() -> None:
        await asyncio.sleep(0.2)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        async with asyncio.timeout(5):
            closed.append(await reader.read())
        writer.close()

    async def both() -> Any:
        return await asyncio.gather(listening(), silent(), return_exceptions=True)

    found = asyncio.run(both())
    assert isinstance(found[0], PartyError), found
    assert closed == [b""], found
