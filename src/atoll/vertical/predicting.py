"""What a model in halves says of further rows: a party's part, with all parties in one process or one in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from atoll.errors import ConfigError
from atoll.parties import Field, Kind, Link
from atoll.tensors import Record
from atoll.vertical.alignment import Alignment, align
from atoll.vertical.features import steps
from atoll.vertical.halves import labels_of
from atoll.vertical.party import Party
from atoll.vertical.protocol import Case
from atoll.vertical.running import in_order
from atoll.vertical.settings import Vertical
from atoll.vertical.side import FloatArray, Side

__all__ = ["KINDS", "Predicted", "predict", "predict_alone"]

ASK = Kind(
    "predict.ask",
    {"model": Field("str"), "classes": Field("int")},
    "a hash that tells whether both have halves of one model, and how many classes there are",
)
KINDS = (ASK,)


@dataclass(frozen=True)
class Predicted:
    """What the guest learns of rows.

    Attributes:
        ids: of the rows, in their order; none where they are a host's alone, which are in that host's order.
        shares: probabilities [n, classes], or expected values [n].
        labels: what the classes are called.
    """

    ids: Sequence[str] = ()
    shares: FloatArray = field(default_factory=lambda: np.zeros(0))
    labels: tuple[str, ...] = ()


async def predict(link: Link, plan: Vertical, party: Party, half: Record) -> Predicted:
    """A party's part in predicting the rows that all have in common, which all learn of.

    Returns what is predicted at the guest, nothing elsewhere.

    Raises ConfigError where halves are of different models or nothing can be predicted, PartyError where the parties
    cannot agree.
    """
    protocol = plan.made() if plan.protocol != "psi" else None
    if protocol is None or not protocol.predicts:
        raise ConfigError(
            f"protocol = {plan.protocol!r} learns no model that predicts rows",
            hint="name a run of another protocol",
        )
    case = await _agreed(link, plan, half)
    parties = [name for name in plan.names if name != "arbiter"]
    found = await align(
        link, party.ids, parties, Alignment(session=f"predict {half.session}", ecdh=plan.ecdh)
    )
    assert found.rows is not None
    rows = in_order(party, found.rows)
    chain = steps.parse(plan.features, plan.own(link.name))
    side = chain.apply(party.side(rows), half.features)
    if link.name != "guest":
        await protocol.answer(link, side, case, half.model)
        return Predicted()
    score = await protocol.score(link, side, case, half.model)
    return Predicted([party.ids[row] for row in rows], _shares(case, score), labels_of(half))


async def predict_alone(link: Link, plan: Vertical, party: Party | None, half: Record) -> Predicted:
    """A party's part in predicting a host's own rows, of which the guest has none: what transfer is for.

    Args:
        party: nothing at the guest.
    """
    case, protocol = await _agreed(link, plan, half), plan.made()
    if party is None:
        score = await protocol.score(link, Side(np.zeros((0, 0)), ()), case, half.model)
        return Predicted((), _shares(case, score), labels_of(half))
    chain = steps.parse(plan.features, plan.own(link.name))
    side = chain.apply(party.side(np.arange(len(party))), half.features)
    await protocol.answer(link, side, case, half.model)
    return Predicted()


async def _agreed(link: Link, plan: Vertical, half: Record) -> Case:
    """What all know, if all have halves of one model."""
    model, classes = sha256(f"predict {half.session}".encode()).hexdigest(), max(1, len(labels_of(half)))
    for other in link.others:
        await link.send(other, ASK, Record(model=model, classes=classes))
    for other in link.others:
        told = await link.receive(other, ASK)
        if told.model != model:
            raise ConfigError(
                f"{other} has a half of another model than {link.name}",
                hint="take the runs that belong together",
            )
        classes = told.classes if other == "guest" else classes
    return plan.case(classes)


def _shares(case: Case, score: FloatArray) -> FloatArray:
    return np.stack([1 - score, score], 1) if case.task == "binary" else score
