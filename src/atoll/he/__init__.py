"""Ciphers whose ciphertexts can be added (`docs/vertical.md`)."""

from __future__ import annotations

from atoll.he.keys import check, keygen, load
from atoll.he.layout import Layout, numbers, octets
from atoll.he.scheme import AdditiveHE, Octets, SecretHE, Vector, told

__all__ = [
    "AdditiveHE",
    "Layout",
    "Octets",
    "SecretHE",
    "Vector",
    "check",
    "keygen",
    "load",
    "numbers",
    "octets",
    "told",
]
