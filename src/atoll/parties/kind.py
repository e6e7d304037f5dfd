"""What parties may say to each other: kinds of messages, each with what is in it and what its receiver can learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atoll.errors import CodecError
from atoll.tensors import Record

__all__ = ["Field", "Kind"]

_SCALARS = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Field:
    """What a field of a message holds: a tensor of this type and shape, or a single value.

    Args:
        dtype: "float64", "uint8" ... of a tensor; "int", "float", "str" or "bool" for a single value, without a shape.
        shape: as long as the tensor has dimensions; None for one of any length.
    """

    dtype: str
    shape: tuple[int | None, ...] | None = None

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, if something is."""
        if self.shape is None:
            if type(value) is not _SCALARS[self.dtype]:
                return f"holds {_said(value)}, and {self.dtype} is expected"
            return "is not finite" if isinstance(value, float) and not math.isfinite(value) else None
        if not isinstance(value, Tensor):
            return f"holds {_said(value)}, and a tensor is expected"
        due = getattr(torch, self.dtype)
        fits = value.dim() == len(self.shape) and all(
            want in (None, have) for want, have in zip(self.shape, value.shape, strict=True)
        )
        if value.dtype != due or not fits:
            shape = ", ".join("any" if size is None else str(size) for size in self.shape)
            return f"holds {_said(value)}, and {self.dtype} [{shape}] is expected"
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return "has numbers that are not finite"
        return None


@dataclass(frozen=True)
class Kind:
    """A sort of message.

    Args:
        name: "psi.blinded"; the same on both sides.
        fields: what is in it, by name; nothing else may be.
        tells: what its receiver can learn from it, in words, for the crypto audit.
        limit: the most bytes of one.
    """

    name: str
    fields: Mapping[str, Field]
    tells: str
    limit: int = 1 << 30

    def check(self, record: Record, sender: str) -> None:
        """Raises CodecError that names the first field that is not as it must be."""
        if record.keys() != self.fields.keys():
            raise CodecError(
                f"{self.name} of {sender} has the fields {', '.join(record) or 'none'},"
                f" and {', '.join(self.fields) or 'none'} are expected",
                hint="both sides must run the same version with the same settings",
            )
        for name, field in self.fields.items():
            problem = field.problem(record[name])
            if problem:
                raise CodecError(f"{self.name} of {sender}: {name} {problem}")


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"a {type(value).__name__}"
