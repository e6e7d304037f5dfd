"""Ciphers whose ciphertexts can be added (`docs/vertical.md`)."""

from __future__ import annotations

from atoll.he.layout import Layout, numbers, octets
from atoll.he.scheme import AdditiveHE, Octets, SecretHE, Vector, check, keygen, load

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
]
