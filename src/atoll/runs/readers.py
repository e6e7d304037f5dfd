"""Readers: whatever is told of a run's events while it happens. `docs/runs.md` lists the events and their fields."""

from __future__ import annotations

from pathlib import Path

from atoll import spec
from atoll.runs.events import Event

__all__ = ["READERS", "Reader", "make"]

READERS = {
    "csv": "metrics.csv in the run folder",
    "mlflow": "MLflow, by default in mlflow.db beside the run folder; mlflow:URI for another store",
    "tensorboard": "TensorBoard, by default in the run folder; tensorboard:DIR for a folder per run in DIR",
}
"""The readers that `make` knows, and where each writes."""


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


_SETTINGS: dict[str, tuple[spec.Parameter, ...]] = {
    "csv": (),
    "mlflow": (spec.rest("uri", optional=True),),
    "tensorboard": (spec.rest("dir", optional=True),),
}


def make(text: str) -> Reader:
    """The reader that a text names: "csv", "tensorboard", "tensorboard:DIR", "mlflow" or "mlflow:URI".

    Nothing is written before `open`. Raises ConfigError for an unknown reader and MissingExtraError where its
    package is not installed.
    """
    call = spec.parse(text, "reader")
    given = call.read(_SETTINGS)
    # The rooms of the readers import this one, and packages that few runs need.
    if call.name == "csv":
        from atoll.runs.csvs import Csv

        return Csv()
    if call.name == "tensorboard":
        from atoll.runs.loggers import TensorBoard

        return TensorBoard(given.get("dir"))
    from atoll.runs.mlflows import MLflow

    return MLflow(given.get("uri"))
