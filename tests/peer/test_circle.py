"""What peers say to each other over real sockets, and what becomes of those who are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from atoll.errors import CodecError, ConfigError
from atoll.parties.framed import Address, framed
from atoll.peer import circle as module
from atoll.peer.circle import Circle
from atoll.peer.sayings import Plain, WithheldError
from atoll.peer.words import There
from tests.parties.test_wired import hello, several

NAMES = ["ann", "bea", "cat"]


def circle(name: str, where: dict[str, Address], known: Sequence[str] = (), **more: Any) -> Circle:
    given = {each: where[each] for each in (known or NAMES) if each != name}
    return Circle(
        name, NAMES, more.pop("run", "r"), where[name], given, patience=more.pop("patience", 5.0), **more
    )


def fine(name: str, body: bytes, whole: bool) -> bytes:
    return body


async def rounds(one: Circle, first: int, last: int, said: dict[tuple[str, int], dict[str, bytes]]) -> None:
    """A peer that says its name and the number of the round."""
    others = [each for each in NAMES if each != one.name]
    for number in range(first, last + 1):
        one.enter(number)
        await one.say(number, others, Plain(f"{one.name} {number}".encode()))
        said[one.name, number], _ = await one.hear(number, others, 1000, fine)


def test_all_hear_all() -> None:
    where, said = dict(zip(NAMES, several(len(NAMES)), strict=True)), {}

    async def each(name: str) -> list[str]:
        async with circle(name, where) as one:
            missing = await one.gather([k for k in NAMES if k != name], 10)
            await rounds(one, 1, 4, said)
            await one.part(4)
            return missing

    async def all_() -> list[list[str]]:
        return await asyncio.gather(*map(each, NAMES))

    assert asyncio.run(all_()) == [[], [], []]
    for number in range(1, 5):
        for name in NAMES:
            assert said[name, number] == {k: f"{k} {number}".encode() for k in NAMES if k != name}


def test_others_are_found_through_any_of_them() -> None:
    """One knows nobody, the second the first, the third an address without a name."""
    where, said = dict(zip(NAMES, several(len(NAMES)), strict=True)), {}

    async def each(name: str, one: Circle) -> None:
        async with one:
            assert await one.gather([k for k in NAMES if k != name], 10) == []
            await rounds(one, 1, 1, said)
            await one.part(1)

    async def all_() -> None:
        await asyncio.gather(
            each("ann", Circle("ann", NAMES, "r", where["ann"], {})),
            each("bea", Circle("bea", NAMES, "r", where["bea"], {"ann": where["ann"]})),
            each("cat", Circle("cat", NAMES, "r", where["cat"], {}, [where["bea"]])),
        )

    asyncio.run(asyncio.wait_for(all_(), 20))
    assert said["ann", 1] == {"bea": b"bea 1", "cat": b"cat 1"}


def test_who_is_gone_is_not_waited_for_again_and_counts_when_it_is_back() -> None:
    where, said, told = dict(zip(NAMES, several(len(NAMES)), strict=True)), {}, []

    async def all_() -> None:
        async with (
            circle("ann", where, patience=0.5, tell=told.append) as ann,
            circle("bea", where, patience=0.5) as bea,
        ):
            async with circle("cat", where) as cat:
                for one in (ann, bea, cat):
                    assert await one.gather([k for k in NAMES if k != one.name], 10) == []
                await asyncio.gather(*(rounds(one, 1, 1, said) for one in (ann, bea, cat)))
            begun = asyncio.get_running_loop().time()
            await asyncio.gather(*(rounds(one, 2, 9, said) for one in (ann, bea)))
            assert (
                asyncio.get_running_loop().time() - begun < 3
            )  # silence is waited for once, not eight times
            async with circle("cat", where, begins=3) as cat:
                assert await cat.gather(["ann", "bea"], 10) == []
                assert cat.behind == 9
                await cat.announce(cat.behind + 1)
                await asyncio.gather(*(rounds(one, 10, 11, said) for one in (ann, bea, cat)))

    asyncio.run(asyncio.wait_for(all_(), 30))
    assert said["ann", 1] == {"bea": b"bea 1", "cat": b"cat 1"}
    for number in range(2, 10):
        assert said["ann", number] == {"bea": f"bea {number}".encode()}
    assert set(said["ann", 10]) == {"bea", "cat"} and set(said["cat", 11]) == {"ann", "bea"}
    assert sum("cat is gone" in each for each in told) == 1
    assert any("cat is there again" in each for each in told)


def test_another_run_is_refused() -> None:
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))

    async def all_() -> None:
        async with circle("ann", where), circle("bea", where, run="another") as bea:
            await bea.gather(["ann"], 5)

    with pytest.raises(ConfigError, match="ann refuses: it has other settings"):
        asyncio.run(all_())


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(64),
        hello("stranger"),
        hello("bea") + framed(b"{}", 0),
        hello("bea") + framed(b'{"type":"wanted","of":1}', 0),
        hello("bea") + framed(b"{", 1 << 40),
        hello("bea")[:5],
    ],
)
def test_what_is_no_peer_ends_nothing(opening: bytes) -> None:
    where, said = dict(zip(NAMES, several(len(NAMES)), strict=True)), {}

    async def all_() -> None:
        async with circle("ann", where, ["cat"]) as ann, circle("cat", where, ["ann"]) as cat:
            reader, writer = await asyncio.open_connection(where["ann"].host, where["ann"].port)
            writer.write(opening)
            writer.write_eof()
            async with asyncio.timeout(5):
                await reader.read()  # until it is closed
            writer.close()
            assert await ann.gather(["cat"], 10) == await cat.gather(["ann"], 10) == []
            ann.others["bea"].gone = cat.others["bea"].gone = True
            await asyncio.gather(*(rounds(one, 1, 1, said) for one in (ann, cat)))

    asyncio.run(asyncio.wait_for(all_(), 20))
    assert said["ann", 1] == {"cat": b"cat 1"}


def test_what_cannot_be_used_is_left_out() -> None:
    where, said = dict(zip(NAMES, several(len(NAMES)), strict=True)), {}

    def read(name: str, body: bytes, whole: bool) -> bytes:
        if name == "bea":
            raise CodecError("of another form")
        return body

    async def all_() -> dict[str, bytes]:
        async with circle("ann", where) as ann, circle("bea", where) as bea, circle("cat", where) as cat:
            for one in (ann, bea, cat):
                await one.gather([k for k in NAMES if k != one.name], 10)
            await asyncio.gather(
                *(rounds(one, 1, 1, said) for one in (bea, cat)), ann.say(1, ["bea", "cat"], Plain(b""))
            )
            return (await ann.hear(1, ["bea", "cat"], 1000, read))[0]

    assert asyncio.run(all_()) == {"cat": b"cat 1"}


def test_a_slow_one_is_left_behind_only_with_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))

    async def all_() -> dict[str, bytes]:
        async with circle("ann", where, patience=1.0, deadline=0.1) as ann, circle("bea", where):
            await ann.gather(["bea"], 10)
            return (await ann.hear(1, ["bea"], 1000, fine))[0]

    monkeypatch.setattr(module, "_POLL", 0.2)
    assert asyncio.run(asyncio.wait_for(all_(), 10)) == {}


def test_who_has_missed_something_is_told_the_whole() -> None:
    where, heard = dict(zip(NAMES, several(len(NAMES)), strict=True)), []

    def read(name: str, body: bytes, whole: bool) -> bool:
        heard.append((body, whole))
        return True

    async def all_() -> None:
        async with circle("ann", where) as ann, circle("bea", where) as bea:
            await ann.gather(["bea"], 10)
            for number in range(1, 6):
                for one in (ann, bea):
                    one.enter(number)
                await bea.say(number, ["ann"], Plain(f"change {number}".encode(), f"all {number}".encode()))
                if number != 3:
                    await ann.hear(number, ["bea"], 1000, read, chained=True)

    asyncio.run(asyncio.wait_for(all_(), 10))
    assert heard == [(b"change 1", False), (b"change 2", False), (b"all 4", True), (b"change 5", False)]


def test_one_that_lies_about_its_round_leads_nobody_astray() -> None:
    where = dict(zip("abcd", several(4), strict=True))
    one = Circle("a", "abcd", "r", where["a"], {}, begins=4)
    assert one.behind == 0
    for name, number in (("b", 9), ("c", 10**9), ("d", 8)):
        one._met(name, There(1, number, gone=True), {})
    assert one.behind == 9


def test_addresses_of_others_are_believed_only_where_nothing_is_known() -> None:
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))
    one = circle("ann", where, ["bea"])
    one._met("bea", There(1, 1, gone=False), {"bea": "127.0.0.1:7", "cat": "127.0.0.1:8"})
    one._met("cat", There(1, 1, gone=False), {"bea": "127.0.0.1:9", "ann": "127.0.0.1:9"})
    assert (one.others["bea"].address, one.others["cat"].address) == (
        Address("127.0.0.1", 7),
        Address("127.0.0.1", 8),
    )


@pytest.mark.parametrize("wrong", ["another at its address", "more than a message has"])
def test_what_is_not_to_be_believed_does_not_come(wrong: str) -> None:
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))

    async def all_() -> tuple[dict[str, bytes], bool]:
        other = "cat" if wrong.startswith("another") else "bea"
        given = {"bea": where[other]}
        ann = Circle("ann", NAMES, "r", where["ann"], given, patience=0.3)
        async with ann, circle(other, where) as one:
            await one.say(1, ["ann"], Plain(bytes(100 if other == "cat" else 5000)))
            return (await ann.hear(1, ["bea"], 1000, fine))[0], ann.others["bea"].gone

    assert asyncio.run(asyncio.wait_for(all_(), 10)) == ({}, True)


def test_what_was_said_waits_for_who_is_late_and_not_for_ever() -> None:
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))

    async def all_() -> tuple[dict[str, bytes], int]:
        async with circle("ann", where) as ann, circle("bea", where) as bea:
            await bea.gather(["ann"], 10)
            for number in range(1, 11):
                ann.enter(number)
                await ann.say(number, ["bea"], Plain(f"{number}".encode()))
            heard, _ = await bea.hear(1, ["ann"], 1000, fine)
            for number in range(11, 200):
                ann.enter(number)
                await ann.say(number, ["bea"], Plain(b""))
            return heard, len(ann.sayings._said)

    heard, kept = asyncio.run(asyncio.wait_for(all_(), 20))
    assert heard == {"ann": b"1"}
    assert kept == 64


@pytest.mark.parametrize("opening", [b"", hello("bea") + framed(b"{}", 2 << 20)])
def test_who_says_nothing_or_far_too_much_is_let_go(opening: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has sent what it announced, and without waiting for more than a greeting takes."""
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))
    monkeypatch.setattr(module, "_POLL", 0.3)

    async def all_() -> bytes:
        async with circle("ann", where):
            reader, writer = await asyncio.open_connection(where["ann"].host, where["ann"].port)
            writer.write(opening)
            async with asyncio.timeout(5):
                said = await reader.read()
            writer.close()
            return said

    assert b"absent" not in asyncio.run(asyncio.wait_for(all_(), 10))


def test_the_last_words_of_who_leaves_arrive() -> None:
    """More than the buffers of two sockets hold; whoever has fetched it has all of it."""
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))
    much = bytes(range(256)) * (1 << 15)

    async def leaving() -> None:
        async with circle("bea", where) as bea:
            await bea.gather(["ann"], 10)
            await bea.say(1, ["ann"], Plain(much))
            await bea.part(1)

    async def all_() -> dict[str, bytes]:
        async with circle("ann", where, patience=1.0) as ann:
            ending = asyncio.create_task(leaving())
            await ann.gather(["bea"], 10)
            found, _ = await ann.hear(1, ["bea"], len(much), fine)
            await ending
            return found

    assert asyncio.run(asyncio.wait_for(all_(), 20)) == {"bea": much}


def test_plain_text_stays_here() -> None:
    with pytest.raises(ConfigError, match="plain text stays"):
        Circle("ann", NAMES, "r", Address("0.0.0.0", 9000), {})


@dataclass(frozen=True)
class Apart:
    """Says what it was asked, to some."""

    withheld: str = ""
    until: tuple[str, ...] = ()

    async def to(self, name: str, whole: bool, asked: bytes) -> bytes:
        if name == self.withheld:
            raise WithheldError("not to you", self.until)
        return name.encode() + b" asked " + asked


@pytest.mark.parametrize("fails", ["withheld", "gone", "neither"])
def test_of_shares_nobody_waits_for_more_where_one_does_not_come(fails: str) -> None:
    """And the line to whoever was not waited for has the right answers afterwards."""
    where, told = dict(zip(NAMES, several(len(NAMES)), strict=True)), []

    async def all_() -> list[Any]:
        async with circle("ann", where, tell=told.append, patience=0.5) as ann, circle("bea", where) as bea:
            cat = circle("cat", where)
            async with cat:
                assert await ann.gather(["bea", "cat"], 10) == []
                await cat.say(1, ["ann"], Apart("ann" if fails == "withheld" else ""))
                if fails == "neither":
                    await bea.say(1, ["ann"], Apart())
                if fails != "gone":
                    first = await ann.hear(1, ["bea", "cat"], 100, fine, sum_of=b"?")
            if fails == "gone":
                first = await ann.hear(1, ["bea", "cat"], 100, fine, sum_of=b"?")  # bea has not said anything
            ann.enter(2)
            await bea.say(2, ["ann"], Apart())
            return [*first, *await ann.hear(2, ["bea"], 100, fine, sum_of=b"!")]

    came, lost, after, _ = asyncio.run(asyncio.wait_for(all_(), 8))
    assert after == {"bea": b"ann asked !"}
    if fails == "neither":
        assert lost == [] and came == {"bea": b"ann asked ?", "cat": b"ann asked ?"}
    else:
        assert lost == ["cat"] and came == {}
    assert any("cat does not tell: not to you" in each for each in told) == (fails == "withheld")


def test_who_lacks_a_key_is_met_and_asked_again() -> None:
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))

    class Unmet(Apart):
        async def to(self, name: str, whole: bool, asked: bytes) -> bytes:
            if not bea.others["cat"].key:
                raise WithheldError("cat was not met yet", until=["cat"])
            return b"now"

    bea = circle("bea", where, key=b"b")

    async def all_() -> bytes:
        async with circle("ann", where) as ann, bea, circle("cat", where, key=b"c"):
            await ann.gather(["bea", "cat"], 10)
            assert (ann.others["bea"].key, ann.others["cat"].key) == (b"b", b"c")
            await bea.say(1, ["ann"], Unmet())
            return (await ann.hear(1, ["bea"], 100, fine, sum_of=b"?"))[0]["bea"]

    assert asyncio.run(asyncio.wait_for(all_(), 8)) == b"now"


def test_who_cannot_be_met_is_not_waited_for_for_ever() -> None:
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))
    bea = circle("bea", where, patience=0.3, key=b"b")

    class Unmet(Apart):
        async def to(self, name: str, whole: bool, asked: bytes) -> bytes:
            raise WithheldError("cat was not met yet", until=["cat"])

    async def all_() -> list[str]:
        async with circle("ann", where) as ann, bea:
            await ann.gather(["bea"], 10)
            await bea.say(1, ["ann"], Unmet())
            return (await ann.hear(1, ["bea"], 100, fine, sum_of=b"?"))[1]

    assert asyncio.run(asyncio.wait_for(all_(), 8)) == ["bea"]


def test_who_is_said_to_be_gone_is_looked_for() -> None:
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))

    async def all_() -> list[bool]:
        async with circle("ann", where) as ann:
            async with circle("bea", where) as bea:
                await ann.gather(["bea"], 10)
                found = [await ann.reaches("bea"), bea.others["ann"].met]
            return [*found, await ann.reaches("bea"), ann.others["bea"].gone]

    assert asyncio.run(asyncio.wait_for(all_(), 20)) == [True, True, False, True]
