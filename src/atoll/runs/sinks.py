"""The readers that go by a name."""

from __future__ import annotations

from atoll.errors import ConfigError, suggest
from atoll.runs.csvs import Csv
from atoll.runs.loggers import TensorBoard
from atoll.runs.mlflows import MLflow
from atoll.runs.readers import Reader

__all__ = ["READERS", "make"]

READERS = {
    "csv": "metrics.csv in the run folder",
    "mlflow": "MLflow, by default in mlflow.db beside the run folder; mlflow:URI for another store",
    "tensorboard": "TensorBoard, by default in the run folder; tensorboard:DIR for a folder per run in DIR",
}
"""The readers that `make` knows, and where each writes."""


def make(spec: str) -> Reader:
    """The reader that a text names: "csv", "tensorboard", "tensorboard:DIR", "mlflow" or "mlflow:URI".

    Nothing is written before `open`. Raises ConfigError for an unknown reader and MissingExtraError where its
    package is not installed.
    """
    name, colon, where = spec.partition(":")
    if name not in READERS:
        raise ConfigError(f"there is no reader {name!r}", hint=suggest(name, READERS))
    if colon and (name == "csv" or not where):
        said = "takes nothing after its name" if name == "csv" else "needs something after the colon"
        raise ConfigError(f"the reader {spec!r} {said}", hint=f"{name}: {READERS[name]}")
    if name == "csv":
        return Csv()
    if name == "tensorboard":
        return TensorBoard(where or None)
    return MLflow(where or None)
