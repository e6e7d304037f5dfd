"""The authority of a federation: who may call its coordinator, and as what. A directory that the operator keeps.

ca.pem          its certificate, for anybody
ca.key          its key: who has it can name anybody
server.pem      the coordinator's key and certificate
register.json   invitations, certificates, revocations
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from atoll.errors import MissingExtraError, suggest
from atoll.network import certificates
from atoll.network.certificates import BACK, ROLES, IdentityError, Known, key_hash, now
from atoll.network.invitation import Invitation, to_sign
from atoll.network.keyfiles import keep, locked, private
from atoll.network.register import Entries, Invited, Issued, Register
from atoll.network.wire import NAME

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
except ImportError:
    raise MissingExtraError("cryptography", "network", "an authority") from None

__all__ = ["Authority", "Entry"]

LIVES = timedelta(days=90)
_AUTHORITY, _SERVER, _EARLY = timedelta(days=3650), timedelta(days=365), timedelta(days=30)


@dataclass(frozen=True)
class Entry:
    """A line of the register. `state`: invited, lapsed (nobody took the invitation up), valid, expired or revoked."""

    name: str
    role: str
    state: str
    serial: str | None
    ends: datetime


class Authority:
    """Invites, certifies and revokes. Several processes may use one directory at a time.

    Args:
        place: its directory.
        lives: how long a certificate is valid.

    Raises IdentityError where there is none, or it is damaged.
    """

    def __init__(self, place: Path, *, lives: timedelta = LIVES) -> None:
        self.place, self.lives = place, lives
        self.ca, self.server = place / "ca.pem", place / "server.pem"
        self.register = Register(place / "register.json")
        self._checked: dict[bytes, Known] = {}
        try:
            self.pem = self.ca.read_bytes()
            key = private(place / "ca.key")
        except OSError:
            raise IdentityError(
                "missing", f"there is no authority in {place}", hint="atoll ca init makes one"
            ) from None
        self._key = certificates.key_from_pem(key, str(place / "ca.key"))
        try:
            self.certificate = x509.load_pem_x509_certificate(self.pem)
            if key_hash(self._key.public_key()) != _key_of(self.certificate):
                raise ValueError("it is not that of the key")
        except ValueError as error:
            raise IdentityError(
                "damaged", f"{self.ca}: {error}", hint="restore the directory from a copy"
            ) from None
        self.register.read()

    @classmethod
    def init(cls, place: Path, *, lives: timedelta = LIVES) -> Authority:
        """Make an authority.  Raises IdentityError where there is one already."""
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(place):
            for name in ("ca.key", "ca.pem", "register.json"):
                if (place / name).exists():
                    raise IdentityError(
                        "exists",
                        f"{place / name} is there already: this directory has an authority",
                        hint="use it as it is, or name another directory",
                    )
            key, begins = certificates.new_key(), now()
            made = certificates.authority_certificate(
                key, f"Atoll authority {secrets.token_hex(6)}", begins - BACK, begins + _AUTHORITY
            )
            Register(place / "register.json").write(Entries())
            keep(place / "ca.pem", certificates.to_pem(made))
            keep(place / "ca.key", certificates.key_to_pem(key), secret=True)  # last: with it, all is there
        return cls(place, lives=lives)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of its certificate."""
        return certificates.fingerprint_of(self.certificate)

    # --- the coordinator --------------------------------------------------------------------------------------

    def server_certificate(self, hosts: Sequence[str]) -> Path:
        """The file with the coordinator's key and certificates, made anew where it is for other hosts, or ends soon.

        Args:
            hosts: names and addresses under which nodes call the coordinator.
        """
        if not hosts:
            raise IdentityError(
                "host",
                "a coordinator's certificate needs the names that nodes call it by",
                hint="--host NAME",
            )
        with locked(self.place):
            if not self._serves(hosts):
                key, begins = certificates.new_key(), now()
                made = certificates.server_certificate(
                    (self.certificate, self._key), key.public_key(), hosts, begins - BACK, begins + _SERVER
                )
                pems = certificates.key_to_pem(key), certificates.to_pem(made), self.pem
                keep(self.server, b"".join(pems), secret=True)
        return self.server

    def _serves(self, hosts: Sequence[str]) -> bool:
        try:
            pem = private(self.server)
        except FileNotFoundError:
            return False
        try:
            there = x509.load_pem_x509_certificates(pem)[0]
            there.verify_directly_issued_by(self.certificate)
        except (InvalidSignature, ValueError, TypeError):  # of an earlier authority, or no certificate
            return False
        return (
            certificates.hosts_of(there) == certificates.plain_hosts(hosts)
            and there.not_valid_after_utc - now() > _EARLY
        )

    # --- coming -----------------------------------------------------------------------------------------------

    def invite(self, name: str, role: str = "node", lives: timedelta = timedelta(days=7)) -> str:
        """An invitation for one certificate, which nobody can print again. It takes the place of an earlier one.

        Raises IdentityError for what is no name or role, and where the name has a certificate that counts.
        """
        if not NAME.fullmatch(name):
            raise IdentityError(
                "name",
                f"{name!r} is no name",
                hint="small letters, digits and hyphens, at most 63: hospital-a",
            )
        if role not in ROLES:
            raise IdentityError("role", f"unknown role {role!r}", hint=suggest(role, ROLES))
        if not timedelta(0) < lives <= timedelta(days=365):
            raise IdentityError("lives", "an invitation lives for up to a year", hint="--days 7")
        invitation = Invitation.new(name, self.fingerprint)
        with self.register.change() as entries:
            if live := _live(entries, name):
                raise IdentityError(
                    "exists",
                    f"{name} has a certificate that is valid until {_time(live[0][1].ends):%Y-%m-%d}",
                    hint=f"if its machine is another now, atoll ca revoke {name} first",
                )
            _tidy(entries)
            entries.invitations[name] = Invited(role, invitation.digest, (now() + lives).timestamp())
        return str(invitation)

    def certify(self, token: str, csr: bytes, ed25519: bytes, proof: bytes) -> bytes:
        """A certificate (PEM) for who holds an invitation, which is spent from then on.

        Only the key is taken from the request; it may ask again, should the answer get lost.

        Args:
            csr: the request, PKCS 10 in PEM, for a key on P-256.
            ed25519: the public key, 32 bytes, under which it signs in secure aggregation.
            proof: signature of `to_sign(request)` under that key.

        Raises IdentityError. Whatever is wrong with an invitation whose secret is not known, the work is the same.
        """
        public, request = certificates.requested(csr)
        try:
            Ed25519PublicKey.from_public_bytes(ed25519).verify(proof, to_sign(request))
        except (InvalidSignature, ValueError):
            raise IdentityError(
                "request",
                "the request is not signed under the Ed25519 key",
                hint="sign the DER form of the request",
            ) from None
        try:
            invitation = Invitation.parse(token)
        except IdentityError:
            invitation = Invitation("", "", "")
        self._spendable(self.register.read(), invitation, key_hash(public))
        with self.register.change() as entries:
            invited = self._spendable(entries, invitation, key_hash(public))
            if invited.certificate is None:
                made = self._issue(entries, public, invitation.name, invited.role, ed25519)
                invited.key, invited.certificate = key_hash(public), made
            pem = invited.certificate
        return pem.encode()

    def _spendable(self, entries: Entries, invitation: Invitation, key: str) -> Invited:
        """The invitation that is meant; it is not expired, and not spent for another key."""
        nobody = Invited("", secrets.token_hex(32), 0.0)
        invited = entries.invitations.get(invitation.name, nobody)
        right = secrets.compare_digest(invited.digest, invitation.digest)
        if not right:
            raise IdentityError(
                "token", "this invitation is not valid", hint="ask the operator for a new one"
            )
        if invited.ends <= now().timestamp():
            raise IdentityError(
                "token-expired",
                f"this invitation was valid until {_time(invited.ends):%Y-%m-%d %H:%M} UTC",
                hint="ask the operator for a new one",
            )
        if invited.key is not None and invited.key != key:
            raise IdentityError(
                "token-used",
                "this invitation has been used",
                hint="if it was not you, tell the operator at once; else use the same directory as then, or ask for"
                " a new one",
            )
        return invited

    def _issue(
        self, entries: Entries, public: ec.EllipticCurvePublicKey, name: str, role: str, ed25519: bytes
    ) -> str:
        begins = now() - BACK
        made = certificates.client_certificate(
            (self.certificate, self._key), public, name, role, ed25519, begins, now() + self.lives
        )
        times = made.not_valid_before_utc.timestamp(), made.not_valid_after_utc.timestamp()
        entries.issued[f"{made.serial_number:x}"] = Issued(name, role, *times, key_hash(public))
        return certificates.to_pem(made).decode()

    def renew(self, certificate: bytes, csr: bytes) -> bytes:
        """The next certificate (PEM) for the holder of one that is valid and past half of its life.

        Args:
            certificate: the one that the caller has shown in TLS, in DER form.

        Raises IdentityError.
        """
        public, _ = certificates.requested(csr)
        with self.register.change() as entries:
            known = self._counts(certificate, entries)
            if known.ends - now() > (known.ends - known.begins) / 2:
                raise IdentityError(
                    "early",
                    f"{known.name}'s certificate is valid until {known.ends:%Y-%m-%d}",
                    hint="renew it later",
                )
            _tidy(entries)
            made = self._issue(entries, public, known.name, known.role, known.ed25519)
        return made.encode()

    # --- knowing ----------------------------------------------------------------------------------------------

    def check(self, certificate: bytes) -> Known:
        """Who shows a certificate (DER).  Raises IdentityError whose problem is "unknown", "revoked" or "expired"."""
        return self._counts(certificate, self.register.read())

    def _counts(self, der: bytes, entries: Entries) -> Known:
        known = self._checked.get(der)
        if known is None:
            try:
                loaded = x509.load_der_x509_certificate(der)
            except ValueError:
                raise IdentityError("unknown", "this is no certificate") from None
            known = certificates.read(loaded, self.certificate)
            if len(self._checked) >= 4096:
                self._checked.clear()
            self._checked[der] = known
        if known.serial in entries.revoked:
            raise IdentityError(
                "revoked",
                f"the certificate of {known.name} was revoked on {_time(entries.revoked[known.serial]):%Y-%m-%d}",
                hint="ask the operator for an invitation",
            )
        if not known.begins <= now() < known.ends:
            over = known.ends <= now()
            raise IdentityError(
                "expired",
                f"the certificate of {known.name} "
                + (
                    f"was valid until {known.ends:%Y-%m-%d}"
                    if over
                    else f"is valid from {known.begins:%Y-%m-%d} on"
                ),
                hint="ask the operator for an invitation" if over else "set the clocks of both machines",
            )
        if known.serial not in entries.issued:
            raise IdentityError(
                "unknown", f"the authority's register knows no such certificate of {known.name}",
                hint="ask the operator for an invitation",
            )  # fmt: skip
        return known

    def revoke(self, what: str) -> int:
        """Take back a certificate by its serial, or a name's with its invitation; how many certificates these were.

        It takes effect at once, in every process that uses this directory.  Raises IdentityError where there is none.
        """
        with self.register.change() as entries:
            known = {each.name for each in entries.issued.values()} | set(entries.invitations)
            name = what if what in known else None
            if name is None and what.lower() not in entries.issued:
                raise IdentityError(
                    "unknown", f"nobody is called {what!r}", hint=suggest(what, known) or None
                )
            serials = [
                serial
                for serial, each in entries.issued.items()
                if (each.name == name if name is not None else serial == what.lower())
                and serial not in entries.revoked
                and each.ends > now().timestamp()
            ]
            for serial in serials:
                entries.revoked[serial] = now().timestamp()
                if name is None:
                    _withdraw(entries, serial)
            if name is not None:
                entries.invitations.pop(name, None)
        return len(serials)

    def list(self) -> tuple[Entry, ...]:
        """All that are invited or certified, by name."""
        entries, time = self.register.read(), now().timestamp()
        found = [
            Entry(name, each.role, "invited" if each.ends > time else "lapsed", None, _time(each.ends))
            for name, each in entries.invitations.items()
            if each.certificate is None
        ]
        for serial, one in entries.issued.items():
            state = "revoked" if serial in entries.revoked else "valid" if one.ends > time else "expired"
            found.append(Entry(one.name, one.role, state, serial, _time(one.ends)))
        return tuple(sorted(found, key=lambda each: (each.name, each.ends)))


def _key_of(certificate: x509.Certificate) -> str:
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ValueError("it is for another kind of key")
    return key_hash(public)


def _live(entries: Entries, name: str) -> Sequence[tuple[str, Issued]]:
    time = now().timestamp()
    return [
        (serial, each)
        for serial, each in entries.issued.items()
        if each.name == name and each.ends > time and serial not in entries.revoked
    ]


def _withdraw(entries: Entries, serial: str) -> None:
    """Forget the invitation that a certificate was made for: its holder would be given the certificate again."""
    key, name = entries.issued[serial].key, entries.issued[serial].name
    if (invited := entries.invitations.get(name)) is not None and invited.key == key:
        del entries.invitations[name]


def _tidy(entries: Entries) -> None:
    """Forget what ended long ago: its dates refuse it."""
    time = (now() - _EARLY).timestamp()
    entries.invitations = {name: each for name, each in entries.invitations.items() if each.ends > time}
    entries.issued = {serial: each for serial, each in entries.issued.items() if each.ends > time}
    entries.revoked = {serial: when for serial, when in entries.revoked.items() if serial in entries.issued}


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
