"""A party's way through a run: agree, align, learn, judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoll import seeds
from atoll.errors import ConfigError, DataError
from atoll.parties import Field, Kind, Link
from atoll.tensors import Record
from atoll.vertical.alignment import Alignment, align, normal
from atoll.vertical.features import steps
from atoll.vertical.figures import figures
from atoll.vertical.halves import half_of, session
from atoll.vertical.keeping import Keeper
from atoll.vertical.party import Party
from atoll.vertical.protocol import Apart, Case, Known, Progress, Protocol
from atoll.vertical.settings import Vertical
from atoll.vertical.side import Side

__all__ = ["KINDS", "Ended", "in_order", "take_part"]

HELLO = Kind(
    "vertical.hello",
    {"plan": Field("str"), "finished": Field("int64", (None,))},
    "a hash of the settings, and which steps the other can go on from",
)
CASE = Kind("vertical.case", {"classes": Field("int")}, "how many classes there are")
DONE = Kind("vertical.done", {}, "that the other is finished")
KINDS = (HELLO, CASE, DONE)


@dataclass(frozen=True)
class Ended:
    """What a party has in the end.

    Attributes:
        half: its part of the model, as `halves.half_of` makes it.
        common: rows that all parties have; `rows` are this party's, in their common order, where it learns them.
        train, test: figures, at the guest.
        labels: what the classes are called, at the guest.
        known: what it knows of columns, its own and others'.
    """

    half: Record | None = None
    common: int | None = None
    rows: NDArray[np.int64] | None = None
    train: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    known: Known | None = None


async def take_part(link: Link, plan: Vertical, party: Any, keeper: Keeper) -> Ended:
    """All of a run, as one of its parties.

    Args:
        party: its table, a `Party`; its own data where nothing is aligned (`Apart.read`); nothing at the arbiter, and
            at a server.

    Raises ConfigError where the others have other settings, DataError where nothing can be learned from what all have
    in common, PartyError where another one is gone.
    """
    number = await _greet(link, plan, keeper)
    if plan.protocol != "psi" and isinstance(protocol := plan.made(), Apart):
        return await _apart(link, plan, protocol, party, number, keeper)
    if party is None:
        return await _arbitrate(link, plan, number, keeper)
    reveal = plan.reveal if plan.protocol == "psi" else "both"
    options = Alignment(reveal=reveal, session=plan.fingerprint(), ecdh=plan.ecdh)
    found = await align(link, party.ids, [name for name in plan.names if name != "arbiter"], options)
    if plan.protocol == "psi":
        keeper.begin(0, len(party))
        await _part(link)
        return Ended(common=found.ids, rows=found.rows)
    assert found.rows is not None
    rows = in_order(party, found.rows)
    protocol = plan.made()
    kept, held = _divided(len(rows), plan.test if protocol.predicts else 0.0, plan.seed)
    keeper.begin(number, len(rows))
    case = await _settled(link, plan, party)
    side = party.side(rows[kept])
    if plan.protocol == "ftl":  # what only one party has is learned from, too
        alone = np.setdiff1d(np.arange(len(party)), rows)
        side = party.side(np.concatenate([rows[kept], alone]))
        protocol = dataclasses.replace(protocol, **{"overlap": len(kept)})
    outer = keeper.progress(link.name)
    begun = outer.half
    chain = steps.parse(plan.features, plan.own(link.name))
    if begun is None:
        adding = dataclasses.replace(case, crypto=plan.adding)
        learned = await chain.learn(link, side, adding, len(kept))
    else:
        learned = begun.features
    name = session(plan, (party.ids[row] for row in rows))

    def half(model: Record) -> Record:
        return half_of(name, party, learned, model)

    progress = Progress(
        outer.number,
        None if begun is None else begun.model,
        lambda number, model, figures: outer.tell(number, half(model), figures),
    )
    ready = chain.apply(side, learned)
    role = protocol.guest if link.name == "guest" else protocol.host
    model = await role(link, ready, case, progress)
    train, test = [
        await _judged(link, protocol, case, model, chain.apply(party.side(rows[part]), learned))
        if protocol.predicts and len(part)
        else {}
        for part in (kept, held)
    ]
    await _part(link)
    known = protocol.knows(case, link.name, ready.columns, model)
    return Ended(half(model), len(rows), rows, train, test, party.labels, known)


async def _apart(
    link: Link, plan: Vertical, protocol: Apart, data: Any, number: int, keeper: Keeper
) -> Ended:
    """All of a run whose parties have no rows in common."""
    keeper.begin(number, 0)
    outer, name, nobody = keeper.progress(link.name), session(plan, ()), Party((), np.zeros((0, 0)))

    def half(model: Record) -> Record:
        return half_of(name, nobody, Record(), model)

    begun = None if outer.half is None else outer.half.model
    progress = Progress(
        outer.number, begun, lambda number, model, figures: outer.tell(number, half(model), figures)
    )
    if link.name == "guest":
        model, found = await protocol.server(link, plan.case(), progress)
    else:
        model, found = await protocol.client(link, data, plan.case(), plan.test, progress), {}
    await _part(link)
    return Ended(half(model), test=found)


def in_order(party: Party, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Common rows by their ids, which all parties have alike.

    So a run can be repeated, as it cannot in the order of the alignment, which follows from secrets.
    """
    return np.array(sorted(rows, key=lambda row: normal(party.ids[row])), np.int64)


async def _greet(link: Link, plan: Vertical, keeper: Keeper) -> int:
    """Whether all have the same settings, and after which step all can go on."""
    own, finished = plan.fingerprint(), keeper.finished()
    for other in link.others:
        await link.send(other, HELLO, Record(plan=own, finished=torch.tensor(finished, dtype=torch.int64)))
    common = set(finished)
    for other in link.others:
        said = await link.receive(other, HELLO)
        if said.plan != own:
            raise ConfigError(
                f"{other} has other settings than {link.name}",
                hint="protocol, crypto, task, test, seed, the parties and the protocol's table must be the same",
            )
        common &= set(said.finished.tolist())
    return max(common, default=0)


async def _settled(link: Link, plan: Vertical, party: Party) -> Case:
    """How many classes there are, which the guest knows."""
    if link.name == "guest":
        classes = len(party.labels) or 1
        for other in link.others:
            await link.send(other, CASE, Record(classes=classes))
        return plan.case(classes)
    return plan.case((await link.receive("guest", CASE)).classes)


def _divided(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The common rows to learn from, and those to judge on: alike at all parties, in the common order."""
    if count < 2:
        raise DataError(
            f"the parties have {count or 'no'} row{'s' * (count != 1)} in common",
            hint="are ids written alike? spaces around them do not count, all else does, case too",
        )
    order = seeds.rng(seed, "vertical.test").permutation(count)
    held = round(count * share)
    return np.sort(order[held:]), np.sort(order[:held])


async def _judged(link: Link, protocol: Protocol, case: Case, model: Record, side: Side) -> dict[str, float]:
    """Figures at the guest; hosts help."""
    if link.name != "guest":
        await protocol.answer(link, side, case, model)
        return {}
    assert side.y is not None
    return figures(case.task, side.y, await protocol.score(link, side, case, model))


async def _arbitrate(link: Link, plan: Vertical, number: int, keeper: Keeper) -> Ended:
    case = plan.case((await link.receive("guest", CASE)).classes)
    keeper.begin(number, 0)
    await plan.made().arbiter(link, case, keeper.progress(link.name))
    await _part(link)
    return Ended()


async def _part(link: Link) -> None:
    """Nobody leaves before all are finished."""
    for other in link.others:
        await link.send(other, DONE, Record())
    for other in link.others:
        await link.receive(other, DONE)
