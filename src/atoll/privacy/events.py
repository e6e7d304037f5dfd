"""What happened to the data of one run, as far as privacy is concerned: a small closed set of typed events.

Every event says how much one participant (a user, or a record: the ledger's level) can change what was released,
against the noise that was put on it. `noise` is always the standard deviation (of Laplace: the scale) divided by
the bound on ONE participant's contribution, the clip. Which neighbours that means follows from how participants
were sampled: where participants come and go (`Poisson`, `Everyone`) neighbours differ by one that is there or
not, "add-remove"; where the size of the cohort is fixed they differ by one that is exchanged for another,
"replace-one", which moves a sum by up to twice the clip. Accounting does that doubling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct

from atoll.errors import ConfigError
from atoll.privacy import factorised

__all__ = [
    "Adjacency", "Correlated", "DiscreteGaussian", "Event", "Everyone", "Fixed", "Gaussian", "Laplace", "Poisson",
    "Sampling", "Skellam", "adjacency", "tally", "with_noise",
]  # fmt: skip

Adjacency = Literal["add-remove", "replace-one"]


class Everyone(Struct, frozen=True, forbid_unknown_fields=True, tag="everyone"):
    """Every participant takes part, or who does was not drawn by chance: nothing is gained from sampling."""

    def __str__(self) -> str:
        return "no sampling"


class Poisson(Struct, frozen=True, forbid_unknown_fields=True, tag="poisson"):
    """Each participant takes part with probability `rate`, independently of all others and of other rounds."""

    rate: float

    def __post_init__(self) -> None:
        _number("rate", self.rate, 0 < self.rate <= 1, "above 0 and at most 1")

    def __str__(self) -> str:
        return f"Poisson sampling at rate {self.rate:.6g}"


class Fixed(Struct, frozen=True, forbid_unknown_fields=True, tag="fixed"):
    """A cohort of exactly `cohort` of `population`, drawn uniformly without replacement and anew each round."""

    cohort: int
    population: int

    def __post_init__(self) -> None:
        _number("cohort", self.cohort, 1 <= self.cohort <= self.population, f"from 1 to {self.population}")

    def __str__(self) -> str:
        return f"a fixed cohort of {self.cohort:,} of {self.population:,}"


Sampling = Poisson | Fixed | Everyone


class _Counted(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    count: int = 1

    def __post_init__(self) -> None:
        _number("count", self.count, self.count >= 1, "1 or more")


class Gaussian(_Counted, frozen=True, tag="gaussian"):
    """Normal noise on the sum of a cohort's clipped contributions: `noise` = deviation / clip (L2)."""

    noise: float
    sampling: Sampling = Everyone()

    def __post_init__(self) -> None:
        _Counted.__post_init__(self)
        _noise(self.noise)


class Laplace(_Counted, frozen=True, tag="laplace"):
    """Laplace noise put on by each participant itself (local privacy): `noise` = scale / clip (L1)."""

    noise: float

    def __post_init__(self) -> None:
        _Counted.__post_init__(self)
        _noise(self.noise)

    @property
    def sampling(self) -> Sampling:
        return Everyone()


class DiscreteGaussian(_Counted, frozen=True, tag="discrete-gaussian"):
    """Discrete normal noise in `shares` parts of deviation `share` on a sum of whole numbers (distributed privacy).

    `l2` bounds one participant's contribution after rounding, in the same units; `dimension` is its length. Count
    only the shares that are sure to arrive: the least number of survivors.   Kairouz, Liu and Steinke, ICML 2021.
    """

    share: float
    shares: int
    l2: float
    dimension: int
    sampling: Sampling = Everyone()

    def __post_init__(self) -> None:
        _Counted.__post_init__(self)
        _number("share", self.share, self.share > 0, "above 0")
        _number("shares", self.shares, self.shares >= 1, "1 or more")
        _number("l2", self.l2, self.l2 > 0, "above 0")
        _number("dimension", self.dimension, self.dimension >= 1, "1 or more")

    @property
    def noise(self) -> float:
        return self.share * math.sqrt(self.shares) / self.l2


class Skellam(_Counted, frozen=True, tag="skellam"):
    """Skellam noise of deviation `deviation` in all on a sum of whole numbers (distributed privacy).

    `l1` and `l2` bound one participant's contribution after rounding, in the same units. Sums of Skellam noise
    are Skellam noise: only the shares that are sure to arrive count.   Agarwal, Kairouz and Liu, NeurIPS 2021.
    """

    deviation: float
    l1: float
    l2: float
    sampling: Sampling = Everyone()

    def __post_init__(self) -> None:
        _Counted.__post_init__(self)
        _number("deviation", self.deviation, self.deviation > 0, "above 0")
        _number("l2", self.l2, self.l2 > 0, "above 0")
        _number("l1", self.l1, self.l1 >= self.l2, "l2 or more")

    @property
    def noise(self) -> float:
        return self.deviation / self.l2


class Correlated(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="correlated"):
    """Correlated noise of a whole stream of `rounds` rounds: ONE event, however many of them are played.

    `matrix` is "tree" or "banded" (with `bands`), `noise` the deviation of the independent draws over the clip. A
    participant takes part at most once in any `separation` consecutive rounds, which the one who samples must see
    to. `stream` tells one stream's noise from another's; it is public. Two rounds of one stream must never be
    released for one round number.
    """

    matrix: Literal["tree", "banded"]
    noise: float
    rounds: int
    separation: int
    stream: str
    bands: int = 1

    def __post_init__(self) -> None:
        _noise(self.noise)
        _number("rounds", self.rounds, self.rounds >= 1, "1 or more")
        _number("separation", self.separation, self.separation >= 1, "1 or more")
        _number("bands", self.bands, self.bands >= 1, "1 or more")
        if not self.stream:
            raise ConfigError(
                "a stream of correlated noise has no name", hint="give stream= a name of its own"
            )
        if self.matrix == "banded" and self.separation < self.bands:
            raise ConfigError(
                f"separation cannot be {self.separation} with {self.bands} bands",
                hint="bands are at most as many as the rounds between two turns of one participant",
            )

    @property
    def sampling(self) -> Sampling:
        return Everyone()

    @property
    def sensitivity(self) -> float:
        """How far one participant moves what is released, in clips (L2, over all rounds together)."""
        if self.matrix == "tree":
            return factorised.tree_sensitivity(self.rounds, self.separation)
        return factorised.banded_sensitivity(self.rounds, self.separation)

    @property
    def single(self) -> Gaussian:
        """The one Gaussian event that the stream is."""
        return Gaussian(noise=self.noise / self.sensitivity)


Event = Gaussian | Laplace | DiscreteGaussian | Skellam | Correlated
"""All there is. `msgspec` writes and reads events by their tags, and nothing else."""


def adjacency(events: Iterable[Event]) -> Adjacency:
    """Which neighbours a statement about these events is about: "replace-one" as soon as a cohort's size was fixed."""
    return "replace-one" if any(isinstance(each.sampling, Fixed) for each in events) else "add-remove"


def tally(events: Iterable[Event]) -> dict[Event, int]:
    """How often each event happened, with `count` taken out; a stream of correlated noise happens once.

    >>> tally([Gaussian(noise=1.0, count=3), Gaussian(noise=1.0)])
    {Gaussian(count=1, noise=1.0, sampling=Everyone()): 4}
    """
    found: dict[Event, int] = {}
    for each in events:
        if isinstance(each, Correlated):
            found[each] = 1
        else:
            one: Event = msgspec.structs.replace(each, count=1)
            found[one] = found.get(one, 0) + each.count
    return found


def with_noise(event: Event, noise: float) -> Event:
    """The same event with another `noise`."""
    if isinstance(event, DiscreteGaussian):
        return msgspec.structs.replace(event, share=noise * event.l2 / math.sqrt(event.shares))
    if isinstance(event, Skellam):
        return msgspec.structs.replace(event, deviation=noise * event.l2)
    return msgspec.structs.replace(event, noise=noise)


def _noise(value: float) -> None:
    _number("noise", value, value >= 0, "0 or more")


def _number(name: str, value: float, holds: bool, wanted: str) -> None:
    if not (holds and math.isfinite(value)):
        raise ConfigError(f"{name} cannot be {value!r}", hint=f"{name} is {wanted}")
