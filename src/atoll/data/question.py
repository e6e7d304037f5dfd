"""Classes or numbers? What targets are is asked where all of them are known, and never guessed from a dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from atoll.errors import DataError

__all__ = ["REGRESSION", "UNASKED", "ask"]

REGRESSION: Final = "regression"
_SHOWN = 12


class _Unasked:
    """In the place of `classes`: whoever reads the parts of a whole asks about the whole."""

    def __repr__(self) -> str:
        return "None"


UNASKED: Final[Any] = _Unasked()


def ask(parts: Sequence[Tensor], where: str) -> None:
    """Refuse targets, all those of a call, that may be classes as well as numbers, or classes with gaps between.

    Raises `DataError` whose hint has both answers.
    """
    if all(_one_hot(y) for y in parts):
        raise DataError(
            f"{where}: each target is a row with a single 1: are these classes or numbers?",
            hint=f'pass y.argmax(1) for classes, or classes="{REGRESSION}" for numbers',
        )
    if any(y.dim() != 1 and y.shape[1:] != (1,) for y in parts):
        return
    floating = any(y.is_floating_point() for y in parts)
    if floating and any(bool((y != y.round()).any()) for y in parts):
        return
    found = _values(torch.cat([y.reshape(-1) for y in parts]).to(torch.int64))
    regular = found == list(range(len(found)))
    if regular and not floating:
        return
    values = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
    labels = ",".join(map(str, found)) if len(found) <= _SHOWN else f"{found[0]},{found[1]},..."
    listed, whole = f'classes="{labels}"', f"classes={found[-1] + 1}" if found[0] >= 0 else ""
    if floating:
        classes = whole if regular else " or ".join(filter(None, (listed, whole)))
        raise DataError(
            f"{where}: the targets are whole numbers in a floating type ({values}): are these classes or numbers?",
            hint=f'{classes} for classes, classes="{REGRESSION}" for numbers',
        )
    raise DataError(
        f"{where}: the labels are {values}, which leaves gaps in 0..{found[-1]}",
        hint=f"{listed} numbers them from 0 on, {whole} keeps the numbers as they are",
    )


def _values(y: Tensor) -> list[int]:
    if len(y) and int(y.min()) >= 0 and int(y.max()) < len(y):
        y = y.bincount().nonzero()  # counting is sooner done than sorting
    found: list[int] = torch.unique(y).tolist()
    return found


def _one_hot(y: Tensor) -> bool:
    if y.dim() != 2 or y.shape[1] < 2:
        return False
    return bool(((y == 0) | (y == 1)).all()) and bool((y.sum(dim=1) == 1).all())
