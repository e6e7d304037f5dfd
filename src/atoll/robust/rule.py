"""What rules of aggregation are, and what may stand before one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from atoll.errors import ConfigError
from atoll.robust.points import Points
from atoll.robust.rows import Matrix

__all__ = ["Before", "Columns", "Rule", "Stage"]

Draw = np.random.Generator


@dataclass(frozen=True)
class Stage(ABC):
    """A part of an aggregation: a frozen dataclass, whose fields are its settings.

    `least` is how many updates it needs for so many liars: a multiple of f, and something more.
    """

    name: ClassVar[str]
    least: ClassVar[tuple[int, int]] = (0, 1)

    @property
    def liars(self) -> int | None:
        """f, how many updates may be lies; None where it is not said."""
        return getattr(self, "f", None)

    @property
    def text(self) -> str:
        """How it is written."""
        given = [(each, getattr(self, each.name)) for each in fields(self)]
        while given and given[-1][1] == given[-1][0].default:
            given.pop()
        return f"{self.name}:{','.join(_plainly(value) for _, value in given)}" if given else self.name

    def check(self, count: int, liars: int) -> None:
        """Nothing where so many updates are enough.  Raises ConfigError that says what would fit."""
        times, plus = self.least
        need = times * liars + plus
        if count >= need:
            return
        most = (count - plus) // times if times else -1
        formula = f"{times}f + {plus} = {need}" if times else f"{need}"
        fits = f"{self.name} with f = {most} at most" if most >= 0 else "another rule"
        raise ConfigError(
            f"aggregate: {self.text} needs {formula} updates or more for f = {liars}, and there are {count}",
            hint=f"take {fits}, or set cohort to {need} or more",
        )

    def _require(self, name: str, holds: bool, problem: str) -> None:
        if not holds:
            raise ConfigError(
                f"aggregate {self.name!r}: {name} = {getattr(self, name)} {problem}",
                hint="atoll explain aggregate lists all rules, and what they take",
            )


class Before(Stage):
    """What makes other updates of a round's, for the rule behind it: each is a mix of them.

    `counts` is whether it must know how many liars there may be, itself or from the rule behind it.
    """

    counts: ClassVar[bool] = False

    def count(self, count: int) -> int:
        """How many it makes of so many."""
        return count

    @abstractmethod
    def mix(self, points: Points, liars: int, draw: Draw) -> Matrix:
        """The mixes, [m, n]: row by row the coefficients of the updates; what is missing to 1 is the origin's.

        `liars` is f of the aggregation, `draw` a generator of this stage and round.
        """


class Rule(Stage):
    """One update out of a round's, as a mix of them.

    `beside` is what it needs a point of reference for: "centre", what it gave in the last round, or "root", an update
    that the server has made of data of its own.
    """

    beside: ClassVar[Literal["centre", "root"] | None] = None

    @abstractmethod
    def weights(self, points: Points) -> Matrix:
        """The coefficients of the updates, and of the reference behind them where there is one."""

    def noise(self, points: Points) -> float:
        """The deviation of the noise that is added to every number."""
        return 0.0


class Columns(Stage):
    """One update out of a round's, coordinate by coordinate.

    `middle` is `parts` added up, sum_i parts[k, i] x[k, i], quicker: the numbers come in ascending order.
    """

    beside: ClassVar[None] = None

    def chosen(self, points: Points) -> Matrix:
        """Among which mixes of the updates it is taken, [m, n]; by default the updates themselves."""
        return np.eye(points.count)

    @abstractmethod
    def middle(self, ordered: Tensor) -> Tensor:
        """The result [k] for coordinates whose numbers are in order, [k, m]."""

    @abstractmethod
    def parts(self, values: Tensor) -> Tensor:
        """What each number counts for in the result, [k, m], for coordinates [k, m] in any order."""


def _plainly(value: float) -> str:
    """A number as one types it, all of it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
