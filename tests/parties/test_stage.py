"""Roles in one process: what they say arrives, is counted and checked, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from atoll.errors import CodecError
from atoll.parties import Field, Kind, Link, PartyError, play
from atoll.tensors import Record

NUMBERS = Kind("test.numbers", {"x": Field("float64", (None, 2)), "n": Field("int")}, "two columns")
DONE = Kind("test.done", {"note": Field("str")}, "that it is done")
X = torch.arange(6, dtype=torch.float64).reshape(3, 2)


async def giver(link: Link) -> str:
    await link.send("taker", NUMBERS, Record(x=X, n=3), under="none-0", ciphertexts=6)
    return str((await link.receive("taker", DONE)).note)


async def taker(link: Link) -> float:
    got = await link.receive("giver", NUMBERS)
    await link.send("giver", DONE, Record(note="fünf"))
    return float(got.x.sum()) + got.n


def test_roles_talk_and_every_message_is_counted_once() -> None:
    played = play({"giver": giver, "taker": taker}, keep=True)
    assert played.results == {"giver": "fünf", "taker": 18.0}
    first, second = played.transcript.counts()
    assert (first.sender, first.receiver, first.kind, first.messages) == ("giver", "taker", "test.numbers", 1)
    assert (first.nbytes, first.ciphertexts, first.under) == (3 * 2 * 8 + 8, 6, "none-0")
    assert (second.sender, second.nbytes, second.ciphertexts) == ("taker", 5, 0)
    assert first.framing > 0
    assert played.transcript.nbytes() == {"test.numbers": 56, "test.done": 5}
    assert [said[:3] for said in played.transcript.said] == [
        ("giver", "taker", "test.numbers"),
        ("taker", "giver", "test.done"),
    ]


def test_a_stage_runs_where_a_loop_is_running_already() -> None:
    async def notebook() -> Any:
        return play({"giver": giver, "taker": taker}).results

    assert asyncio.run(notebook())["taker"] == 18.0


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (Record(x=X), "has the fields x, and x, n are expected"),
        (Record(x=X, n=1, y=2), "has the fields x, n, y"),
        (Record(x=X.float(), n=1), r"x holds float32 \[3, 2\], and float64 \[any, 2\] is expected"),
        (Record(x=X[:, :1], n=1), r"x holds float64 \[3, 1\]"),
        (Record(x=X[0], n=1), r"x holds float64 \[2\]"),
        (Record(x=X / 0, n=1), "x has numbers that are not finite"),
        (Record(x=X, n=1.5), "n holds a float, and int is expected"),
        (Record(x=X, n=True), "n holds a bool"),
        (Record(x=3, n=1), "x holds a int, and a tensor is expected"),
    ],
)
def test_what_does_not_fit_its_kind_is_refused_by_name(record: Record, problem: str) -> None:
    # The sender's own check is taken away: the receiver must not rely on it.
    loose = Kind("test.numbers", {}, "")
    object.__setattr__(loose, "check", lambda *_: None)

    async def careless(link: Link) -> None:
        await link.send("taker", loose, record)

    with pytest.raises(CodecError, match=f"test.numbers of giver.*{problem}"):
        play({"giver": careless, "taker": taker})

    async def careful(link: Link) -> None:
        await link.send("taker", NUMBERS, record)

    with pytest.raises(CodecError, match=r"test\.numbers of giver"):
        play({"giver": careful, "taker": taker})


def test_another_kind_than_the_one_that_is_due_is_refused() -> None:
    async def hasty(link: Link) -> None:
        await link.send("taker", DONE, Record(note=""))

    with pytest.raises(
        PartyError, match=r"giver sent test.done \(its message 0\), and test.numbers \(message 0\) is due"
    ):
        play({"giver": hasty, "taker": taker})


def test_a_message_beyond_its_limit_is_not_sent() -> None:
    small = Kind("test.small", {"x": Field("float64", (None, 2))}, "", limit=100)

    async def much(link: Link) -> None:
        await link.send("taker", small, Record(x=X))

    with pytest.raises(CodecError, match="limit is 100"):
        play({"giver": much, "taker": taker})


def test_a_message_beyond_its_limit_is_refused_where_it_arrives() -> None:
    small = Kind("test.numbers", NUMBERS.fields, "", limit=200)
    large = torch.zeros(100, 2, dtype=torch.float64)

    async def much(link: Link) -> None:
        await link.send("taker", NUMBERS, Record(x=large, n=1))

    async def careful(link: Link) -> None:
        await link.receive("giver", small)

    with pytest.raises(PartyError, match=r"test\.numbers of giver has \d+ bytes, and the limit is 200"):
        play({"giver": much, "taker": careful})


def test_a_message_that_comes_again_is_refused() -> None:
    async def twice(link: Link) -> None:
        await link.send("taker", NUMBERS, Record(x=X, n=3))
        link._sent["taker"] = 0
        await link.send("taker", NUMBERS, Record(x=X, n=3))

    async def careful(link: Link) -> None:
        for _ in range(2):
            await link.receive("giver", NUMBERS)

    with pytest.raises(
        PartyError, match=r"test\.numbers \(its message 0\), and test\.numbers \(message 1\) is due"
    ):
        play({"giver": twice, "taker": careful})


def test_roles_that_all_wait_are_told() -> None:
    async def waiting(link: Link) -> None:
        await link.receive(link.others[0], DONE)

    with pytest.raises(PartyError, match="all wait for each other"):
        play({"a": waiting, "b": waiting, "c": waiting})


def test_the_first_failure_is_what_is_raised() -> None:
    async def breaking(link: Link) -> None:
        await link.receive("giver", NUMBERS)
        raise ZeroDivisionError("of its own")

    with pytest.raises(ZeroDivisionError, match="of its own"):
        play({"giver": giver, "taker": breaking})


def test_one_who_leaves_while_another_waits_is_named() -> None:
    async def leaving(link: Link) -> None:
        await link.receive("giver", NUMBERS)

    with pytest.raises(PartyError, match="taker sends nothing more"):
        play({"giver": giver, "taker": leaving})
