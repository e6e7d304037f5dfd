"""Keys by the names of their ciphers."""

from __future__ import annotations

from atoll.errors import ConfigError, MissingExtraError
from atoll.he.layout import Octets
from atoll.he.scheme import AdditiveHE, SecretHE

__all__ = ["check", "keygen", "load"]

USUAL = {"ou": 2048, "paillier": 2048, "none": 128}
"""Bits of a key, of a plaintext where there is none."""

LEAST = 2048
"""Bits below which a modulus can be factored too soon."""


def keygen(crypto: str, workers: int = 1) -> SecretHE:
    """A new key from the operating system's randomness.

    Args:
        crypto: "ou", "paillier" or "none" (the same numbers, open), with bits where they are not the usual ("ou-3072").

    Raises ConfigError for another name or a key that is too short, MissingExtraError without gmpy2.
    """
    scheme, bits = check(crypto)
    if scheme == "none":
        from atoll.he.plain import Open

        return Open(bits)
    _needs_gmpy2()
    made: SecretHE
    if scheme == "ou":
        from atoll.he.ou import OUSecret

        made = OUSecret.generate(bits, workers)
    else:
        from atoll.he.paillier import PaillierSecret

        made = PaillierSecret.generate(bits, workers)
    return made


def load(crypto: str, key: Octets, workers: int = 1) -> AdditiveHE:
    """The public half that another party sent.  Raises CodecError where it is none of this cipher."""
    scheme, bits = parse(crypto)
    if scheme == "none":
        from atoll.he.plain import Plaintext

        return Plaintext(bits)
    _needs_gmpy2()
    if scheme == "ou":
        from atoll.he.ou import OU

        return OU.load(bits, key, workers)
    from atoll.he.paillier import Paillier

    return Paillier.load(bits, key, workers)


def check(crypto: str) -> tuple[str, int]:
    """ "ou-3072" -> ("ou", 3072).  Raises ConfigError for another name, or a key that is too short."""
    scheme, bits = parse(crypto)
    if scheme != "none" and bits < LEAST:
        raise ConfigError(f"crypto = {crypto!r}: keys of {bits} bits can be broken", hint=f"take {LEAST}")
    return scheme, bits


def parse(crypto: str) -> tuple[str, int]:
    """The same, whatever the length of the key."""
    scheme, dash, bits = crypto.partition("-")
    if scheme not in USUAL or (dash and not bits.isdecimal()):
        raise ConfigError(
            f"crypto = {crypto!r} is no cipher that adds",
            hint=f"known: {', '.join(USUAL)}, and such as ou-3072",
        )
    if dash and (int(bits) % 32 or not 32 <= int(bits) <= 1 << 14):
        raise ConfigError(f"crypto = {crypto!r}: bits are a multiple of 32, up to 16384")
    return scheme, int(bits) if dash else USUAL[scheme]


def _needs_gmpy2() -> None:
    try:
        import gmpy2  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("gmpy2", "vertical", "encryption of sums") from error
