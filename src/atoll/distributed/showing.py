"""A training for the eye: a line a report, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from atoll.runs.events import Event
from atoll.runs.readers import Reader
from atoll.words import bytes_text, duration_text, value_text

if TYPE_CHECKING:
    from atoll.distributed.training import Trained

__all__ = ["Steps", "histogram", "summary"]


class Steps(Reader):
    """Prints a heading, and a line for every report."""

    name = "steps"

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps = self.before = 0

    def event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "start":
            self._print(
                f"{event['method']} on {event.get('data')}, {event['engine']}, {event['device']}", "bold"
            )
        elif kind == "resume":
            self._print(f"goes on after report {event['round']}", "bold")
        elif kind == "round":
            self._print(self._line(event), "")

    def _line(self, event: Event) -> str:
        work, overall = event["work"], (event.get("evaluation") or {}).get("overall", {})
        steps, self.before = work["steps"] - self.before, work["steps"]
        parts = [f"step {work['steps']:>7,}", f"training loss {event['loss']:.4f}"]
        parts += [f"{name} {value_text(name, value)}" for name, value in overall.items() if value is not None]
        parts += [f"{steps / max(1e-9, event['seconds']):,.0f} steps/s"]
        parts += [f"{bytes_text(work['bytes'] / max(1, steps))} a step"] if work["bytes"] else []
        return "   ".join(parts)

    def _print(self, text: str, style: str) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=True)


def summary(trained: Trained) -> str:
    """What came of a training, in a few lines."""
    found: Mapping[str, Any] = trained.figures
    scores = [
        f"{name} {value_text(name, found[name])}"
        for name in ("accuracy", "loss")
        if found.get(name) is not None
    ]
    steps = f"{found['steps']:,} steps in {duration_text(found['seconds'])}, {found['steps_per_second']:,.1f} a second"
    sent = f"{bytes_text(found['bytes'])} sent by a worker"
    sent += f", {found['waiting']:.0%} of the time waiting" if "waiting" in found else ""
    lines = [", ".join(scores), steps]
    lines += [sent] if found["workers"] > 1 else []
    lines += [f"{found['bubble']:.0%} of a step a stage waits, by the schedule"] if "bubble" in found else []
    lines += histogram(found["stale"]) if any(found.get("stale") or ()) else []
    lines += [f"{bytes_text(found['memory'])} of memory a worker at most"]
    return "\n".join(["", *lines])


def histogram(counts: Sequence[int], width: int = 40) -> list[str]:
    """Updates by their staleness, a bar each; a few rows at most."""
    most = 8
    shown = [*counts[:most], *([sum(counts[most:])] if len(counts) > most else [])]
    total, top = sum(counts), max(shown)
    rows = [f"staleness of {total:,} updates, in steps that others took between"]
    for steps, count in enumerate(shown):
        name = f"{steps}+" if steps == most else str(steps)
        rows.append(f"  {name:>3} {'█' * -(-count * width // top)} {count / total:.1%}")
    return rows
