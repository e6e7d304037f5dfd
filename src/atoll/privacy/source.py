"""Where the randomness of noise comes from: a key, and addresses under it.

Every draw is SHAKE-256 of the key and the draw's address (FIPS 202, an extendable-output function): nobody
without the key can tell it from chance, and whoever has it can draw again what was drawn before, in any order.
Keys come from the operating system.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np

from atoll.errors import ConfigError

__all__ = ["Draws", "Source"]

_BYTES = 32


class Source:
    """A key. `private` is False where it followed from a seed that others may know: noise under it promises nothing.

    The key is as secret as the data: keep it out of logs, events and whatever leaves the server.
    """

    def __init__(self, key: bytes | None = None) -> None:
        """A new secret key, or one that was kept (`key`, 32 bytes) so that a stream of noise may go on."""
        if key is not None and len(key) != _BYTES:
            raise ConfigError(
                f"a key has {_BYTES} bytes, not {len(key)}", hint="leave it out: a new one is drawn"
            )
        self.key = secrets.token_bytes(_BYTES) if key is None else key
        self.private = True

    @classmethod
    def repeatable(cls, seed: int) -> Source:
        """A key that follows from a seed, for experiments that shall repeat: marked as not private."""
        source = cls(
            hashlib.sha256(b"atoll noise, not private" + seed.to_bytes(16, "little", signed=True)).digest()
        )
        source.private = False
        return source

    def __repr__(self) -> str:
        return f"Source({self.name}, {'private' if self.private else 'repeatable'})"

    @property
    def name(self) -> str:
        """A public name of the key, from which it cannot be had: it tells streams apart."""
        return hashlib.sha256(b"atoll noise, name" + self.key).hexdigest()[:16]

    def at(self, purpose: str, *address: int) -> Draws:
        """The draws of an address, such as ("gaussian", round, attempt).  Each address is to be used once."""
        words = np.array(address, dtype=np.int64).tobytes()
        return Draws(
            hashlib.shake_256(self.key + len(purpose).to_bytes(2, "little") + purpose.encode() + words)
        )


class Draws:
    """An endless stream of random words, read from front to back."""

    def __init__(self, start: hashlib._Hash) -> None:
        self._start = start
        self._block = 0

    def words(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """The next `count` uniform 64-bit words."""
        here = self._start.copy()
        here.update(self._block.to_bytes(8, "little"))
        self._block += 1
        return np.frombuffer(here.digest(8 * count), dtype="<u8")  # type: ignore[call-arg]

    def uniform(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The next `count` numbers in [0, 1), of 53 random bits."""
        return np.asarray((self.words(count) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)

    def below(
        self, bounds: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """A uniform whole number below each of `bounds` (above 0), exactly: words that favour some are drawn again."""
        limits = bounds.astype(np.uint64)
        fair = np.uint64(2**64 - 1) // limits * limits
        found = self.words(len(bounds)).copy()
        while len(again := np.flatnonzero(found >= fair)):
            found[again] = self.words(len(again))
        return (found % limits).astype(np.int64)
