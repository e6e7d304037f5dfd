"""A run in MLflow."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atoll.runs.events import Event, follow
from atoll.runs.folder import default_place
from atoll.runs.loggers import flat, load, scalars
from atoll.runs.readers import Reader

__all__ = ["MLflow"]


class MLflow(Reader):
    """Logs a run to MLflow, as a run of the experiment "atoll" that has the folder's name.

    Args:
        store: MLflow's tracking URI; by default an SQLite file `mlflow.db` beside the run folder.

    Settings become params and rounds metrics. A run that goes on continues its MLflow run, which it finds by the tag
    `atoll.run`. Metrics are written at most once a second, and whenever the run ends. MLflow's usage reports are
    switched off for this process, unless MLFLOW_DISABLE_TELEMETRY is set already; nothing else of its settings, such
    as the current tracking URI or run, is touched.
    """

    name = "mlflow"

    def __init__(self, store: str | None = None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported, and later
        self._mlflow, self._entities, *_ = load(
            "mlflow", "mlflow", "logging to MLflow",
            "mlflow", "mlflow.entities", "mlflow.store.tracking.sqlalchemy_store", "alembic",
        )  # fmt: skip
        self._store = store
        self._client: Any = None
        self._folder: Path | None = None
        self._experiment = self._run = ""
        self._waiting: list[Any] = []
        self._written = 0.0

    def open(self, folder: Path | None) -> None:
        """Opens the store, and makes it and the experiment where there is none."""
        self._folder = folder
        place = folder.resolve().parent if folder else default_place().resolve()
        if self._store is None:
            place.mkdir(parents=True, exist_ok=True)
        chatty = logging.getLogger("mlflow.store.db.utils")  # tells of the tables of a new store
        level = chatty.level
        chatty.setLevel(logging.WARNING)
        try:
            self._client = self._mlflow.MlflowClient(
                tracking_uri=self._store or f"sqlite:///{place / 'mlflow.db'}"
            )
            # Artifacts of such a store would otherwise go wherever the process was started.
            artifacts = None if self._store else (place / "mlartifacts").as_uri()
            self._experiment = self._find_experiment(artifacts)
        finally:
            chatty.setLevel(level)

    def event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "start":
            self._start(event)
        elif kind == "resume":
            self._continue()
        elif kind == "round":
            when, step = int(event["time"] * 1000), event["round"]
            self._waiting += [self._entities.Metric(k, v, when, step) for k, v in scalars(event).items()]
        elif kind == "result":
            self._end("FINISHED")
        elif kind == "error":
            self._end("KILLED" if event["kind"] in ("Interrupted", "Terminated") else "FAILED")
        if time.monotonic() - self._written > 1:
            self._flush()

    def close(self) -> None:
        self._flush()

    def _find_experiment(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name("atoll")
        if found is None:
            try:
                return str(self._client.create_experiment("atoll", artifacts))
            except self._mlflow.MlflowException:
                found = self._client.get_experiment_by_name("atoll")
                if found is None:  # no other run was faster
                    raise
        return str(found.experiment_id)

    def _start(self, event: Mapping[str, Any]) -> None:
        name = event.get("run") or time.strftime("%Y-%m-%d_%H%M%S")
        about = {"mlflow.source.name": event.get("command"), "mlflow.source.git.commit": event.get("commit")}
        tags = {"atoll.run": name, **{key: value for key, value in about.items() if value}}
        self._run = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        params = [self._entities.Param(key, value) for key, value in _params(event.get("config") or {})]
        for first in range(0, len(params), 100):  # MLflow takes no more at a time
            self._client.log_batch(self._run, params=params[first : first + 100])

    def _continue(self) -> None:
        """Go on with the run of that name; begin it where the run so far was not logged."""
        name = self._folder.resolve().name if self._folder else ""
        quote = '"' if "'" in name else "'"
        wanted = f"tags.`atoll.run` = {quote}{name}{quote}"
        found = self._client.search_runs([self._experiment], wanted, max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._start({**_beginning(self._folder), "run": name})

    def _end(self, status: str) -> None:
        self._flush()
        self._client.set_terminated(self._run, status)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for first in range(0, len(waiting), 1000):  # MLflow takes no more at a time
            self._client.log_batch(self._run, metrics=waiting[first : first + 1000])
        self._written = time.monotonic()


def _beginning(folder: Path | None) -> Event:
    """The event "start" of a run folder, empty if it has none."""
    events = (event for event, _ in follow(folder / "events.jsonl")) if folder else iter(())
    return next((event for event in events if event is not None and event["event"] == "start"), {})


def _params(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings as MLflow takes them: a name of certain characters, a text of at most 6,000."""
    for name, value in flat(settings):
        yield re.sub(r"[^\w\-./ ]", "_", name)[:250], str(value)[:6000]
