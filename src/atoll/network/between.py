"""TLS between parties that call each other, by certificates of one authority."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography import x509

from atoll.errors import ConfigError
from atoll.network.certificates import IdentityError, read
from atoll.network.identity import Identity
from atoll.network.tls import newest
from atoll.parties.framed import Secured

__all__ = ["secured"]


def secured(keys: Path, name: str) -> Secured:
    """The contexts of a party whose keys lie there (`atoll ca enrol`).

    Whoever is at the other end must have a certificate of the same authority that names it as a party, and is in its
    dates; the name is compared by `atoll.parties.framed`. That a certificate was revoked is not seen without asking the
    authority: its days should be few.

    Raises ConfigError where there is no certificate for this party.
    """
    identity = Identity(keys)
    known = identity.known
    if known is None or not identity.valid:
        raise ConfigError(
            f"{keys} has no certificate that is valid",
            hint="atoll ca enrol HOST:PORT --invitation TOKEN --keys DIR",
        )
    if known.name != name or known.role != "party":
        raise ConfigError(
            f"{keys} is of {known.name}, a {known.role}, and this is the party {name}",
            hint=f"atoll ca invite {name} --role party",
        )
    authority = x509.load_pem_x509_certificate(identity.ca.read_bytes())

    def named(der: bytes) -> str | None:
        try:
            other = read(x509.load_der_x509_certificate(der), authority)
        except (IdentityError, ValueError):
            return None
        return other.name if other.role == "party" else None

    contexts = newest(ssl.PROTOCOL_TLS_SERVER), newest(ssl.PROTOCOL_TLS_CLIENT)
    for context in contexts:
        context.check_hostname = False  # who is there is a party, wherever it is
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(identity.ca)
        context.load_cert_chain(identity.pem)
    return Secured(*contexts, named)
