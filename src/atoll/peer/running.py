"""A peer's way through a run: train, say, hear, mix, and take up again where it was broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from atoll.network.telling import said
from atoll.parties.framed import Address, Secured
from atoll.peer.circle import Circle
from atoll.peer.keeping import Book, Labels
from atoll.peer.member import Member
from atoll.runs.readers import Reader
from atoll.tensors import Record

__all__ = ["Seat", "take_part"]

_SOON = 10.0  # seconds for which one that comes back looks for the others


@dataclass(frozen=True)
class Seat:
    """Where a peer is, and how long it waits.

    Attributes:
        listen: where it listens; `address` is by which others call it, where that is another one.
        known: where others listen, by name; `strangers`, where somebody does.
        secured: TLS; None on one machine.
        patience: seconds of silence after which another one is given up.
        deadline: seconds in a round after which nobody waits for a slow one; None: for ever.
        wait: seconds for all neighbours to come at the beginning.
    """

    listen: Address
    known: Mapping[str, Address]
    strangers: Sequence[Address] = ()
    address: Address | None = None
    secured: Secured | None = None
    patience: float = 60.0
    deadline: float | None = None
    wait: float | None = 600.0


async def take_part(
    member: Member,
    names: Sequence[str],
    run: str,
    labels: Labels,
    seat: Seat,
    place: Path,
    log: Sequence[Reader] = (),
    tell: Callable[[str], object] = lambda _: None,
    every: int = 1,
) -> Book:
    """All rounds of one peer; what it has written down.

    Args:
        run: a hash of what all peers must have alike.
        place: where it keeps its run, and goes on from.
        every: rounds between evaluations.

    Raises ConfigError where others have other settings, or the run here is another one or over.
    """
    with Book(place, run, member, names, labels, log) as book:
        addresses = {name: Address.parse(text) for name, text in book.facts.get("addresses", {}).items()}
        circle = Circle(
            names[member.number], names, run, seat.listen, {**addresses, **seat.known}, seat.strangers,
            address=seat.address, secured=seat.secured, patience=seat.patience, deadline=seat.deadline,
            begins=book.number * member.phases + 1, tell=tell,
        )  # fmt: skip
        circle.sayings.spoken = book.facts.get("spoken", 0)
        for name, number in book.facts.get("heard", {}).items():
            circle.others[name].heard = number
        async with circle:
            neighbours = _neighbours(member, names, labels.rounds)
            tell(said("waiting", f"waiting for {', '.join(neighbours) or 'nobody'}", peers=neighbours))
            wait = seat.wait if book.number == 0 else min(_SOON, seat.patience)
            missing = await circle.gather(neighbours, wait)
            if missing:
                tell(said("without", f"begins without {', '.join(missing)}", peers=missing))
            await _Rounds(member, names, circle, book, tell, every).play(labels.rounds)
        book.end()
        return book


def _neighbours(member: Member, names: Sequence[str], rounds: int) -> list[str]:
    """Whom a peer exchanges with, in the first rounds."""
    everybody, found = range(len(names)), set[int]()
    for round in range(1, min(rounds, 64) + 1):
        for phase in range(member.phases):
            weights = member.weights(round, phase, everybody)
            found.update(weights.hears(member.number), weights.heard[member.number])
    return [names[each] for each in sorted(found)]


class _Rounds:
    """Round after round, with whoever is there."""

    def __init__(
        self,
        member: Member,
        names: Sequence[str],
        circle: Circle,
        book: Book,
        tell: Callable[[str], object],
        every: int,
    ) -> None:
        self.member, self.names, self.circle, self.book = member, names, circle, book
        self.tell, self.every = tell, every

    async def play(self, rounds: int) -> None:
        phases, round = self.member.phases, self.book.number + 1
        while True:
            if behind := self.circle.behind:
                later = max(round, -(-behind // phases) + 1)
                if later > rounds:
                    self.tell(said("over", "the others are through: there is no round left to take part in"))
                else:
                    self.tell(
                        said("behind", f"the others are in round {later - 1}: goes on from round {later}")
                    )
                    await self.circle.announce((later - 1) * phases + 1)
                round = later
            if round > rounds:
                break
            await self._round(round, last=round == rounds)
            round += 1
        if self.circle.sayings.spoken == rounds * phases:
            await self.circle.part(rounds * phases)

    async def _round(self, round: int, last: bool) -> None:
        member, phases = self.member, self.member.phases
        self.circle.enter((round - 1) * phases + 1)
        loss = await asyncio.to_thread(member.train, round)
        values, apart = member.offered, None
        for phase in range(phases):
            number = (round - 1) * phases + phase + 1
            self.circle.enter(number)
            values, heard = await self._exchange(round, phase, number, values)
            if phase == 0:
                apart = _apart(member.offered, heard)
        member.settle(values)
        self.book.commit(
            round, self.circle, loss, apart, last or (self.every > 0 and round % self.every == 0)
        )

    async def _exchange(
        self, round: int, phase: int, number: int, mine: Record
    ) -> tuple[Record, Mapping[int, Record]]:
        """What this peer has after an exchange, and what it heard."""
        member, there = self.member, self._there(number)
        weights = member.weights(round, phase, there)
        at = there.index(member.number)
        body, whole = member.message(mine, first=phase == 0)
        await self.circle.say(number, [self.names[there[each]] for each in weights.heard[at]], body, whole)

        def read(name: str, body: bytes, whole: bool) -> Record:
            return member.read(self.names.index(name), body, whole or phase > 0)

        due = member.hears(round, phase, there)
        came = await self.circle.hear(
            number, [self.names[each] for each in due], member.most, read, member.packs and phase == 0
        )
        heard = {self.names.index(name): value for name, value in came.items()}
        if member.packs:
            member.known.update(heard)
        lost = [each for each in due if each not in heard]
        for each in lost:
            self.book.lost(self.names[each], round)
        there = [each for each in there if each not in lost]
        return member.mixed(round, phase, there, mine, heard), heard

    def _there(self, number: int) -> list[int]:
        """The peers that are not known to be absent."""
        others = self.circle.others
        return [
            at
            for at, name in enumerate(self.names)
            if name not in others or not (others[name].gone or others[name].begins > number)
        ]


def _apart(mine: Record, heard: Mapping[int, Record]) -> float | None:
    """How far this peer's model and those that it hears are from their mean, root mean squared."""
    field = "model" if "model" in mine else next(iter(mine))
    models = torch.stack([mine[field], *(each[field] for each in heard.values())])
    return float(torch.linalg.vector_norm(models - models.mean(0)) / len(models) ** 0.5)
