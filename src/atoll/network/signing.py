"""A node's key for signatures in secure aggregation (Ed25519), in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atoll.errors import ConfigError, MissingExtraError
from atoll.network.keyfiles import keep, private

try:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
except ImportError:
    raise MissingExtraError("cryptography", "network", "a node") from None

__all__ = ["FILE", "NoKeyError", "Signer"]

FILE = "ed25519.pem"


class NoKeyError(ConfigError):
    """A file that holds no such key."""


class Signer:
    """The key in a directory; with `make` it is made there where there is none.

    Raises NoKeyError for a file without such a key, ConfigError where others may read it, FileNotFoundError where it is
    not there.
    """

    def __init__(self, place: Path, *, make: bool = True) -> None:
        path = place / FILE
        if make and not path.exists():
            new = Ed25519PrivateKey.generate()
            keep(path, new.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), secret=True)
        try:
            key = load_pem_private_key(private(path), None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise NoKeyError(
                f"{path} holds no Ed25519 key", hint="restore it from a copy, or join under another name"
            )
        self.sign: Callable[[bytes], bytes] = key.sign
        self.public = key.public_key().public_bytes_raw()
