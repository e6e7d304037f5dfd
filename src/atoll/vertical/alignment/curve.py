"""Curve25519 as a group that commutes: names become points, points are raised to secrets.

A secret a is 32 random bytes; RFC 7748 makes a scalar of them whose lowest three bits are 0 and which lies below the
group's order, so that `raised` does two things at once: it multiplies by a, and it drops whatever a point has outside
the subgroup of prime order (the cofactor is 8). What comes out is a uniform element of that subgroup for who does not
know a (decisional Diffie-Hellman), and raising by a and by b in either order gives the same.

Two bits could survive the multiplication, and do not:

* *Which curve.* Every number below p is the u-coordinate of a point either on the curve or on its twist, and a multiple
  lies where the point lay. With a raw digest as u, who sees a blinded point would know one bit of its name, and who
  sees a name's point again (the order is common, or one id is guessed) half of all guesses to be wrong. `point`
  therefore tries digests until one lies on the curve.
* *Which coset.* The curve has 8 times a prime points; the part of order 1, 2, 4 or 8 would tell three bits if it were
  kept. The clamped scalar is a multiple of 8, which sends it to zero for everybody alike.

A received point that is on the twist, or has such a part, tells its sender nothing of the secret either: the twist's
order is 4 times a prime (RFC 7748, section 7). Only points of low order are multiplied to zero, and those are refused.

How many digests are tried depends on the name, and so does the time that it takes; only the names' owner sees that.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from itertools import count

import numpy as np
from numpy.typing import NDArray

from atoll.errors import MissingExtraError

try:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
except ImportError as error:
    raise MissingExtraError("cryptography", "vertical", "private set intersection") from error
try:
    from gmpy2 import legendre, mpz
except ImportError as error:
    raise MissingExtraError("gmpy2", "vertical", "private set intersection") from error

__all__ = ["BYTES", "PRIME", "below", "blinded", "on_curve", "point", "raised", "secret"]

BYTES = 32
"""Of a point, and of a secret."""

PRIME = 2**255 - 19
_P = mpz(PRIME)
_A = 486662
_BELOW = (1 << 255) - 1


def secret() -> bytes:
    """Fresh from the operating system."""
    return secrets.token_bytes(BYTES)


def on_curve(u: int) -> bool:
    """Whether u^3 + A u^2 + u is a square other than 0: whether u belongs to the curve and not to its twist."""
    x = mpz(u)
    return bool(legendre(x * (x * (x + _A) + 1) % _P, _P) == 1)


def point(name: bytes, salt: bytes) -> bytes:
    """A name as a point of the curve, by try-and-increment: the first SHA-256(salt, i, name), i = 0, 1, ..., on it.

    Two tries are needed on average. What comes out is a uniform point for who takes SHA-256 for a random oracle.

    Args:
        salt: the same for all parties of one alignment.
    """
    for attempt in count():
        digest = sha256(salt + attempt.to_bytes(4, "big") + name).digest()
        u = int.from_bytes(digest, "little") & _BELOW
        if u < PRIME and on_curve(u):
            return u.to_bytes(BYTES, "little")
    raise AssertionError("there are squares")


def raised(points: bytes, key: bytes) -> bytes:
    """Points one after the other, each multiplied by a secret.

    Raises ValueError where one has low order.
    """
    private = X25519PrivateKey.from_private_bytes(key)
    exchange, read = private.exchange, X25519PublicKey.from_public_bytes
    return b"".join([exchange(read(points[at : at + BYTES])) for at in range(0, len(points), BYTES)])


def below(points: NDArray[np.uint8]) -> bool:
    """Whether all numbers [n, 32] are below p: X25519 would read those above as others."""
    top = (points[:, 31] == 0x7F) & (points[:, 0] >= 0xED) & (points[:, 1:31] == 0xFF).all(1)
    return not bool((points[:, 31] > 0x7F).any() or top.any())


def blinded(names: list[bytes], salt: bytes, key: bytes) -> bytes:
    """Names as points, raised by a secret."""
    return raised(b"".join([point(name, salt) for name in names]), key)
