"""The same group in its other form, Ed25519, by libsodium: names become points in constant time.

A name's digest of 512 bits becomes two points by Elligator 2, in a time that does not depend on it, and their sum is
the name's point: uniform for who takes SHA-512 for a random oracle (RFC 9380, section 3, hash_to_curve). libsodium
drops the part of small order from each, so that all points lie in the subgroup of prime order; whatever does not is
refused when it is raised, as is any point that is written in another way than the one.

X25519 multiplies on one coordinate, and takes a third of the time for it; its map tries digests, in a time that depends
on the name, which only the names' owner can see.
"""

from __future__ import annotations

from hashlib import sha512

import numpy as np
from numpy.typing import NDArray

from atoll.errors import MissingExtraError

try:
    from nacl.bindings import (
        crypto_core_ed25519_add,
        crypto_core_ed25519_from_uniform,
        crypto_scalarmult_ed25519_noclamp,
    )
    from nacl.exceptions import CryptoError
except ImportError as error:
    raise MissingExtraError("pynacl", "nacl", 'ecdh = "nacl"') from error

__all__ = ["blinded", "point", "raised", "sound"]

_BYTES = 32


def point(name: bytes, salt: bytes) -> bytes:
    """A name as a point of the subgroup of prime order.

    Args:
        salt: the same for all parties of one alignment.
    """
    digest = sha512(salt + name).digest()
    halves = (crypto_core_ed25519_from_uniform(digest[at : at + _BYTES]) for at in (0, _BYTES))
    found: bytes = crypto_core_ed25519_add(*halves)
    return found


def raised(points: bytes, key: bytes) -> bytes:
    """Points one after the other, each multiplied by a secret.

    Raises ValueError where one is none of the subgroup, or its neutral element.
    """
    try:
        return b"".join(
            [
                crypto_scalarmult_ed25519_noclamp(key, points[at : at + _BYTES])
                for at in range(0, len(points), _BYTES)
            ]
        )
    except CryptoError:
        raise ValueError("no point of the subgroup") from None


def sound(points: NDArray[np.uint8]) -> bool:
    """All that can be said of points before they are raised."""
    return bool(points.shape[1] == _BYTES)


def blinded(names: list[bytes], salt: bytes, key: bytes) -> bytes:
    """Names as points, raised by a secret."""
    return raised(b"".join([point(name, salt) for name in names]), key)
