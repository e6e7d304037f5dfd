"""The events of one run, told apart: what readers of runs ask of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from atoll.measures import Figures, Target
from atoll.runs.events import Event
from atoll.runs.promise import promised
from atoll.runs.virtual import totals

__all__ = ["Spent", "Story"]


class Spent(NamedTuple):
    """What rounds cost: bytes up and down of all clients, the machine's seconds without evaluations, on a virtual clock
    the virtual seconds and joules of the clients' devices (None without one), and the epsilon of privacy (None where
    nothing is blurred).
    """

    bytes: int = 0
    seconds: float = 0.0
    virtual_seconds: float | None = None
    energy: float | None = None
    epsilon: float | None = None


class Story:
    """One run, as its events tell it. Fields that damaged or foreign events lack count as unknown.

    Args:
        events: all of them, without the void ones (`atoll.runs.events.read`).
        name: what to call a run whose `start` does not say.
    """

    def __init__(self, events: Sequence[Event], name: str = "") -> None:
        self.events = list(events)
        self.start: Event = next(self.of("start"), {})
        self.name: str = self.start.get("run") or name
        self.rounds: list[Event] = [e for e in self.of("round") if isinstance(e.get("round"), int)]

    def of(self, kind: str) -> Any:
        """The events of a kind, in order."""
        return (each for each in self.events if each["event"] == kind)

    def last(self, kind: str) -> Event | None:
        """The last event of a kind."""
        return next((each for each in reversed(self.events) if each["event"] == kind), None)

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def config(self) -> Mapping[str, Any]:
        """All settings; a resumption may have changed how many rounds are planned."""
        config = self.start.get("config") or {}
        return {**config, "rounds": self.planned} if "rounds" in config else config

    @property
    def seed(self) -> int | None:
        return self.start.get("seed")

    @property
    def method(self) -> str:
        """The method's name in configuration files, or its class."""
        return str(self.config.get("method") or self.start.get("method") or "?")

    @property
    def measure(self) -> str:
        """The measure to look at first, "accuracy" or "loss"."""
        return str(self.start.get("measure") or "accuracy")

    @property
    def better(self) -> Mapping[str, Any]:
        """What is measured beside the loss, and which of two values is the better one ("higher", "lower" or None)."""
        return self.start.get("metrics") or {}

    @property
    def planned(self) -> int | None:
        """How many rounds the run is to have; a resumption may have changed it."""
        resumed = self.last("resume") or {}
        return resumed.get("rounds") or self.start.get("rounds")

    @property
    def names(self) -> dict[int, str]:
        """What clients are called, as far as they are listed."""
        return {at: str(name) for at, name in enumerate((self.last("partition") or {}).get("names") or [])}

    @property
    def tested(self) -> dict[int, int]:
        """Test samples of the clients that are judged."""
        told = self.last("partition") or {}
        return dict(zip(told.get("judged") or [], told.get("tested") or [], strict=False))

    @property
    def sizes(self) -> list[int] | None:
        """Training samples of every client, None where they are not listed."""
        return (self.last("partition") or {}).get("sizes")

    @property
    def weights(self) -> list[float] | None:
        """What the clients count for in averages, where it was given."""
        return (self.last("partition") or {}).get("weights")

    # --- how it went ------------------------------------------------------------------------------------------

    @cached_property
    def evaluations(self) -> list[tuple[int, Mapping[str, Any]]]:
        """(round, evaluation) of the rounds that were evaluated."""
        return [(e["round"], e["evaluation"]) for e in self.rounds if e.get("evaluation")]

    @property
    def final(self) -> Mapping[str, Any]:
        """The last evaluation; empty where there is none."""
        return self.evaluations[-1][1] if self.evaluations else {}

    def value(self, evaluation: Mapping[str, Any], name: str) -> float | None:
        """A figure of an evaluation (see `atoll.measures.Figures.value`), None where it is missing or not finite."""
        return _number(Figures(evaluation, self.measure).value(name))

    @cached_property
    def own(self) -> dict[int, float]:
        """The main measure of the model that each judged client would use, client by client, in the last evaluation."""
        kind = "personal" if self.final.get("personal") else "clients"
        values = ((self.final.get("each") or {}).get(kind) or {}).get(self.measure) or []
        judged = (self.last("partition") or {}).get("judged") or []
        pairs = zip(judged, map(_number, values), strict=False)
        return {client: value for client, value in pairs if value is not None}

    def curve(self, name: str) -> dict[int, float]:
        """A figure by round, where it was measured."""
        found = {number: self.value(evaluation, name) for number, evaluation in self.evaluations}
        return {number: value for number, value in found.items() if value is not None}

    def arrival(self, target: Target) -> int | None:
        """The first evaluated round at the target or beyond it."""
        for number, evaluation in self.evaluations:
            if target.reached(Figures(evaluation, self.measure)):
                return number
        return None

    @property
    def main(self) -> str:
        """The figure to look at first in the last evaluation (see `atoll.measures.Figures.first`)."""
        return Figures(self.final, self.measure).first

    @property
    def score(self) -> float | None:
        """The figure to look at first in the last evaluation."""
        return self.value(self.final, self.main)

    # --- what it cost -----------------------------------------------------------------------------------------

    @cached_property
    def costs(self) -> dict[int, Spent]:
        """Round -> what was spent up to its end."""
        found: dict[int, Spent] = {}
        now = Spent()
        for each in self.rounds:
            clock = each.get("clock") or {}
            now = Spent(
                now.bytes + (each.get("bytes_up") or 0) + (each.get("bytes_down") or 0),
                now.seconds + (each.get("seconds") or 0.0),
                clock.get("ended", now.virtual_seconds),
                (now.energy or 0.0) + clock["energy"] if "energy" in clock else now.energy,
                (each.get("spent") or {}).get("epsilon"),
            )
            found[each["round"]] = now
        return found

    def spent(self, until: int | None = None) -> Spent:
        """What was spent up to the end of a round; None counts all.

        Epsilon of all rounds is what the result says, where there is one.
        """
        counted = [number for number in self.costs if until is None or number <= until]
        found = self.costs[counted[-1]] if counted else Spent()
        return found if until is not None else found._replace(epsilon=self.promised.get("epsilon"))

    # --- privacy ----------------------------------------------------------------------------------------------

    @property
    def promised(self) -> dict[str, Any]:
        """What is promised of privacy (see `atoll.runs.promise.promised`); empty where nothing is blurred."""
        return promised([each["spent"] for each in self.rounds if each.get("spent")], self.last("result"))

    @property
    def budget(self) -> float | None:
        """The epsilon that may be spent, None where there is no limit."""
        return self.config.get("epsilon")

    # --- on the virtual clock ---------------------------------------------------------------------------------

    @property
    def clocks(self) -> list[Mapping[str, Any]]:
        """What the rounds were on the virtual clock; none without one."""
        return [each["clock"] for each in self.rounds if each.get("clock")]

    @property
    def clocked(self) -> dict[str, float | None]:
        """What the run was on the virtual clock (see `atoll.runs.virtual.totals`); empty without one."""
        at = (self.last("result") or {}).get("target_round")
        return totals(self.clocks, next((e.get("clock") for e in self.rounds if e["round"] == at), None))

    @property
    def keeps(self) -> bool:
        """Whether late replies are kept for later rounds."""
        return self.config.get("late") == "keep"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
