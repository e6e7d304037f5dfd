"""A file of a model, which is in place once it has been seen to compute what the model does."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from atoll.errors import AtollError, ConfigError, RunError, suggest
from atoll.export import executorch, onnx, torchscript
from atoll.export.trained import Plain, Trained, outputs
from atoll.runs.folder import writing

__all__ = ["FORMATS", "TOLERANCE", "Format", "check", "write"]

TOLERANCE = 1e-5
"""How far an output may be from the model's, of numbers up to 1; of larger ones as a share of the largest."""


@dataclass(frozen=True)
class Format:
    """A form in which models are run elsewhere.

    Args:
        ending: what its files end in.
        write: (module, inputs [n, ...], their names, facts as JSON, path) -> nothing; raises MissingExtraError, and
            whatever the exporter raises where it cannot follow the module.
        runner: path -> a function that computes outputs of such inputs, with the format's own runtime.
    """

    ending: str
    write: Callable[[Plain, tuple[Tensor, ...], Sequence[str], str, Path], None]
    runner: Callable[[Path], Callable[[tuple[Tensor, ...]], Tensor]]


FORMATS = {
    "onnx": Format(".onnx", onnx.write, onnx.runner),
    "torchscript": Format(".pt", torchscript.write, torchscript.runner),
    "executorch": Format(".pte", executorch.write, executorch.runner),
}
"""By name."""


def check(to: str) -> None:
    """Raise ConfigError where there is no such format."""
    if to not in FORMATS:
        raise ConfigError(f"there is no format {to!r}", hint=suggest(to, FORMATS))


def write(to: str, trained: Trained, path: str | Path) -> Path:
    """Write a model in a format, for batches of any size (ExecuTorch: up to `executorch.BATCH`).

    The file is run with the format's own runtime before it is in place, on the samples together and on one alone, and
    compared with the model.

    Args:
        to: a name in `FORMATS`.
        path: the file; one that is there is replaced.

    Raises ConfigError for another format, a directory that is not there and a model that the exporter cannot follow,
    MissingExtraError where a package is missing, RunError where the file computes something else or cannot be written.
    """
    check(to)
    place = Path(path)
    if not place.parent.is_dir() or place.is_dir():
        what = f"{place} is a directory" if place.is_dir() else f"there is no directory {place.parent}"
        raise ConfigError(
            f"the model cannot be written: {what}", hint="give a file in a directory that is there"
        )
    with writing(place, "the model"), tempfile.TemporaryDirectory(prefix=".export", dir=place.parent) as room:
        made = Path(room) / place.name
        _made(to, trained, made)
        for each in sorted(
            Path(room).iterdir(), reverse=True
        ):  # what a large model's file points at comes first
            os.replace(each, place.parent / each.name)
    return place


def _made(to: str, trained: Trained, path: Path) -> None:
    """Write the file, and run it."""
    plain, tensors = trained.plain(), trained.tensors()
    expected = outputs(plain, tensors)
    kind = FORMATS[to]
    with _quiet():
        try:
            # Two samples: an exporter may take one for a size that never changes.
            some = tuple(torch.cat([each[:1], each[:1]]) for each in tensors)
            kind.write(plain, some, plain.names, trained.facts(expected), path)
        except (AtollError, OSError):
            raise
        except Exception as error:
            name = type(trained.module).__name__
            line = next((each for each in str(error).splitlines() if each.strip()), "")
            raise ConfigError(
                f"{to} cannot follow {name}: {type(error).__name__}: {line[:300]}",
                hint="a forward that branches on values of tensors has no such form; try another format",
            ) from error
        run = kind.runner(path)
        for rows in (len(expected), 1):
            _compare(to, run(tuple(each[:rows].contiguous() for each in tensors)), expected[:rows])


def _compare(to: str, found: Tensor, expected: Tensor) -> None:
    """Raise RunError where what was exported computes something else."""
    if found.shape != expected.shape:
        what = f"outputs of shape {tuple(found.shape)}, the model {tuple(expected.shape)}"
    else:
        apart = float((found.double() - expected.double()).abs().max())
        if apart <= TOLERANCE * max(1.0, float(expected.abs().max())):  # false for NaN
            return
        what = f"outputs that differ from the model's by {apart:.2g}"
    raise RunError(
        f"what was exported to {to} gives {what}, for {len(expected)} samples; nothing was written",
        hint="the module may draw, or depend on more than its inputs; try another format",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, exporters say nothing about themselves: what counts is whether the outputs agree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
