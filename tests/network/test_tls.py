"""TLS between machines, over real sockets: who gets in, who does not, and what each is told."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from atoll.network import certificates
from atoll.network.authority import Authority
from atoll.network.certificates import IdentityError, key_to_pem, now, to_pem
from atoll.network.coordinator import Coordinator, Office
from atoll.network.enrolment import Tries, enrolment_routes
from atoll.network.identity import Identity
from atoll.network.invitation import Certified, Enrolling, Trust
from atoll.network.preflight import preflight
from atoll.network.routes import Routes
from atoll.network.tls import (
    client_context,
    fingerprint,
    gate,
    identify,
    server_context,
    trusting_context,
)
from atoll.network.wire import Plan, pack

from .people import DAY, Files, asked, member

PLAN = Plan(
    method="fedavg", hyper={}, model="mlp:2,2", loss=None, metrics=None, augment=None, channel=None, dp_sgd=None,
    seed=0, engine="loop", data={}, validation=0, test=None, rounds=1, cohort=None,
)  # fmt: skip
HOSTS = ("localhost", "127.0.0.1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.init(tmp_path / "ca")


@asynccontextmanager
async def listening(site: web.Application, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    runner = web.AppRunner(site, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def coordinator(
    authority: Authority, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, Coordinator]]:
    """A coordinator before its rounds begin, with all of its routes; its port."""
    office = Office(place=authority.place.parent / "office", plan=PLAN, places=2, least=2)
    made = Coordinator(office, lambda *given: pytest.fail("no rounds here"))
    site = Routes(made, partial(identify, authority=authority)).application()
    site.add_routes(enrolment_routes(authority))

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="the page")  # its handler asks for nobody's name

    site.router.add_get("/", page)
    site.middlewares.append(gate(authority))
    try:
        async with listening(site, context or server_context(authority, HOSTS)) as port:
            yield port, made
    finally:
        made.close()


def played(scene: Callable[[int], Awaitable[None]], authority: Authority) -> None:
    async def play() -> None:
        async with coordinator(authority) as (port, _):
            await scene(port)

    asyncio.run(play())


async def ask(port: int, context: ssl.SSLContext, path: str, **more: Any) -> tuple[int, Any]:
    """Status of an answer, and what it says."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            more.pop("method", "GET"), f"https://127.0.0.1:{port}{path}", ssl=context, **more
        ) as answer,
    ):
        body = await answer.read()
        try:
            return answer.status, msgspec.json.decode(body)
        except msgspec.DecodeError:
            return answer.status, body


def stranger(authority: Authority) -> ssl.SSLContext:
    return trusting_context(authority.ca)


# --- who gets in --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:body argument is deprecated")  # of the other routes
def test_roles(authority: Authority, tmp_path: Path) -> None:
    async def scene(port: int) -> None:
        for role, task, status in (("node", 409, 200), ("operator", 403, 200), ("auditor", 403, 200)):
            context = client_context(member(authority, tmp_path, f"the-{role}", role))
            hello = (await ask(port, context, "/v1/hello"))[1]
            assert (hello["name"], hello["role"]) == (f"the-{role}", role)
            assert (await ask(port, context, "/v1/task"))[0] == task
            assert (await ask(port, context, "/v1/status"))[0] == status
            assert (await ask(port, context, "/"))[0] == 200

    played(scene, authority)


def test_strangers_may_say_hello_and_no_more(authority: Authority) -> None:
    async def scene(port: int) -> None:
        context = stranger(authority)
        assert (await ask(port, context, "/healthz"))[0] == 200
        assert (await ask(port, context, "/v1/hello"))[1]["name"] is None
        headers = {"Atoll-Name": "hospital-a", "Atoll-Role": "operator"}
        for path in ("/v1/task", "/v1/status", "/", "/v1/nothing", "//v1/hello", "/v1/hello/", "/V1/hello"):
            status, told = await ask(port, context, path, headers=headers)
            assert (status, told["problem"]) == (401, "unknown"), path
        for path in ("/v1/renew", "/v1/join"):
            assert (await ask(port, context, path, method="POST", data=b"{}"))[0] == 401

    played(scene, authority)


def handshake(port: int, context: ssl.SSLContext, host: str = "127.0.0.1") -> str:
    """The version of TLS.

    Raises SSLError for who is refused: the alert, or the end, comes after the caller's half of the handshake.
    """
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as line,
    ):
        line.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            if not line.recv(1):
                raise ssl.SSLError("the server ended the connection")
        return str(line.version())


def mixed(authority: Authority, files: Files) -> ssl.SSLContext:
    """Somebody who trusts this authority, whatever certificate they have."""
    return client_context(Files(files.pem, authority.ca))


def test_certificates_that_fail_in_the_handshake(authority: Authority, tmp_path: Path) -> None:
    other = Authority.init(tmp_path / "other")
    serving = Files(authority.server_certificate(HOSTS), authority.ca)
    bad = {
        "UNKNOWN_CA": member(other, tmp_path, "foreign"),
        "CERTIFICATE_EXPIRED": member(authority, tmp_path, "expired", begins=-2 * DAY, ends=-DAY),
        "BAD_CERTIFICATE": member(authority, tmp_path, "early", begins=DAY, ends=2 * DAY),
        "UNSUPPORTED_CERTIFICATE": serving,  # for a server, not for a caller
    }

    async def scene(port: int) -> None:
        good = member(authority, tmp_path, "good")
        assert await asyncio.to_thread(handshake, port, mixed(authority, good)) == "TLSv1.3"
        for files in bad.values():
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(handshake, port, mixed(authority, files))
            with pytest.raises(aiohttp.ClientError):
                await ask(port, mixed(authority, files), "/healthz")

    played(scene, authority)
    with coarse(server_context(authority, HOSTS)) as port:  # which says why; asyncio's servers do not
        for reason, files in bad.items():
            with pytest.raises(ssl.SSLError) as error:
                handshake(port, mixed(authority, files))
            assert str(error.value.reason).endswith(reason)


def test_tls_is_1_3_on_both_sides(authority: Authority, tmp_path: Path) -> None:
    old = stranger(authority)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2

    async def scene(port: int) -> None:
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(handshake, port, old)
        if shutil.which("openssl"):
            words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(authority.ca)]
            for more, version in (([], "New, TLSv1.3"), (["-tls1_2"], "New, (NONE)")):
                done = await asyncio.to_thread(
                    subprocess.run, [*words, *more], input="", capture_output=True, text=True, timeout=20
                )
                assert version in done.stdout, done.stderr
                assert ("Verification: OK" in done.stdout) and ("BEGIN CERTIFICATE" in done.stdout) == (
                    not more
                )

    played(scene, authority)

    with coarse(server_context(authority, HOSTS)) as port:
        assert handshake(port, stranger(authority)) == "TLSv1.3"
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            handshake(port, old)
    context = server_context(authority, HOSTS)
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    for own in (stranger(authority), client_context(member(authority, tmp_path, "a"))):
        with coarse(context) as port, pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            handshake(port, own)


def test_servers_that_callers_refuse(authority: Authority, tmp_path: Path) -> None:
    """Self-signed, of another authority, for another host, out of its dates, a node's own."""
    node = member(authority, tmp_path, "node")
    for server, host, said in served(authority, tmp_path):
        with coarse(server) as port, pytest.raises(ssl.SSLCertVerificationError) as error:
            handshake(port, client_context(node), host)
        assert said in error.value.verify_message


def served(authority: Authority, place: Path) -> Iterator[tuple[ssl.SSLContext, str, str]]:
    def context(pem: bytes) -> ssl.SSLContext:
        file = place / "served.pem"
        file.write_bytes(pem)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(file)
        return made

    def dated(begins: timedelta, ends: timedelta) -> ssl.SSLContext:
        key = certificates.new_key()
        made = certificates.server_certificate(
            (authority.certificate, authority._key), key.public_key(), HOSTS, now() + begins, now() + ends
        )
        return context(key_to_pem(key) + to_pem(made) + authority.pem)

    key = certificates.new_key()
    itself = certificates.authority_certificate(key, "localhost", now() - DAY, now() + DAY)
    yield context(key_to_pem(key) + to_pem(itself)), "localhost", "self-signed certificate"
    other = Authority.init(place / "impostor")
    yield context(other.server_certificate(HOSTS).read_bytes()), "localhost", "self-signed certificate in"
    yield (
        context(authority.server_certificate(["fl.example.org"]).read_bytes()),
        "localhost",
        "Hostname mismatch",
    )
    yield (
        context(authority.server_certificate(["localhost"]).read_bytes()),
        "127.0.0.1",
        "IP address mismatch",
    )
    yield dated(-2 * DAY, -DAY), "localhost", "certificate has expired"
    yield dated(DAY, 2 * DAY), "localhost", "certificate is not yet valid"
    yield context(member(authority, place, "liar").pem.read_bytes()), "localhost", "certificate purpose"


@contextmanager
def coarse(
    context: ssl.SSLContext | None, answer: bytes = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
) -> Iterator[int]:
    """A server that answers whatever it is asked so, until this ends; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                plain.settimeout(5)
                with plain if context is None else context.wrap_socket(plain, server_side=True) as line:
                    if line.recv(1 << 14):
                        line.sendall(answer)
            except OSError:
                pass
            finally:
                plain.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_who_is_revoked_is_out_at_the_next_request_of_an_open_connection(
    authority: Authority, tmp_path: Path
) -> None:
    def get(line: http.client.HTTPSConnection, path: str) -> tuple[int, Any]:
        line.request("GET", path)
        answer = line.getresponse()
        return answer.status, msgspec.json.decode(answer.read())

    def talk(port: int) -> None:
        line = http.client.HTTPSConnection(
            "localhost", port, context=client_context(member(authority, tmp_path, "a")), timeout=5
        )
        assert get(line, "/v1/status")[0] == 200
        same = line.sock
        assert isinstance(same, ssl.SSLSocket) and same.session is not None
        assert not same.session.has_ticket  # to come back without showing its certificate
        Authority(authority.place).revoke("a")  # another process's view of the directory
        for path in ("/v1/status", "/v1/hello"):
            status, told = get(line, path)
            assert (status, told["problem"]) == (403, "revoked")
        assert line.sock is same
        line.close()

    async def scene(port: int) -> None:
        await asyncio.to_thread(talk, port)

    played(scene, authority)


def test_who_is_revoked_while_it_waits_for_a_task_gets_none(authority: Authority, tmp_path: Path) -> None:
    async def play() -> None:
        async with coordinator(authority) as (port, made):
            context = client_context(member(authority, tmp_path, "a"))
            session = "s" * 16
            joining = {"protocols": [1], "software": "x", "session": session}
            status, _ = await ask(port, context, "/v1/join", method="POST", data=msgspec.json.encode(joining))
            assert status == 200
            headers = {"Atoll-Session": session}
            waiting = asyncio.create_task(ask(port, context, "/v1/task?wait=20", headers=headers))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            authority.revoke("a")
            assert made.desk.told is not None
            made.desk.told(0)  # there is news
            status, told = await waiting
            assert (status, told["problem"]) == (403, "revoked")

    asyncio.run(play())


# --- coming -------------------------------------------------------------------------------------------------------


def test_a_node_comes_by_its_certificate_and_its_keys_stay(authority: Authority, tmp_path: Path) -> None:
    token, identity = authority.invite("hospital-a"), Identity(tmp_path / "node")

    async def scene(port: int) -> None:
        assert not identity.valid and not identity.due
        await identity.enrol("localhost", port, token)
        assert identity.known is not None and identity.known.name == "hospital-a"
        assert identity.valid and not identity.due
        first = identity.pem.read_bytes()
        await identity.enrol("localhost", port, token)  # the same command again
        assert identity.pem.read_bytes() == first and not await identity.renew("localhost", port)
        assert (await ask(port, client_context(identity), "/v1/hello"))[1]["name"] == "hospital-a"
        with pytest.raises(IdentityError, match="has been used"):
            await Identity(tmp_path / "thief").enrol("localhost", port, token)

    played(scene, authority)
    again = Identity(tmp_path / "node")
    assert again.known == identity.known
    assert again.known is not None
    Ed25519PublicKey.from_public_bytes(again.known.ed25519).verify(again.sign(b"a message"), b"a message")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "node").iterdir()}
    assert modes["identity.pem"] == modes["ed25519.pem"] == 0o600
    assert "pending.pem" not in modes and (tmp_path / "node").stat().st_mode & 0o777 == 0o700


def test_an_answer_that_was_lost_can_be_asked_for_again(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node ends after its invitation is spent and before it has its certificate."""
    token, identity = authority.invite("a"), Identity(tmp_path / "node")

    async def scene(port: int) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Identity, "_take", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                await identity.enrol("localhost", port, token)
        assert [each.state for each in authority.list()] == ["valid"]
        again = Identity(tmp_path / "node")
        assert again.known is None
        await again.enrol("localhost", port, token)
        assert again.valid

    played(scene, authority)
    assert len(authority.list()) == 1


def test_an_impostor_learns_nothing(authority: Authority, tmp_path: Path) -> None:
    """Who is in the middle has another authority, or tells the right one and cannot show that it is it."""
    token = authority.invite("a")
    other = Authority.init(tmp_path / "impostor")

    async def scene(port: int) -> None:
        identity = Identity(tmp_path / "node")
        with pytest.raises(IdentityError) as error:
            await identity.enrol("localhost", port, token)
        assert error.value.problem == "pin"
        assert not identity.place.exists()

    played(scene, other)

    asked_for: list[str] = []

    async def lie(request: web.Request) -> web.Response:
        asked_for.append(request.method)
        both = authority.pem + other.pem  # its own behind the right one
        return web.Response(body=pack(Trust(authority=both.decode())), content_type="application/json")

    async def play() -> None:
        site = web.Application()
        site.router.add_route("*", "/v1/certificate", lie)
        async with listening(site, server_context(other, HOSTS)) as port:
            identity = Identity(tmp_path / "node")
            with pytest.raises(IdentityError) as error:
                await identity.enrol("localhost", port, token)
            assert error.value.problem == "server-foreign"
            assert identity.ca.read_bytes() == authority.pem
            assert await fingerprint("localhost", port) == (authority.pem, authority.fingerprint)

    asyncio.run(play())
    assert asked_for == ["GET", "GET"]
    assert authority.certify(token, *asked())


def test_an_identity_is_not_overwritten_by_another_federations(authority: Authority, tmp_path: Path) -> None:
    other = Authority.init(tmp_path / "other")
    identity = Identity(tmp_path / "node")

    async def first(port: int) -> None:
        await identity.enrol("localhost", port, authority.invite("a"))

    async def second(port: int) -> None:
        with pytest.raises(IdentityError) as error:
            await identity.enrol("localhost", port, other.invite("a"))
        assert error.value.problem == "exists"

    played(first, authority)
    played(second, other)
    assert Identity(identity.place).known == identity.known


def test_a_node_that_was_revoked_comes_again_with_a_new_invitation(
    authority: Authority, tmp_path: Path
) -> None:
    identity = Identity(tmp_path / "node")

    async def scene(port: int) -> None:
        await identity.enrol("localhost", port, authority.invite("a"))
        authority.revoke("a")
        assert (await ask(port, client_context(identity), "/v1/hello"))[0] == 403
        await identity.enrol("localhost", port, authority.invite("a"))
        assert (await ask(port, client_context(identity), "/v1/hello"))[0] == 200

    played(scene, authority)


def test_certificates_are_renewed_when_a_third_of_their_life_is_left(tmp_path: Path) -> None:
    authority = Authority.init(tmp_path / "ca", lives=timedelta(minutes=20))  # from an hour ago on
    identity = Identity(tmp_path / "node")

    async def scene(port: int) -> None:
        await identity.enrol("localhost", port, authority.invite("a", "auditor"))
        first, known = identity.pem.read_bytes(), identity.known
        assert known is not None and identity.due
        authority.lives = 90 * DAY
        assert await identity.renew("localhost", port)
        assert not identity.due and not await identity.renew("localhost", port)
        assert identity.known is not None and identity.known.role == "auditor"
        assert identity.known.ed25519 == known.ed25519 and identity.known.serial != known.serial
        assert identity.pem.read_bytes() != first
        assert (await ask(port, client_context(identity), "/v1/hello"))[1]["name"] == "a"
        fresh = client_context(identity)
        csr = {"csr": asked().csr.decode()}
        status, told = await ask(port, fresh, "/v1/renew", method="POST", data=msgspec.json.encode(csr))
        assert (status, told["problem"]) == (400, "early")

    played(scene, authority)


def test_other_keys_than_the_certificates_are_refused(authority: Authority, tmp_path: Path) -> None:
    async def scene(port: int) -> None:
        for name in ("a", "b"):
            await Identity(tmp_path / name).enrol("localhost", port, authority.invite(name))

    played(scene, authority)
    (tmp_path / "a" / "ed25519.pem").write_bytes((tmp_path / "b" / "ed25519.pem").read_bytes())
    with pytest.raises(IdentityError, match="other keys"):
        Identity(tmp_path / "a")
    for name in ("ed25519.pem", "ca.pem"):
        (tmp_path / "b" / name).write_bytes(b"rubbish")
        with pytest.raises(IdentityError, match="damaged"):
            Identity(tmp_path / "b")
    (tmp_path / "b" / "identity.pem").chmod(0o644)
    with pytest.raises(Exception, match="others than its owner"):
        Identity(tmp_path / "b")


# --- what is asked badly ------------------------------------------------------------------------------------------


def enrolling(token: str) -> Enrolling:
    request = asked()
    return Enrolling(
        token=token, csr=request.csr.decode(), ed25519=request.ed25519.hex(), proof=request.proof.hex()
    )


def test_requests_for_certificates_that_are_refused(authority: Authority) -> None:
    token = authority.invite("a")
    sound = msgspec.to_builtins(enrolling(token))
    bad = [
        (b"", 400),
        (b"[]", 400),
        (b"{" * 9000, 400),
        (b"x" * 20_000, 400),
        (msgspec.json.encode({**sound, "role": "operator"}), 400),
        (msgspec.json.encode({**sound, "csr": "x"}), 400),
        (msgspec.json.encode({**sound, "proof": "0" * 128}), 400),
        (msgspec.json.encode({**sound, "token": "atoll1.a.b.c"}), 403),
    ]

    async def scene(port: int) -> None:
        context = stranger(authority)
        for body, due in bad:
            status, told = await ask(port, context, "/v1/certificate", method="POST", data=body)
            assert status == due and told["message"], body[:40]
            assert (told["problem"] == "size") == (len(body) > 1 << 14)
        done = await ask(port, context, "/v1/certificate", method="POST", data=msgspec.json.encode(sound))
        assert done[0] == 200
        assert msgspec.convert(done[1], Certified).authority == authority.pem.decode()

    played(scene, authority)


def test_who_fails_often_must_wait_and_who_succeeds_need_not(authority: Authority) -> None:
    tokens = [authority.invite(f"node-{number}") for number in range(13)]

    async def scene(port: int) -> None:
        context = stranger(authority)

        async def post(token: str) -> int:
            body = pack(enrolling(token))
            return (await ask(port, context, "/v1/certificate", method="POST", data=body))[0]

        for token in tokens[:12]:  # many behind one address
            assert await post(token) == 200
        found = await asyncio.gather(
            *(post("atoll1.a.b.c") for _ in range(15))
        )  # at a time, before one has failed
        assert sorted(found) == [403] * 10 + [429] * 5
        assert await post(tokens[12]) == 429

    played(scene, authority)


def test_tries_come_back_and_addresses_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    time = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: time[0])
    tries = Tries()
    assert [tries.take("a") for _ in range(11)] == [True] * 10 + [False]
    assert tries.take("b")
    time[0] = 10.1
    assert tries.take("a") and not tries.take("a")
    for number in range(5000):
        tries.take(str(number))
    assert len(tries._spent) == 4096


# --- why not ------------------------------------------------------------------------------------------------------


def test_a_preflight_says_what_is_in_the_way(authority: Authority, tmp_path: Path) -> None:
    node = member(authority, tmp_path, "node")
    nobody = Files(tmp_path / "none.pem", authority.ca)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = unused.getsockname()[1]
    finding = preflight("127.0.0.1", free, node)
    assert (finding.problem, finding.hint) == ("closed", "start the coordinator, or check the port")
    assert f"nothing listens on 127.0.0.1:{free}" in str(finding)
    assert preflight("no-such-machine.invalid", free, node).problem in ("host", "unreachable")
    with coarse(None) as port:
        assert preflight("localhost", port, node).problem == "plain"
    with coarse(None, b"220 mail\r\n") as port:
        assert preflight("localhost", port, node).problem == "plain"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(authority.server_certificate(HOSTS))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with coarse(old) as port:
        finding = preflight("localhost", port, node)
        assert finding.problem == "version" and "1.2" in finding.message
    new = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    new.load_cert_chain(authority.server_certificate(HOSTS))
    with coarse(new) as port:
        assert preflight("localhost", port, node).problem == "stranger"
        assert preflight("localhost", port, nobody).problem == "missing"
        assert preflight("localhost", port, Files(nobody.pem, tmp_path / "none")).problem == "missing"


def test_a_preflight_of_servers_that_callers_refuse(authority: Authority, tmp_path: Path) -> None:
    node = member(authority, tmp_path, "node")
    due = ["server-foreign", "server-foreign", "name", "name", "server-expired", "server-expired", "server"]
    for (server, host, said), problem in zip(served(authority, tmp_path), due, strict=True):
        with coarse(server) as port:
            finding = preflight(host, port, node)
        assert finding.problem == problem, (said, finding)
        assert finding.hint
        if problem == "name":
            assert f"not for {host}" in finding.message


def test_a_preflight_of_callers_that_servers_refuse(authority: Authority, tmp_path: Path) -> None:
    other = Authority.init(tmp_path / "other")
    good, gone = member(authority, tmp_path, "good"), member(authority, tmp_path, "gone")
    unknown = member(authority, tmp_path, "unknown", written=False)
    authority.revoke("gone")
    foreign = member(other, tmp_path, "foreign")
    cases = [
        (good, None, "knows this machine as good, node"),
        (gone, "revoked", "certificate of gone was revoked"),
        (unknown, "unknown", "knows no such certificate"),
        (Files(foreign.pem, authority.ca), "foreign", "not of the authority"),
        (foreign, "server-foreign", "not of the authority that this machine trusts"),
        (member(authority, tmp_path, "old", begins=-2 * DAY, ends=-DAY), "expired", "certificate ended on"),
        (member(authority, tmp_path, "new", begins=DAY, ends=2 * DAY), "expired", "certificate begins on"),
        (Files(tmp_path / "none.pem", authority.ca), "missing", "no certificate here"),
    ]

    async def scene(port: int) -> None:
        for files, problem, said in cases:
            finding = await asyncio.to_thread(preflight, "localhost", port, files)
            assert finding.problem == problem and said in finding.message, finding
            assert (finding.hint is None) == (problem is None)

    played(scene, authority)


def test_what_a_server_alone_knows_is_found_out(authority: Authority, tmp_path: Path) -> None:
    """The caller trusts both authorities, the server one: nothing here tells what is wrong."""
    other = Authority.init(tmp_path / "other")
    both = tmp_path / "both.pem"
    both.write_bytes(other.pem + authority.pem)
    foreign = Files(member(other, tmp_path, "foreign").pem, both)

    async def scene(port: int) -> None:
        finding = await asyncio.to_thread(preflight, "localhost", port, foreign)
        assert finding.problem == "foreign"

    played(scene, authority)
    with coarse(server_context(authority, HOSTS)) as port:
        finding = preflight("localhost", port, foreign)
        assert finding.problem == "refused" and "UNKNOWN_CA" in finding.message


def test_a_clock_that_is_wrong_is_told_from_a_certificate_that_is(
    authority: Authority, tmp_path: Path
) -> None:
    """Dates do not fit and the server's clock is another: it is the clock."""
    late = now() + timedelta(hours=30)
    answer = f"HTTP/1.1 204 No Content\r\nDate: {format_datetime(late, usegmt=True)}\r\n\r\n".encode()
    new = member(authority, tmp_path, "new", begins=DAY, ends=2 * DAY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_certificate(HOSTS))
    with coarse(context, answer) as port:
        finding = preflight("localhost", port, new)
        assert finding.problem == "clock" and "clock is 30 hours behind that of" in finding.message
        assert preflight("localhost", port, member(authority, tmp_path, "good")).problem == "stranger"
    *_, begins_later, _ = served(authority, tmp_path)
    with coarse(begins_later[0], answer) as port:
        assert preflight("localhost", port, new).problem == "clock"
