"""`atoll run --dry-run`: what a run would be, and about how long it would take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from atoll.cli.run import build
from atoll.schema import toml_line
from atoll.words import bytes_text, duration_text

if TYPE_CHECKING:
    from atoll.cli.notice import Notice
    from atoll.cli.run import Wish
    from atoll.federation import Federation

__all__ = ["rehearse"]

_PLAYED = 3  # rounds; the first ones prepare the engine


def rehearse(wish: Wish, notice: Notice) -> None:
    """Print the size of the model, the traffic of a round and an estimate of the time, and then all settings.

    It is a file that `atoll run` runs: the settings are TOML, the rest are comments.
    """
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
        print(f"# {name:<14} {text}")
    print()
    for key, value in federation.keeper.config.items():
        print(toml_line(key, value))


def _measure(federation: Federation) -> tuple[float, int, int, float]:
    """Seconds and bytes of a round, and seconds of an evaluation."""
    records = [federation.round() for _ in range(min(_PLAYED, federation.rounds))]
    start = time.perf_counter()
    federation.evaluate()
    judging = time.perf_counter() - start
    last = records[-1]
    return last.seconds, last.bytes_up, last.bytes_down, judging
