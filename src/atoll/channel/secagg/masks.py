"""Masks: the stream of AES-128 in counter mode, read as numbers of 32 bits and added modulo 2^32.

A seed has 256 bits and is used once: the key, and where the counter begins, so that who looks for one of many keys
gains nothing by their number. A mask is never there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from atoll.errors import MissingExtraError

try:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
except ImportError as error:
    raise MissingExtraError("cryptography", "secagg", "secure aggregation") from error

__all__ = ["BLOCK", "apply"]

BLOCK = 1 << 16
"""Numbers in a block, 256 KiB: the block of the sum, of the stream and of zeros stay in the cache of a core."""

_OPEN = 64
"""Streams that are open at a time: a block of the sum takes the masks of all of them before the next block comes."""

_ZEROS = bytes(4 * BLOCK)


def apply(total: NDArray[np.uint32], plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()) -> None:
    """Add the masks of some seeds (32 bytes each) to `total` [d], and subtract others', in place, modulo 2^32."""
    signed = [(np.add, seed) for seed in plus] + [(np.subtract, seed) for seed in minus]
    buffer = bytearray(4 * BLOCK + 15)  # `update_into` asks for a block more than it fills
    stream = np.frombuffer(buffer, dtype="<u4", count=BLOCK)
    for first in range(0, len(signed), _OPEN):
        streams = [
            (add, Cipher(algorithms.AES128(seed[:16]), modes.CTR(seed[16:])).encryptor())
            for add, seed in signed[first : first + _OPEN]
        ]
        for start in range(0, len(total), BLOCK):
            part = total[start : start + BLOCK]
            zeros, numbers = memoryview(_ZEROS)[: 4 * len(part)], stream[: len(part)]
            for add, cipher in streams:
                cipher.update_into(zeros, buffer)
                add(part, numbers, out=part)
