"""When the server takes a step: after a round, or whenever enough replies are there, and what late ones count for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atoll import spec
from atoll.errors import ConfigError

__all__ = [
    "Buffered",
    "Deadline",
    "Late",
    "Mixing",
    "Pace",
    "Pairs",
    "Schedule",
    "Synchronous",
    "deadline",
    "late",
    "pace",
    "paces",
]


@dataclass(frozen=True)
class Synchronous:
    """Rounds: the server waits for those whom it has asked."""

    text: str = "sync"


@dataclass(frozen=True)
class Buffered:
    """A step for every `size` replies, whoever sends them.   FedBuff: Nguyen et al., AISTATS 2022, Algorithm 1

        w <- w + (1/size) sum_k s(tau_k) D_k,     s(tau) = (1 + tau)^-exponent

    tau_k is how many steps the server has taken since client k was sent its model. The sum is the method's own
    average, with equal weights, so that any server optimiser takes the step (their eta_g is its `server_lr`).
    """

    size: int
    exponent: float = 0.5
    text: str = "buffered"

    def discount(self, staleness: int) -> float:
        """s(tau)."""
        return float((1.0 + staleness) ** -self.exponent)


@dataclass(frozen=True)
class Mixing:
    """A step for every reply, toward the client's model.   FedAsync: Xie, Koyejo and Gupta 2019, Algorithm 1

        w <- (1 - a) w + a (w_tau + D),     a = alpha s(tau)
        constant  s = 1;    poly  s = (1 + tau)^-a;    hinge  s = 1 if tau <= b else 1 / (a (tau - b) + 1)

    w_tau is the model that the client was sent. The step is the method's own, along a (w_tau + D - w).
    """

    kind: Literal["constant", "poly", "hinge"]
    alpha: float = 0.6
    a: float = 0.5
    b: float = 4.0
    text: str = "fedasync"
    size: int = 1

    def discount(self, staleness: int) -> float:
        """alpha s(tau)."""
        if self.kind == "poly":
            return float(self.alpha * (1.0 + staleness) ** -self.a)
        if self.kind == "hinge" and staleness > self.b:
            return self.alpha / (self.a * (staleness - self.b) + 1.0)
        return self.alpha


@dataclass(frozen=True)
class Pairs:
    """A step for every peer that is done: it takes the mean with one neighbour, and goes on (AD-PSGD).

    There is no server, and no reply is late: what a peer learned counts in full, whatever others have made of its model
    meanwhile.   Lian et al., ICML 2018 (see `atoll.methods.neighbours.adpsgd`)
    """

    text: str = "pairs"
    size: int = 1

    def discount(self, staleness: int) -> float:
        """1."""
        return 1.0


Pace = Synchronous | Buffered | Mixing | Pairs

_BUFFERED = spec.whole("size", at_least=1), spec.number("exponent", at_least=0, optional=True)
_FORMULAS = {
    "constant": "s = 1",
    "poly": "s = (1 + t)^-a",
    "hinge": "s = 1 up to t = b, then 1 / (a (t - b) + 1)",
}
_KINDS = {
    "constant": (spec.number("alpha", above=0, at_most=1, optional=True),),
    "poly": (
        spec.number("a", at_least=0, optional=True),
        spec.number("alpha", above=0, at_most=1, optional=True),
    ),
    "hinge": (
        spec.number("a", above=0, optional=True),
        spec.number("b", at_least=0, optional=True),
        spec.number("alpha", above=0, at_most=1, optional=True),
    ),
}


def paces() -> list[tuple[str, str]]:
    """How each pace is written, and what it is."""
    mixing = "A step for every reply, mixed in by alpha s(staleness), FedAsync (Xie et al. 2019)"
    return [
        (spec.usage("sync", ()), "Rounds: the server waits for those whom it has asked."),
        (
            spec.usage("buffered", _BUFFERED),
            "A step for every SIZE replies, FedBuff (Nguyen et al., AISTATS 2022).",
        ),
        *(
            (spec.usage(f"fedasync:{kind}", form).replace("[:", "[,"), f"{mixing}, {_FORMULAS[kind]}.")
            for kind, form in _KINDS.items()
        ),
        (
            spec.usage("pairs", ()),
            "A step for every peer that is done, with one neighbour: AD-PSGD (Lian et al. 2018).",
        ),
    ]


def pace(text: str) -> Pace:
    """Read "sync", "buffered:SIZE[,EXPONENT]", "fedasync:constant", "fedasync:poly,A[,ALPHA]", "fedasync:hinge,A,B",
    "pairs".

    Raises ConfigError.

    >>> pace("fedasync:poly,0.5").discount(3)
    0.3
    """
    call = spec.parse(text, "pace")
    if call.name == "fedasync":
        kind, _, rest = (call.given or "poly").partition(",")
        inner = spec.Call(kind.strip(), rest if rest else None, "pace fedasync:", text)
        return Mixing(kind.strip(), **inner.read(_KINDS), text=text)  # type: ignore[arg-type]
    given = call.read(
        {
            "sync": (),
            "buffered": _BUFFERED,
            "fedasync": (),
            "pairs": (),
        }
    )
    if call.name == "pairs":
        return Pairs()
    return Buffered(**given, text=text) if call.name == "buffered" else Synchronous(text)


@dataclass(frozen=True)
class Late:
    """What becomes of replies that come after a synchronous round has ended.

    "drop": the work is broken off; "keep": the reply counts in the round in which it comes, (1 + tau)^-exponent as
    much; "partial": slow clients do as many local steps as the deadline leaves them time for.
    """

    kind: Literal["drop", "keep", "partial"] = "drop"
    exponent: float = 0.5

    def discount(self, staleness: int) -> float:
        """What a reply counts for that comes so many rounds late."""
        return float((1.0 + staleness) ** -self.exponent)


def late(text: str) -> Late:
    """Read "drop", "keep[:EXPONENT]", "partial".  Raises ConfigError."""
    call = spec.parse(text, "late")
    known = {"drop": (), "keep": (spec.number("exponent", at_least=0, optional=True),), "partial": ()}
    return Late(call.name, **call.read(known))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Deadline:
    """How long a synchronous round may take: seconds, or the time in which a share of those asked would be done."""

    seconds: float | None = None
    share: float | None = None

    def of(self, expected: NDArray[np.float64]) -> float:
        """Seconds for a round of clients that would take so long, each of them."""
        if self.seconds is not None:
            return self.seconds
        assert self.share is not None
        known = np.sort(expected[np.isfinite(expected)])
        return float(known[max(0, math.ceil(self.share * len(known)) - 1)]) if len(known) else math.inf


def deadline(given: float | str) -> Deadline:
    """Read a number of seconds, or "share:0.8".  Raises ConfigError.

    >>> deadline("share:0.5").of(np.array([3.0, 1.0, 2.0, 9.0]))
    2.0
    """
    if isinstance(given, str) and given.partition(":")[0].strip() == "share":
        call = spec.parse(given, "deadline")
        return Deadline(share=call.read({"share": (spec.number("share", above=0, at_most=1),)})["share"])
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigError(
            f"deadline = {given!r} is no number of seconds above 0",
            hint="write seconds, or share:0.8 for the time in which that share of those asked would be done",
        )
    return Deadline(seconds)


@dataclass(frozen=True)
class Schedule:
    """How a run goes by the clock.

    Args:
        pace: when the server takes a step.
        deadline: how long a synchronous round may take; None waits for all.
        over_select: how many times the cohort are asked; the round ends with the replies of a cohort.
        quorum: replies that a synchronous round needs, or it teaches nothing.
        late: what becomes of replies that come later.
        retry: how many times an order that broke off is given again.
        rests: after so many orders in a row that a client broke off, for how many rounds it is not asked.
        concurrency: clients at work at a time, where the pace is asynchronous.
    """

    pace: Pace = Synchronous()
    deadline: Deadline | None = None
    over_select: float = 1.0
    quorum: int = 1
    late: Late = Late()
    retry: int = 0
    rests: tuple[int, int] | None = None
    concurrency: int | None = None
