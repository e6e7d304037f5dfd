"""What a model is measured by beside its loss: means over samples, and figures of a set of samples as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll import own, spec
from atoll.errors import ConfigError, suggest
from atoll.measures import BETTER, Better

__all__ = ["NAMED", "Metric", "Metrics", "Rows", "chosen", "class_last", "counted"]

Rows = NDArray[np.float64]
"""What a set of samples gives to a figure of the whole: [n, columns]."""


@dataclass(frozen=True)
class Metric:
    """A measure of a model on a set of samples. The name is its key in `metrics`.

    Without `whole` the figure is the mean of the samples' values; those that are not finite are left out, and counted.
    With it the figure is that of all samples together, which no mean of parts would give: over clients, their rows are
    put together and `whole` is asked once.

    Args:
        sample: (outputs [b, ...], targets [b, ...]) -> what it takes of each sample: its value [b] (or [b, ...], of
            which the mean counts); with `whole`, its rows [b, columns] or [b, rows, columns].
        better: "higher" or "lower"; by default that of the name where it has one of its own (`atoll.measures.BETTER`).
        whole: rows [n, columns] -> the figure, NaN where it is not defined. Rows with NaN in them do not reach it.
    """

    sample: Callable[[Tensor, Tensor], Tensor]
    better: Better | None = None
    whole: Callable[[Rows], float] | None = None

    def taken(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        """What it takes of each sample: [b] for a mean, else [b, rows, columns].  Raises ConfigError for a shape."""
        values = self.sample(outputs, targets)
        if values.ndim == 0 or values.shape[0] != targets.shape[0]:
            raise ConfigError(
                f"the metric {name} returned shape {tuple(values.shape)} for {targets.shape[0]} samples",
                hint=f"return one value per sample, of which the mean counts; figures of a whole set have names "
                f"({', '.join(_OF_SETS)}), or are made with atoll.Metric(rows, whole=...)",
            )
        if self.whole is None:
            return values.reshape(len(values), -1).mean(1) if values.ndim > 1 else values
        rows = values if values.is_floating_point() else values.float()
        return rows.reshape(rows.shape[0], -1, rows.shape[-1] if rows.ndim > 1 else 1)

    def summed(self, name: str, taken: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Of the real samples of a batch: the sum of a mean and how many have a value, or the rows, NaN elsewhere."""
        if self.whole is not None:
            return {name: torch.where(mask.reshape(-1, 1, 1) > 0, taken, torch.full_like(taken, torch.nan))}
        real = torch.isfinite(taken)
        sound = torch.where(real, taken, torch.zeros_like(taken))
        return {name: torch.sum(sound * mask), counted(name): torch.sum(real.to(mask.dtype) * mask)}

    def total(self, name: str, taken: Rows) -> dict[str, Any]:
        """The same of samples that are all real."""
        if self.whole is not None:
            return {name: taken}
        real = taken[np.isfinite(taken)]
        return {name: float(real.sum()), counted(name): len(real)}

    def value(self, totals: Sequence[Mapping[str, Any]], name: str) -> float:
        """The figure of these sets of samples together, NaN where it is not defined."""
        if self.whole is None:
            count = sum(each[counted(name)] for each in totals)
            return float(sum(each[name] for each in totals) / count) if count else float("nan")
        parts = [np.asarray(each[name], np.float64) for each in totals]
        rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
        rows = rows[~np.isnan(rows).any(1)]
        found = float(self.whole(rows)) if len(rows) else float("nan")
        return found if np.isfinite(found) else float("nan")


Metrics = str | Sequence[str] | Mapping[str, "Metric | Callable[[Tensor, Tensor], Tensor]"]
"""Names, as one text ("auc, f1") or several, or functions and `Metric`s by name."""


def counted(name: str) -> str:
    """What the number of samples that have a value is called."""
    return f"{name}_counted"


def chosen(given: Metrics | None, loss: str) -> dict[str, Metric]:
    """Metrics by name. `loss` is the loss's name: what it learns is what can be measured.  Raises ConfigError."""
    if isinstance(given, Mapping):
        found = {}
        for name, each in given.items():
            metric = each if isinstance(each, Metric) else Metric(each)
            found[name] = replace(metric, better=metric.better or BETTER.get(name))
        return found
    names = spec.items(given, "metrics") if isinstance(given, str) else list(given or ())
    return {
        own.short(name): _own(name) if own.named(name) else _named(name, loss)
        for name in dict.fromkeys(names)
        if name not in ("loss", "accuracy")
    }


def _own(name: str) -> Metric:
    """A metric of the user's own, by the name of its code."""
    found = own.found(name, "metrics")
    metric = found if isinstance(found, Metric) else Metric(found)
    return replace(metric, better=metric.better or BETTER.get(own.short(name)))


def _named(name: str, loss: str) -> Metric:
    if name not in NAMED:
        raise ConfigError(f"metrics: there is no metric {name!r}", hint=suggest(name, NAMED))
    wrong = {"cross_entropy": _OF_NUMBERS, "bce": _OF_NUMBERS, "mse": _OF_SETS, "l1": _OF_SETS}.get(loss, ())
    if name in wrong:
        others = _OF_NUMBERS if wrong is _OF_SETS else _OF_SETS
        raise ConfigError(
            f"metrics: {name} is nothing that a model with the loss {loss} has",
            hint=f"what can be measured there: {', '.join(others)}",
        )
    return NAMED[name]


# --- what is taken of samples ---------------------------------------------------------------------------------------


def class_last(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits with classes on the last axis. Accepts [b, ..., classes] and torch's [b, classes, ...]."""
    if outputs.ndim == targets.ndim + 1:
        if outputs.shape[:-1] == targets.shape:
            return outputs
        if outputs.shape[:1] + outputs.shape[2:] == targets.shape:
            return outputs.movedim(1, -1)
    raise ConfigError(
        f"the model gives outputs of shape {tuple(outputs.shape)} for labels of shape {tuple(targets.shape)}",
        hint="cross_entropy wants one row of logits a label: [batch, classes] for labels [batch]",
    )


def _logits(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [b, rows, classes], labels [b, rows]), NaN for labels that do not count; one logit becomes two."""
    size = targets.shape[0]
    precise = torch.promote_types(outputs.dtype, torch.float32)
    if outputs.numel() == targets.numel():
        one = outputs.reshape(size, -1, 1).to(precise)
        logits, labels = torch.cat([torch.zeros_like(one), one], -1), (targets > 0.5).to(precise)
    else:
        logits, labels = class_last(outputs, targets).to(precise), targets.to(precise)
        logits = logits.reshape(size, -1, logits.shape[-1])
    labels = labels.reshape(size, -1)
    return logits, torch.where(labels < 0, torch.full_like(labels, torch.nan), labels)


def _predicted(outputs: Tensor, targets: Tensor) -> Tensor:
    """Rows (label, predicted class)."""
    logits, labels = _logits(outputs, targets)
    return torch.stack([labels, logits.argmax(-1).to(labels.dtype)], -1)


def _of_two(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same, where there are two classes."""
    classes = outputs.numel() // max(1, targets.numel())
    if classes > 2:
        raise ConfigError(
            f"metrics: f1, precision, recall, sensitivity and specificity are of two classes, the model has {classes}",
            hint="macro_f1, balanced_accuracy and auc are means over classes",
        )
    return _predicted(outputs, targets)


def _scored(outputs: Tensor, targets: Tensor) -> Tensor:
    """Rows (label, score of each class); of two classes one score, how much rather the second."""
    logits, labels = _logits(outputs, targets)
    scores = torch.log_softmax(logits, -1) if logits.shape[-1] > 2 else logits[..., 1:] - logits[..., :1]
    return torch.cat([labels.unsqueeze(-1), scores], -1)


def _errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Differences, sample by sample [b, numbers]."""
    if outputs.numel() != targets.numel():
        raise ConfigError(
            f"the model gives outputs of shape {tuple(outputs.shape)} for targets of shape {tuple(targets.shape)}",
            hint="mae, mse and rmse want as many outputs as a target has numbers",
        )
    return (outputs - targets.reshape(outputs.shape)).reshape(targets.shape[0], -1)


# --- figures of a whole set -----------------------------------------------------------------------------------------


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _auc(rows: Rows) -> float:
    """Area under the ROC curve: how often a sample of a class scores above one of another; ties count half.

    Of several classes the mean over those that occur, each against the rest.
    """
    labels, scores = rows[:, 0], rows[:, 1:]
    two = scores.shape[1] == 1
    found = []
    for each in [1] if two else np.unique(labels).astype(int):
        column, inside = scores[:, 0 if two else each], labels == each
        _, place, many = np.unique(column, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(many) - (many - 1) / 2)[place]
        n, m = int(inside.sum()), int((~inside).sum())
        found.append(_ratio(float(ranks[inside].sum()) - n * (n + 1) / 2, n * m))
    return float(np.mean(found))


def _precision(rows: Rows) -> float:
    picked = rows[:, 1] == 1
    return _ratio(float((rows[picked, 0] == 1).sum()), float(picked.sum()))


def _recall(rows: Rows, of: int = 1) -> float:
    there = rows[:, 0] == of
    return _ratio(float((rows[there, 1] == of).sum()), float(there.sum()))


def _specificity(rows: Rows) -> float:
    return _recall(rows, 0)


def _f1(rows: Rows, of: float = 1) -> float:
    there, picked = rows[:, 0] == of, rows[:, 1] == of
    return _ratio(2 * float((there & picked).sum()), float(there.sum() + picked.sum()))


def _macro_f1(rows: Rows) -> float:
    return float(np.mean([_f1(rows, each) for each in np.unique(rows)]))


def _balanced(rows: Rows) -> float:
    return float(np.mean([_recall(rows, int(each)) for each in np.unique(rows[:, 0])]))


def _root(rows: Rows) -> float:
    return float(np.sqrt(rows.mean()))


NAMED: Mapping[str, Metric] = {
    name: Metric(sample, BETTER[name], whole)
    for name, sample, whole in (
        ("auc", _scored, _auc),
        ("f1", _of_two, _f1),
        ("macro_f1", _predicted, _macro_f1),
        ("precision", _of_two, _precision),
        ("recall", _of_two, _recall),
        ("sensitivity", _of_two, _recall),
        ("specificity", _of_two, _specificity),
        ("balanced_accuracy", _predicted, _balanced),
        ("mae", lambda outputs, targets: _errors(outputs, targets).abs(), None),
        ("mse", lambda outputs, targets: _errors(outputs, targets).square(), None),
        ("rmse", lambda outputs, targets: _errors(outputs, targets).square().mean(1, keepdim=True), _root),
    )
}
"""Metrics that a name suffices for."""

_OF_NUMBERS = ("mae", "mse", "rmse")
_OF_SETS = tuple(name for name in NAMED if name not in _OF_NUMBERS)
