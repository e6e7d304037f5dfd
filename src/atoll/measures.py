"""Figures of an evaluation by name, and targets: the same for a live evaluation and for one read back from events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from atoll import spec
from atoll.errors import ConfigError, suggest

__all__ = [
    "ATTACK_SUCCESS",
    "BETTER",
    "OF_MAIN",
    "OF_PART",
    "Better",
    "Figures",
    "Measured",
    "Target",
    "called",
    "parts",
]

Better = Literal["higher", "lower"]
BETTER: Mapping[str, Better] = {
    "accuracy": "higher",
    "auc": "higher",
    "f1": "higher",
    "macro_f1": "higher",
    "precision": "higher",
    "recall": "higher",
    "sensitivity": "higher",
    "specificity": "higher",
    "balanced_accuracy": "higher",
    "ece": "lower",
    "loss": "lower",
    "mae": "lower",
    "mse": "lower",
    "rmse": "lower",
    "perplexity": "lower",
    "attack_success": "lower",
}
"""Measures that have a name of their own, and which of two values is the better one."""

ATTACK_SUCCESS = "attack_success"
"""The share of test samples that a model takes for what attackers of a simulation want (`docs/attacks.md`)."""

OF_PART = "accuracy."
"""What begins the name of a figure: the accuracy where samples have no other part than the one whose name follows."""

_KINDS = ("clients", "personal", "newcomers", "validation")
_OF_OWN = {"own": "mean", "pooled": "pooled", "std": "std", "p10": "p10", "worst": "min"}
_OF_LOSS = {"p10": "p90", "worst": "max"}  # the clients that do badly are at the other end

_OF_ALL = {"perplexity": "pooled"}  # a mean over clients would be one of exponentials

OF_MAIN = (*_KINDS, *(name for name in _OF_OWN if name != "std"))
"""Figures that are in terms of the main measure, and so can be a target: how they differ (`std`) is no score."""


def parts(figure: str) -> tuple[str, str]:
    """(kind, measure) of a figure's name: the mean over clients of a measure of such models, or the measure alone.

    >>> [parts(name) for name in ("validation.mae", "validation", "mae")]
    [('validation', 'mae'), ('validation', ''), ('', 'mae')]
    """
    kind, _, measure = figure.partition(".")
    return (kind, measure) if kind in _KINDS else ("", figure)


@dataclass(frozen=True)
class Figures:
    """What an evaluation says, figure by figure.

    Args:
        evaluation: in the form of the event "round" (`docs/runs.md`); what is missing counts as unknown.
        measure: the main measure, "accuracy" or "loss".
        better: of further measures, which of two values is the better one, where their names do not say (`BETTER`).
    """

    evaluation: Mapping[str, Any]
    measure: str
    better: Mapping[str, Better | None] = field(default_factory=dict)

    @staticmethod
    def main(evaluation: Mapping[str, Any]) -> str:
        """The measure to look at first: accuracy where there is one, else the loss."""
        kinds = (evaluation.get(kind) for kind in ("overall", "clients", "personal", "validation"))
        known = next((found for found in kinds if found), None)
        return "accuracy" if known and "accuracy" in known else "loss"

    def value(self, name: str) -> float | None:
        """A figure by name, None where it is missing.

        "accuracy", "loss" and other measures are the global model's on the global test set, or where there is none
        the mean over clients; the "perplexity" is then that of all their tokens. "clients", "personal" and "newcomers"
        are means of the main measure over clients (of the global model, of each client's own, of those that never took
        part), "validation" is that of the models clients would use on their validation data; "validation.mae" and the
        like are means of another measure.
        "own" (mean over clients), "pooled" (mean over their samples), "std", "p10" and "worst" (over clients) describe
        the models that clients would use: their own where the method personalises, else the global one. "p10" is the
        end where clients do badly: the 90th percentile of a loss. Raises ConfigError for a confusion matrix, which is
        no figure.
        """
        kind, measure = parts(name)
        if kind:
            return self._of(self.evaluation.get(kind), measure or self.measure, "mean")
        if name == "confusion" and name in self.evaluation:
            raise _no_figure(name)
        own = self.evaluation.get("personal") or self.evaluation.get("clients")
        if name in _OF_OWN:
            key = (_OF_LOSS if self.measure == "loss" else {}).get(name, _OF_OWN[name])
            return self._of(own, self.measure, key)
        overall = self.evaluation.get("overall") or {}
        return _number(overall[name]) if name in overall else self._of(own, name, _OF_ALL.get(name, "mean"))

    def direction(self, name: str) -> Better | None:
        """Which of two values of a measure is the better one."""
        return self.better.get(name) or BETTER.get(name)

    @property
    def first(self) -> str:
        """The figure to look at first: "own" (what clients would use) where any are judged, else `measure`."""
        return "own" if self.evaluation.get("personal") or self.evaluation.get("clients") else self.measure

    @property
    def score(self) -> float | None:
        """The figure to choose models by: "validation" where it is known, else the first; the more the better."""
        value = self.value("validation" if self.evaluation.get("validation") else self.first)
        return -value if value is not None and self.measure == "loss" else value

    @staticmethod
    def _of(spreads: Mapping[str, Mapping[str, Any]] | None, measure: str, key: str) -> float | None:
        return _number(((spreads or {}).get(measure) or {}).get(key))


def called(figure: str, measure: str) -> str:
    """What people call a figure to look at first: "client mean", or "test accuracy"."""
    return "client mean" if figure == "own" else f"test {measure}"


class Measured(Protocol):
    """Something that was evaluated."""

    @property
    def measure(self) -> str:
        """The main measure."""

    def value(self, name: str) -> float | None:
        """A figure by name (see `Figures.value`)."""


_VALUE = spec.number("value")


@dataclass(frozen=True)
class Target:
    """A value to be reached: of a measure ("accuracy", "mae" ...), or of another figure (see `Figures.value`).

    `better` says from which side; by default that of the measure's name (`BETTER`).
    """

    measure: str
    value: float
    better: Better | None = None

    @property
    def on_validation(self) -> bool:
        """Whether it is about clients' validation data."""
        return parts(self.measure)[0] == "validation"

    @staticmethod
    def parse(text: str, measure: str | None = None) -> Target:
        """Read "accuracy:0.97", or "0.97" of the main measure where that is given.  Raises ConfigError."""
        if measure is not None and ":" not in text:
            return Target(
                measure, _VALUE.read(text.strip(), f"target {text!r}", "write a number, or MEASURE:VALUE")
            )
        return Target(*spec.pair(text, "target", ":", spec.word("measure"), _VALUE, "accuracy:0.97"))

    def __str__(self) -> str:
        short = f"{self.value:g}"
        return f"{self.measure}:{short if float(short) == self.value else repr(self.value)}"

    def check(
        self, measures: Mapping[str, Better | None], words: str = "this run does not measure"
    ) -> Target:
        """The target with the direction of its measure, which must be one of these, the loss or of the main measure.

        Raises ConfigError where it is none of them, or nobody has said which of its values are the better ones.
        """
        kind, measure = parts(self.measure)
        known = {**measures, "loss": "lower", **({"": None} if kind else dict.fromkeys(OF_MAIN))}
        if measure == "confusion" and measure not in known:
            raise _no_figure(measure)
        if measure not in known:
            raise ConfigError(
                f"target: {words} {measure!r}", hint=suggest(measure, [each for each in known if each])
            )
        better = measures.get(measure) or BETTER.get(measure)
        if better is None and measure and measure not in OF_MAIN:
            raise ConfigError(
                f"target: whether more or less of {measure!r} is better is not known",
                hint=f'say so: metrics={{"{measure}": atoll.Metric(function, better="lower")}}',
            )
        return replace(self, better=better)

    def reached(self, found: Measured) -> bool:
        """Whether something is at the target or beyond it; no, where it lacks the figure."""
        value = found.value(self.measure)
        if value is None:
            return False
        name = found.measure if self.measure in OF_MAIN else parts(self.measure)[1]
        falls = (self.better or BETTER.get(name)) == "lower"
        return value <= self.value if falls else value >= self.value


def _no_figure(name: str) -> ConfigError:
    return ConfigError(
        f"{name} is a matrix, and no single number: it can be no target, and has no curve",
        hint="accuracy, balanced_accuracy and macro_f1 are numbers; the matrix is in Run.evaluation.confusion",
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
