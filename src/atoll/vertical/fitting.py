"""`fit` and `run`: all parties in one process, and the model that comes of it, in halves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from atoll.errors import ConfigError
from atoll.parties import Link, Transcript, play
from atoll.parties.wired import Address, Secured, meet
from atoll.runs.folder import RunFolder, default_place
from atoll.runs.readers import Reader
from atoll.tensors import Record
from atoll.vertical.alignment import Alignment, align
from atoll.vertical.keeping import Keeper
from atoll.vertical.party import Party
from atoll.vertical.running import Ended, in_order, take_part
from atoll.vertical.settings import Vertical, Where
from atoll.vertical.side import FloatArray, Side

__all__ = ["Fitted", "fit", "read", "run"]


@dataclass(frozen=True)
class Fitted:
    """What came of a run: the model in halves, one for each party, and its figures.

    Attributes:
        figures: those of the event "result": `train`, `test`, `common`, `bytes` by kind of message ...
        halves: party -> its half, which between machines only it has.
        ended: party -> what it has in the end, its rows of the common order among it.
        labels: what the classes are called.
        transcript: what was said, counted.
    """

    plan: Vertical
    figures: Mapping[str, Any]
    halves: Mapping[str, Record]
    ended: Mapping[str, Ended]
    transcript: Transcript
    folder: RunFolder | None = None
    labels: tuple[str, ...] = field(default=())

    def predict_proba(self, parties: Mapping[str, Party]) -> tuple[list[str], FloatArray]:
        """Scores of the rows that all these have in common: their ids in order, and probabilities [n, classes], or
        expected values [n] where numbers are predicted.

        Raises ConfigError where a party is missing, PartyError where they cannot agree.
        """
        wanted = [name for name in self.plan.names if name != "arbiter"]
        if set(parties) != set(wanted):
            raise ConfigError(
                f"the parties are {', '.join(parties)}, and the model's are {', '.join(wanted)}"
            )
        case = self.plan.case(len(self.labels) or None)
        protocol = self.plan.made()

        async def role(link: Link) -> Any:
            party = parties[link.name]
            found = await align(link, party.ids, wanted, Alignment(session="predict"))
            assert found.rows is not None
            rows = in_order(party, found.rows)
            side = party.side(rows)
            if link.name != "guest":
                return await protocol.answer(link, side, case, self.halves[link.name])
            return rows, await protocol.score(link, side, case, self.halves["guest"])

        rows, score = play(dict.fromkeys(wanted, role)).results["guest"]
        if case.task == "binary":
            score = np.stack([1 - score, score], 1)
        return [parties["guest"].ids[row] for row in rows], score

    def predict(self, parties: Mapping[str, Party]) -> tuple[list[str], list[Any]]:
        """Ids, and the likeliest class of each by its name, or the expected value."""
        ids, score = self.predict_proba(parties)
        if score.ndim == 1:
            return ids, score.tolist()
        return ids, [self.labels[at] for at in score.argmax(1)]

    def predict_host(self, host: Party) -> FloatArray:
        """Probabilities [n] of a host's own rows, of which the guest has none: what transfer is for.

        Raises ConfigError for protocols that need every party's columns of a row.
        """
        if self.plan.protocol != "ftl":
            raise ConfigError(f"protocol = {self.plan.protocol!r} predicts rows that all parties have")
        case, protocol = self.plan.case(2), self.plan.made()
        nothing = Side(np.zeros((0, 0)), ())
        roles = {
            "guest": lambda link: protocol.score(link, nothing, case, self.halves["guest"]),
            "host": lambda link: protocol.answer(
                link, host.side(np.arange(len(host))), case, self.halves["host"]
            ),
        }
        scores: FloatArray = play(roles).results["guest"]
        return scores

    def __repr__(self) -> str:
        shown = {k: self.figures[k] for k in ("common", "auc", "accuracy", "rmse") if k in self.figures}
        told = ", ".join(f"{key} {value:.4g}" for key, value in shown.items())
        return f"<Fitted {self.plan.protocol} under {self.plan.cipher}: {told}>"


def fit(parties: Mapping[str, Party], protocol: str = "secureboost", *, runs: str | Path | None = None,
        log: Sequence[Reader] = (), resume: str | Path | None = None, **settings: Any) -> Fitted:  # fmt: skip
    """Learn one model from parties with different columns, all in this process.

    ``atoll.vertical.fit({"guest": bank, "host": shop}, "secureboost", trees=20, crypto="ou")``

    Args:
        parties: "guest" with the label, and hosts by name.
        protocol: "secureboost", "glm", "splitnn", "ftl", or "psi", which only aligns.
        runs: where the run gets its folder; None keeps nothing.
        settings: the protocol's and the run's (`Vertical`), by name.

    Raises ConfigError and DataError for what does not fit.
    """
    own = Vertical.kinds()
    arbiter = {"arbiter": Where()} if settings.pop("arbiter", False) else {}
    plan = Vertical(
        protocol=protocol,
        **{key: value for key, value in settings.items() if key in own},
        party={**{name: Where() for name in parties}, **arbiter},
        given={key: value for key, value in settings.items() if key not in own},
    )
    return play_all(plan, parties, None if runs is None else Path(runs), log, resume)


def run(plan: Vertical, log: Sequence[Reader] = (), resume: str | Path | None = None) -> Fitted:
    """The run that a file describes, all parties in this process."""
    place = default_place() if plan.runs == "auto" else plan.runs
    parties = {name: read(plan, name) for name in plan.names if name != "arbiter"}
    return play_all(plan, parties, None if place is None else Path(place), log, resume)


def read(plan: Vertical, name: str) -> Party:
    """A party's table, as the plan says.  Raises DataError, ConfigError."""
    where = plan.party[name]
    if where.data is None:
        raise ConfigError(f"[party.{name}] names no data", hint='data = "FILE.csv"')
    columns = [where.columns] if isinstance(where.columns, str) else where.columns
    guest = name == "guest" and plan.protocol != "psi"
    return Party.read(
        where.data, where.id or plan.id, plan.label if guest else None, plan.task, columns,
        plan.exposure if guest else None,
    )  # fmt: skip


def play_all(
    plan: Vertical,
    parties: Mapping[str, Party],
    runs: Path | None,
    log: Sequence[Reader],
    resume: str | Path | None,
) -> Fitted:
    """A run with all its parties in this process."""
    transcript = Transcript()
    with Keeper(plan, plan.names, transcript, runs, log, resume) as keeper:
        roles = {
            name: partial(take_part, plan=plan, party=parties.get(name), keeper=keeper) for name in plan.names
        }
        ended: dict[str, Ended] = dict(play(roles, transcript=transcript).results)
        guest = ended["guest"]
        halves = {name: each.half for name, each in ended.items() if each.half is not None}
        figures = keeper.end(halves, guest.common, guest.train, guest.test)
        return Fitted(plan, figures, halves, ended, transcript, keeper.session.folder, guest.labels)


def play_one(
    plan: Vertical,
    name: str,
    data: str | None,
    secured: Secured | None,
    log: Sequence[Reader] = (),
    resume: str | Path | None = None,
) -> Fitted:
    """The same as one of the parties, with the others in processes of their own: `halves` has this party's only.

    Args:
        data: this party's table, in the place of the one that the plan names.
        secured: TLS; None for plain text between processes of this machine.

    Raises ConfigError, DataError, and PartyError where another party is gone or says what it must not.
    """
    where = plan.party[name]
    own = replace(plan, party={**plan.party, name: replace(where, data=data or where.data)})
    party = None if name == "arbiter" else read(own, name)
    addresses = {
        each: None if (told := plan.party[each].address) is None else Address.parse(told)
        for each in plan.names
    }
    place = default_place() if plan.runs == "auto" else plan.runs
    transcript = Transcript()

    async def taking_part(keeper: Keeper) -> Ended:
        async with meet(name, addresses, secured, transcript, plan.timeout) as link:
            return await take_part(link, own, party, keeper)

    with Keeper(own, (name,), transcript, None if place is None else Path(place), log, resume) as keeper:
        ended = asyncio.run(taking_part(keeper))
        halves = {} if ended.half is None else {name: ended.half}
        figures = keeper.end(halves, ended.common, ended.train, ended.test)
        return Fitted(own, figures, halves, {name: ended}, transcript, keeper.session.folder, ended.labels)
