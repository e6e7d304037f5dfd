"""What happened in a round."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.digits import restored
from atoll.rounds.clocked import Clocked
from atoll.rounds.evaluation import Evaluation
from atoll.rounds.spent import Spent

__all__ = ["Round", "best", "participation"]


@dataclass(frozen=True)
class Round:
    """What happened in one round (counted from 1).

    `cohort` took part; `dropped` were slower than the method accepts; `refused` maps clients whose replies could not
    be used to the reason. `loss` is the clients' mean training loss. Bytes are of all clients together. `clients` has
    columns about the cohort, in its order, NaN where unknown: training `loss`, `samples` used, `norm` of the update,
    `cosine` of the update to the mean one (both estimated for models of over 4,096 numbers), `work`, the share of the
    planned local epochs (in a round with stragglers), `start` and `end` of the engine's work in seconds of the round.
    On a virtual clock also when orders `began` and were `done` (or ended with the round), `download`, `compute`,
    `upload`, in virtual seconds, and `staleness`; `clock` is what the round was there.
    Behind a robust rule, `kept`: what an update counted for, in shares of what it would in a mean.
    `spent` is what privacy it cost, where updates are blurred. `tokens` were read for the replies that counted, where
    samples are sequences.
    """

    number: int
    cohort: Sequence[int]
    dropped: Sequence[int] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    loss: float = float("nan")
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    evaluation: Evaluation | None = None
    clients: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    clock: Clocked | None = None
    spent: Spent | None = None
    tokens: int | None = None

    @staticmethod
    def of_event(event: Mapping[str, Any], judged: Sequence[int]) -> Round:
        """The round that an event of a run tells of (`docs/runs.md`); clients' measures come by `judged`."""
        number = float("nan") if event["loss"] is None else event["loss"]
        refused = {int(client): reason for client, reason in event["refused"].items()}
        found = event["evaluation"]
        columns = {name: restored(column) for name, column in event["clients"].items()}
        evaluation = None if found is None else Evaluation.of_event(found, judged)
        clock = None if event.get("clock") is None else Clocked(**event["clock"])
        spent = None if event.get("spent") is None else Spent.of_event(event["spent"])
        return Round(
            event["round"], event["cohort"], event["dropped"], refused, number, event["bytes_up"],
            event["bytes_down"], event["seconds"], evaluation, columns, clock,
            spent, event.get("tokens"),
        )  # fmt: skip


def best(history: Sequence[Round]) -> tuple[int | None, int]:
    """The round with the best models on validation data, the first of equals, and how many evaluations came after it.

    None where none was judged on validation data.
    """
    found, top, since = None, -math.inf, 0
    for each in history:
        if each.evaluation is None or not each.evaluation.validation:
            continue
        measure = each.evaluation.measure
        value = each.evaluation.validation[measure].mean  # read straight: this is asked after every round
        score = -value if measure == "loss" else value
        since += 1
        if score > top:
            found, top, since = each.number, score, 0
    return found, since


def participation(history: Sequence[Round], clients: int) -> float | None:
    """How evenly clients took part: Jain's index of their numbers of rounds, 1 where all had as many, 1/n at worst.

    (sum x)^2 / (n sum x^2) over all n clients.   Jain, Chiu and Hawe 1984. None before the first round.
    """
    counts = Counter(client for each in history for client in each.cohort)
    squares = sum(count * count for count in counts.values())
    return sum(counts.values()) ** 2 / (clients * squares) if squares else None
