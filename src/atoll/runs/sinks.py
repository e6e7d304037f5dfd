"""The readers that go by a name."""

from __future__ import annotations

from atoll import spec
from atoll.runs.csvs import Csv
from atoll.runs.loggers import TensorBoard
from atoll.runs.mlflows import MLflow
from atoll.runs.readers import Reader

__all__ = ["make"]

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
    if call.name == "csv":
        return Csv()
    if call.name == "tensorboard":
        return TensorBoard(given.get("dir"))
    return MLflow(given.get("uri"))
