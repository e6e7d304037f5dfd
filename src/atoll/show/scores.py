"""The table of scores of an evaluation, for whoever shows one: which models, on whose data, how good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from atoll.measures import Figures
from atoll.show.fitted import Column, Fitted
from atoll.words import value_text

__all__ = ["confusion", "score_rows", "scores", "worst_text"]

_KINDS = (
    ("clients", "global model"),
    ("personal", "personal models"),
    ("newcomers", "newcomers"),
    ("validation", "validation data"),
)
_ENDS = {"higher": ("p10", "min", "max"), "lower": ("p90", "max", "min")}  # doing badly, worst, best
_CLASSES = 12  # of a confusion matrix that a terminal has room for


def scores(evaluation: Mapping[str, Any], measure: str, better: Mapping[str, Any]) -> Fitted:
    """The table (see `score_rows`)."""
    headings, rows = score_rows(evaluation, measure, better)
    ranks = {"± std": 5, "p10": 2, "p90": 2, "median": 3, "worst": 1, "best": 4}
    first, *others = headings
    table = Fitted([Column(first, text=True, style="dim"), *(Column(h, ranks.get(h, 0)) for h in others)])
    for title, overall, *cells in rows:
        table.add([title, Text(overall, style="bold green"), *cells])
    return table


def score_rows(
    evaluation: Mapping[str, Any], measure: str, better: Mapping[str, Any]
) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each sort of models in the main measure, then in each further one.

    Args:
        evaluation: in the form of the event "round" (`docs/runs.md`).
        better: of further measures, which of two values is the better one.
    """
    figures = Figures(evaluation, measure, better)
    names = dict.fromkeys(
        name for kind in ("overall", "clients", "personal") for name in evaluation.get(kind) or {}
    )
    rows = []
    for name in [measure, *(each for each in names if each not in (measure, "loss", "accuracy"))]:
        for kind, title in _KINDS:
            spread = (evaluation.get(kind) or {}).get(name) or {}
            overall = (evaluation.get("overall") or {}).get(name) if kind == "clients" else None
            if not spread and overall is None:
                continue
            low, worst, best = _ENDS.get(str(figures.direction(name)), ("", "", ""))
            found = [overall, *(spread.get(key) for key in ("mean", "std", low, "median", worst, best))]
            if kind == "clients" and not evaluation.get("personal") and name != measure:
                title = name
            elif name != measure:
                title = f"{name}, {title}"
            rows.append([title, *("–" if value is None else value_text(name, value) for value in found)])
    bad = "p90" if figures.direction(measure) == "lower" else "p10"
    return [measure, "test set", "client mean", "± std", bad, "median", "worst", "best"], rows


def confusion(evaluation: Mapping[str, Any]) -> list[RenderableType]:
    """Which classes are taken for which by the models that clients would use, where the evaluation says; else nothing.

    Without clients, that of the global model on the global test set. Of many classes only what shows them is named.
    """
    found = evaluation.get("confusion") or {}
    counts = found.get("own") or found.get("overall")
    if not counts:
        return []
    if len(counts) > _CLASSES:
        return [
            Text(f"confusion of {len(counts)} classes: on the run's page (atoll dash, atoll report)", "dim")
        ]
    heads = (Column(str(each), 1) for each in range(len(counts)))
    table = Fitted([Column("label \\ predicted", text=True, style="dim"), *heads, Column("right")])
    for label, row in enumerate(counts):
        cells = [Text(str(n), "bold" if label == each else "") for each, n in enumerate(row)]
        right = value_text("accuracy", row[label] / sum(row)) if sum(row) else "–"
        table.add([str(label), *cells, right])
    return [table]


def worst_text(
    values: Mapping[int, float], measure: str, names: Mapping[int, str], tested: Mapping[int, int]
) -> str | None:
    """Which client does worst, and on how many samples that is said: "north: 57.1 %, 4 of 7 test samples right"."""
    if not values:
        return None
    client = (max if measure == "loss" else min)(values, key=lambda k: values[k])
    name = names.get(client, str(client))
    text = f"{f'client {name}' if name.isdigit() else name}: {value_text(measure, values[client])}"
    if (count := tested.get(client)) is None:
        return text
    samples = f"{count} test sample{'' if count == 1 else 's'}"
    right = values[client] * count
    if (
        measure == "accuracy" and abs(right - round(right)) < 1e-3 + 1e-6 * count
    ):  # of texts it is a share of tokens
        return f"{text}, {round(right)} of {samples} right"
    return f"{text}, on {samples}"
