"""Callers of every kind, with their keys and certificates as files."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from atoll.network import certificates
from atoll.network.authority import Authority
from atoll.network.certificates import key_hash, key_to_pem, now, to_pem
from atoll.network.invitation import to_sign
from atoll.network.register import Issued

DAY = timedelta(days=1)
ED25519 = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


class Files(NamedTuple):
    """What a caller has on its disk."""

    pem: Path
    ca: Path


class Asked(NamedTuple):
    csr: bytes
    ed25519: bytes
    proof: bytes


def asked(
    key: ec.EllipticCurvePrivateKey | None = None, csr: x509.CertificateSigningRequest | None = None
) -> Asked:
    """A request with its proof, as `certify` takes them."""
    csr = csr or certificates.request(key or certificates.new_key(), "whoever")
    proof = ED25519.sign(to_sign(csr.public_bytes(Encoding.DER)))
    return Asked(csr.public_bytes(Encoding.PEM), ED25519.public_key().public_bytes_raw(), proof)


def certified(authority: Authority, name: str, role: str = "node") -> x509.Certificate:
    """A certificate by invitation."""
    return x509.load_pem_x509_certificate(authority.certify(authority.invite(name, role), *asked()))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def member(
    authority: Authority,
    place: Path,
    name: str,
    role: str = "node",
    begins: timedelta = -DAY,
    ends: timedelta = DAY,
    written: bool = True,
    signer: ec.EllipticCurvePrivateKey | None = None,
) -> Files:
    """One with a certificate of these dates, counted from now; `written` in the register or not, signed by whom."""
    key = certificates.new_key()
    dates = now() + begins, now() + ends
    made = certificates.client_certificate(
        (authority.certificate, signer or authority._key), key.public_key(), name, role, bytes(32), *dates
    )
    if written:
        with authority.register.change() as entries:
            times = dates[0].timestamp(), dates[1].timestamp()
            entries.issued[f"{made.serial_number:x}"] = Issued(name, role, *times, key_hash(key.public_key()))
    place.mkdir(exist_ok=True)
    files = Files(place / f"{name}.pem", place / f"{name}-ca.pem")
    files.pem.write_bytes(key_to_pem(key) + to_pem(made))
    files.ca.write_bytes(authority.pem)
    return files
