"""What happened in a round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.digits import restored
from atoll.rounds.evaluation import Evaluation

__all__ = ["Round", "best"]


@dataclass(frozen=True)
class Round:
    """What happened in one round (counted from 1).

    `cohort` took part; `dropped` were slower than the method accepts; `refused` maps clients whose replies could not
    be used to the reason. `loss` is the clients' mean training loss. Bytes are of all clients together. `clients` has
    columns about the cohort, in its order, NaN where unknown: training `loss`, `samples` used, `norm` of the update,
    `cosine` of the update to the mean one (both estimated for models of over 4,096 numbers), `work`, the share of the
    planned local epochs (in a round with stragglers), `start` and `end` of the engine's work in seconds of the round.
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

    @staticmethod
    def of_event(event: Mapping[str, Any], judged: Sequence[int]) -> Round:
        """The round that an event of a run tells of (`docs/runs.md`); clients' measures come by `judged`."""
        number = float("nan") if event["loss"] is None else event["loss"]
        refused = {int(client): reason for client, reason in event["refused"].items()}
        found = event["evaluation"]
        columns = {name: restored(column) for name, column in event["clients"].items()}
        evaluation = None if found is None else Evaluation.of_event(found, judged)
        return Round(
            event["round"], event["cohort"], event["dropped"], refused, number, event["bytes_up"],
            event["bytes_down"], event["seconds"], evaluation, columns,
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
