"""One thing that happens to updates on their way from client to server: what a transform is."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from numpy.typing import NDArray
from torch import Tensor

from atoll.contract import Job
from atoll.errors import ConfigError
from atoll.privacy.source import Source
from atoll.tensors import Record, map_leaves, named_tensors

__all__ = ["Place", "Setting", "Transform", "Update", "Vector", "filled"]

Vector = NDArray[Any]

Place = Literal["gather", "bound", "blur", "shrink", "hide"]
"""Where in a chain a transform stands: what gathers updates, bounds, blurs, packs, hides them; in this order."""


class Update(NamedTuple):
    """What a client is about to send, on its way through a chain.

    `values` has the fields of the method's reply, all of them, with the client's change as a difference (see
    `atoll.contract.Change`). `weight` is what it counts for in a mean. `report` are further scalars for the server
    halves of transforms, which are added up over clients; `metrics` are figures for a simulation's eyes alone.
    """

    values: Record
    weight: Tensor
    report: Record
    metrics: Record


@dataclass(frozen=True)
class Setting:
    """What a chain knows of the run that it is for.

    Args:
        cohort: clients a round; with Poisson sampling the expected number.
        heaviest: the largest weight that a reply may have (training samples of the largest client).
        seed: the run's.
        equal: whether all clients count the same.
        size: numbers in an update.
        rounds: how many the run has.
        turns: each client takes part once in any so many rounds at most; 1 where nothing of the kind is known.
        secret: whether clients draw from secrets of their own, as they do between machines.
        shapes: of the tensors in floating point, field by field, where clients remember as many numbers.
    """

    cohort: int = 1
    heaviest: float = 1.0
    seed: int = 0
    equal: bool = False
    size: int = 1
    rounds: int = 1
    turns: int = 1
    secret: bool = False
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __post_init__(self) -> None:
        made = tuple(
            tuple(tuple(shape) for shape in part) for part in self.shapes
        )  # lists, where it was JSON
        object.__setattr__(self, "shapes", made)


@dataclass(frozen=True)
class Transform(ABC):
    """Both halves of what happens to an update; a frozen dataclass, whose fields are its settings.

    The client half, `send`, is pure and written for one client (no branch on a tensor's value): every engine has it.
    Of the server half, `begin`, `tell` and `learn` keep a state from round to round, of numbers and tensors, the same
    fields and shapes from the beginning to the end; `release` sees the sum over the clients of a round before it
    becomes a mean. `place` says where in a chain it may stand, `needs` what must come before it, and
    `before` what must follow.
    """

    name: ClassVar[str]
    place: ClassVar[Place]
    needs: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()

    # --- what it asks for -------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """How it is written in a chain."""
        return self.name

    @property
    def equal(self) -> bool:
        """Whether clients must count the same, for a bound on one client's share to hold."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether a client remembers as many numbers as it sends, and so must send as many in all rounds."""
        return False

    @property
    def sums(self) -> bool:
        """Whether the server sees no more than the sum over clients."""
        return False

    @property
    def hears(self) -> int | None:
        """Whose news its client half is told, by position in the chain; None: its own."""
        return None

    @property
    def floor(self) -> int:
        """Clients without whom the server learns nothing at all of a round."""
        return 0

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> Transform:
        """The transform for a run, behind these others.  Raises ConfigError where it cannot be used there."""
        return self

    def nbytes(self, values: Record, usual: int) -> int:
        """Bytes that these values of a reply take after it, which are `usual` by themselves."""
        return usual

    # --- client half ------------------------------------------------------------------------------------------

    def own(self, received: Record) -> Record:
        """What a client remembers of it before its first round; empty: nothing, ever."""
        return Record()

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        """The update after it, and what the client remembers.

        Args:
            told: what the server tells clients (`tell`), of this transform or of that which it `hears`.
            own: what the client remembered.
            key: a random stream of this client, round and transform, int64 scalar.
        """
        return update, own

    def drawing(self, source: Source) -> Transform:
        """The transform at a client whose draws nobody else can repeat: they come from this source, once each."""
        return self

    # --- server half ------------------------------------------------------------------------------------------

    def nothing(self) -> Record:
        """The sums of what it reports where nobody came."""
        return Record()

    def begin(self) -> Record:
        """The server's state before the first round."""
        return Record()

    def tell(self, state: Record) -> Record:
        """What clients are told; by default all of the state."""
        return state

    def release(self, sums: Record, told: Record, job: Job) -> Record:
        """The sum over a round's clients after it: fields of `Update.values`, and `channel`, the sums of reports.

        `told` is what the clients were told of all transforms, by their position in the chain ("0", "1" ...).
        """
        return sums

    @property
    def together(self) -> Callable[[Mapping[int, Vector], Job], Vector] | None:
        """What takes the vectors of all clients of a round at once and gives their sum; None: they are just added.

        A vector is all that a client sends, behind one another: int32 or float64.
        """
        return None

    def learn(self, state: Record, mean: Record, report: Record, count: int) -> tuple[Record, Record]:
        """The state after a round, and its mean as the method is to have it.

        Args:
            mean: what the sum was divided to.
            report: the sums over clients of their `Update.report`, `count` of them.
        """
        return state, mean

    def _require(self, name: str, holds: bool, problem: str, hint: str | None = None) -> None:
        if not holds:
            raise ConfigError(f"channel {self.name!r}: {name} = {getattr(self, name)} {problem}", hint=hint)


_T = TypeVar("_T", bound=Transform)


def standing(before: tuple[Transform, ...], kind: type[_T]) -> tuple[int, _T]:
    """Where in a chain the only transform of a kind stands, and itself."""
    ((at, found),) = ((at, each) for at, each in enumerate(before) if isinstance(each, kind))
    return at, found


def filled(values: Record, found: Mapping[str, Tensor]) -> Record:
    """These values with other tensors in their places, by their names, in the types that they have."""
    names = iter([name for name, _ in named_tensors(values)])
    return map_leaves(lambda v: found[next(names)].to(v.dtype), values)  # type: ignore[no-any-return]


def plainly(value: Any) -> str:
    """A number as one types it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
