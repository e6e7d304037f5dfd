"""A peer's way through a run: train, say, hear, mix, and take up again where it was broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atoll import codec
from atoll.errors import CodecError, RunError
from atoll.network.marks import MarksOnDisk
from atoll.network.telling import said
from atoll.parties.framed import Address, Secured
from atoll.peer.circle import Circle
from atoll.peer.keeping import Book, Labels, secret
from atoll.peer.member import Member
from atoll.peer.sayings import BEFORE, Plain, Saying
from atoll.runs.readers import Reader
from atoll.tensors import Record

if TYPE_CHECKING:
    from atoll.peer.masks import Hidden, Masks

__all__ = ["Seat", "take_part"]

_SLACK = 1 << 10  # bytes of a sketch beyond one's own
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
    name, key, of_masks = names[member.number], None, (place / "masks.key", place / "masks.told")
    if member.masked:
        from atoll.channel.secagg.keys import Private  # its extra is wanted by masks alone

        key = Private(secret(of_masks[0]))
    with Book(place, run, member, names, labels, log) as book:
        addresses = {name: Address.parse(text) for name, text in book.facts.get("addresses", {}).items()}
        circle = Circle(
            name, names, run, seat.listen, {**addresses, **seat.known}, seat.strangers,
            address=seat.address, secured=seat.secured, patience=seat.patience, deadline=seat.deadline,
            begins=book.begins, key=b"" if key is None else key.public, tell=tell,
        )  # fmt: skip
        circle.sayings.spoken = book.facts.get("spoken", 0)
        for other, number in book.facts.get("heard", {}).items():
            circle.others[other].heard = number
        masks = None
        if key is not None:
            from atoll.peer.masks import Masks

            masks = Masks(name, run, key, MarksOnDisk(of_masks[1]), circle.others, circle.reaches)
        rounds = _Rounds(member, names, circle, book, tell, every, masks)
        rounds.again()
        async with circle:
            if member.kin:
                await _acquainted(member, names, circle, seat.wait, tell)
            neighbours = _neighbours(member, names, labels.rounds)
            tell(said("waiting", f"waiting for {', '.join(neighbours) or 'nobody'}", peers=neighbours))
            wait = seat.wait if book.number == 0 else min(_SOON, seat.patience)
            missing = await circle.gather(neighbours, wait)
            if missing:
                tell(said("without", f"begins without {', '.join(missing)}", peers=missing))
            await rounds.play(labels.rounds)
        book.end()
    for file in of_masks:  # what was told stays hidden, whoever gets at this disk later
        file.unlink(missing_ok=True)
    return book


async def _acquainted(
    member: Member, names: Sequence[str], circle: Circle, wait: float | None, tell: Callable[[str], object]
) -> None:
    """Tell all others a sketch of this peer's data, and know from theirs who is related.

    Raises RunError where one does not come: the graph would be another one at each peer.
    """
    mine = await asyncio.to_thread(member.sketch)
    body, others = codec.encode(mine), [*circle.others]
    await circle.say(BEFORE, others, Plain(body))
    if member.acquainted:  # others may have lost it, and ask
        return
    tell(said("waiting", f"waiting for the sketches of {', '.join(others)}", peers=others))
    came, missing = dict[str, Record](), await circle.gather(others, wait)
    if not missing:
        came, missing = await circle.hear(
            BEFORE, others, len(body) + _SLACK, lambda name, body, whole: member.read_sketch(body, mine)
        )
    if missing:
        raise RunError(
            f"nothing came of {', '.join(missing)}, and who is related follows from the sketches of all peers",
            hint="start them, and this one again by the same command; or take who is not to come out of [peers]",
        )
    member.relate({member.number: mine, **{names.index(name): each for name, each in came.items()}})


def _neighbours(member: Member, names: Sequence[str], rounds: int) -> list[str]:
    """Whom a peer exchanges with in the first rounds, and whom it has masks with."""
    everybody, found = range(len(names)), set[int]()
    for round in range(1, min(rounds, 64) + 1):
        for phase in range(member.phases):
            weights = member.weights(round, phase, everybody)
            found.update(weights.hears(member.number), weights.heard[member.number])
            if member.masked:
                found.update(*(weights.hears(other) for other in weights.heard[member.number]))
    return [names[each] for each in sorted(found - {member.number})]


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
        masks: Masks | None = None,
    ) -> None:
        self.masks = masks
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
            if phase == 0 and not member.masked:
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
        weights, masks = member.weights(round, phase, there), self.masks
        to = [self.names[there[each]] for each in weights.heard[there.index(member.number)]]
        due = [self.names[each] for each in member.hears(round, phase, there)]
        if masks is None:
            await self.circle.say(number, to, member.message(mine, first=phase == 0))
        else:
            member.check(mine)
            await self.circle.say(number, to, self._hidden(masks, number, mine))

        def read(name: str, body: bytes, whole: bool) -> Record:
            return member.read(self.names.index(name), body, whole or phase > 0)

        came, lost = await self.circle.hear(
            number, due, member.most, read, chained=member.packs and phase == 0,
            sum_of=b"" if masks is None else masks.asked(due),
        )  # fmt: skip
        heard = {self.names.index(name): value for name, value in came.items()}
        if member.packs:
            member.known.update(heard)
        for name in lost:
            self.book.lost(name, round)
        if masks is not None:
            return self._summed(round, phase, there, mine, heard, lost), {}
        there = [each for each in there if self.names[each] not in lost]
        return member.mixed(round, phase, there, mine, heard), heard

    def _hidden(self, masks: Masks, number: int, mine: Record) -> Hidden:
        """What it says in an exchange under masks."""
        member, (before, phase) = self.member, divmod(number - 1, self.member.phases)

        def share(receiver: str, others: Sequence[str]) -> Tensor:
            numbers = [self.names.index(each) for each in others]
            return member.share(before + 1, phase, mine, self.names.index(receiver), numbers)

        def hears(receiver: str) -> list[str]:
            everybody = member.weights(before + 1, phase, range(len(self.names)))
            return [self.names[each] for each in everybody.hears(self.names.index(receiver))]

        return masks.hidden(number, mine, share, hears)

    def again(self) -> None:
        """Say once more what was said, and not fetched by all, before this peer was broken off."""
        for number, (since, due), held in self.book.unheard:
            spoken = Plain.of(held) if self.masks is None else self._hidden(self.masks, number, held)
            self.circle.sayings.again(number, Saying(since, spoken, {*due}))

    def _summed(
        self,
        round: int,
        phase: int,
        there: Sequence[int],
        mine: Record,
        heard: Mapping[int, Record],
        lost: Sequence[str],
    ) -> Record:
        """What this peer has after an exchange of shares: all of them, or none."""
        why = f"nothing came of {', '.join(lost)}"
        if not lost:
            try:
                return self.member.mixed(round, phase, there, mine, heard)
            except CodecError as error:
                why = error.message
        text = f"round {round}: there is no sum, and this peer keeps what it has: {why}"
        self.tell(said("alone", text, round=round))
        return self.member.mixed(round, phase, [self.member.number], mine, {})

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
