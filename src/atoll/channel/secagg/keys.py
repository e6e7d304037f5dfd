"""The primitives, each for one purpose: X25519, HKDF-SHA256, AES-256-GCM, Ed25519. All of `cryptography`'s.

Keys that are derived carry a label and the sid, so that none serves two purposes or two attempts.
"""

from __future__ import annotations

from hashlib import sha256

from atoll.errors import MissingExtraError

try:
    from cryptography.exceptions import InvalidSignature, InvalidTag
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError as error:
    raise MissingExtraError("cryptography", "secagg", "secure aggregation") from error

__all__ = [
    "BOX", "Private", "advertised", "derive", "mask_seed", "seal", "self_seed", "sound", "survived", "unseal", "verify",
]  # fmt: skip

BOX = 64 + 16
"""Bytes of a box: two shares and the tag."""

_NONCE = bytes(12)
"""A key of `_box_key` encrypts one message, so that its nonce may be fixed."""


class Private:
    """An X25519 key, from 32 secret bytes (RFC 7748)."""

    def __init__(self, secret: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        """The secret shared with who has that public key. ValueError for what is no sound key."""
        return self._key.exchange(X25519PublicKey.from_public_bytes(public))


def seal(shared: bytes, plain: bytes, sid: bytes, sender: int, receiver: int) -> bytes:
    """A box under a shared secret; at most one for a pair (sender, receiver) in an attempt."""
    return AESGCM(_box_key(shared, sid, sender, receiver)).encrypt(
        _NONCE, plain, sid + _pair(sender, receiver)
    )


def unseal(shared: bytes, box: bytes, sid: bytes, sender: int, receiver: int) -> bytes:
    """What was in a box. ValueError where it is not that sender's, for that receiver, in this attempt."""
    key = AESGCM(_box_key(shared, sid, sender, receiver))
    try:
        return key.decrypt(_NONCE, box, sid + _pair(sender, receiver))
    except InvalidTag:
        raise ValueError("it was not made by its sender for this receiver") from None


_PROBE = Private(b"\x01" * 32)


def derive(secret: bytes, label: bytes, sid: bytes) -> bytes:
    """32 bytes by HKDF-SHA256 with info = label and sid (RFC 5869, no salt)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=label + sid).derive(secret)


def _pair(sender: int, receiver: int) -> bytes:
    return sender.to_bytes(4, "big") + receiver.to_bytes(4, "big")


def _box_key(shared: bytes, sid: bytes, sender: int, receiver: int) -> bytes:
    """The direction is part of the key: both ways share a secret, and each way's one message has the same nonce."""
    return derive(shared, b"atoll secagg enc" + _pair(sender, receiver), sid)


def mask_seed(shared: bytes, sid: bytes) -> bytes:
    """The seed of the mask that two clients share."""
    return derive(shared, b"atoll secagg mask", sid)


def self_seed(secret: bytes, sid: bytes) -> bytes:
    """The seed of a client's own mask."""
    return derive(secret, b"atoll secagg self", sid)


def advertised(sid: bytes, client: int, box: bytes, mask: bytes) -> bytes:
    """What a client signs of its keys."""
    return b"".join((b"atoll secagg keys", sid, client.to_bytes(4, "big"), bytes((len(box),)), box, mask))


def survived(sid: bytes, bits: bytes) -> bytes:
    """What a client signs of who is in the sum."""
    return b"atoll secagg survivors" + sid + sha256(bits).digest()


def verify(public: bytes, signature: bytes, signed: bytes) -> bool:
    """Whether an Ed25519 signature is that key's (RFC 8032)."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def sound(public: bytes) -> bool:
    """Whether a public key gives a secret at all: keys of low order give everybody the same one."""
    try:
        _PROBE.agree(public)
    except ValueError:
        return False
    return True
