"""What a model is measured by beside its loss: means over samples, figures of a set of samples as a whole, and which
classes are taken for which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll import own, ranking, scoring, spec
from atoll.calibration import calibration_error
from atoll.errors import ConfigError, suggest
from atoll.measures import BETTER, Better
from atoll.sequences import class_last, exponential, of_tokens, surprise

__all__ = ["NAMED", "Confusion", "Metric", "Metrics", "Rows", "chosen", "counted"]

Rows = NDArray[np.float64]
"""What a set of samples gives to a figure of the whole: [n, columns]."""


@dataclass(frozen=True)
class Metric:
    """A measure of a model on a set of samples. The name is its key in `metrics`.

    Without `whole` the figure is the mean of the samples' values; those that are not finite are left out, and counted.
    With it the figure is that of all samples together, which no mean of parts would give: over clients, their rows are
    put together and `whole` is asked once. A mean of "tokens" is over all values of all samples, so that a long text
    counts for more than a short one: sums and counts add up over samples and clients, and are divided once.

    Args:
        sample: (outputs [b, ...], targets [b, ...]) -> what it takes of each sample: its value [b] (or [b, ...], of
            which the mean counts, NaN left out); with `whole`, its rows [b, columns] or [b, rows, columns].
        better: "higher" or "lower"; by default that of the name where it has one of its own (`atoll.measures.BETTER`).
        whole: rows [n, columns] -> the figure, NaN where it is not defined. Rows with NaN in them do not reach it.
        over: what a mean is of: "samples", or "tokens", the values [b, t] of each sample, of which those that are NaN
            do not count.
        after: what becomes of a mean once it is taken, such as `math.exp`.
    """

    sample: Callable[[Any, Tensor], Tensor]
    better: Better | None = None
    whole: Callable[[Rows], float] | None = None
    over: Literal["samples", "tokens"] = "samples"
    after: Callable[[float], float] | None = None

    @property
    def of_tensors(self) -> bool:
        """Whether it is one of Atoll's, which look at the outputs alone; others get all that a model gives."""
        return str(getattr(self.sample, "__module__", "")).startswith("atoll.")

    def taken(self, name: str, outputs: Any, targets: Tensor) -> Tensor:
        """What it takes of each sample: [b] for a mean, else [b, rows, columns].  Raises ConfigError for a shape.

        Of a mean over tokens it takes (sum, number) [b, 2].
        """
        values = self.sample(outputs, targets)
        if values.ndim == 0 or values.shape[0] != targets.shape[0]:
            of_sets = ", ".join(each for each in NAMED if each not in _OF_PROBABILITIES)
            raise ConfigError(
                f"the metric {name} returned shape {tuple(values.shape)} for {targets.shape[0]} samples",
                hint="return one value per sample, of which the mean counts; figures of a whole set have names "
                f"({of_sets}), or are made with atoll.Metric(rows, whole=...)",
            )
        if self.whole is None and values.ndim > 1:
            flat = values.reshape(len(values), -1)
            return of_tokens(flat) if self.over == "tokens" else flat.nanmean(1)
        if self.whole is None:
            return values
        rows = values if values.is_floating_point() else values.float()
        return rows.reshape(rows.shape[0], -1, rows.shape[-1] if rows.ndim > 1 else 1)

    def summed(self, name: str, taken: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Of the real samples of a batch: the sum of a mean and how many have a value, or the rows, NaN elsewhere."""
        if self.whole is not None:
            return {name: torch.where(mask.reshape(-1, 1, 1) > 0, taken, torch.full_like(taken, torch.nan))}
        if taken.ndim > 1:
            found = torch.where(mask > 0, taken[:, 0], torch.zeros_like(mask))
            return {name: torch.sum(found * mask), counted(name): torch.sum(taken[:, 1] * mask)}
        real = torch.isfinite(taken)
        sound = torch.where(real, taken, torch.zeros_like(taken))
        return {name: torch.sum(sound * mask), counted(name): torch.sum(real.to(mask.dtype) * mask)}

    def total(self, name: str, taken: Rows) -> dict[str, Any]:
        """The same of samples that are all real."""
        if self.whole is not None:
            return {name: taken}
        if taken.ndim > 1:
            return {name: float(taken[:, 0].sum()), counted(name): float(taken[:, 1].sum())}
        real = taken[np.isfinite(taken)]
        return {name: float(real.sum()), counted(name): len(real)}

    def value(self, totals: Sequence[Mapping[str, Any]], name: str) -> float:
        """The figure of these sets of samples together, NaN where it is not defined."""
        if self.whole is None:
            count = sum(each[counted(name)] for each in totals)
            mean = float(sum(each[name] for each in totals) / count) if count else float("nan")
            return mean if self.after is None else self.after(mean)
        parts = [np.asarray(each[name], np.float64) for each in totals]
        rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
        rows = rows[~np.isnan(rows).any(1)]
        found = float(self.whole(rows)) if len(rows) else float("nan")
        return found if np.isfinite(found) else float("nan")


@dataclass(frozen=True)
class Confusion:
    """How often samples of each class are taken for each: counts [classes, classes], label by predicted class.

    They add up over samples and clients. They are no figure: nothing about them is better, higher or a target. Labels
    below 0 do not count. One logit (`bce`) knows the classes 0 and 1, of several such logits all together.
    """

    name: ClassVar[str] = "confusion"

    def taken(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What it takes of each sample: rows (label, how often each class was predicted for it) [b, rows, 1 + classes].

        A sample with more labels than there are classes has a row a class. Labels that do not count are NaN.
        """
        logits, labels = _logits(outputs, targets)
        classes = logits.shape[-1]
        guesses = torch.nn.functional.one_hot(logits.argmax(-1), classes).to(logits.dtype)
        if labels.shape[1] > classes:
            guesses = torch.einsum("brt,brp->btp", _marked(labels, classes), guesses)
            labels = torch.arange(classes, device=labels.device).to(labels.dtype).expand(len(labels), classes)
        return torch.cat([labels.unsqueeze(-1), guesses], -1)

    def summed(self, taken: Tensor, mask: Tensor) -> Tensor:
        """The counts of the real samples of a batch."""
        marked = _marked(taken[..., 0], taken.shape[-1] - 1) * mask.reshape(-1, 1, 1)
        return torch.einsum("brt,brp->tp", marked, taken[..., 1:])

    def total(self, taken: Rows) -> Rows:
        """The same of samples that are all real."""
        rows = taken.reshape(-1, taken.shape[-1])
        marked = rows[:, :1] == np.arange(rows.shape[1] - 1)
        counts: Rows = marked.astype(np.float64).T @ rows[:, 1:]
        return counts

    def value(self, totals: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """The counts of these sets of samples together."""
        counts = np.sum([np.asarray(each[self.name], np.float64) for each in totals], axis=0)
        return counts.round().astype(int).tolist()  # type: ignore[no-any-return]


_TPR_AT = "tpr@"
_SHARE = spec.number("share", at_least=0, below=1)

Metrics = str | Sequence[str] | Mapping[str, "Metric | Callable[[Any, Tensor], Tensor]"]
"""Names, as one text ("auc, f1") or several, or functions and `Metric`s by name."""


def counted(name: str) -> str:
    """What the number of samples that have a value is called."""
    return f"{name}_counted"


def chosen(given: Metrics | None, loss: str) -> dict[str, Metric | Confusion]:
    """Metrics by name. `loss` is the loss's name: what it learns is what can be measured.  Raises ConfigError."""
    if isinstance(given, Mapping):
        found: dict[str, Metric | Confusion] = {}
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


def _named(name: str, loss: str) -> Metric | Confusion:
    if (figure := ranking.named(name)) is not None:
        return Metric(figure, "higher")
    if name.startswith(_TPR_AT):
        share = _SHARE.read(name.removeprefix(_TPR_AT), f"metrics: {name!r}", f"such as {_TPR_AT}0.01")
        if loss in ("mse", "l1", "listwise", "rated"):
            raise ConfigError(f"metrics: {name} is nothing that a model with the loss {loss} has")
        return Metric(_scored, "higher", partial(scoring.tpr_at, share=share))
    if name not in NAMED and name != Confusion.name:
        known = [*NAMED, f"{_TPR_AT}0.01", Confusion.name, "ndcg@10", "recall@10"]
        raise ConfigError(f"metrics: there is no metric {name!r}", hint=suggest(name, known))
    if loss in ("cross_entropy", "bce") and name in _OF_PROBABILITIES:
        return _OF_PROBABILITIES[name]
    if loss in ("listwise", "rated"):
        measured = _OF_RATINGS if loss == "rated" else {}
        if name not in measured:
            raise ConfigError(
                f"metrics: {name} is nothing that lists of items with the loss {loss} have",
                hint=f"what can be measured there: {', '.join([*measured, 'ndcg@10', 'recall@10'])}",
            )
        return measured[name]
    if loss in ("mse", "l1") and name not in _OF_PROBABILITIES:
        raise ConfigError(
            f"metrics: {name} is nothing that a model with the loss {loss} has",
            hint=f"what can be measured there: {', '.join(_OF_PROBABILITIES)}",
        )
    return Confusion() if name == Confusion.name else NAMED[name]


# --- what is taken of samples ---------------------------------------------------------------------------------------


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


def _of_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Rows (label, predicted class, how many classes there are)."""
    rows = _predicted(outputs, targets)
    many = max(2, outputs.numel() // max(1, targets.numel()))
    return torch.cat([rows, torch.full_like(rows[..., :1], many)], -1)


def _marked(labels: Tensor, classes: int) -> Tensor:
    """Labels [b, rows] as 0 and 1 for each class [b, rows, classes]; those that do not count have none."""
    marked = torch.nn.functional.one_hot(labels.nan_to_num().long(), classes).to(labels.dtype)
    return marked * (~torch.isnan(labels)).to(labels.dtype).unsqueeze(-1)


def _scored(outputs: Tensor, targets: Tensor) -> Tensor:
    """Rows (label, score of each class); of two classes one score, how much rather the second."""
    logits, labels = _logits(outputs, targets)
    scores = torch.log_softmax(logits, -1) if logits.shape[-1] > 2 else logits[..., 1:] - logits[..., :1]
    return torch.cat([labels.unsqueeze(-1), scores], -1)


def _confident(outputs: Tensor, targets: Tensor) -> Tensor:
    """Rows (probability, whether it happened): of two classes of the second, of more of the predicted one."""
    logits, labels = _logits(outputs, targets)
    given = torch.softmax(logits, -1)
    at = torch.ones_like(labels) if logits.shape[-1] == 2 else logits.argmax(-1).to(labels.dtype)
    sure = given.gather(-1, at.long().unsqueeze(-1)).squeeze(-1)
    happened = torch.where(torch.isnan(labels), labels, (labels == at).to(labels.dtype))
    return torch.stack([sure, happened], -1)


def _missed(outputs: Tensor, targets: Tensor) -> Tensor:
    """How much of the probability goes to other classes than the label's [b, rows]; of two classes |p - y|."""
    logits, labels = _logits(outputs, targets)
    right = labels.nan_to_num().long().unsqueeze(-1)
    missed = 1 - torch.softmax(logits, -1).gather(-1, right).squeeze(-1)
    return torch.where(torch.isnan(labels), labels, missed)


def _brier(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half of the squared distance between probabilities and label [b, rows]; of two classes (p - y)^2."""
    logits, labels = _logits(outputs, targets)
    given = torch.softmax(logits, -1)
    right = torch.nn.functional.one_hot(labels.nan_to_num().long(), logits.shape[-1])
    return torch.where(torch.isnan(labels), labels, (given - right).square().sum(-1) / 2)


def _errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Differences, sample by sample [b, numbers]."""
    if outputs.numel() != targets.numel():
        raise ConfigError(
            f"the model gives outputs of shape {tuple(outputs.shape)} for targets of shape {tuple(targets.shape)}",
            hint="mae, mse and rmse want as many outputs as a target has numbers",
        )
    return (outputs - targets.reshape(outputs.shape)).reshape(targets.shape[0], -1)


def _of_ratings(outputs: Tensor, targets: Tensor) -> Tensor:
    """Differences at the items of a list that have a rating, NaN at the others [b, items]."""
    return torch.where(targets > 0, outputs - targets, torch.full_like(outputs, torch.nan))


NAMED: Mapping[str, Metric] = {
    name: Metric(sample, BETTER[name], whole)
    for name, sample, whole in (
        ("auc", _scored, scoring.auc),
        ("f1", _of_classes, scoring.positive(scoring.f1)),
        ("macro_f1", _predicted, scoring.macro_f1),
        ("precision", _of_classes, scoring.positive(scoring.precision)),
        ("recall", _of_classes, scoring.positive(scoring.recall)),
        ("sensitivity", _of_classes, scoring.positive(scoring.recall)),
        ("specificity", _of_classes, scoring.positive(scoring.specificity)),
        ("balanced_accuracy", _predicted, scoring.balanced),
        ("ece", _confident, calibration_error),
        ("mae", lambda outputs, targets: _errors(outputs, targets).abs(), None),
        ("mse", lambda outputs, targets: _errors(outputs, targets).square(), None),
        (
            "rmse",
            lambda outputs, targets: _errors(outputs, targets).square().mean(1, keepdim=True),
            scoring.root,
        ),
    )
} | {"perplexity": Metric(surprise, BETTER["perplexity"], over="tokens", after=exponential)}
"""Metrics that a name suffices for."""

_OF_PROBABILITIES: Mapping[str, Metric] = {
    "mae": Metric(_missed, "lower"),
    "mse": Metric(_brier, "lower"),
    "rmse": Metric(lambda outputs, targets: _brier(outputs, targets).unsqueeze(-1), "lower", scoring.root),
}
"""What errors are where a model gives each class a probability."""

_OF_RATINGS: Mapping[str, Metric] = {
    "mae": Metric(lambda outputs, targets: _of_ratings(outputs, targets).abs(), "lower", over="tokens"),
    "mse": Metric(lambda outputs, targets: _of_ratings(outputs, targets).square(), "lower", over="tokens"),
    "rmse": Metric(
        lambda outputs, targets: _of_ratings(outputs, targets).square().unsqueeze(-1), "lower", scoring.root
    ),
}
"""What errors are where a target is a list of ratings: over all ratings, and not a mean of users' means."""
