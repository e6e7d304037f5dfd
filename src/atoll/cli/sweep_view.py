"""A sweep as it runs: a live table of its trials, or a line when one begins or ends."""

from __future__ import annotations

import os
import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from atoll.measures import called
from atoll.show.fitted import Column, Fitted, live
from atoll.trials.sweeping import Sweep
from atoll.trials.trial import Trial
from atoll.words import duration_text, value_text

__all__ = ["Board"]

_STYLES = {"finished": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "waiting": "dim"}
_ORDER = ("running", "failed", "stopped", "finished", "waiting")


class Board:
    """Shows a sweep on a console: `update` again and again, `close` at the end (more than once does no harm)."""

    def __init__(self, console: Console, sweep: Sweep) -> None:
        self.console = console
        self.sweep = sweep
        self.seen: dict[int, str] = {}
        self.begun = time.monotonic()
        self.live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI"):
            self.live = live(console, self._view)
            self.live.start()
        else:
            threads = f"{sweep.jobs} at once" if sweep.jobs > 1 else "one after the other"
            self._print(f"{len(sweep.trials)} runs, {threads}, in {sweep.folder.path}")

    def update(self, sweep: Sweep) -> None:
        """Say what is new; the live table redraws itself."""
        if self.live is not None:
            return
        for trial in sweep.trials:
            status, before = trial.status, self.seen.get(trial.point.number)
            if status != before:
                self.seen[trial.point.number] = status
                if status != "waiting":
                    self._print(f"{self._count(trial)} {status:<8}  {trial.point.label}{_result(trial)}")

    def close(self) -> None:
        """Take the table off the screen."""
        if self.live is not None:
            self.live.stop()

    def _count(self, trial: Trial) -> str:
        width = len(str(len(self.sweep.trials)))
        return f"[{trial.point.number:>{width}}/{len(self.sweep.trials)}]"

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _view(self) -> RenderableType:
        trials = self.sweep.trials
        counts = {name: sum(trial.status == name for trial in trials) for name in _ORDER}
        done = counts["finished"] + counts["failed"]
        head = Text(f"{done} of {len(trials)} runs", "bold")
        others = [f"{count} {name}" for name, count in counts.items() if count and name != "finished"]
        head.append(f"  {', '.join(others)}  {duration_text(time.monotonic() - self.begun)}", "not bold dim")
        head.append(f"\n{self.sweep.folder.path}", "not bold dim")
        return Group(head, ProgressBar(total=len(trials), completed=done), self._table())

    def _table(self) -> Fitted:
        """As many trials as the screen has room for: those at work first, the newest of the finished ones."""
        room = max(4, self.console.height - 9)
        ranked = sorted(self.sweep.trials, key=lambda t: (_ORDER.index(t.status), _rank(t)))[:room]
        scored = next((t for t in self.sweep.trials if t.score is not None), self.sweep.trials[0])
        columns = [
            Column("run", text=True),
            Column("status", text=True),
            Column("round", 1),
            Column(called(scored.first, scored.measure)),
            Column("time", 2),
        ]
        view = Fitted(columns, moving=True)
        for trial in sorted(ranked, key=lambda t: t.point.number):
            score = "" if trial.score is None else value_text(trial.measure, trial.score)
            status = Text(trial.status, _STYLES[trial.status])
            rounds = f"{trial.round}/{trial.rounds}"
            view.add([trial.point.label, status, rounds, score, duration_text(trial.seconds)])
        hidden = len(self.sweep.trials) - len(ranked)
        if hidden:
            view.add([Text(f"... {hidden} more", "dim"), "", "", "", ""])
        return view


def _rank(trial: Trial) -> int:
    """Among trials of one status: the last ones of what is finished, the first ones of what waits."""
    return -trial.point.number if trial.status == "finished" else trial.point.number


def _result(trial: Trial) -> str:
    if trial.status == "finished" and trial.score is not None:
        score = f"{called(trial.first, trial.measure)} {value_text(trial.measure, trial.score)}"
        return f": {score} after {trial.round} rounds, {duration_text(trial.seconds)}"
    if trial.status == "failed":
        return f": {trial.message}"
    return f": after round {trial.round}" if trial.status == "stopped" else ""
