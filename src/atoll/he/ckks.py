"""CKKS by TenSEAL, as parties with one key holder need it: vectors that are added, scaled, and multiplied with columns.

`Open` is the same without a cipher, so that a run can be looked at and compared.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll.errors import CodecError, ConfigError, MissingExtraError

__all__ = ["CKKS", "MASK", "CKKSKey", "Cipher", "Key", "Open", "OpenKey", "blocks", "drawn"]

FloatArray = NDArray[np.float64]

SCALE = 40  # bits behind the point
MASK = 50
"""Bits of masks."""
_MOST = {8192: 218, 16384: 438}  # bits of all moduli at which a degree has 128 bits of security
_COPIES = 8  # of a block in a ciphertext, where there are rows enough


def blocks(slots: int, rows: int) -> tuple[int, int]:
    """How vectors of so many rows are laid out: rows in a block, a power of two, and copies of it in a ciphertext.

    Each copy is multiplied with another column, and one sum within blocks gives the totals of all of them. Sums cost
    ten times as much as products, so that eight copies are about the best of what can be had.
    """
    block = min(1 << max(1, (rows - 1).bit_length()), slots // _COPIES)
    return block, slots // block


def drawn(count: int, grain: float, bits: int) -> FloatArray:
    """Masks: uniform over the multiples of `grain` in [-2^(bits-1), 2^(bits-1)) grain, from the operating system.

    At most 52 bits, so that sums with what they hide are exact in float64.
    """
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(64 - bits)
    found: FloatArray = (words.astype(np.float64) - 2.0 ** (bits - 1)) * grain
    return found


class Cipher(ABC):
    """What everybody can do who has the public key.

    Vectors [rows, scores] are lists of ciphertexts, score by score, one for each block of rows (`blocks`).

    Attributes:
        under: what a transcript calls it, None where it hides nothing.
        slots: numbers in a ciphertext.
    """

    under: str | None
    slots: int

    @abstractmethod
    def encrypt(self, values: FloatArray) -> list[Any]:
        """Vectors [rows, scores], with new randomness each time."""

    @abstractmethod
    def add(self, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        """a + b; as random as the fresher of the two."""

    @abstractmethod
    def times(self, a: Sequence[Any], values: FloatArray) -> list[Any]:
        """a * values, number by number. A fresh zero is added: who knows the randomness of `a` learns nothing."""

    @abstractmethod
    def totals(self, a: Sequence[Any], x: FloatArray, masks: FloatArray, grain: float) -> list[Any]:
        """Ciphertexts of x' a + masks, [d, scores], several columns in each.

        The masks are encrypted anew, with random numbers in all other slots, so that neither who has encrypted `a` nor
        who decrypts learns more than these sums.

        Args:
            x: [rows, d].
            masks: [d, scores], as `drawn` gives them.
            grain: an exact cipher rounds sums to multiples of it.
        """

    @abstractmethod
    def pack(self, a: Sequence[Any]) -> Tensor:
        """As uint8 [ciphertexts, width], to be sent."""

    @abstractmethod
    def unpack(self, sent: Tensor) -> list[Any]:
        """The inverse. Raises CodecError where these are no ciphertexts of this key."""

    def chunks(self, rows: int, scores: int) -> int:
        """Ciphertexts of a vector."""
        return scores * -(-rows // blocks(self.slots, rows)[0])

    def cut(self, values: FloatArray) -> list[FloatArray]:
        """Vectors [rows, scores] as blocks, filled up with zeros."""
        block, _ = blocks(self.slots, len(values))
        full = np.zeros((values.shape[1], -(-len(values) // block) * block))
        full[:, : len(values)] = values.T
        return list(full.reshape(-1, block))


class Key(ABC):
    """What the key holder has."""

    slots: int

    @abstractmethod
    def public(self) -> Tensor:
        """What others need to compute, uint8 [n]."""

    @abstractmethod
    def decrypt(self, sent: Tensor) -> FloatArray:
        """All numbers of packed ciphertexts, [ciphertexts, slots]."""

    def sums(self, sent: Tensor, rows: int, columns: int, scores: int) -> FloatArray:
        """What `Cipher.totals` has masked and `pack` has packed, [columns, scores].

        Raises CodecError where there are more or fewer ciphertexts than that takes.
        """
        block, copies = blocks(self.slots, rows)
        if len(sent) != scores * -(-columns // copies):
            raise CodecError(f"{len(sent)} ciphertexts are not the sums of {columns} columns")
        if not columns:
            return np.zeros((0, scores))
        return self.decrypt(sent)[:, ::block].reshape(scores, -1)[:, :columns].T


class Open(Cipher):
    """No cipher: numbers as they are, in the same layout, but for the copies."""

    under = None

    def __init__(self, slots: int = 4096) -> None:
        self.slots = slots

    def encrypt(self, values: FloatArray) -> list[Any]:
        return self.cut(values)

    def add(self, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        return [one + other for one, other in zip(a, b, strict=True)]

    def times(self, a: Sequence[Any], values: FloatArray) -> list[Any]:
        return [one * piece for one, piece in zip(a, self.cut(values), strict=True)]

    def totals(self, a: Sequence[Any], x: FloatArray, masks: FloatArray, grain: float) -> list[Any]:
        block, copies = blocks(self.slots, len(x))
        scores, columns = masks.shape[1], x.shape[1]
        whole = np.stack(a).reshape(scores, -1)[:, : len(x)]
        sums = np.round(whole @ x / grain) * grain + masks.T
        found = np.zeros((scores, -(-columns // copies), copies, block))
        for score, row in enumerate(sums):
            found[score].reshape(-1, block)[:columns, 0] = row
        return list(found.reshape(-1, self.slots))

    def pack(self, a: Sequence[Any]) -> Tensor:
        if not a:
            return torch.zeros(0, 0, dtype=torch.uint8)
        return torch.from_numpy(np.stack(a)).view(torch.uint8)

    def unpack(self, sent: Tensor) -> list[Any]:
        if not sent.shape[1] or sent.shape[1] % 8:
            raise CodecError(f"{sent.shape[1]} bytes are no numbers")
        return list(_floats(sent))


class OpenKey(Key):
    """The key of `Open`: nothing."""

    def __init__(self, slots: int = 4096) -> None:
        self.slots = slots

    def public(self) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def decrypt(self, sent: Tensor) -> FloatArray:
        return _floats(sent)


class CKKS(Cipher):
    """With a public key.   Cheon, Kim, Kim and Song, ASIACRYPT 2017

    Products lose about 1e-6 of their value, since TenSEAL takes moduli for powers of two, and sums within blocks have
    an error of about 1e-5 besides.

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
        return [self._fresh(self._full(piece)) for piece in self.cut(values)]

    def add(self, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        return [one + other for one, other in zip(a, b, strict=True)]

    def times(self, a: Sequence[Any], values: FloatArray) -> list[Any]:
        zero = np.zeros(self.slots)
        return [
            one * self._full(piece).tolist() + self._fresh(zero) if piece.any() else self._fresh(zero)
            for one, piece in zip(a, self.cut(values), strict=True)
        ]

    def totals(self, a: Sequence[Any], x: FloatArray, masks: FloatArray, grain: float) -> list[Any]:
        block, copies = blocks(self.slots, len(x))
        scores, chunks = masks.shape[1], -(-len(x) // block)
        full = np.zeros((chunks * block, -(-x.shape[1] // copies) * copies))
        full[: len(x), : x.shape[1]] = x
        # [groups, chunks, copies * block]: a column for each copy of a block.
        plain = full.reshape(chunks, block, -1, copies).transpose(2, 0, 3, 1).reshape(-1, chunks, self.slots)
        found = []
        for score in range(scores):
            for at, group in enumerate(plain):
                noise = drawn(self.slots, grain, MASK)
                own = masks[at * copies : (at + 1) * copies, score]
                noise[: len(own) * block : block] = own
                found.append(self._total(a[score * chunks : (score + 1) * chunks], group, noise, block))
        return found

    def _total(self, a: Sequence[Any], group: FloatArray, noise: FloatArray, block: int) -> Any:
        """Sums within blocks, with noise in all slots."""
        hidden, total = self._fresh(noise), None
        for one, piece in zip(a, group, strict=True):
            if piece.any():  # a product with nothing but zeros would be no ciphertext
                product = one * piece.tolist()
                total = product if total is None else total + product
        if total is None:
            return hidden
        # TenSEAL sums over as many slots as it takes a vector to have, from each slot on: over the block that begins
        # there, in the first of each block. The other slots have sums of parts of two blocks.
        return self._resized(self._resized(total, block).sum(), self.slots) + hidden

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

    def _full(self, piece: FloatArray) -> FloatArray:
        return np.tile(piece, self.slots // len(piece))

    def _fresh(self, piece: FloatArray) -> Any:
        return _tenseal().ckks_vector(self.context, piece.tolist())

    def _resized(self, vector: Any, size: int) -> Any:
        """The same ciphertext, taken for a vector of another size.

        TenSEAL writes a vector as a protocol buffer, of which the first field is its size, a number to the base 128.
        """
        blob = vector.serialize()
        assert blob[0] == 0x0A, "TenSEAL writes vectors in another form"
        digits = bytes([size & 127 | 128, size >> 7]) if size > 127 else bytes([size])
        return _tenseal().ckks_vector_from(
            self.context, b"\x0a" + bytes([len(digits)]) + digits + blob[2 + blob[1] :]
        )


class CKKSKey(Key):
    """A new secret key.

    Ring degree 8192 with moduli of 60, 40, 40 and 60 bits allows one product, and numbers up to 2^59 after it; further
    ones need 40 bits each and degree 16384. 128 bits of security.

    Args:
        products: how many are taken one after the other.
        least: the smallest degree.

    Raises ConfigError where there are too many, MissingExtraError without TenSEAL.
    """

    def __init__(self, products: int = 1, least: int = 0) -> None:
        ts = _tenseal()
        moduli = [60, *[SCALE] * (products + 1), 60]
        fitting = [degree for degree, most in _MOST.items() if sum(moduli) <= most and degree >= least]
        if not fitting:
            raise ConfigError(
                f"CKKS allows no {products} products one after the other in degree {max(least, 8192)} or more",
                hint=f"degrees are {' and '.join(map(str, _MOST))}",
            )
        self.degree, self.slots = fitting[0], fitting[0] // 2
        self.context = ts.context(ts.SCHEME_TYPE.CKKS, self.degree, coeff_mod_bit_sizes=moduli)
        self.context.global_scale = 2.0**SCALE
        self.context.generate_galois_keys()

    def public(self) -> Tensor:
        blob = self.context.serialize(save_secret_key=False, save_relin_keys=False)
        whole = bytearray(self.degree.to_bytes(4, "little") + blob)
        return torch.frombuffer(whole, dtype=torch.uint8)

    def decrypt(self, sent: Tensor) -> FloatArray:
        return np.array([_read(self.context, row, self.slots).decrypt() for row in sent]).reshape(
            -1, self.slots
        )


def _floats(sent: Tensor) -> FloatArray:
    return np.frombuffer(sent.numpy().tobytes(), dtype=np.float64).reshape(len(sent), -1)


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
