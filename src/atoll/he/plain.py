"""The cipher that hides nothing: the same calls and the same whole numbers, open."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atoll.errors import CodecError
from atoll.he.layout import Octets, numbers, octets
from atoll.he.scheme import AdditiveHE, Plain, SecretHE, Vector

__all__ = ["Open", "Plaintext"]

_LIMB = 32


class Plaintext(AdditiveHE):
    """A number modulo 2^bits is int64 limbs of 32 bits, the lowest first, which are carried before they are sent."""

    scheme: ClassVar[str] = "none"

    def __init__(self, bits: int) -> None:
        self.bits, self.capacity, self.width, self.workers = bits, bits, bits // 8, 1
        self.limbs = bits // _LIMB

    def key(self) -> Octets:
        return np.zeros(0, np.uint8)

    def encrypt(self, values: Plain) -> Vector:
        return self.filled(self.checked(values), np.uint8(0))

    def filled(self, plain: Octets, rest: Any) -> Vector:
        """Numbers whose higher bytes are all `rest`."""
        wide = np.empty((len(plain), self.width), np.uint8)
        wide[:] = rest
        size = min(plain.shape[1], self.width)
        wide[:, :size] = plain[:, :size]
        return self._read(wide)

    def nothing(self, *shape: int) -> Vector:
        return np.zeros((*shape, self.limbs), np.int64)

    def add(self, a: Vector, b: Vector) -> Vector:
        total: Vector = a + b
        return total

    def add_plain(self, c: Vector, value: int) -> Vector:
        return self.add(c, self.encrypt([value])[0])

    def mul_plain(self, c: Vector, factor: int) -> Vector:
        if factor < 0:
            raise ValueError("a factor is a whole number from 0")
        flat = self.to_bytes(c.reshape(-1, self.limbs))
        return self.encrypt(octets([factor * m for m in numbers(flat)])).reshape(c.shape)

    def sum_by_bins(self, c: Vector, rows: NDArray[Any], bins: NDArray[Any], count: int) -> Vector:
        found = self.nothing(count)
        for limb in range(self.limbs):
            column = np.ascontiguousarray(c[:, limb])
            if len(column) and int(column.max()) * len(rows) < 1 << 53:  # exact as floats
                if column.any():
                    found[:, limb] = np.bincount(bins, column.astype(np.float64)[rows], count)
            else:
                np.add.at(found[:, limb], bins, column[rows])
        return found

    def pack(self, c: Vector, bits: int) -> Vector:
        per = self.per(bits)
        if per == 1:
            return c
        plain = numbers(self.to_bytes(c))
        packed = [
            sum(m << (bits * at) for at, m in enumerate(plain[start : start + per]))
            for start in range(0, len(plain), per)
        ]
        return self.encrypt(octets(packed))

    def rerandomise(self, c: Vector) -> Vector:
        return c

    def to_bytes(self, c: Vector) -> Octets:
        carried = self._carried(c).astype("<u4")
        return carried.view(np.uint8).reshape(len(c), self.width)

    def from_bytes(self, blob: Octets, what: str) -> Vector:
        if blob.ndim != 2 or blob.shape[1] != self.width:
            raise CodecError(
                f"{what} has {'x'.join(map(str, blob.shape))} bytes, and {self.name} has {self.width} a number"
            )
        return self._read(blob)

    def _read(self, blob: Octets) -> Vector:
        return np.ascontiguousarray(blob).view("<u4").astype(np.int64)

    def _carried(self, c: Vector) -> Vector:
        made = c.copy()
        for limb in range(self.limbs - 1):
            over = made[..., limb] >> _LIMB
            if over.any():
                made[..., limb] -= over << _LIMB
                made[..., limb + 1] += over
        made[..., -1] &= (1 << _LIMB) - 1
        return made


class Open(SecretHE):
    """No secret."""

    public: Plaintext

    def __init__(self, bits: int) -> None:
        self.public = Plaintext(bits)

    def encrypt(self, values: Plain) -> Vector:
        return self.public.encrypt(values)

    def seal(self, plain: Octets) -> Octets:
        fitting = self.public.checked(plain, True)
        return self.public.to_bytes(self.public.filled(fitting, np.where(plain[:, -1:] >> 7, 255, 0)))

    def decrypt(self, c: Vector, bits: int, what: str) -> Octets:
        plain, size = self.public.to_bytes(c), (bits + 7) // 8
        top = plain[:, size - 1] >> (bits - 8 * (size - 1)) if bits % 8 else np.zeros(0, np.uint8)
        if plain[:, size:].any() or top.any():
            raise CodecError(f"{what} holds what no sum can be")
        return plain[:, :size]
