"""What a codec is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from atoll.errors import CodecError, ConfigError
from atoll.tensors import Record

__all__ = ["Codec", "grouped", "size_of", "ungrouped"]


class Codec(ABC):
    """A tensor in fewer bytes. Concrete codecs are frozen dataclasses, whose fields are their settings.

    `encode` gives what travels, a record of tensors whose dtypes and shapes follow from the shape of the value alone
    (`form`), and `decode` makes a float32 tensor of it. `through` is decode(encode(value)) to the bit, written for
    `vmap` (no branch on a number, no shape that depends on one), and quicker where it packs nothing.

    `unbiased`: the mean of what comes back, over keys, is what went in. `contracts`: what comes back is nearer to it
    than nothing, |x - through(x)|^2 <= (1 - d) |x|^2 with some d > 0 for every x, as error feedback needs it.
    `close`: of many normal numbers no more than an eighth of |x|^2 is lost. `linear`: for one key, sums may be taken of
    what travels in the place of what is meant. `apart`: tensors are not to be joined before, for it looks at rows and
    columns, or one after the other is all that there is room for. `again`: what came back is packed to the same
    numbers, encode(through(x)) = encode(x), so that a simulation, which has what comes back, knows what travelled.
    """

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    def unbiased(self) -> bool:
        return False

    @property
    def contracts(self) -> bool:
        return True

    @property
    def close(self) -> bool:
        return False

    @property
    def linear(self) -> bool:
        return False

    @property
    def apart(self) -> bool:
        return False

    @property
    def again(self) -> bool:
        return False

    @property
    def text(self) -> str:
        """How it is written."""
        return self.name

    @abstractmethod
    def form(self, shape: Sequence[int]) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtypes and shapes of what travels for a value of this shape, by name."""

    @abstractmethod
    def encode(self, value: Tensor, key: Tensor) -> Record:
        """What travels for a value, of any shape and in floating point; `key` is a random stream, int64 scalar."""

    @abstractmethod
    def decode(self, sent: Record, shape: Sequence[int]) -> Tensor:
        """The value of what travelled, float32.  Raises CodecError for numbers that `encode` does not give."""

    def through(self, value: Tensor, key: Tensor) -> Tensor:
        """decode(encode(value)), for `vmap`."""
        return self.decode(self.encode(value, key), value.shape)

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes that travel for a value of this shape."""
        return sum(math.prod(size) * dtype.itemsize for dtype, size in self.form(shape).values())

    def ratio(self, shape: Sequence[int]) -> float:
        """How many times fewer bytes travel than those of float32."""
        return 4 * size_of(shape) / self.nbytes(shape)

    def check(self, sent: object, shape: Sequence[int]) -> None:
        """Nothing if this could travel for a value of this shape.  Raises CodecError, before a number is read."""
        due = self.form(shape)
        if not isinstance(sent, Record) or sent.keys() != due.keys():
            raise CodecError(
                f"this is nothing that {self.text} sends", hint="both sides must have one channel"
            )
        for name, (dtype, size) in due.items():
            found = sent[name]
            if not isinstance(found, Tensor) or found.dtype != dtype or tuple(found.shape) != size:
                what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else "no tensor"
                raise CodecError(
                    f"{name} is {what}, and {self.text} sends {dtype} {size} for {size_of(shape)} numbers",
                    hint="both sides must have the same model and channel",
                )

    def _require(self, name: str, holds: bool, problem: str, hint: str | None = None) -> None:
        if not holds:
            raise ConfigError(f"codec {self.name!r}: {name} = {getattr(self, name)} {problem}", hint=hint)


def size_of(shape: Sequence[int]) -> int:
    """Numbers in a tensor of this shape."""
    return math.prod(shape)


def grouped(value: Tensor, size: int) -> Tensor:
    """A tensor's numbers in rows of `size`, float32 [groups, size], with zeros at the end."""
    flat = value.reshape(-1).float()
    return pad(flat, (0, -flat.numel() % size)).reshape(-1, size)


def ungrouped(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `grouped`, for a tensor of this shape."""
    return rows.reshape(-1)[: size_of(shape)].reshape(tuple(shape))
