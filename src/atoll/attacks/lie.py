"""What a lying client sends: what a lie is, and what its maker knows."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from atoll.spec import Parameter

__all__ = ["Lie", "Seen", "worst", "written"]


class Seen(NamedTuple):
    """What a liar knows when it makes up its update; d numbers are all that a client sends, behind one another.

    `own` [d] is what it would have sent. `others` [n, d] is what the honest clients of the round send, in the order of
    clients; of lies that do not look (`Lie.looks`) nobody, [0, d]. Where all of a round lie it is what they would have
    sent themselves. `liars` counts those of the round, `share` is that of the liars among all clients. `key` is a
    random stream of this client and round, int64 scalar. `harm` says how far from the honest clients' mean the server
    would end up if all liars sent a vector: who knows it knows the rule that the server goes by.
    """

    own: Tensor
    others: Tensor
    liars: int
    share: float
    key: Tensor
    harm: Callable[[Tensor], float]


@dataclass(frozen=True)
class Lie(ABC):
    """An update that was never computed; a frozen dataclass, whose fields are its settings."""

    name: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    looks: ClassVar[bool] = False
    """Whether it is made of what others send; all liars of a round then send the same."""

    @property
    def text(self) -> str:
        """How it is written."""
        return written(self)

    @abstractmethod
    def sent(self, seen: Seen) -> Tensor:
        """What is sent [d]; what is not finite is refused like any such update."""


class _Named(Protocol):
    """What has a name and settings."""

    @property
    def name(self) -> str: ...


def written(part: _Named) -> str:
    """The name of part of an attack with its settings, as far as they are not what they usually are."""
    said: list[str] = []
    whole = True  # so far no setting was left out
    for each in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, each.name)
        if value == each.default:
            whole = False
        else:
            said.append(_plain(value) if whole else f"{each.name}={_plain(value)}")
    return f"{part.name}:{','.join(said)}" if said else part.name


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def worst(harm: Callable[[float], float], start: float, tries: int = 12) -> float:
    """A factor from 0 on that does much harm, at least as much as the one to start with.

    Steps double while they help and are halved otherwise, so many times: a server that takes a mean can be moved
    without end.
    """
    best, value, step = start, harm(start), start or 1.0
    for _ in range(tries):
        for there in (best + step, max(0.0, best - step)):
            found = harm(there)
            if found > value:
                best, value, step = there, found, 2 * step
                break
        else:
            step /= 2
    return best
