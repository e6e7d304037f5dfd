"""A run in TensorBoard, and what it has in common with other tools (`mlflows`): the names of numbers and settings.

All call a round's numbers the same: test/<measure> of the global model on the global test set, clients/<measure>/,
personal/<measure>/ and validation/<measure>/ with mean, p10, p90 and min over clients, train/loss, bytes/up,
bytes/down, and seconds (the machine's); on a virtual clock virtual/ with seconds (since the run began), energy, wasted,
staleness, late and failed (how many); where updates are blurred privacy/ with epsilon (at most, so far) and clipped
(the share of updates). The step is the round.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from atoll.errors import ConfigError, MissingExtraError
from atoll.runs.csvs import known
from atoll.runs.events import Event
from atoll.runs.readers import Reader

__all__ = ["TensorBoard", "flat", "load", "scalars"]

_SPREAD = ("mean", "p10", "p90", "min")
_BINS = 30  # of a histogram over clients


def scalars(event: Event) -> dict[str, float]:
    """The numbers of a "round" that are known, by name."""
    found = {name.replace("_", "/"): event.get(name) for name in ("bytes_up", "bytes_down", "seconds")}
    found["train/loss"] = event.get("loss")
    if clock := event.get("clock"):
        found["virtual/seconds"] = clock.get("ended")
        found |= {f"virtual/{name}": clock.get(name) for name in ("energy", "wasted", "staleness")}
        found |= {f"virtual/{name}": len(clock.get(name) or ()) for name in ("late", "failed")}
    if spent := event.get("spent"):
        found |= {f"privacy/{name}": spent.get(name) for name in ("epsilon", "clipped")}
    evaluation = event.get("evaluation") or {}
    for measure, value in (evaluation.get("overall") or {}).items():
        found[f"test/{measure}"] = value
    for kind in ("clients", "personal", "validation"):
        for measure, spread in (evaluation.get(kind) or {}).items():
            found |= {f"{kind}/{measure}/{name}": spread.get(name) for name in _SPREAD}
    return {
        name: float(value) for name, value in found.items() if value is not None and known(value) is not None
    }


def load(package: str, extra: str, purpose: str, *modules: str) -> list[ModuleType]:
    """Import modules of an optional package.  Raises MissingExtraError where it is not installed."""
    try:
        return [importlib.import_module(module) for module in modules]
    except ImportError:
        raise MissingExtraError(package, extra, purpose) from None


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings in tables within tables, as (table.name, value)."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


# --- TensorBoard ----------------------------------------------------------------------------------------------------


class TensorBoard(Reader):
    """Writes TensorBoard's event files: scalars, histograms over clients, and the settings as text.

    Args:
        directory: where each run gets a folder of its own; by default the files go into the run's folder, to
            `tensorboard`. ``tensorboard --logdir`` shows either.

    Only the package's records and messages are used. torch.utils.tensorboard needs twice as long to import, and the
    package's own file writer would import TensorFlow wherever that is installed, to open a file.
    """

    name = "tensorboard"

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory
        *messages, records = load(
            "tensorboard", "tensorboard", "writing TensorBoard files",
            *(f"tensorboard.compat.proto.{name}_pb2" for name in ("event", "summary", "tensor", "types")),
            "tensorboard.summary.writer.record_writer",
        )  # fmt: skip
        self._event, self._summary, self._tensor, self._types = messages
        self._records = records
        self._writer: Any = None

    def open(self, folder: Path | None) -> None:
        """Raises ConfigError if there is neither a folder nor a directory."""
        if self._directory is not None:
            place = Path(self._directory) / (
                folder.resolve().name if folder else time.strftime("%Y-%m-%d_%H%M%S")
            )
        elif folder is not None:
            place = folder / "tensorboard"
        else:
            raise ConfigError(
                "there is no run folder to write to", hint="tensorboard:DIR writes to a directory"
            )
        place.mkdir(parents=True, exist_ok=True)
        self._writer = self._records.RecordWriter(_new_file(place))
        self._write(time.time(), file_version="brain.Event:2")

    def event(self, event: Event) -> None:
        when = event["time"]
        if event["event"] == "round":
            values = [
                self._summary.Summary.Value(tag=tag, simple_value=v) for tag, v in scalars(event).items()
            ]
            each = (event.get("evaluation") or {}).get("each") or {}
            for kind, measures in each.items():
                for measure, column in measures.items():
                    found = [value for value in column if known(value) is not None]
                    if found:
                        values.append(self._histogram(f"{kind}/{measure}", np.array(found, np.float64)))
            self._write(when, event["round"], summary=self._summary.Summary(value=values))
        elif event["event"] == "start":
            text = self._text("hparams/config", event.get("config") or {})
            self._write(when, summary=self._summary.Summary(value=[text]))
        elif event["event"] == "resume":
            # Tells of a restart: TensorBoard forgets the void rounds, which have this step and later ones.
            again = self._event.SessionLog(status=self._event.SessionLog.START)
            self._write(when, event["round"] + 1, session_log=again)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, when: float, step: int = 0, **what: Any) -> None:
        self._writer.write(self._event.Event(wall_time=when, step=step, **what).SerializeToString())
        self._writer.flush()

    def _histogram(self, tag: str, values: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
        top = max(1.0, float(values.max()))  # accuracies share their bins, so that rounds can be compared
        counts, edges = np.histogram(values, _BINS, (min(0.0, float(values.min())), top))
        # TensorBoard lets the first bin begin at the minimum and the last end at the maximum.
        first, last = np.flatnonzero(counts)[[0, -1]]
        histogram = self._summary.HistogramProto(
            min=values.min(),
            max=values.max(),
            num=len(values),
            sum=values.sum(),
            sum_squares=(values**2).sum(),
            bucket_limit=edges[first + 1 : last + 2].tolist(),
            bucket=counts[first : last + 1].tolist(),
        )
        return self._summary.Summary.Value(tag=tag, histo=histogram)

    def _text(self, tag: str, settings: Mapping[str, Any]) -> Any:
        lines = (f"| {_cell(name)} | {_cell(value)} |" for name, value in flat(settings))
        table = "\n".join(["| setting | value |", "|---|---|", *lines])
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensor.TensorProto(dtype=self._types.DT_STRING, string_val=[table.encode()])
        return self._summary.Summary.Value(
            tag=tag, metadata=self._summary.SummaryMetadata(plugin_data=plugin), tensor=tensor
        )


def _new_file(place: Path) -> BinaryIO:
    """A new event file. TensorBoard reads a run's files in the order of their names, so it comes after the others."""
    others = [each.name.split(".")[3] for each in place.glob("events.out.tfevents.*")]
    newest = max((int(stamp) for stamp in others if stamp.isdecimal()), default=0)
    stamp = max(int(time.time()), newest + 1)
    return open(place / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}", "xb")


def _cell(value: Any) -> str:
    return re.sub(r"([|\\`])", r"\\\1", str(value)).replace("\n", " ")
