"""Which columns stay: by what they tell of the label, at one party or over all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import CodecError, ConfigError
from atoll.parties import Field, Kind, Link
from atoll.tensors import Record
from atoll.vertical.side import FloatArray, Side

__all__ = ["KEPT", "Selection", "select_answer", "select_ask", "taken"]

Chosen = NDArray[np.bool_]

KEPT = Kind("select.kept", {"kept": Field("bool", (None,))}, "which of the host's columns are kept")


@dataclass(frozen=True)
class Selection:
    """A rule; with several settings a column must pass them all.

    Args:
        least: of a column's figure (IV: 0.02 is a usual bound).
        most: of it; an IV above 0.5 or so may be the label itself in another form.
        top: so many columns with the highest figures.
        share: that share of the columns, those with the highest figures, rounded up.
    """

    least: float | None = None
    most: float | None = None
    top: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise ConfigError(f"top = {self.top} must be 1 at least")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError(f"share = {self.share} must be above 0, up to 1")
        if all(each is None for each in (self.least, self.most, self.top, self.share)):
            raise ConfigError("a selection needs a rule", hint="least, most, top or share")

    def choose(self, figures: FloatArray) -> Chosen:
        """Which columns are kept, bool [d]; of equal ones the first."""
        kept = np.ones(len(figures), bool)
        kept &= True if self.least is None else figures >= self.least
        kept &= True if self.most is None else figures <= self.most
        count = len(figures)
        if self.top is not None:
            count = min(count, self.top)
        if self.share is not None:
            count = min(count, int(np.ceil(self.share * len(figures) - 1e-9)))
        # Those that another rule has dropped take nobody's place.
        ranked = np.argsort(np.where(kept, -figures, np.inf), kind="stable")
        kept[ranked[count:]] = False
        return kept


async def select_ask(
    link: Link, own: FloatArray, hosts: Mapping[str, FloatArray], rule: Selection
) -> dict[str, Chosen]:
    """The guest applies a rule to the columns of all together, and tells each host what stays of its own.

    Args:
        own: figures of its columns, [d].
        hosts: of each host's, in the order in which the guest knows them (`woe_ask`).
    """
    parts = {link.name: own, **hosts}
    kept = rule.choose(np.concatenate(list(parts.values())))
    cuts = np.cumsum([len(each) for each in parts.values()])[:-1]
    found = dict(zip(parts, np.split(kept, cuts), strict=True))
    for host in hosts:
        await link.send(host, KEPT, Record(kept=torch.from_numpy(found[host])))
    return found


async def select_answer(link: Link, place: NDArray[np.int64], guest: str = "guest") -> Chosen:
    """A host's part: which of its columns stay, in its own order.

    Args:
        place: under which the guest knows each of them (`woe_answer`).
    """
    kept: Chosen = (await link.receive(guest, KEPT)).kept.numpy()
    if len(kept) != len(place):
        raise CodecError(f"{KEPT.name} of {guest} is of {len(kept)} columns, and there are {len(place)}")
    return kept[place]


def taken(side: Side, kept: Chosen) -> Side:
    """The side with some of its columns."""
    names = tuple(name for name, stays in zip(side.columns, kept, strict=True) if stays)
    return replace(side, x=side.x[:, kept], columns=names)
