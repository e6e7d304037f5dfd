"""CKKS between two parties: each sends its terms under its own key, and has sums of them, covered, decrypted for it.

Cheon et al., ASIACRYPT 2017, by TenSEAL. A ciphertext has 4,096 slots, so many rows of d numbers one after another.
Whoever works on another's ciphertexts multiplies slot by slot, adds, and covers every slot with a random number; the
owner of the key decrypts, adds up the rows, which are then d covered sums, and sends them back. So nothing is ever
rotated: no key for that travels, and a row of a gradient is one ciphertext however many rows are in common.

Degree 8192 and moduli of 60, 60 and 60 bits have 128 bits of security (180 of at most 218 bits). The scale is 2^40 and
products are not rescaled, which leaves 39 bits for the covered numbers. Covers are evenly spread over +-2^24.

Both parties keep to the protocol and are only curious. Who does not, and weighs a single row, has that row decrypted;
and the noise inside a ciphertext, which the owner of the key could look at, is covered by fresh noise of its own size
and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoll.errors import CodecError, MissingExtraError
from atoll.vertical.ftl.draws import normal, spread
from atoll.vertical.ftl.forms import Row
from atoll.vertical.side import FloatArray

__all__ = ["COVER", "SLOTS", "Keys", "Peer", "Sealed", "blocks", "width"]

SLOTS = 4096
COVER = 2.0**24
_SCALE = 2.0**40
_FLOOD = 1e-6
"""Deviation of the noise on what is sent back decrypted, a hundred times CKKS's own, which tells of the key.   Li and
Micciancio, EUROCRYPT 2021"""
_FAINT = 2.0**-27
"""Weights of a smaller norm may encode as nothing at all, which SEAL refuses to multiply by; they are left out."""

Sealed = list[Any]
"""Ciphertexts as TenSEAL has them."""


def blocks(rows: int, d: int) -> int:
    """How many ciphertexts so many rows of d numbers take."""
    return -(-rows // (SLOTS // d))


def _padded(values: FloatArray) -> FloatArray:
    """Rows [n, d] as slots [ciphertexts, SLOTS], what is over as 0."""
    n, d = values.shape
    per = SLOTS // d
    room = np.zeros((blocks(n, d), SLOTS))
    for at, block in enumerate(room):
        part = values[at * per : (at + 1) * per].ravel()
        block[: len(part)] = part
    return room


class Keys:
    """A party's own key: it encrypts its terms and decrypts sums for the other.

    Raises MissingExtraError without TenSEAL.
    """

    def __init__(self) -> None:
        ts = _tenseal()
        self._context = ts.context(ts.SCHEME_TYPE.CKKS, 2 * SLOTS, coeff_mod_bit_sizes=[60, 60, 60])
        self._context.global_scale = _SCALE
        self._context.auto_rescale = False

    def public(self) -> Tensor:
        """What the other encrypts and multiplies with, uint8 [bytes]."""
        blob = self._context.serialize(
            save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
        )
        return torch.frombuffer(bytearray(blob), dtype=torch.uint8)

    def seal(self, values: Tensor) -> Tensor:
        """Rows [n, d] as ciphertexts, uint8 [blocks, bytes]."""
        ts = _tenseal()
        return _packed([ts.ckks_vector(self._context, each.tolist()) for each in _padded(values.numpy())])

    def slots(self, sealed: Tensor) -> FloatArray:
        """What is in ciphertexts, [n, SLOTS]."""
        return np.stack([np.asarray(each.decrypt()) for each in _opened(self._context, sealed)])

    def sums(self, sealed: Tensor, d: int) -> Tensor:
        """Sums over the rows in each ciphertext, [n, d], with noise that hides what decryption itself would tell."""
        found = _rows(self.slots(sealed), d).sum(1)
        return torch.from_numpy(found + _FLOOD * normal(found.shape))

    def scores(self, sealed: Tensor, d: int, count: int) -> FloatArray:
        """Sums within each of the first `count` rows."""
        found: FloatArray = _rows(self.slots(sealed), d).sum(2).ravel()
        return found[:count]


class Peer:
    """The other's public key: what it has encrypted is weighed, added and covered.

    Raises CodecError where it is none, or is not public.
    """

    def __init__(self, public: Tensor) -> None:
        ts = _tenseal()
        try:
            self._context = ts.context_from(public.numpy().tobytes())
        except (ValueError, RuntimeError) as error:
            raise CodecError(f"what should be a public key cannot be read: {error}") from None
        if self._context.is_private():
            raise CodecError("the key that came is a private one")
        self._context.global_scale = _SCALE
        self._context.auto_rescale = False

    def open(self, sealed: Tensor, due: int) -> Sealed:
        """Ciphertexts to work on.  Raises CodecError where they are not so many, or none."""
        if len(sealed) != due:
            raise CodecError(f"{len(sealed)} ciphertexts came, and {due} are due")
        return _opened(self._context, sealed)

    def weighed(self, row: Row, square: Sealed, rows: Sealed) -> tuple[Tensor, Tensor]:
        """The products of weights and terms, covered: uint8 [bytes]; and what the covers sum to, [d]."""
        covers = spread(SLOTS, COVER)
        total = self._covered(covers)
        for weights, sealed in ((row.square, square), (row.rows, rows)):
            for each, ciphertext in zip(_padded(weights.numpy()), sealed, strict=True):
                if float(np.linalg.norm(each)) > _FAINT:
                    total = total + ciphertext * each.tolist()
        d = row.rows.shape[1]
        return _packed([total])[0], torch.from_numpy(_rows(covers[None], d)[0].sum(0))

    def products(self, phi: Sealed, u: Tensor) -> Tensor:
        """Phi times each row of u [n, d], covered by numbers that cancel within a row: uint8 [blocks, bytes]."""
        d = u.shape[1]
        made = []
        for each in _padded(u.numpy()):
            covers = spread(SLOTS, COVER)
            inside = _rows(covers[None], d)[0]  # a view
            inside[:, -1] = -inside[:, :-1].sum(1)
            total = self._covered(covers)
            if float(np.linalg.norm(each)) > _FAINT:
                total = total + phi[0] * each.tolist()
            made.append(total)
        return _packed(made)

    def _covered(self, covers: FloatArray) -> Any:
        """Covers under the other's key, at the scale of a product: fresh noise goes along with them."""
        return _tenseal().ckks_vector(self._context, covers.tolist(), scale=_SCALE**2)


def _rows(slots: FloatArray, d: int) -> FloatArray:
    """Slots [n, SLOTS] as rows [n, SLOTS // d, d], those that are over left out."""
    per = SLOTS // d
    return slots[:, : per * d].reshape(len(slots), per, d)


def _packed(ciphertexts: Sequence[Any]) -> Tensor:
    blobs = [each.serialize() for each in ciphertexts]
    return torch.stack([torch.frombuffer(bytearray(blob), dtype=torch.uint8) for blob in blobs])


def _opened(context: Any, sealed: Tensor) -> Sealed:
    ts = _tenseal()
    try:
        found = [ts.ckks_vector_from(context, each.numpy().tobytes()) for each in sealed]
    except (ValueError, RuntimeError) as error:
        raise CodecError(f"what should be ciphertexts cannot be read: {error}") from None
    if any(each.size() != SLOTS for each in found):
        raise CodecError(f"a ciphertext has not {SLOTS} slots")
    return found


@lru_cache(maxsize=1)
def width() -> int:
    """Bytes of a ciphertext: all have as many, since 60-bit numbers do not get shorter by compression."""
    return Keys().seal(torch.ones(1, 1, dtype=torch.float64)).shape[1]


@lru_cache(maxsize=1)
def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError as error:
        raise MissingExtraError("tenseal", "he", 'crypto = "ckks"') from error
    return tenseal
