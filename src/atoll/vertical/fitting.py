"""`fit` and `run`: all parties in one process, and the model that comes of it, in halves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from atoll.errors import ConfigError
from atoll.parties import Transcript, play
from atoll.parties.framed import Secured
from atoll.parties.wired import meet
from atoll.runs.folder import RunFolder, default_place
from atoll.runs.readers import Reader
from atoll.tensors import Record
from atoll.vertical.keeping import Keeper
from atoll.vertical.party import Party
from atoll.vertical.protocol import Apart
from atoll.vertical.protocols import PROTOCOLS
from atoll.vertical.running import Ended, take_part
from atoll.vertical.settings import Vertical, Where
from atoll.vertical.side import FloatArray
from atoll.vertical.stored import Stored, addresses

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
        found = Stored(self.plan, self.halves).predict(parties)
        return list(found.ids), found.shares

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
        found: FloatArray = Stored(self.plan, self.halves).predict({"host": host}).shares[:, 1]
        return found

    def __repr__(self) -> str:
        shown = {k: self.figures[k] for k in ("common", "auc", "accuracy", "rmse") if k in self.figures}
        told = ", ".join(f"{key} {value:.4g}" for key, value in shown.items())
        return f"<Fitted {self.plan.protocol} under {self.plan.cipher}: {told}>"


def fit(parties: Mapping[str, Any], protocol: str = "secureboost", *, features: str = "",
        where: Mapping[str, Where] | None = None, runs: str | Path | None = None, log: Sequence[Reader] = (),
        resume: str | Path | None = None, **settings: Any) -> Fitted:  # fmt: skip
    """Learn one model from parties with different columns, all in this process.

    ``atoll.vertical.fit({"guest": bank, "host": shop}, "secureboost", trees=20, crypto="ou")``

    Args:
        parties: "guest" with the label, and hosts by name: a `Party` each. For "splitlora" hosts with texts (a file's
            path, or bytes); the guest, whose the server is, may be left out.
        protocol: "secureboost", "glm", "splitnn", "ftl"; "features", which looks at columns; "psi", which aligns;
            "splitlora", which trains a language model.
        features: steps before the protocol, such as ``impute:median + woe:10``.
        where: what such steps are told of single parties' columns.
        runs: where the run gets its folder; None keeps nothing.
        settings: the protocol's and the run's (`Vertical`), by name.

    Raises ConfigError and DataError for what does not fit.
    """
    own = Vertical.kinds()
    apart = issubclass(PROTOCOLS[protocol], Apart) if protocol in PROTOCOLS else False
    if apart:
        parties = {"guest": None, **parties}
    arbiter = {"arbiter": Where()} if settings.pop("arbiter", False) else {}
    plan = Vertical(
        protocol=protocol,
        **{key: value for key, value in settings.items() if key in own},
        party={**{name: Where() for name in parties}, **(where or {}), **arbiter},
        features=features,
        given={key: value for key, value in settings.items() if key not in own},
    )
    if apart:
        given = cast(Apart, plan.made())
        parties = {name: None if each is None else given.read(each) for name, each in parties.items()}
    return play_all(plan, parties, None if runs is None else Path(runs), log, resume)


def run(plan: Vertical, log: Sequence[Reader] = (), resume: str | Path | None = None) -> Fitted:
    """The run that a file describes, all parties in this process."""
    place = default_place() if plan.runs == "auto" else plan.runs
    parties = {name: read(plan, name) for name in plan.names}
    return play_all(plan, parties, None if place is None else Path(place), log, resume)


def read(plan: Vertical, name: str) -> Any:
    """A party's table, as the plan says, or its text; None where it brings none.  Raises DataError, ConfigError."""
    where = plan.party[name]
    apart = plan.made() if plan.protocol != "psi" else None
    if name == "arbiter" or (isinstance(apart, Apart) and name == "guest"):
        return None
    if where.data is None:
        raise ConfigError(f"[party.{name}] names no data", hint='data = "FILE.csv"')
    if isinstance(apart, Apart):
        return apart.read(where.data)
    columns = [where.columns] if isinstance(where.columns, str) else where.columns
    guest = name == "guest" and plan.protocol != "psi"
    return Party.read(
        where.data, where.id or plan.id, plan.label if guest else None, plan.task, columns,
        plan.exposure if guest else None,
    )  # fmt: skip


def play_all(
    plan: Vertical,
    parties: Mapping[str, Any],
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
        figures = keeper.end(ended, "guest")
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
    party = read(own, name)
    place = default_place() if plan.runs == "auto" else plan.runs
    transcript = Transcript()

    async def taking_part(keeper: Keeper) -> Ended:
        async with meet(name, addresses(plan), secured, transcript, plan.timeout) as link:
            return await take_part(link, own, party, keeper)

    with Keeper(own, (name,), transcript, None if place is None else Path(place), log, resume) as keeper:
        ended = asyncio.run(taking_part(keeper))
        halves = {} if ended.half is None else {name: ended.half}
        figures = keeper.end({name: ended}, name)
        return Fitted(own, figures, halves, {name: ended}, transcript, keeper.session.folder, ended.labels)
