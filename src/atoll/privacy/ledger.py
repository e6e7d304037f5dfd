"""The ledger of privacy: a file that knows of every release before the release happens.

The first line holds the terms, each further line one charge or what was left of one that was cut off. A line is
on the disk before `charge` returns, and only then may what it paid for be released: whatever kills the process,
the ledger says as much as was spent, or more. Each line carries a checksum over itself and the lines before it,
so that a line that was changed or taken out of the middle is noticed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from atoll.errors import BudgetError, ConfigError
from atoll.privacy import lines
from atoll.privacy.accounting import Accountant, Epsilon, check_delta, epsilon
from atoll.privacy.budget import Budget
from atoll.privacy.events import Correlated, Event

__all__ = ["Charge", "Ledger", "Level", "Terms", "Torn", "parallel"]

_KINDS = 32  # different events, from which on epsilon after a round is the bound by RDP

Level = Literal["user", "record"]


class Terms(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="terms"):
    """What a ledger is about, and what may be spent.

    `level` says who a participant is: a "user" with all data of theirs, or a single "record" of one client. The two are
    different promises, and no ledger holds both. `delta` is below 1 / `population`, and `epsilon` the most that may be
    spent; None only counts.
    """

    level: Level
    delta: float
    population: Annotated[int, Meta(ge=1)]
    epsilon: float | None = None

    def __post_init__(self) -> None:
        check_delta(self.delta, self.population)
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ConfigError(f"epsilon cannot be {self.epsilon!r}", hint="epsilon is above 0")


class Charge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="charge"):
    """One release that was paid for. `private` is False where its noise followed from a seed that others may know."""

    round: int
    attempt: int
    event: Event
    private: bool = True


class Torn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="torn"):
    """What was left of a line that was cut off while it was written: no charge returned, nothing was released."""

    text: str


_Line = Terms | Charge | Torn


class _Nowhere:
    """A file that keeps nothing."""

    def append(self, body: bytes) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing is open."""


class Ledger:
    """A ledger that is open for writing; one process at a time. `begin` makes or opens one, `read` only looks.

    `torn` counts the lines that were found cut off; `charges` are all that were paid, in order.
    """

    def __init__(
        self,
        path: Path,
        terms: Terms,
        entries: Sequence[Charge | Torn],
        file: lines.Appender | _Nowhere | None,
    ) -> None:
        self.path = path
        self.terms = terms
        self.charges = [each for each in entries if isinstance(each, Charge)]
        self.torn = sum(isinstance(each, Torn) for each in entries)
        self._file = file
        self._budget = Budget(terms.epsilon, terms.delta, [each.event for each in self.charges])
        self._accountant = Accountant(terms.delta, kinds=_KINDS)

    # --- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def begin(cls, path: str | Path, terms: Terms) -> Ledger:
        """Make the ledger at `path`, or go on with it, and hold it until `close` or the end of the process.

        Raises BudgetError where it is damaged, in use, of other terms, or beyond its budget; ConfigError for terms that
        cannot be; MissingExtraError without the extra.
        """
        epsilon([], terms.delta)  # without the extra it ends here and not in a round
        path = Path(path)
        with _failing(path):
            file = lines.Appender(path, _write(terms))
            try:
                found, entries = _entries(path, file.bodies)
                if found != terms:
                    raise BudgetError(f"{path} is of other terms: {_different(found, terms)}", hint=_NEW)
                if file.rest:
                    entries.append(_left(file.rest, file.sum))
                    file.append(_write(entries[-1]))
                ledger = cls(path, terms, entries, file)
                if ledger._budget.exceeded():
                    raise BudgetError(f"{path} is spent: {ledger.statement()}", hint=_NEW)
            except BaseException:
                file.close()
                raise
        return ledger

    @classmethod
    def nowhere(cls, terms: Terms) -> Ledger:
        """A ledger that ends with the process, for runs that keep nothing. Raises as `begin` does."""
        epsilon([], terms.delta)
        return cls(Path("memory"), terms, [], _Nowhere())

    @classmethod
    def read(cls, path: str | Path) -> Ledger:
        """The ledger as it is on disk, to look at only.  Raises BudgetError where it is damaged or not there."""
        path = Path(path)
        with _failing(path):
            bodies, before, rest = lines.read(path)
        terms, entries = _entries(path, bodies)
        return cls(path, terms, [*entries, *([_left(rest, before)] if rest else [])], None)

    def close(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- charging -----------------------------------------------------------------------------------------------

    def charge(self, event: Event, round: int, attempt: int = 0, *, private: bool = True) -> None:
        """Pay for a release. When this returns, the charge is on the disk and the release may happen; not before.

        Every call counts, also one for a round that was charged before: a run that resumes a round draws new
        noise. Only the rounds of one stream of correlated noise are one event together; that it is charged round
        by round keeps a round of it from being released twice.

        Raises BudgetError, and charges nothing, where the budget does not allow it, where the round of a stream
        was charged before, or where the ledger cannot be written.
        """
        if self._file is None:
            raise BudgetError(f"{self.path} is not open for writing", hint="open it with Ledger.begin")
        if round < 0 or attempt < 0:
            raise ConfigError(
                f"round {round}, attempt {attempt} cannot be charged", hint="both are 0 or more"
            )
        if isinstance(event, Correlated):
            self._check_stream(event, round)
        if not self._budget.allows(event):
            raise BudgetError(
                f"round {round} would spend more than epsilon = {self.terms.epsilon:g} (delta = {self.terms.delta:g})",
                hint="stop here, or begin anew with more noise, fewer rounds or a smaller share of the population",
            )
        entry = Charge(round=round, attempt=attempt, event=event, private=private)
        with _failing(self.path):
            self._file.append(_write(entry))
        self.charges.append(entry)
        self._budget.add(event)

    def allows(self, event: Event) -> bool:
        """Whether the budget has room for this release."""
        return self._budget.allows(event)

    def _check_stream(self, event: Correlated, round: int) -> None:
        before = [each for each in self.charges if isinstance(each.event, Correlated)]
        same = [each for each in before if each.event.stream == event.stream]  # type: ignore[union-attr]
        if any(each.event != event for each in same):
            raise BudgetError(f"stream {event.stream} was another mechanism before", hint=_STREAM)
        if len({each.round for each in same}) >= event.rounds:
            raise BudgetError(
                f"stream {event.stream} has {event.rounds} rounds, all of them used", hint=_STREAM
            )
        if any(each.round == round for each in same):
            raise BudgetError(
                f"round {round} of stream {event.stream} was charged before: the same noise on another sum shows both",
                hint=_STREAM,
            )

    # --- telling ------------------------------------------------------------------------------------------------

    def spent(self) -> Epsilon:
        """What all charges come to."""
        return epsilon([each.event for each in self.charges], self.terms.delta)

    def at_most(self) -> float:
        """What all charges come to, in milliseconds: `spent`, but for runs of many different events more than that."""
        return self._accountant.told(self._budget.events).epsilon

    def statement(self) -> str:
        """One sentence that says what was promised to whom, and on what it rests."""
        found = self.spent()
        if not self.charges:
            return (
                f"nothing was released: no {self.terms.level} of {self.terms.population:,} can be told by it"
            )
        rounds = len({each.round for each in self.charges})
        sampling = " and ".join(dict.fromkeys(str(each.event.sampling) for each in self.charges))
        neighbours = {"add-remove": "is there or not", "replace-one": "is exchanged for another"}[
            found.adjacency
        ]
        said = (
            f"epsilon = {found.epsilon:.4g} at delta = {found.delta:g} for every {self.terms.level}, who {neighbours}"
            f" ({found.adjacency}), after {rounds:,} round{'s' * (rounds != 1)} with {sampling}, by {found.accountant}"
        )
        if self.terms.level == "record":
            said = said.replace(", who ", ", which ", 1)
        if not all(each.private for each in self.charges):
            said = f"no promise: noise followed from a seed; were it secret, {said}"
        return f"{said}; {self.torn} line{'s' * (self.torn != 1)} found cut off" if self.torn else said


def parallel(ledgers: Sequence[Ledger]) -> float:
    """The epsilon of several clients' record-level ledgers together: the largest, where no record is at two clients.

    Raises ConfigError where a ledger is about users: what one user did at two clients adds up.
    """
    if any(each.terms.level != "record" for each in ledgers):
        raise ConfigError(
            "users do not compose in parallel", hint="one ledger for all rounds is the one to ask"
        )
    return max((each.spent().epsilon for each in ledgers), default=0.0)


# --- lines ----------------------------------------------------------------------------------------------------------

_NEW = "name another file for another run, or begin with the terms that the ledger has"
_STREAM = "begin another stream, with a key of its own: it is charged anew"


def _write(entry: _Line) -> bytes:
    return msgspec.json.encode(entry)


def _entries(path: Path, bodies: Sequence[bytes]) -> tuple[Terms, list[Charge | Torn]]:
    """Terms and entries.  Raises BudgetError where they are none."""
    entries: list[_Line] = []
    for number, body in enumerate(bodies, 1):
        try:
            entries.append(msgspec.json.decode(body, type=_Line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BudgetError(f"{path}, line {number} cannot be read: {error}", hint=lines.DAMAGED) from None
    first, rest = entries[:1], entries[1:]
    later: list[Charge | Torn] = [each for each in rest if not isinstance(each, Terms)]
    if not first or not isinstance(first[0], Terms) or len(later) < len(rest):
        raise BudgetError(f"{path} is no ledger of privacy", hint=lines.DAMAGED)
    return first[0], later


def _left(rest: bytes, before: str) -> Charge | Torn:
    """What a line without its end stands for: a charge that is all there but for the end counts, less is only noted."""
    found = lines.entry(rest, before)
    if found is not None:
        with contextlib.suppress(msgspec.DecodeError):
            entry = msgspec.json.decode(found[0], type=_Line)
            if isinstance(entry, Charge):
                return entry
    return Torn(text=rest[:400].decode("utf-8", "replace"))


def _different(found: Terms, wanted: Terms) -> str:
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in Terms.__struct_fields__]
    return ", ".join(
        f"{name} is {there} there and {here} here" for name, there, here in pairs if there != here
    )


@contextlib.contextmanager
def _failing(path: Path) -> Iterator[None]:
    """Inside, what cannot be read or written becomes an error that says so."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "nothing is released without it: free space, or name another file for a new run"
        raise BudgetError(f"cannot use the ledger {path}: {reason}", hint=hint) from None
