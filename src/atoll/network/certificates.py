"""What certificates say: a name, a role, the key that signs in secure aggregation. X.509 as RFC 5280 has it.

All keys are ECDSA on P-256. What is read here was made here: a certificate of any other form is nobody's.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from atoll.errors import ConfigError, MissingExtraError
from atoll.network.wire import NAME

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError:
    raise MissingExtraError("cryptography", "network", "identities on a network") from None

__all__ = [
    "BACK", "ROLES", "IdentityError", "Known", "authority_certificate", "client_certificate", "fingerprint_of",
    "hosts_of", "key_from_pem", "key_hash", "key_to_pem", "new_key", "now", "plain_hosts", "read", "request",
    "requested", "server_certificate", "server_ends", "to_pem",
]  # fmt: skip

ROLES = ("node", "operator", "auditor", "party")
_CALLING = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_PURPOSES = {"party": (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)}
"""What a certificate may be for: take part; command; look on."""

BACK = timedelta(hours=1)
"""Certificates begin so long before they are made: clocks of machines differ."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


class IdentityError(ConfigError):
    """A certificate, a request or an invitation does not count. `problem` says why, as a word for programs."""

    def __init__(self, problem: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problem = problem


@dataclass(frozen=True)
class Known:
    """Whom a certificate names.

    Args:
        ed25519: the public key, 32 bytes, under which it signs in secure aggregation.
        serial: of the certificate, in hexadecimal digits.
    """

    name: str
    role: str
    ed25519: bytes
    serial: str
    begins: datetime
    ends: datetime


# --- keys and texts -----------------------------------------------------------------------------------------------


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(pem: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """A private key.  Raises IdentityError where there is none of the right kind."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("damaged", f"{where} holds no key on P-256", hint="restore it from a copy")
    return key


def key_hash(key: ec.EllipticCurvePublicKey) -> str:
    """By what a public key is known: the SHA-256 of its DER form."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def fingerprint_of(certificate: x509.Certificate) -> str:
    """The SHA-256 of a certificate's DER form, in hexadecimal digits."""
    return certificate.fingerprint(SHA256()).hex()


# --- certificates -------------------------------------------------------------------------------------------------


def authority_certificate(
    key: ec.EllipticCurvePrivateKey, name: str, begins: datetime, ends: datetime
) -> x509.Certificate:
    """A certificate of itself, that may sign others' and nothing else."""
    subject = _subject(name)
    public = key.public_key()
    made = (
        _begun(subject, subject, public, begins, ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    return made.sign(key, SHA256())


def client_certificate(
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    public: ec.EllipticCurvePublicKey,
    name: str,
    role: str,
    ed25519: bytes,
    begins: datetime,
    ends: datetime,
) -> x509.Certificate:
    """A certificate for who calls a coordinator. Nothing of it comes from who asked for it, but the two keys.

    Parties of a run without a coordinator call each other: theirs is for listening, too. It names no machine, so that
    no node takes its bearer for the coordinator.
    """
    words = (f"atoll:node:{name}", f"atoll:role:{role}", f"atoll:ed25519:{ed25519.hex()}")
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(word) for word in words])
    return _signed(authority, public, name, names, _PURPOSES.get(role, _CALLING), begins, ends)


def server_certificate(
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    public: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    begins: datetime,
    ends: datetime,
) -> x509.Certificate:
    """A certificate for a coordinator under these names and addresses.  Raises IdentityError for what is neither."""
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    return _signed(authority, public, "coordinator", names, (ExtendedKeyUsageOID.SERVER_AUTH,), begins, ends)


def _signed(
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    public: ec.EllipticCurvePublicKey,
    name: str,
    names: x509.SubjectAlternativeName,
    purposes: Sequence[x509.ObjectIdentifier],
    begins: datetime,
    ends: datetime,
) -> x509.Certificate:
    issuer, key = authority
    made = (
        _begun(_subject(name), issuer.subject, public, begins, min(ends, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return made.sign(key, SHA256())


def _begun(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in wanted for usage in _USAGES})


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise IdentityError(
            "host",
            f"{host!r} is neither the name nor the address of a machine",
            hint="write it as nodes will, without a port: fl.example.org, or 192.0.2.7",
        )
    return x509.DNSName(host.lower())


def plain_hosts(hosts: Sequence[str]) -> set[str]:
    """Names and addresses as certificates write them.  Raises IdentityError for what is neither."""
    return {str(_host(host).value) for host in hosts}


def hosts_of(certificate: x509.Certificate) -> set[str]:
    """The names and addresses that a server's certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return set()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return {*names.get_values_for_type(x509.DNSName), *addresses}


def server_ends(pem: bytes) -> datetime:
    """Until when the first certificate in a file is valid."""
    return x509.load_pem_x509_certificates(pem)[0].not_valid_after_utc


def read(certificate: x509.Certificate, authority: x509.Certificate) -> Known:
    """Whom a certificate names; its dates are not looked at.  Raises IdentityError where it is not this authority's."""
    try:
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        words = names.get_values_for_type(x509.UniformResourceIdentifier)
        name, role, ed25519 = (
            _one(words, f"atoll:{what}:", form)
            for what, form in (
                ("node", NAME.pattern), ("role", "|".join(ROLES)), ("ed25519", "[0-9a-f]{64}"),
            )
        )  # fmt: skip
        if (*purposes,) != _PURPOSES.get(role, _CALLING):
            raise ValueError("it is not for callers")
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise IdentityError(
            "unknown",
            "the certificate is not of this federation's authority",
            hint="use the one that came with its invitation",
        ) from None
    serial = f"{certificate.serial_number:x}"
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Known(name, role, bytes.fromhex(ed25519), serial, begins, ends)


def _one(words: Sequence[str], begin: str, form: str) -> str:
    found = [word.removeprefix(begin) for word in words if word.startswith(begin)]
    if len(found) != 1 or not re.fullmatch(form, found[0]):
        raise ValueError(f"no {begin}")
    return found[0]


def now() -> datetime:
    return datetime.now(UTC)


# --- requests -----------------------------------------------------------------------------------------------------


def request(key: ec.EllipticCurvePrivateKey, name: str) -> x509.CertificateSigningRequest:
    """A request for a certificate (PKCS 10). That it holds a name is custom: nobody reads it."""
    return x509.CertificateSigningRequestBuilder().subject_name(_subject(name)).sign(key, SHA256())


def requested(pem: bytes) -> tuple[ec.EllipticCurvePublicKey, bytes]:
    """The key for which a certificate is asked, whose private half has signed the request; the request's bytes.

    Nothing else in a request is looked at.  Raises IdentityError for what is no such request.
    """
    try:
        asked = x509.load_pem_x509_csr(pem)
        public = asked.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise IdentityError(
                "request", "a certificate is asked for a key that is not on P-256", hint="make a key on P-256"
            )
        if not asked.is_signature_valid:
            raise ValueError("its signature is wrong")
        return public, asked.public_bytes(Encoding.DER)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        if isinstance(error, IdentityError):
            raise
        raise IdentityError(
            "request",
            "this is no sound request for a certificate",
            hint="send a signed PKCS 10 request in PEM",
        ) from None
