"""What a protocol between parties with different columns is: its roles side by side, in one file or folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from atoll.errors import ConfigError
from atoll.parties import Kind, Link
from atoll.tensors import Record
from atoll.vertical.side import FloatArray, Side

__all__ = ["Apart", "Case", "Known", "Progress", "Protocol", "Task"]

Task = Literal["binary", "multiclass", "regression", "poisson"]


@dataclass(frozen=True)
class Case:
    """What all parties of a run know.

    Attributes:
        task: what is learned; `classes` are 2 for binary, their number for multiclass, 1 elsewhere.
        crypto: the cipher ("none", "ou", "paillier", "ckks"), with its bits where they are not the usual ("ou-3072").
        seed: of what all may draw alike (batches, first weights). Masks and keys come from the operating system.
        guest, hosts, arbiter: who has the label, who has other columns, who has a key and no data.
    """

    task: Task
    classes: int = 2
    crypto: str = "none"
    seed: int = 0
    guest: str = "guest"
    hosts: tuple[str, ...] = ("host",)
    arbiter: str | None = None


@dataclass(frozen=True)
class Known:
    """What a party knows of columns in the end: what they are worth to the model, or tell without one.

    Attributes:
        columns: names of its own, and of others' columns such as "host.2", of which it knows a number and no name.
        figures: by name ("gain", "weight", "iv" ...), one for each column.
        correlations: [d, d], where they were asked for.
    """

    columns: tuple[str, ...]
    figures: Mapping[str, FloatArray]
    correlations: FloatArray | None = None


@dataclass
class Progress:
    """Where a party's part begins, and whom it tells of what is finished.

    Attributes:
        number: trees or epochs that are finished already; `half` is this party's part of the model then, None at first.
        tell: is told after each by every role, the arbiter's too: its number from 1, this party's part of the model,
            and figures to show (at the guest).
    """

    number: int = 0
    half: Record | None = None
    tell: Callable[[int, Record, Mapping[str, float]], None] = field(
        default=lambda number, half, figures: None
    )


@dataclass(frozen=True)
class Protocol(ABC):
    """A frozen dataclass whose fields are the protocol's settings, as they stand in its table of a file.

    Each role is an async function that sees its own side and a link. Party for party, what `guest` and `host` return is
    that party's half of the model, which stays there. The same settings, case and rows give the same halves, whatever
    the cipher ("none" sends the same numbers open), up to its precision.

    Attributes:
        ciphers: what it can run under; `tasks` what it can learn.
        kinds: all that its roles say to each other.
        predicts: whether its halves are a model, with `score` and `answer`.
    """

    name: ClassVar[str]
    says: ClassVar[str]
    """What it is, in a line."""
    ciphers: ClassVar[tuple[str, ...]]
    tasks: ClassVar[tuple[Task, ...]]
    kinds: ClassVar[tuple[Kind, ...]]
    predicts: ClassVar[bool] = True

    @property
    def steps(self) -> int:
        """How many trees or epochs there are at most."""
        raise NotImplementedError

    @property
    def usual(self) -> str:
        """The cipher that is taken where none is asked for."""
        return next(each for each in ("ou", "ckks", "none") if each in self.ciphers)

    @property
    def needs_arbiter(self) -> bool:
        """Whether a third party has the key."""
        return False

    def check(self, case: Case) -> None:
        """Raise ConfigError where this cannot be learned so."""
        cipher = case.crypto.partition("-")[0]
        if cipher not in self.ciphers:
            raise ConfigError(
                f"crypto = {case.crypto!r} is nothing for protocol = {self.name!r}",
                hint=f"it knows {', '.join(self.ciphers)}",
            )
        if case.task not in self.tasks:
            raise ConfigError(
                f"task = {case.task!r} is nothing for protocol = {self.name!r}",
                hint=f"it knows {', '.join(self.tasks)}",
            )
        if self.needs_arbiter and case.arbiter is None:
            raise ConfigError(
                f"protocol = {self.name!r} with these settings needs an arbiter", hint="add [party.arbiter]"
            )

    # --- learning -----------------------------------------------------------------------------------------------

    @abstractmethod
    async def guest(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        """Who has the label."""

    @abstractmethod
    async def host(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        """Who has other columns; there may be several."""

    async def arbiter(self, link: Link, case: Case, progress: Progress) -> None:
        """Who has the key and no data."""
        raise NotImplementedError

    # --- predicting ---------------------------------------------------------------------------------------------

    @abstractmethod
    async def score(self, link: Link, side: Side, case: Case, half: Record) -> FloatArray:
        """What the guest makes of rows: probabilities [n] (binary) or [n, classes], or expected values [n]."""

    @abstractmethod
    async def answer(self, link: Link, side: Side, case: Case, half: Record) -> None:
        """A host's part in that."""

    # --- what columns are worth ---------------------------------------------------------------------------------

    def knows(self, case: Case, party: str, columns: Sequence[str], half: Record) -> Known | None:
        """What a party can tell of columns by its half; None where nothing.

        Args:
            columns: the names of its own, as the protocol has had them.
        """
        return None


@dataclass(frozen=True)
class Apart(Protocol):
    """A protocol whose parties have no rows in common: the guest is a server without data, each host has its own.

    Nothing is aligned, and the halves predict no rows.
    """

    ciphers: ClassVar[tuple[str, ...]] = ("none",)
    tasks: ClassVar[tuple[Task, ...]] = ("binary", "multiclass", "regression", "poisson")
    predicts: ClassVar[bool] = False

    @abstractmethod
    def read(self, source: Any) -> Any:
        """A host's data from where it is.  Raises DataError."""

    @abstractmethod
    async def server(self, link: Link, case: Case, progress: Progress) -> tuple[Record, Mapping[str, float]]:
        """The guest: its half of the model, and figures of what hosts keep to be judged on."""

    @abstractmethod
    async def client(self, link: Link, data: Any, case: Case, share: float, progress: Progress) -> Record:
        """A host, which keeps this share of its data to be judged on: its half of the model."""

    async def guest(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        raise self._rowless()

    async def host(self, link: Link, side: Side, case: Case, progress: Progress) -> Record:
        raise self._rowless()

    async def score(self, link: Link, side: Side, case: Case, half: Record) -> FloatArray:
        raise self._rowless()

    async def answer(self, link: Link, side: Side, case: Case, half: Record) -> None:
        raise self._rowless()

    def _rowless(self) -> ConfigError:
        return ConfigError(f"protocol = {self.name!r} has no rows that parties have in common")
