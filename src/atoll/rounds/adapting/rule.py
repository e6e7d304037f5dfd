"""What a rule is that fits local work to devices and to learning."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.rounds.choosing import Learned
from atoll.tensors import Record

__all__ = ["Away", "Rule", "Seen", "Wish", "fitting", "share_of"]

Numbers = NDArray[np.float64]


class Away(NamedTuple):
    """An order under way: since which virtual second, for how many local steps of how many planned."""

    client: int
    began: float
    steps: int
    planned: int


class Seen(NamedTuple):
    """What a rule may look at before clients begin: arrays over the clients asked, [K].

    `fixed` are the seconds an order takes whatever the work (waiting, download, upload), `step` the seconds of a local
    step, `steps` how many are planned; `epoch` how many make one pass over a client's data. `deadline` is how long the
    round may take, in seconds, inf where nobody said. Without a clock nothing takes any time.

    `uploads` are seconds with each of the codecs that there are to choose between, [codecs, K], where a rule is asked
    for that (`Rule.codecs`); `fixed` is without them then.

    `time` is the virtual second at which they begin; `away` are orders that are under way then, of an asynchronous
    server. When those will come is not in here: no server knows.
    """

    number: int
    clients: NDArray[np.int64]
    fixed: Numbers
    step: Numbers
    steps: NDArray[np.int64]
    epoch: NDArray[np.int64]
    deadline: float
    time: float = 0.0
    away: Sequence[Away] = ()
    uploads: Numbers | None = None


@dataclass(frozen=True)
class Wish:
    """What a rule asks for: the local steps of clients that are to do fewer than planned."""

    steps: Mapping[int, int] = field(default_factory=dict)


class Rule(ABC):
    """Chooses how much clients do, round by round. Concrete rules are frozen dataclasses.

    Its state is a record of numbers and tensors, the same fields from `begin` to the end, so that a run can stop and go
    on. `clocked` rules look at seconds, and need devices; `rounds` is whether a rule is for synchronous rounds only,
    `flights` whether for asynchronous servers only; `limits` whether it sets rounds' deadline itself; `chooses` whether
    it says which codec of the channel clients take; `compares` whether it looks at how far updates lie apart, which a
    method must be able to say (`Method.change`).
    """

    name: ClassVar[str]
    clocked: ClassVar[bool] = False
    rounds: ClassVar[bool] = False
    flights: ClassVar[bool] = False
    limits: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    def begin(self) -> Record:
        """The state before the first round."""
        return Record()

    def plan(self, state: Record, seen: Seen) -> Wish:
        """What the clients are to do."""
        return Wish()

    def codecs(self, state: Record, seen: Seen) -> Mapping[int, int]:
        """Which of the channel's codecs the clients take, from 0; the first for those of whom nothing is said."""
        return {}

    def size(self, state: Record, cohort: int) -> int:
        """How many clients the next round has, of so many wanted. Where they are fewer, the fastest of those drawn."""
        return cohort

    def deadline(self, state: Record, expected: Numbers, given: float) -> float:
        """Seconds that the round may take whose clients would take so long [K]; `given` is what the run says."""
        return given

    def learn(self, state: Record, learned: Learned, time: float) -> Record:
        """The state with what a round has taught that ended at this virtual second (0 without a clock)."""
        return state


def fitting(seen: Seen, seconds: float) -> dict[int, int]:
    """Steps that fit so many seconds, of the clients that have no time for all planned; 0 where none fits."""
    room = np.maximum(seconds - seen.fixed, 0.0)
    most = np.floor(room / np.where(seen.step > 0, seen.step, np.inf) + 1e-9).astype(np.int64)
    most = np.where(seen.step > 0, most, np.where(seen.fixed <= seconds, seen.steps, 0))
    short = most < seen.steps
    return {int(k): int(n) for k, n in zip(seen.clients[short], most[short], strict=True)}


def share_of(seen: Seen, share: float) -> Wish:
    """This share of the steps planned, rounded up, at least one."""
    if share >= 1:
        return Wish()
    steps = np.maximum(np.ceil(seen.steps * share - 1e-9), 1).astype(np.int64)
    short = steps < seen.steps
    return Wish({int(k): int(n) for k, n in zip(seen.clients[short], steps[short], strict=True)})
