"""What is told of a run's events while it happens. `docs/runs.md` lists the events and their fields."""

from __future__ import annotations

from pathlib import Path

from atoll.runs.events import Event

__all__ = ["Reader"]


class Reader:
    """Something that is told of events. Override what you need.

    A `Bus` calls all three methods on one thread that is not the training thread. A reader that raises is reported
    and gets no more events; the run goes on. Events are shared with other readers and must not be changed. Numbers
    that JSON lacks are null in events.jsonl, but may still be NaN or infinite here.
    """

    name = ""
    """What problems call the reader; the name of its class where empty."""

    def open(self, folder: Path | None) -> None:
        """Before the first event; `folder` is the run's, None where nothing is kept on disk.

        The folder of a run that goes on holds the events so far; the event "resume" follows.
        """

    def event(self, event: Event) -> None:
        """Something happened."""

    def close(self) -> None:
        """After the last event, or after a failure. Called once."""
