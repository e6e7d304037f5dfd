"""`atoll run --dry-run`: what a run would be, and about how long it would take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from atoll.cli.run import build
from atoll.words import bytes_text, duration_text

if TYPE_CHECKING:
    from atoll.cli.notice import Notice
    from atoll.cli.run import Wish
    from atoll.federation import Federation

__all__ = ["rehearse"]

_PLAYED = 3  # rounds; the first ones prepare the engine


def rehearse(wish: Wish, notice: Notice) -> None:
    """Print the settings, the size of the model, the traffic of a round and an estimate of the time."""
    federation = build(wish, notice)
    left = federation.rounds - federation.number
    notice.say("rehearsing a few rounds")
    try:
        seconds, up, down, judging = _measure(federation)
    finally:
        notice.clear()
        federation.engine.close()
        if federation.folder is not None:
            federation.folder.release()
    every = federation.settings.eval_every
    judged = max(1, left // every) if every else 1
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    parameters = sum(p.numel() for p in federation.task.module.parameters())
    rows = [
        ("clients", f"{federation.cohort} of {len(federation.data):,} a round, {federation.data.partition}"),
        ("model", f"{parameters:,} parameters"),
        ("engine", federation.engine.describe()),
        ("a round", f"{duration_text(seconds)}, {bytes_text(up)} up, {bytes_text(down)} down"),
        ("an evaluation", f"{duration_text(judging)}, {judged:,} of them"),
        ("in all", f"{left:,} rounds, about {duration_text(left * seconds + judged * judging)},"
         f" {bytes_text(left * up)} up, {bytes_text(left * down)} down"),
    ]  # fmt: skip
    for name, text in rows:
        table.add_row(name, text)
    console = Console(highlight=False)
    for key, value in federation.keeper.stated().items():
        console.print(f"{key} = {'none' if value is None else value}", markup=False, soft_wrap=True)
    console.print()
    console.print(table)


def _measure(federation: Federation) -> tuple[float, int, int, float]:
    """Seconds and bytes of a round, and seconds of an evaluation."""
    records = [federation.round() for _ in range(min(_PLAYED, federation.rounds))]
    start = time.perf_counter()
    federation.evaluate()
    judging = time.perf_counter() - start
    last = records[-1]
    return last.seconds, last.bytes_up, last.bytes_down, judging
