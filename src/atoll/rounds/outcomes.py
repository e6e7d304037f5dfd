"""What the clients' outcomes of a round say, in numbers: each client's figures, and how alike their updates point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from atoll.contract import Outcome
from atoll.data.samples import Samples
from atoll.digits import restored, shortened
from atoll.engines.probe import drift, likeness
from atoll.rounds.choosing import Learned
from atoll.rounds.cohort import Cohort
from atoll.rounds.history import Round

__all__ = ["alike", "apart", "columns", "mean_loss", "read", "taught", "window"]


def columns(
    cohort: Cohort,
    outcomes: Sequence[Outcome],
    since: float,
    epochs: int,
    kept: Mapping[int, float] | None = None,
) -> dict[str, list[float]]:
    """What is known of each client of a round, column by column.

    `since` is when the round began, `epochs` are the local epochs planned, `kept` is what a robust rule counted updates
    for.
    """
    by_client = {outcome.client: outcome for outcome in outcomes}
    rows = [by_client.get(client) for client in cohort.clients]
    nan = float("nan")
    found = {
        "loss": [nan if o is None or o.refused else o.metrics.get("loss", nan) for o in rows],
        "samples": [nan if o is None else o.metrics.get("count", nan) for o in rows],
        "start": [nan if o is None else o.begun - since for o in rows],
        "end": [nan if o is None else o.ended - since for o in rows],
    }
    if cohort.epochs:
        found["work"] = [cohort.epochs.get(client, epochs) / epochs for client in cohort.clients]
    found["loss"] = [
        loss / n if n > 0 else nan for loss, n in zip(found["loss"], found["samples"], strict=True)
    ]
    seen = _probed([o for o in rows if o is not None])
    if seen:
        norms, cosines = drift([o.probe for o in seen if o.probe is not None], [o.weight for o in seen])
        norm = dict(zip((o.client for o in seen), norms.tolist(), strict=True))
        cosine = dict(zip((o.client for o in seen), cosines.tolist(), strict=True))
        found["norm"] = [norm.get(client, nan) for client in cohort.clients]
        found["cosine"] = [cosine.get(client, nan) for client in cohort.clients]
    if kept:
        found["kept"] = [kept.get(client, nan) for client in cohort.clients]
    return {name: column for name, column in found.items() if any(v == v for v in column)}


def mean_loss(outcomes: Sequence[Outcome]) -> float:
    """Mean training loss over the samples of the accepted clients."""
    pairs = [
        (o.metrics["loss"], o.metrics["count"])
        for o in outcomes
        if o.refused is None and "loss" in o.metrics and o.metrics.get("count")
    ]
    total = sum(count for _, count in pairs)
    return sum(loss for loss, _ in pairs) / total if total else float("nan")


def window(example: Samples) -> int | None:
    """Tokens in a sample whose target is a sequence of them, its padding included; None for other samples."""
    targets = example.targets
    return targets.shape[1] if targets.ndim == 2 and not targets.is_floating_point() else None


def read(outcomes: Sequence[Outcome], window: int | None) -> int | None:
    """Tokens that the accepted clients have read in training, as far as they tell; None where nobody does."""
    told = [o.metrics["count"] for o in outcomes if o.refused is None and "count" in o.metrics]
    return None if window is None or not told else round(sum(map(float, told))) * window


def taught(
    number: int,
    clients: Sequence[int],
    outcomes: Sequence[Outcome],
    history: Sequence[Round],
    seconds: Mapping[int, float] | None = None,
) -> Learned:
    """What a round teaches whoever chooses cohorts: of the clients asked, with NaN where nothing came back.

    `seconds` are what orders took. Accuracies are those of the last evaluation before the round.
    """
    by_client = {o.client: o for o in outcomes if o.refused is None}
    rows = [by_client.get(client) for client in clients]
    nan = float("nan")
    count = [nan if o is None else float(o.metrics.get("count", nan)) for o in rows]
    loss = np.array(
        [
            nan if o is None or not n > 0 else float(o.metrics.get("loss", nan)) / n
            for o, n in zip(rows, count, strict=True)
        ],
        np.float64,
    )
    last = history[-1].evaluation if history else None
    return Learned(
        number=number,
        clients=np.array(clients, np.int64),
        loss=loss,
        samples=np.array(count, np.float64),
        seconds=np.array([(seconds or {}).get(client, nan) for client in clients], np.float64),
        answered=np.array([o is not None for o in rows], np.bool_),
        squares=loss**2,
        accuracy=None if last is None else _as_written(last.each.get("clients", {}).get("accuracy")),
    )


def _as_written(values: Mapping[int, float] | None) -> dict[int, float] | None:
    """Clients' values with the digits that events have, so that a run that goes on from them learns the same."""
    return (
        None if values is None else dict(zip(values, restored(shortened(list(values.values()))), strict=True))
    )


def alike(outcomes: Sequence[Outcome], most: int) -> tuple[list[int], Tensor] | None:
    """(clients, cosines between their updates [K, K]) of up to `most` clients; None where fewer than two are known."""
    seen = _probed(outcomes)[:most]
    if len(seen) < 2:
        return None
    return [o.client for o in seen], likeness([o.probe for o in seen if o.probe is not None])


def apart(outcomes: Sequence[Outcome]) -> float:
    """How far the updates lie from their mean, in norms of the mean; nan where fewer than two can be compared.

    The root of sum_k p_k |d_k - d|^2 / |d|^2, where d = sum_k p_k d_k and p are the replies' shares of the weight.
    """
    seen = _probed(outcomes)
    weights = np.array([o.weight for o in seen], np.float64)
    if len(seen) < 2 or not np.sum(weights) > 0:
        return float("nan")
    norms, cosines = drift([o.probe for o in seen if o.probe is not None], weights.tolist())
    share = weights / np.sum(weights)
    mean = float(np.sum(share * norms.numpy() * cosines.numpy()))
    if not mean > 0:
        return float("nan") if not np.any(norms.numpy() > 0) else float("inf")
    return float(np.sqrt(max(float(np.sum(share * norms.numpy() ** 2)) / mean**2 - 1.0, 0.0)))


def _probed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those whose update was probed; none if updates differ in form, for then they have no coordinates in common."""
    seen = [o for o in outcomes if o.probe is not None]
    return seen if len({o.probe.numel() for o in seen if o.probe is not None}) == 1 else []
