"""The base that nobody sends: parameters that are not trained, which all must have, and are known by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoll.codec.header import DTYPES
from atoll.durable import replaced
from atoll.errors import DataError
from atoll.network.wire import DataForm
from atoll.task import Task

__all__ = ["Bases", "base_of", "remembered"]

_PIECE = 1 << 24
"""Bytes that are hashed at a time."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def base_of(tasks: Sequence[Task]) -> str | None:
    """SHA-256 of what is not trained in these models: names, types, shapes and numbers; None where all is trained.

    Read once from end to end, and never copied. What several models share counts once.
    """
    total, seen = hashlib.sha256(), dict[Any, int]()
    for at, task in enumerate(tasks):
        for name, value in task.frozen.items():
            # What begins where another does is the same only where it lies the same: else a part would stand for all.
            place = value.data_ptr(), value.dtype, value.shape, value.stride()
            known = seen.get(place) if value.numel() else None
            line = [at, name, _CODES.get(value.dtype, str(value.dtype)), list(value.shape), known]
            total.update(json.dumps(line).encode())
            if known is None:
                seen[place] = len(seen)
                for piece in torch.split(_octets(value), _PIECE):
                    total.update(memoryview(piece.numpy()))  # type: ignore[arg-type]  # an array is one
    return total.hexdigest() if seen else None


def _octets(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def remembered(tasks: Sequence[Task], start: str | None, what: Sequence[Any], place: Path) -> str | None:
    """The same; where the numbers are those of a file that was looked at before, it is not read again.

    Args:
        start: that file, or the folder in which it is.
        what: what else they follow from, as plain values: the model and its adapter.
        place: a directory, in which it is written down.
    """
    if start is None or not any(task.frozen for task in tasks):
        return base_of(tasks)
    file = Path(start) / "model.safetensors" if Path(start).is_dir() else Path(start)
    about = file.stat()
    now = [str(file.resolve()), about.st_size, about.st_mtime_ns, *what]
    note = place / "base.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text("utf-8"))
        if known["of"] == now:
            return str(known["sha256"])
    found = base_of(tasks)
    replaced(note, json.dumps({"of": now, "sha256": found}).encode())
    return found


class Bases:
    """What nodes' models must stand over: the hash that the coordinator's own has, for data of a form.

    `adapted` says that all nodes have a base; else one that tells none is as it should be. Threads may share it.
    """

    def __init__(self, tell: Callable[[DataForm], str | None], adapted: bool) -> None:
        self.tell, self.adapted = tell, adapted
        self._lock = threading.Lock()
        self._known: dict[Any, str | None] = {}

    def check(self, name: str, form: DataForm) -> None:
        """Raises DataError for a node whose model stands over another base than the run's."""
        if form.base is None and not self.adapted:
            return
        key = form.inputs, form.classes
        with self._lock:
            if key not in self._known:
                self._known[key] = self.tell(form)
        due = self._known[key]
        if form.base != due:
            raise DataError(
                f"{name}: the weights that its model stands over have the hash {_short(form.base)}, and this run's have"
                f" {_short(due)}",
                hint="give the node the file that the run starts from: atoll join ... --base FILE",
            )


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else f"{sha256[:16]}..."
