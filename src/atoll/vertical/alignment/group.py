"""The group that names are blinded in, by the name of who computes in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["ECDH", "Group", "group"]

ECDH = Literal["x25519", "nacl"]


@dataclass(frozen=True)
class Group:
    """A commutative one: raising by a and then by b is raising by b and then by a.

    Attributes:
        name: what a transcript calls it.
        blinded: names, salt and secret -> points [n x 32 bytes], raised.
        raised: points and secret -> points; ValueError where one is none.
        sound: whether points [n, 32] are written as they must be.
    """

    name: str
    blinded: Callable[[list[bytes], bytes, bytes], bytes]
    raised: Callable[[bytes, bytes], bytes]
    sound: Callable[[NDArray[np.uint8]], bool]


def group(ecdh: ECDH) -> Group:
    """Curve25519 by `cryptography` ("x25519"), or by libsodium ("nacl").  Raises MissingExtraError."""
    if ecdh == "nacl":
        from atoll.vertical.alignment import edwards

        return Group("ed25519", edwards.blinded, edwards.raised, edwards.sound)
    from atoll.vertical.alignment import curve

    return Group("x25519", curve.blinded, curve.raised, curve.below)
