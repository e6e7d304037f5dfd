"""A model as runs have left it: who wants to predict begins here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from atoll.errors import ConfigError
from atoll.parties import Link, Transcript, play
from atoll.parties.framed import Address, Secured
from atoll.parties.wired import meet
from atoll.runs.folder import RunFolder
from atoll.tensors import Record
from atoll.vertical.halves import load
from atoll.vertical.party import Party
from atoll.vertical.predicting import Predicted, predict, predict_alone
from atoll.vertical.settings import Vertical

__all__ = ["Stored", "addresses"]


@dataclass(frozen=True)
class Stored:
    """Settings of a run, and the halves that are here: of all parties, or of one.

    ``Stored.read("runs/...").predict({"guest": bank, "host": shop})``
    """

    plan: Vertical
    halves: Mapping[str, Record]

    @classmethod
    def read(
        cls, places: Sequence[str | Path], runs: str | Path | None = None, sets: Sequence[str] = ()
    ) -> Stored:
        """The model of one run's folder, or of several that parties have of the same run.

        Args:
            sets: what is other than it was at the parties: ``party.host.data=new.csv``, an address.

        Raises ConfigError where there is no such run, no half in it, or halves are not of one model.
        """
        for text in sets:
            if not text.startswith("party."):
                raise ConfigError(
                    f"--set {text}: a model is as it has been learned",
                    hint="its parties' data and address may be others: --set party.guest.data=FILE",
                )
        folders = [RunFolder.find(place, runs).path for place in places]
        plans = [Vertical.read(folder / "config.toml", sets) for folder in folders]
        if len({plan.fingerprint() for plan in plans}) > 1:
            raise ConfigError(
                f"{' and '.join(map(str, places))} are runs with different settings",
                hint="name the folders that the parties have of one run",
            )
        halves = load(folders, plans[0])
        if not halves:
            raise ConfigError(
                f"there is no half of a model in {' and '.join(map(str, folders))}",
                hint="a run has one when it is over; atoll vertical run --resume goes on with it",
            )
        wheres = dict(plans[0].party)
        for folder, plan in zip(folders[1:], plans[1:], strict=True):  # each party's own table
            wheres |= {name: plan.party[name] for name in load([folder], plan)}
        return cls(replace(plans[0], party=wheres), halves)

    @property
    def alone(self) -> bool:
        """Whether it predicts a host's own rows, of which the guest has none."""
        return self.plan.protocol == "ftl"

    def half(self, name: str) -> Record:
        """A party's half.  Raises ConfigError where it is not here."""
        if name not in self.halves:
            raise ConfigError(
                f"the half of {name} is not here: there is that of {', '.join(self.halves)}",
                hint="name the folders of all parties' runs, or predict as one party with --as",
            )
        return self.halves[name]

    def table(self, name: str) -> Party:
        """A party's rows, with the columns that it has learned from and no label.  Raises DataError, ConfigError."""
        where = self.plan.party[name]
        if where.data is None:
            raise ConfigError(f"[party.{name}] names no data", hint=f"--set party.{name}.data=FILE")
        exposure = self.plan.exposure if name == "guest" else None
        columns = tuple(self.half(name).columns.values())
        return Party.read(where.data, where.id or self.plan.id, columns=columns, exposure=exposure)

    def predict(
        self, parties: Mapping[str, Party] | None = None, transcript: Transcript | None = None
    ) -> Predicted:
        """What the guest learns of the rows that all parties have in common, with all of them in this process.

        With protocol = "ftl" of the rows of the host, where the guest is not among `parties`.

        Args:
            parties: by default the tables that the plan names.

        Raises ConfigError where a party is missing, PartyError where they cannot agree.
        """
        wanted = [name for name in self.plan.names if name != "arbiter"]
        if parties is None:
            parties = {name: self.table(name) for name in wanted if not self.alone or name != "guest"}
        if self.alone and "guest" not in parties:
            given = {"guest": None, **parties}
            roles = {
                name: partial(predict_alone, plan=self.plan, party=given.get(name), half=self.half(name))
                for name in wanted
            }
        else:
            if set(parties) != set(wanted):
                raise ConfigError(
                    f"the parties are {', '.join(parties)}, and the model's are {', '.join(wanted)}",
                    hint="a model predicts with all of them",
                )
            roles = {
                name: partial(predict, plan=self.plan, party=parties[name], half=self.half(name))
                for name in wanted
            }
        found: Predicted = play(roles, transcript=transcript).results["guest"]
        return found

    def take_part(
        self, name: str, secured: Secured | None, transcript: Transcript | None = None
    ) -> Predicted:
        """The same as one of the parties, with the others in processes of their own.

        Returns what is predicted at the guest, nothing elsewhere.

        Args:
            secured: TLS; None for plain text between processes of this machine.
        """
        plan, half = self.plan, self.half(name)
        party = None if self.alone and name == "guest" else self.table(name)
        at = {each: address for each, address in addresses(plan).items() if each != "arbiter"}

        async def part() -> Predicted:
            async with meet(name, at, secured, transcript, plan.timeout) as link:
                return await role(link)

        async def role(link: Link) -> Predicted:
            if self.alone:
                return await predict_alone(link, plan, party, half)
            assert party is not None
            return await predict(link, plan, party, half)

        return asyncio.run(part())


def addresses(plan: Vertical) -> dict[str, Address | None]:
    """Where parties listen, by name."""
    return {
        name: None if (told := plan.party[name].address) is None else Address.parse(told)
        for name in plan.names
    }
