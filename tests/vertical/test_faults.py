"""Whatever a party was about to say when it died, the others end, by name, at once; what is tampered with is seen."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.errors import AtollError, CodecError
from atoll.parties import Kind, Link, PartyError, Transcript, play
from atoll.parties.wired import meet
from atoll.tensors import Record
from atoll.vertical.alignment import KINDS as PSI
from atoll.vertical.keeping import Keeper
from atoll.vertical.protocols import PROTOCOLS
from atoll.vertical.running import KINDS, take_part
from atoll.vertical.settings import Vertical, Where
from tests.parties.test_wired import free
from tests.vertical.tables import parties

GIVEN: dict[str, dict[str, Any]] = {
    "glm": {"epochs": 2},
    "splitnn": {"epochs": 1, "bottom": "mlp:4", "top": "mlp:4"},
    "secureboost": {"trees": 1, "depth": 2, "bins": 8},
    "ftl": {"epochs": 1},
    "psi": {},
    "features": {},
}
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name == "features" else name for name in GIVEN]


def plan(protocol: str) -> Vertical:
    names = ["guest", "host", *(["arbiter"] if protocol == "glm" else [])]
    return Vertical(
        protocol=protocol, crypto="none", party={name: Where() for name in names}, given=GIVEN[protocol], runs=None
    )  # fmt: skip


def role(run: Vertical, name: str, keeper: Keeper) -> Any:
    return lambda link: take_part(link, run, parties().get(name), keeper)


def kinds(protocol: str) -> list[tuple[str, str]]:
    """Who says what in a run, each once."""
    run, transcript = plan(protocol), Transcript()
    with Keeper(run, run.names, transcript, None) as keeper:
        play({name: role(run, name, keeper) for name in run.names}, transcript=transcript)
    # Nothing is said that the protocol does not tell of.
    told = {kind.name for kind in (*KINDS, *PSI, *([] if protocol == "psi" else PROTOCOLS[protocol].kinds))}
    assert {count.kind for count in transcript.counts()} <= told
    return sorted({(count.sender, count.kind) for count in transcript.counts()})


class Dies(Exception):
    """Nobody hears of it: the process is gone."""


def silenced(link: Link, at: str) -> Link:
    """A link of a party that is gone when it would say this."""
    send = link.send

    async def gone(to: str, kind: Kind, record: Record, *args: Any, **more: Any) -> None:
        if kind.name == at:
            raise Dies(at)
        await send(to, kind, record, *args, **more)

    async def silent(error: BaseException) -> None:
        pass

    link.send, link.end = gone, silent  # type: ignore[method-assign]
    return link


async def broken(protocol: str, victim: str, at: str) -> dict[str, Any]:
    """What becomes of all parties, over real sockets, when one dies."""
    run = plan(protocol)
    addresses = {name: free() for name in run.names}

    async def one(name: str) -> Any:
        with Keeper(run, (name,), Transcript(), None) as keeper:
            async with meet(name, addresses, None, patience=20) as link:
                return await role(run, name, keeper)(silenced(link, at) if name == victim else link)

    found = await asyncio.gather(*map(one, run.names), return_exceptions=True)
    return dict(zip(run.names, found, strict=True))


@pytest.mark.parametrize("protocol", EVERY)
def test_a_party_may_die_at_every_message(protocol: str) -> None:
    every = kinds(protocol)
    assert len(every) > 5
    for victim, at in every:
        began = time.monotonic()
        found = asyncio.run(broken(protocol, victim, at))
        assert isinstance(found[victim], Dies), (victim, at, found)
        for name, ended in found.items():
            if name != victim:
                assert isinstance(ended, AtollError), (victim, at, found)
                assert victim in str(ended) or any(other in str(ended) for other in found if other != name)
        assert time.monotonic() - began < 15, (victim, at)


@pytest.mark.parametrize("protocol", EVERY)
def test_every_message_is_checked_where_it_arrives(protocol: str) -> None:
    """A field more, or numbers that are not finite, end the run whoever sends them and whenever."""
    for sender, at in kinds(protocol):
        run = plan(protocol)

        def tampering(link: Link, at: str = at, sender: str = sender) -> Link:
            send = link.send

            async def bad(to: str, kind: Kind, record: Record, *args: Any, **more: Any) -> None:
                if kind.name == at and link.name == sender:
                    record = record.replace(more=torch.zeros(1))
                    kind = Kind(kind.name, {}, kind.tells)
                    object.__setattr__(kind, "check", lambda *_: None)
                await send(to, kind, record, *args, **more)

            link.send = bad  # type: ignore[method-assign]
            return link

        with Keeper(run, run.names, Transcript(), None) as keeper:
            roles = {name: role(run, name, keeper) for name in run.names}
            with pytest.raises((CodecError, PartyError), match=at.replace(".", r"\.")):
                play({name: lambda link, own=own: own(tampering(link)) for name, own in roles.items()})  # type: ignore[misc]


def test_a_version_of_another_is_refused(tmp_path: Path) -> None:
    run = plan("psi")

    async def other(link: Link) -> None:
        from atoll.vertical.running import HELLO

        await link.send("guest", HELLO, Record(plan="0" * 64, finished=torch.zeros(1, dtype=torch.int64)))

    with (
        Keeper(run, run.names, Transcript(), None) as keeper,
        pytest.raises(AtollError, match="has other settings"),
    ):
        play({"guest": role(run, "guest", keeper), "host": other})
