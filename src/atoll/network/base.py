"""The base that nobody sends: parameters that are not trained, which all must have, and are known by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoll.codec.header import DTYPES
from atoll.durable import replaced
from atoll.task import Task

__all__ = ["base_of", "remembered"]

_PIECE = 1 << 24
"""Bytes that are hashed at a time."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def base_of(tasks: Sequence[Task]) -> str | None:
    """SHA-256 of what is not trained in these models: names, types, shapes and numbers; None where all is trained.

    Read once from end to end, and never copied. What several models share counts once.
    """
    total, seen = hashlib.sha256(), dict[int, int]()
    for at, task in enumerate(tasks):
        for name, value in task.frozen.items():
            known = seen.get(value.data_ptr()) if value.numel() else None
            line = [at, name, _CODES.get(value.dtype, str(value.dtype)), list(value.shape), known]
            total.update(json.dumps(line).encode())
            if known is None:
                seen[value.data_ptr()] = len(seen)
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
