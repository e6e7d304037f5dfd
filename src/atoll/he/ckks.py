"""CKKS by TenSEAL, as parties with one key holder need it: vectors that are added, scaled, and summed over columns.

A vector of m numbers travels as ceil(m / slots) ciphertexts, `slots` numbers in each, the rest zero. `Open` is the same
without a cipher, so that a run can be looked at and compared.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll.errors import CodecError, ConfigError, MissingExtraError

__all__ = ["CKKS", "CKKSKey", "Cipher", "Column", "Key", "Open", "OpenKey", "drawn"]

FloatArray = NDArray[np.float64]
Column = tuple[int, FloatArray]
"""Where in a long vector a column begins, and its numbers."""

SCALE = 40  # bits behind the point
_MOST = {8192: 218, 16384: 438}  # bits of all moduli at which a degree has 128 bits of security


def drawn(count: int, grain: float, bits: int) -> FloatArray:
    """Masks: uniform over the multiples of `grain` in [-2^(bits-1), 2^(bits-1)) grain, from the operating system.

    At most 52 bits, so that sums with what they hide are exact in float64.
    """
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(64 - bits)
    found: FloatArray = (words.astype(np.float64) - 2.0 ** (bits - 1)) * grain
    return found


class Cipher(ABC):
    """What everybody can do who has the public key; a ciphertext list stands for one vector.

    Attributes:
        under: what a transcript calls it, None where it hides nothing.
        slots: numbers in a ciphertext.
    """

    under: str | None
    slots: int

    @abstractmethod
    def encrypt(self, values: FloatArray) -> list[Any]:
        """A vector [m] as ceil(m / slots) ciphertexts, of new randomness each time."""

    @abstractmethod
    def add(self, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        """a + b; as random as the fresher of the two."""

    @abstractmethod
    def times(self, a: Sequence[Any], values: FloatArray) -> list[Any]:
        """a * values, number by number. A fresh zero is added: who knows the randomness of `a` learns nothing."""

    @abstractmethod
    def totals(
        self, a: Sequence[Any], columns: Iterable[Column], masks: FloatArray, grain: float
    ) -> list[Any]:
        """For each column the ciphertext of sum_i a[start + i] column[i] + mask.

        The mask is encrypted anew, with random numbers in all other slots, so that neither who has encrypted `a` nor
        who decrypts learns more than the one sum.

        Args:
            masks: one for each column.
            grain: an exact cipher rounds sums to multiples of it.
        """

    @abstractmethod
    def pack(self, a: Sequence[Any]) -> Tensor:
        """As uint8 [ciphertexts, width], to be sent."""

    @abstractmethod
    def unpack(self, sent: Tensor) -> list[Any]:
        """The inverse. Raises CodecError where these are no ciphertexts of this key."""

    def cut(self, values: FloatArray) -> list[FloatArray]:
        """A vector in pieces of `slots` numbers, filled up with zeros."""
        count = max(1, -(-len(values) // self.slots))
        full = np.zeros(count * self.slots)
        full[: len(values)] = values
        return list(full.reshape(count, self.slots))

    def pieces(self, column: Column) -> Iterable[tuple[int, FloatArray]]:
        """The ciphertexts that a column meets, by number, and what it has for each of their slots."""
        start, values = column
        first, end = start // self.slots, start + len(values)
        full = np.zeros((-(-end // self.slots) - first) * self.slots)
        full[start - first * self.slots : end - first * self.slots] = values
        for at, piece in enumerate(full.reshape(-1, self.slots)):
            if piece.any():  # a product with nothing but zeros would be no ciphertext
                yield first + at, piece


class Key(ABC):
    """What the key holder has."""

    @abstractmethod
    def public(self) -> Tensor:
        """What others need to compute, uint8 [n]."""

    @abstractmethod
    def sums(self, sent: Tensor) -> FloatArray:
        """What `Cipher.totals` has masked and `pack` has packed, decrypted, [ciphertexts]."""

    @abstractmethod
    def decrypt(self, sent: Tensor, size: int) -> FloatArray:
        """The first `size` numbers of a packed vector."""


class Open(Cipher):
    """No cipher: numbers as they are, in the same pieces."""

    under = None

    def __init__(self, slots: int = 4096) -> None:
        self.slots = slots

    def encrypt(self, values: FloatArray) -> list[Any]:
        return [piece.copy() for piece in self.cut(values)]

    def add(self, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        return [one + other for one, other in zip(a, b, strict=True)]

    def times(self, a: Sequence[Any], values: FloatArray) -> list[Any]:
        return [one * piece for one, piece in zip(a, self.cut(values), strict=True)]

    def totals(
        self, a: Sequence[Any], columns: Iterable[Column], masks: FloatArray, grain: float
    ) -> list[Any]:
        found = []
        for column, mask in zip(columns, masks, strict=True):
            total = sum(float(a[at] @ piece) for at, piece in self.pieces(column))
            found.append(np.array([np.round(total / grain) * grain + mask]))
        return found

    def pack(self, a: Sequence[Any]) -> Tensor:
        if not a:
            return torch.zeros(0, 0, dtype=torch.uint8)
        return torch.from_numpy(np.stack(a)).view(torch.uint8)

    def unpack(self, sent: Tensor) -> list[Any]:
        if sent.shape[1] != 8 * self.slots:
            raise CodecError(f"{sent.shape[1]} bytes are not {self.slots} numbers")
        return list(sent.contiguous().view(torch.float64).numpy())


class OpenKey(Key):
    """The key of `Open`: nothing."""

    def public(self) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def sums(self, sent: Tensor) -> FloatArray:
        return self.decrypt(sent, len(sent))

    def decrypt(self, sent: Tensor, size: int) -> FloatArray:
        return np.frombuffer(sent.numpy().tobytes(), dtype=np.float64)[:size].copy()


class CKKS(Cipher):
    """With a public key.   Cheon, Kim, Kim and Song, ASIACRYPT 2017

    Products lose about 1e-6 of their value, since TenSEAL takes moduli for powers of two, and sums over the slots have
    an error of about 1e-6 besides.

    Args:
        public: as `CKKSKey.public` gives it.

    Raises CodecError where it is none, MissingExtraError without TenSEAL.
    """

    def __init__(self, public: Tensor) -> None:
        ts = _tenseal()
        try:
            degree = int.from_bytes(public[:4].numpy().tobytes(), "little")
            self.context = ts.context_from(public[4:].numpy().tobytes())
        except Exception as error:  # TenSEAL raises several kinds
            raise CodecError(f"this is no public key of CKKS: {error}") from None
        if degree not in _MOST or self.context.is_private():
            raise CodecError("this is no public key of CKKS: it has another degree, or the secret is in it")
        self.degree, self.slots, self.under = degree, degree // 2, f"ckks-{degree}"

    def encrypt(self, values: FloatArray) -> list[Any]:
        return [self._fresh(piece) for piece in self.cut(values)]

    def add(self, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        return [one + other for one, other in zip(a, b, strict=True)]

    def times(self, a: Sequence[Any], values: FloatArray) -> list[Any]:
        zero = np.zeros(self.slots)
        return [
            one * piece.tolist() + self._fresh(zero) if piece.any() else self._fresh(zero)
            for one, piece in zip(a, self.cut(values), strict=True)
        ]

    def totals(
        self, a: Sequence[Any], columns: Iterable[Column], masks: FloatArray, grain: float
    ) -> list[Any]:
        found = []
        for column, mask in zip(columns, masks, strict=True):
            noise = drawn(self.slots, grain, 49)
            noise[0] = mask
            hidden = self._fresh(noise)
            total: Any = None
            for at, piece in self.pieces(
                column
            ):  # products first: the sum over slots costs ten times as much
                product = a[at] * piece.tolist()
                total = product if total is None else total + product
            found.append(hidden if total is None else self._whole(total.sum()) + hidden)
        return found

    def pack(self, a: Sequence[Any]) -> Tensor:
        blobs = [one.serialize() for one in a]
        width = max((len(blob) for blob in blobs), default=0) + 4
        sent = np.zeros((len(blobs), width), dtype=np.uint8)
        for row, blob in zip(sent, blobs, strict=True):
            row[:4] = np.frombuffer(len(blob).to_bytes(4, "little"), dtype=np.uint8)
            row[4 : 4 + len(blob)] = np.frombuffer(blob, dtype=np.uint8)
        return torch.from_numpy(sent)

    def unpack(self, sent: Tensor) -> list[Any]:
        return [_read(self.context, row, self.slots) for row in sent]

    def _fresh(self, piece: FloatArray) -> Any:
        return _tenseal().ckks_vector(self.context, piece.tolist())

    def _whole(self, total: Any) -> Any:
        """A sum over slots, as the vector of `slots` equal numbers that it is: TenSEAL shows only the first.

        It writes a vector as a protocol buffer whose field 1 is the size.
        """
        blob = total.serialize()
        assert blob[:3] == b"\x0a\x01\x01", "TenSEAL writes sums of slots in another form"
        size = bytes([self.slots & 127 | 128, self.slots >> 7])
        return _tenseal().ckks_vector_from(self.context, b"\x0a\x02" + size + blob[3:])


class CKKSKey(Key):
    """A new secret key.

    Ring degree 8192 with moduli of 60, 40, 40 and 60 bits allows one product, and numbers up to 2^59 after it; further
    ones need 40 bits each and degree 16384. 128 bits of security.

    Args:
        products: how many are taken one after the other.

    Raises ConfigError where there are too many, MissingExtraError without TenSEAL.
    """

    def __init__(self, products: int = 1) -> None:
        ts = _tenseal()
        moduli = [60, *[SCALE] * (products + 1), 60]
        fitting = [degree for degree, most in _MOST.items() if sum(moduli) <= most]
        if not fitting:
            raise ConfigError(f"CKKS allows no {products} products one after the other")
        self.degree = fitting[0]
        self.context = ts.context(ts.SCHEME_TYPE.CKKS, self.degree, coeff_mod_bit_sizes=moduli)
        self.context.global_scale = 2.0**SCALE
        self.context.generate_galois_keys()

    def public(self) -> Tensor:
        blob = self.context.serialize(save_secret_key=False, save_relin_keys=False)
        whole = bytearray(self.degree.to_bytes(4, "little") + blob)
        return torch.frombuffer(whole, dtype=torch.uint8)

    def sums(self, sent: Tensor) -> FloatArray:
        return np.array([_read(self.context, row, self.degree // 2).decrypt()[0] for row in sent])

    def decrypt(self, sent: Tensor, size: int) -> FloatArray:
        found = [np.asarray(_read(self.context, row, self.degree // 2).decrypt()) for row in sent]
        return np.concatenate(found)[:size]


def _read(context: Any, row: Tensor, slots: int) -> Any:
    blob = row.numpy().tobytes()
    size = int.from_bytes(blob[:4], "little")
    try:
        found = _tenseal().ckks_vector_from(context, blob[4 : 4 + size])
        fine = found.size() == slots and len(found.ciphertext()) == 1
    except Exception as error:  # TenSEAL raises several kinds
        raise CodecError(f"this is no ciphertext of CKKS under this key: {error}") from None
    if not fine:
        raise CodecError(f"this is no ciphertext of CKKS with {slots} numbers")
    return found


@lru_cache(maxsize=1)
def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError as error:
        raise MissingExtraError("tenseal", "he", "CKKS") from error
    return tenseal
