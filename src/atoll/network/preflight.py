"""Why a coordinator cannot be reached, in a sentence. TLS tells callers little: one thing is tried after another."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import NoReturn

from atoll.errors import CodecError, MissingExtraError
from atoll.network.certificates import hosts_of, now
from atoll.network.invitation import Trust
from atoll.network.tls import Held, blind_context, client_context, trusting_context
from atoll.network.wire import Hello, Problem, unpack

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
except ImportError:
    raise MissingExtraError("cryptography", "network", "a look at certificates") from None

__all__ = ["Finding", "preflight"]

_WAIT = 5.0
_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class Finding:
    """What came of a look: a word for programs where something is wrong, a sentence, and what to do."""

    problem: str | None
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class _Found(Exception):
    def __init__(self, problem: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.finding = Finding(problem, message, hint)


def preflight(host: str, port: int, identity: Held) -> Finding:
    """Call a coordinator as this identity would, and say what is in the way; `problem` is None where nothing is.

    What a server tells before it is verified is believed for an explanation only.
    """
    try:
        return _Look(host, port, identity).look()
    except _Found as found:
        return found.finding


class _Look:
    def __init__(self, host: str, port: int, identity: Held) -> None:
        self.host, self.port, self.identity = host, port, identity
        self.where = f"{host}:{port}"
        self.skew = timedelta(0)

    def look(self) -> Finding:
        self._listens()
        server = self._speaks()
        self._verified(server)
        self._own()
        return self._welcomed()

    # --- one thing after another ------------------------------------------------------------------------------

    def _listens(self) -> None:
        try:
            socket.create_connection((self.host, self.port), _WAIT).close()
        except socket.gaierror:
            raise _Found(
                "host", f"there is no machine called {self.host}", "check its name, or use its address"
            ) from None
        except ConnectionRefusedError:
            raise _Found(
                "closed", f"nothing listens on {self.where}", "start the coordinator, or check the port"
            ) from None
        except OSError as error:
            raise _Found(
                "unreachable",
                f"no connection to {self.where}: {error.strerror or error}",
                "check the network between the machines, and their firewalls",
            ) from None

    def _speaks(self) -> x509.Certificate:
        """The certificate of a server that speaks TLS 1.3; its clock is looked at on the way."""
        context = blind_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            with self._connected(context) as line:
                version, certificate = line.version(), line.getpeercert(True)
                if version == "TLSv1.3":
                    self._date(line)
        except ssl.SSLError as error:
            if error.reason in ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"):
                version, certificate = "an older version", None
            else:
                raise _Found(
                    "plain",
                    f"{self.where} does not speak TLS",
                    "check the port; there may be another service",
                ) from None
        except OSError:
            raise _Found(
                "plain",
                f"{self.where} takes connections, but does not speak TLS",
                "check the port; there may be another service, or a proxy that is not open",
            ) from None
        if version != "TLSv1.3" or certificate is None:
            raise _Found(
                "version",
                f"{self.where} speaks TLS up to {(version or '').removeprefix('TLSv')}, and 1.3 is needed",
                "call the coordinator itself, or let the proxy before it pass TLS through",
            )
        return x509.load_der_x509_certificate(certificate)

    def _date(self, line: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            head = _get(line, self.host, "/healthz")[1]
            date = re.search(rb"(?im)^date: *([^\r\n]+)", head)
            if date is not None:
                told = parsedate_to_datetime(date[1].decode("latin-1"))
                self.skew = (told if told.tzinfo else told.replace(tzinfo=UTC)) - now()

    def _verified(self, server: x509.Certificate) -> None:
        if not self.identity.ca.is_file():
            raise _Found(
                "missing",
                f"{self.where} speaks TLS, but no authority is known here that could vouch for it",
                "join with an invitation first",
            )
        try:
            with self._connected(trusting_context(self.identity.ca)):
                return
        except ssl.SSLCertVerificationError as error:
            code, said = error.verify_code, error.verify_message
        except OSError as error:
            code, said = 0, str(error)
        begins, ends = server.not_valid_before_utc, server.not_valid_after_utc
        if code in (9, 10):
            self._clock()
            when = f"ended on {ends:%Y-%m-%d}" if code == 10 else f"begins on {begins:%Y-%m-%d}"
            raise _Found(
                "server-expired",
                f"the certificate of the coordinator at {self.where} {when}",
                "the operator makes another: atoll ca server"
                if code == 10
                else "set the clocks of both machines",
            )
        if code in (62, 64):
            named = ", ".join(sorted(hosts_of(server))) or "no host"
            raise _Found(
                "name",
                f"the coordinator's certificate is for {named}, not for {self.host}",
                f"call it by one of these, or let the operator add it: atoll ca server {self.host}",
            )
        if code in (2, 7, 18, 19, 20, 21, 24, 79):
            raise _Found(
                "server-foreign",
                f"the certificate of {self.where} is not of the authority that this machine trusts",
                "this is another federation's coordinator, or an impostor: compare with the operator",
            )
        raise _Found("server", f"the certificate of {self.where} is refused: {said}", "tell the operator")

    def _own(self) -> None:
        """What is wrong with our own certificate as far as we can tell; a server would not say."""
        if not self.identity.pem.is_file():
            raise _Found(
                "missing",
                f"{self.where} is there, but there is no certificate here",
                "join with an invitation first",
            )
        try:
            own = x509.load_pem_x509_certificate(self.identity.pem.read_bytes())
            own.verify_directly_issued_by(x509.load_pem_x509_certificate(self.identity.ca.read_bytes()))
        except (InvalidSignature, ValueError, TypeError):
            self._foreign()
        if not own.not_valid_before_utc <= now() < own.not_valid_after_utc:
            self._clock()
            self._expired(own)

    def _welcomed(self) -> Finding:
        """Shown with our certificate, what does the coordinator say?"""
        status, head, body = 0, b"", b""
        with contextlib.suppress(OSError), self._connected(client_context(self.identity)) as line:
            status, head, body = _get(line, self.host, "/v1/hello")
        if not head:
            self._refused()
        told: Hello | Problem
        try:
            told = unpack(body, Hello) if status == 200 else unpack(body, Problem)
        except CodecError:
            raise _Found(
                "stranger", f"{self.where} answers, but not as a coordinator does", "check host and port"
            ) from None
        if isinstance(told, Problem):
            raise _Found(told.problem, f"{self.where} says: {told.message}", told.hint or "ask the operator")
        if told.name is None:
            raise _Found(
                "missing",
                f"{self.where} has not seen this machine's certificate",
                "a proxy may end TLS before the coordinator: let it pass through",
            )
        return Finding(
            None, f"{self.where} answers, and knows this machine as {told.name}, {told.role}", self._skewed()
        )

    def _refused(self) -> NoReturn:
        """The coordinator ends TLS when it is shown our certificate. Strangers are told whose it would take."""
        own = x509.load_pem_x509_certificate(self.identity.pem.read_bytes())
        with contextlib.suppress(OSError, CodecError):
            with self._connected(trusting_context(self.identity.ca)) as line:
                told = unpack(_get(line, self.host, "/v1/certificate")[2], Trust)
            try:
                own.verify_directly_issued_by(x509.load_pem_x509_certificate(told.authority.encode()))
            except (InvalidSignature, ValueError, TypeError):
                self._foreign()
        if not own.not_valid_before_utc <= now() + self.skew < own.not_valid_after_utc:
            self._clock()
        said = "it ends the connection"
        try:
            with self._connected(client_context(self.identity)) as line:
                line.recv(1)  # who speaks first may miss the reason
        except ssl.SSLError as error:
            said = error.reason or said
        except OSError:
            pass
        raise _Found(
            "refused",
            f"{self.where} refuses this machine's certificate: {said}",
            "look into the coordinator's log",
        )

    # --- sentences --------------------------------------------------------------------------------------------

    def _clock(self) -> None:
        """Dates that do not fit are the clocks', where these differ."""
        if hint := self._skewed():
            ahead = "behind" if self.skew > timedelta(0) else "ahead of"
            raise _Found(
                "clock", f"this machine's clock is {_long(abs(self.skew))} {ahead} that of {self.where}", hint
            )

    def _skewed(self) -> str | None:
        if abs(self.skew) <= _SKEW:
            return None
        return f"set the clocks of both machines: they differ by {_long(abs(self.skew))}"

    def _expired(self, own: x509.Certificate) -> NoReturn:
        over = own.not_valid_after_utc <= now()
        raise _Found(
            "expired",
            "this machine's certificate "
            + (
                f"ended on {own.not_valid_after_utc:%Y-%m-%d}"
                if over
                else f"begins on {own.not_valid_before_utc:%Y-%m-%d}"
            ),
            "ask the operator for an invitation" if over else "set the clocks of both machines",
        )

    def _foreign(self) -> NoReturn:
        raise _Found(
            "foreign",
            f"this machine's certificate is not of the authority of {self.where}",
            "ask the operator for an invitation, and use another directory",
        )

    def _connected(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        plain = socket.create_connection((self.host, self.port), _WAIT)
        try:
            return context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


def _long(time: timedelta) -> str:
    minutes = round(time.total_seconds() / 60)
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes / 60:.0f} hours" if minutes < 2880 else f"{minutes / 1440:.0f} days"


def _get(line: ssl.SSLSocket, host: str, path: str) -> tuple[int, bytes, bytes]:
    """Status, head and body of an answer, of which the first 64 KiB are read."""
    name = f"[{host}]" if ":" in host else host
    line.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while len(answer) < 1 << 16 and (piece := line.recv(1 << 14)):
        answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.\d (\d{3})", head)
    return int(status[1]) if status else 0, head, body
