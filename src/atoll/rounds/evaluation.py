"""What judging came to: the global model on the global test set, the global model on each client's test data, and each
client's own model on its test data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atoll.digits import restored, shortened
from atoll.measures import Figures

__all__ = ["Evaluation", "Spread"]


@dataclass(frozen=True)
class Spread:
    """How a measure is distributed over clients (each counts once), and what it is of all their samples, `pooled`.

    `undefined` counts the clients whose data give it no value: they are left out.
    """

    mean: float
    std: float
    min: float
    p10: float
    median: float
    p90: float
    max: float
    pooled: float
    clients: int
    undefined: int = 0

    @staticmethod
    def of(
        values: Sequence[float], weights: Sequence[float], pooled: float | None = None, undefined: int = 0
    ) -> Spread:
        """Of the clients' values; `pooled` is their mean by weight unless it is known to be another."""
        v = np.asarray(values, dtype=np.float64)
        with np.errstate(invalid="ignore"):  # a loss may be infinite
            low, p10, median, p90, high = (float(q) for q in np.percentile(v, [0, 10, 50, 90, 100]))
            pooled = float(np.average(v, weights=weights)) if pooled is None else pooled
            mean, std = float(v.mean()), float(v.std())
        return Spread(mean, std, low, p10, median, p90, high, pooled, len(v), undefined)

    def to_dict(self) -> dict[str, Any]:
        """As plain values; `undefined` only where there are such clients."""
        return {name: value for name, value in vars(self).items() if name != "undefined" or value}


@dataclass(frozen=True)
class Evaluation:
    """Measures of one round.

    `overall` is the global model on the global test set, measure -> value. `clients` is the global model on each
    client's test data and `personal` each client's own model there, measure -> Spread; `personal` is empty unless the
    method personalises. `newcomers` is what clients that never took part in a round would use (see `Federation`).
    `each` holds the clients' values behind `clients` and `personal`: kind -> measure -> client -> value. `only` is the
    class that the global model gives to every sample of a test set of several classes; None mostly. `confusion` is
    there where it is asked for, counts [classes, classes], label by predicted class: "overall" of the global model on
    the global test set, "own" of the models that clients would use on all their test data. `validation` is there where
    a target or `patience` asks: the models that clients would use on their validation data, measure -> Spread.
    `consensus` is how far the models of peers are apart (`Method.consensus`), where there is no server.
    """

    overall: Mapping[str, float] = field(default_factory=dict)
    clients: Mapping[str, Spread] = field(default_factory=dict)
    personal: Mapping[str, Spread] = field(default_factory=dict)
    newcomers: Mapping[str, Spread] = field(default_factory=dict)
    each: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict, repr=False)
    only: int | None = field(default=None, compare=False)
    confusion: Mapping[str, list[list[int]]] = field(default_factory=dict, repr=False)
    validation: Mapping[str, Spread] = field(default_factory=dict)
    consensus: float | None = None

    @property
    def measure(self) -> str:
        """The measure to look at first: accuracy where there is one, else the loss."""
        return Figures.main(vars(self))

    @property
    def further(self) -> list[str]:
        """The measures beside the loss and the accuracy, also of single parts."""
        found = dict.fromkeys(name for kind in (self.overall, self.clients, self.personal) for name in kind)
        return [name for name in found if name.partition(".")[0] not in ("loss", "accuracy")]

    @property
    def own(self) -> Mapping[str, Spread]:
        """How clients fare with the model they would use: the personal one, or the global one."""
        return self.personal or self.clients

    def value(self, name: str) -> float | None:
        """A figure by name, such as "accuracy", "own" or "worst" (see `atoll.measures.Figures.value`), or None."""
        return self._figures.value(name)

    @property
    def score(self) -> float | None:
        """How good the models are that clients would use, or else the global one; the more the better."""
        return self._figures.score

    @property
    def first(self) -> str:
        """The figure to look at first: "own" where clients are judged, else the main measure."""
        return self._figures.first

    @property
    def _figures(self) -> Figures:
        return Figures(self.to_dict(), self.measure)

    def to_dict(self) -> dict[str, Any]:
        """As plain values; `confusion`, `validation` and `consensus` only where there is such a thing."""
        asked = {
            "validation": {name: spread.to_dict() for name, spread in self.validation.items()},
            "confusion": dict(self.confusion),
        }
        return {
            "overall": dict(self.overall),
            "clients": {name: spread.to_dict() for name, spread in self.clients.items()},
            "personal": {name: spread.to_dict() for name, spread in self.personal.items()},
            "newcomers": {name: spread.to_dict() for name, spread in self.newcomers.items()},
            **{name: found for name, found in asked.items() if found},
            **({} if self.consensus is None else {"consensus": self.consensus}),
        }

    def to_event(self, judged: Sequence[int]) -> dict[str, Any]:
        """As plain values, with each client's values as lists in the order of `judged` (`docs/runs.md`)."""
        nan = float("nan")
        each = {
            kind: {
                name: shortened([values.get(client, nan) for client in judged])
                for name, values in found.items()
            }
            for kind, found in self.each.items()
        }
        return {**self.to_dict(), "each": each}

    @staticmethod
    def of_event(event: Mapping[str, Any], judged: Sequence[int]) -> Evaluation:
        """The inverse of `to_event`, but for the digits that each client's values lost."""
        each = {
            kind: {
                name: {k: v for k, v in zip(judged, restored(values), strict=True) if v == v}
                for name, values in found.items()
            }
            for kind, found in event["each"].items()
        }
        overall = dict(zip(event["overall"], restored(list(event["overall"].values())), strict=True))
        spreads = {
            kind: {name: Spread(**spread) for name, spread in event.get(kind, {}).items()}
            for kind in ("clients", "personal", "newcomers", "validation")
        }
        return Evaluation(
            overall, spreads["clients"], spreads["personal"], spreads["newcomers"], each,
            confusion=event.get("confusion", {}), validation=spreads["validation"], consensus=event.get("consensus"),
        )  # fmt: skip
