"""What is done to columns before a protocol learns of them: steps of a text, such as ``impute:median + woe:10``.

Each party does them to its own columns. What a step learns of the training rows stays in the party's half of the model
and is applied to all other rows. Steps that need the label (`woe`, `select`) learn by the encrypted sums of `woe_ask`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from atoll import spec
from atoll.errors import ConfigError, DataError
from atoll.he import keygen
from atoll.parties import Kind, Link
from atoll.tensors import Record, Tensors
from atoll.vertical.features import woe
from atoll.vertical.features.binning import ManualBins, QuantileBins, binned
from atoll.vertical.features.selection import KEPT, Selection, select_answer, select_ask, taken
from atoll.vertical.features.transform import Impute, OneHot, Standardise, Transform, columns_of, named
from atoll.vertical.features.woe import Woe, encoded, woe_answer, woe_ask, woe_own
from atoll.vertical.protocol import Case
from atoll.vertical.side import Side

__all__ = ["KINDS", "Evidence", "Own", "Steps", "check", "describe", "found", "parse"]

KINDS: tuple[Kind, ...] = (*woe.KINDS, KEPT)

BINS, ROWS = 10, 5
"""Bins of a column, and rows of each at least, where a step says nothing else."""

Edges = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Own:
    """What only one party's table says of its columns.

    Args:
        onehot: columns that the step `onehot` spreads.
        edges: of bins, for columns whose bins are not quantiles.
    """

    onehot: tuple[str, ...] = ()
    edges: Edges = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What a party knows of columns by the label.

    Attributes:
        bins: of its own columns, as `QuantileBins` learns them.
        own: of its own columns; `woe` is there where it may know it.
        hosts: at the guest, of each host's columns in an order that the host alone knows.
        place: at a host, the place of each of its columns in that order.
    """

    bins: Record
    own: Woe
    hosts: Mapping[str, Woe] = field(default_factory=dict)
    place: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class _Here:
    """Where steps are learned: who this is, on which of the rows all know the label, what is known of the columns."""

    link: Link
    case: Case
    shared: int
    evidence: Evidence | None = None


class _Step(ABC):
    """One step, as one party does it."""

    @abstractmethod
    async def learn(self, here: _Here, side: Side) -> Record: ...

    @abstractmethod
    def apply(self, side: Side, learned: Record) -> Side: ...


@dataclass(frozen=True)
class _Alone(_Step):
    """A party's own business."""

    transform: Transform

    async def learn(self, here: _Here, side: Side) -> Record:
        here.evidence = None
        return self.transform.fit(side)

    def apply(self, side: Side, learned: Record) -> Side:
        return self.transform.apply(side, learned)


@dataclass(frozen=True)
class _Bins(_Step):
    """The number of its bin in the place of each value."""

    count: int
    edges: Edges

    async def learn(self, here: _Here, side: Side) -> Record:
        here.evidence = None
        return _edges(side, self.count, 1, self.edges)

    def apply(self, side: Side, learned: Record) -> Side:
        return QuantileBins().apply(side, learned)


@dataclass(frozen=True)
class _Weights(_Step):
    """The weight of evidence of its bin in the place of each value."""

    count: int
    rows: int
    edges: Edges

    async def learn(self, here: _Here, side: Side) -> Record:
        told = await found(
            here.link, side.take(slice(here.shared)), here.case, self.count, self.rows, self.edges, "woe"
        )
        assert told.own.woe is not None
        here.evidence = told
        return told.bins.replace(woe=torch.from_numpy(told.own.woe), begin=torch.from_numpy(told.own.begin))

    def apply(self, side: Side, learned: Record) -> Side:
        known = Woe(np.zeros(0), learned.woe.numpy(), learned.begin.numpy())
        return encoded(side, binned(side, learned), known)


@dataclass(frozen=True)
class _Select(_Step):
    """Those columns alone that tell enough of the label: by the IV of the step before, or of bins made for it."""

    rule: Selection
    count: int
    rows: int
    edges: Edges

    async def learn(self, here: _Here, side: Side) -> Record:
        told = here.evidence
        if told is None:
            told = await found(
                here.link, side.take(slice(here.shared)), here.case, self.count, self.rows, self.edges
            )
        if here.link.name == here.case.guest:
            hosts = {host: each.iv for host, each in told.hosts.items()}
            kept = (await select_ask(here.link, told.own.iv, hosts, self.rule))[here.case.guest]
        else:
            kept = await select_answer(here.link, told.place, here.case.guest)
        here.evidence = None
        return Record(columns=named(side.columns), kept=torch.from_numpy(np.array(kept)))

    def apply(self, side: Side, learned: Record) -> Side:
        columns_of(side, learned)
        return taken(side, learned.kept.numpy())


@dataclass(frozen=True)
class Steps:
    """All steps of a text, as one party does them."""

    steps: Sequence[_Step]

    async def learn(self, link: Link, side: Side, case: Case, shared: int) -> Record:
        """What all steps learn, in their order; the other parties learn at the same time.

        Args:
            side: the rows to learn from.
            shared: how many of them, from the first, all parties have; what needs the label looks at these.

        Raises DataError where a step cannot be done to these columns.
        """
        here, learned = _Here(link, case, shared), {}
        for at, step in enumerate(self.steps):
            learned[str(at)] = await step.learn(here, side)
            side = step.apply(side, learned[str(at)])
        return Record(learned)

    def apply(self, side: Side, learned: Record) -> Side:
        """The side as the protocol gets it.  Raises DataError where its columns are others."""
        for step, each in zip(self.steps, learned.values(), strict=True):
            side = step.apply(side, each)
        return side


async def found(
    link: Link, side: Side, case: Case, count: int = BINS, rows: int = ROWS, edges: Edges | None = None,
    answer: Literal["woe", "iv"] = "iv",
) -> Evidence:  # fmt: skip
    """IV and, if wanted, WOE of all parties' columns: the guest's part and a host's in one.

    Args:
        count, rows: bins of a column at most, and rows of each at least.
        answer: what hosts learn of their own columns.
        case: with a cipher that adds.
    """
    bins = _edges(side, count, rows, edges or {})
    coded = binned(side, bins)
    if link.name != case.guest:
        own, place = await woe_answer(link, coded, case.guest, rows, answer)
        return Evidence(bins, own, place=place)
    if side.y is None:
        raise DataError("the guest has no label")
    own = woe_own(coded, side.y, rows)
    return Evidence(bins, own, await woe_ask(link, side.y, keygen(case.crypto), case.hosts, rows, answer))


def _edges(side: Side, count: int, rows: int, edges: Edges) -> Record:
    """Edges of bins: those that are given, and quantiles."""
    learned = QuantileBins(count, rows).fit(side)
    if not edges:
        return learned
    manual = ManualBins(edges).fit(side)
    mixed = {at: (manual if name in edges else learned).edges[at] for at, name in learned.columns.items()}
    return learned.replace(edges=Tensors(mixed))


# --- steps by their names -------------------------------------------------------------------------------------------


def _by(text: str) -> Impute:
    if text in ("mean", "median"):
        return Impute(text)  # type: ignore[arg-type]
    return Impute("constant", float(text))  # which refuses what is not finite


_COUNT = spec.whole("bins", optional=True, at_least=2, at_most=10_000)
_ROWS = spec.whole("rows", optional=True, at_least=1)
_KNOWN: Mapping[str, tuple[str, tuple[spec.Parameter, ...]]] = {
    "impute": ("a value where one is missing", (spec.Parameter("by", "mean, median or a number", _by, optional=True),)),
    "standardise": ("mean 0 and deviation 1", ()),
    "onehot": ("a column of 0 and 1 for each value of the columns in onehot = [...] of a party's table",
               (spec.whole("most", optional=True, at_least=2),)),
    "bins": ("the number of its bin for each value", (_COUNT,)),
    "woe": ("the weight of evidence of its bin for each value", (_COUNT, _ROWS)),
    "select": ("the columns with enough information value",
               (spec.number("least", optional=True), spec.number("most", optional=True),
                spec.whole("top", optional=True, at_least=1),
                spec.number("share", optional=True, above=0, at_most=1), _COUNT, _ROWS)),
}  # fmt: skip
_LABELLED = ("woe", "select")
_BINNED = ("bins", "woe", "select")


def parse(text: str, own: Own | None = None) -> Steps:
    """The steps of a text such as ``impute:median + onehot + woe:10,rows=20 + select:0.02``; none of an empty one.

    Args:
        own: what this party's table says.

    Raises ConfigError.
    """
    own = own or Own()
    makers: Mapping[str, Callable[..., _Step]] = {
        "impute": lambda by=None: _Alone(by or Impute()),
        "standardise": lambda: _Alone(Standardise()),
        "onehot": lambda most=64: _Alone(OneHot(own.onehot, most)),
        "bins": lambda bins=BINS: _Bins(bins, own.edges),
        "woe": lambda bins=BINS, rows=ROWS: _Weights(bins, rows, own.edges),
        "select": lambda bins=BINS, rows=ROWS, **rule: _Select(Selection(**rule), bins, rows, own.edges),
    }
    known = {name: parameters for name, (_, parameters) in _KNOWN.items()}
    given = [(call.name, call.read(known)) for call in _calls(text)]
    return Steps([makers[name](**settings) for name, settings in given])


def check(text: str, case: Case, owns: Mapping[str, Own]) -> None:
    """Raise ConfigError where these steps cannot be done in such a run.

    Args:
        owns: what the tables of parties say.
    """
    parse(text)
    names = [call.name for call in _calls(text)]
    labelled = [name for name in names if name in _LABELLED]
    if labelled and case.task != "binary":
        raise ConfigError(
            f"features: {labelled[0]} needs two classes, and task = {case.task!r}", hint="leave the step out"
        )
    for party, own in owns.items():
        if own.onehot and "onehot" not in names:
            raise ConfigError(
                f"[party.{party}] has onehot, and no step is", hint='[features] steps = "onehot"'
            )
        if own.edges and not any(name in _BINNED for name in names):
            raise ConfigError(
                f"[party.{party}] has edges, and no step makes bins", hint='[features] steps = "woe"'
            )


def describe() -> list[tuple[str, str]]:
    """How each step is written, and what it does, in a line."""
    return [(spec.usage(name, parameters), says) for name, (says, parameters) in _KNOWN.items()]


def _calls(text: str) -> list[spec.Call]:
    return spec.chain(text, "features", "+") if text.strip() else []
