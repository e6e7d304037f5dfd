"""Who a node is: its keys, which never leave its directory, and its certificate.

identity.pem   its key and certificate
ed25519.pem    the key that signs in secure aggregation
ca.pem         the authority that it trusts
pending.pem    the key of a request that is not answered yet
invitation     the hash of the one that was taken up
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from pathlib import Path

from atoll.errors import CodecError, MissingExtraError
from atoll.network import certificates
from atoll.network.certificates import IdentityError, Known, now
from atoll.network.invitation import Certified, Enrolling, Invitation, Renewing, to_sign
from atoll.network.keyfiles import keep, locked, private
from atoll.network.preflight import preflight
from atoll.network.signing import FILE, NoKeyError, Signer
from atoll.network.tls import client_context, exchange, fingerprint, trusting_context
from atoll.network.wire import Message, Problem, pack, unpack

try:
    import aiohttp
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding
except ImportError:
    raise MissingExtraError("aiohttp and cryptography", "network", "a node") from None

__all__ = ["Identity"]


class Identity:
    """A node's keys and certificate, in a directory of its own.

    Raises IdentityError where the directory is damaged, ConfigError where others may read the keys.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.pem, self.ca = place / "identity.pem", place / "ca.pem"
        self._pending, self._taken = place / "pending.pem", place / "invitation"
        self.known: Known | None = None
        """What its certificate says; None before it has one."""
        if self.pem.exists():
            self.known = self._read(private(self.pem), self._authority())

    @property
    def valid(self) -> bool:
        """Whether it has a certificate that has not ended, as far as it knows."""
        return self.known is not None and now() < self.known.ends

    @property
    def due(self) -> bool:
        """Whether less than a third of its certificate's life is left."""
        return self.known is not None and self.known.ends - now() < (self.known.ends - self.known.begins) / 3

    @property
    def certificate(self) -> str:
        """Its certificate (PEM), without the key."""
        pem = private(self.pem)
        return pem[pem.index(b"-----BEGIN CERTIFICATE-----") :].decode()

    def sign(self, message: bytes) -> bytes:
        """Under the Ed25519 key that the certificate names."""
        return self._signing().sign(message)

    # --- coming -----------------------------------------------------------------------------------------------

    async def enrol(self, host: str, port: int, token: str) -> None:
        """Take up an invitation: learn whom to trust, ask for a certificate, keep it.

        An invitation that was taken up here is not asked about again, and one whose answer was lost can be repeated.

        Raises IdentityError, where no connection can be had with what `preflight` found.
        """
        invitation = Invitation.parse(token)
        if self.valid and self._taken.is_file() and self._taken.read_text() == invitation.digest:
            return
        try:
            pem, sha256 = await fingerprint(host, port)
        except (aiohttp.ClientError, TimeoutError, CodecError):
            finding = await asyncio.to_thread(preflight, host, port, self)
            raise IdentityError(
                finding.problem or "stranger", finding.message, hint=finding.hint or "check host and port"
            ) from None
        if not invitation.fits(sha256):
            raise IdentityError(
                "pin",
                f"the coordinator at {host}:{port} has another authority than the invitation names: nothing was sent",
                hint="compare with the operator: fingerprint " + sha256,
            )
        if self.valid and self.ca.read_bytes() != pem:
            raise IdentityError(
                "exists",
                f"{self.place} holds the identity of {self.known and self.known.name} in another federation",
                hint="use another directory for this one",
            )
        self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.place):
            keep(self.ca, pem)
            signing = self._signing(make=True)
            key = self._next()
        asked = certificates.request(key, invitation.name)
        der = asked.public_bytes(Encoding.DER)
        enrolling = Enrolling(
            token=str(invitation),
            csr=asked.public_bytes(Encoding.PEM).decode(),
            ed25519=signing.public.hex(),
            proof=signing.sign(to_sign(der)).hex(),
        )
        certified = await self._ask(host, port, "/v1/certificate", trusting_context(self.ca), enrolling)
        self._take(key, certified, invitation.name)
        keep(self._taken, invitation.digest.encode())

    async def renew(self, host: str, port: int) -> bool:
        """Ask for the next certificate where it is time; whether there is one. Contexts hold the one before."""
        before = self.known
        if before is None or not self.due:
            return False
        with locked(self.place):
            key = self._next()
        asked = certificates.request(key, before.name).public_bytes(Encoding.PEM).decode()
        certified = await self._ask(host, port, "/v1/renew", client_context(self), Renewing(csr=asked))
        self._take(key, certified, before.name)
        return True

    def _take(self, key: ec.EllipticCurvePrivateKey, certified: Certified, name: str) -> None:
        """Keep a certificate, if it is the one that was asked for."""
        try:
            made = certificates.to_pem(x509.load_pem_x509_certificate(certified.certificate.encode()))
        except ValueError:
            made = b""
        pem = certificates.key_to_pem(key) + made
        known = self._read(pem, self._authority())
        if known.name != name:
            raise IdentityError(
                "unknown", f"the coordinator gave a certificate for {known.name}", hint="tell the operator"
            )
        keep(self.pem, pem, secret=True)
        self._pending.unlink(missing_ok=True)
        self.known = known

    # --- files ------------------------------------------------------------------------------------------------

    def _authority(self) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(self.ca.read_bytes())
        except (OSError, ValueError):
            raise _damaged(self.ca) from None

    def _read(self, pem: bytes, authority: x509.Certificate) -> Known:
        """What a key with a certificate says.  Raises IdentityError where they are not each other's, or not ours."""
        key = certificates.key_from_pem(pem, str(self.pem))
        try:
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError:
            raise _damaged(self.pem) from None
        known = certificates.read(certificate, authority)
        ours = self._signing().public
        if certificate.public_key() != key.public_key() or not secrets.compare_digest(known.ed25519, ours):
            raise IdentityError("unknown", "the certificate is for other keys than those in " + str(self.place),
                                hint="ask the operator for an invitation, and use another directory")  # fmt: skip
        return known

    def _signing(self, make: bool = False) -> Signer:
        try:
            return Signer(self.place, make=make)
        except (FileNotFoundError, NoKeyError):
            raise _damaged(self.place / FILE) from None

    def _next(self) -> ec.EllipticCurvePrivateKey:
        """The key to ask for a certificate with: on the disk before it is asked, for the answer may be lost."""
        if not self._pending.exists():
            keep(self._pending, certificates.key_to_pem(certificates.new_key()), secret=True)
        return certificates.key_from_pem(private(self._pending), str(self._pending))

    # --- requests ---------------------------------------------------------------------------------------------

    async def _ask(
        self, host: str, port: int, path: str, context: ssl.SSLContext, message: Message
    ) -> Certified:
        """Ask for a certificate.  Raises IdentityError with what the coordinator says instead."""
        try:
            status, body = await exchange(host, port, context, path, pack(message))
        except (aiohttp.ClientError, TimeoutError):
            finding = await asyncio.to_thread(preflight, host, port, self)
            problem = finding.problem or "silent"
            told = finding.message if finding.problem else f"{host}:{port} gave no answer"
            raise IdentityError(problem, told, hint=finding.hint or "try again") from None
        try:
            if status == 200:
                return unpack(body, Certified)
            refused = unpack(body, Problem)
        except CodecError:
            raise IdentityError(
                "stranger", f"{host}:{port} does not answer as a coordinator does", hint="check host and port"
            ) from None
        raise IdentityError(refused.problem, refused.message, hint=refused.hint)


def _damaged(path: Path) -> IdentityError:
    return IdentityError(
        "damaged",
        f"{path} is damaged, or missing beside the others",
        hint="restore it from a copy, or join anew from another directory",
    )
