"""The authority's directory: who is invited, certified, taken back; and that nobody else comes by a certificate."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ConfigError
from atoll.network import certificates
from atoll.network.authority import Authority
from atoll.network.certificates import IdentityError, key_to_pem, now, to_pem
from atoll.network.invitation import Invitation, to_sign

from .people import DAY, asked, certified, der, member


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.init(tmp_path / "ca")


def refused(problem: str) -> pytest.RaisesExc[IdentityError]:
    return pytest.RaisesExc(IdentityError, check=lambda error: error.problem == problem)


# --- the directory ------------------------------------------------------------------------------------------------


def test_there_is_one_authority_in_a_directory_and_its_secrets_are_its_owners(authority: Authority) -> None:
    place = authority.place
    with refused("exists"):
        Authority.init(place)
    (place / "ca.pem").unlink()
    with refused("exists"):
        Authority.init(place)
    authority.ca.write_bytes(authority.pem)
    assert Authority(place).fingerprint == authority.fingerprint
    authority.server_certificate(["localhost"])
    for name in ("ca.key", "server.pem", "register.json"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    assert authority.certificate.not_valid_after_utc - now() > 3649 * DAY


def test_keys_that_others_may_read_are_refused(authority: Authority) -> None:
    (authority.place / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match="others than its owner may read"):
        Authority(authority.place)


def test_without_its_register_an_authority_knows_nobody(authority: Authority) -> None:
    """An empty register would forget who was revoked."""
    shown = der(certified(authority, "a"))
    authority.revoke("a")
    path = authority.register.path
    there = path.read_bytes()
    for damaged in (b"", there[:-9], b"{}x", there.replace(b'"version"', b'"versions"')):
        path.write_bytes(damaged)
        with refused("register"):
            authority.check(shown)
        with refused("register"):
            Authority(authority.place)
    path.unlink()
    with refused("register"):
        authority.check(shown)
    with refused("exists"):
        Authority.init(authority.place)


def test_another_key_is_not_this_authoritys(authority: Authority, tmp_path: Path) -> None:
    (authority.place / "ca.key").write_bytes(key_to_pem(certificates.new_key()))
    with refused("damaged"):
        Authority(authority.place)
    with refused("missing"):
        Authority(tmp_path / "nowhere")


def test_a_coordinators_certificate_is_made_anew_for_other_hosts_and_before_it_ends(
    authority: Authority, tmp_path: Path
) -> None:
    def names() -> set[str]:
        return certificates.hosts_of(x509.load_pem_x509_certificates(authority.server.read_bytes())[0])

    first = authority.server_certificate(["localhost", "127.0.0.1", "::1"]).read_bytes()
    assert names() == {"localhost", "127.0.0.1", "::1"}
    assert authority.server_certificate(["0:0::1", "127.0.0.1", "LocalHost"]).read_bytes() == first
    assert authority.server_certificate(["localhost"]).read_bytes() != first and names() == {"localhost"}
    for signer, days, kept in (
        (authority, 31, True), (authority, 29, False), (Authority.init(tmp_path / "other"), 300, False),
    ):  # fmt: skip
        key = certificates.new_key()
        pair = signer.certificate, signer._key
        soon = certificates.server_certificate(
            pair, key.public_key(), ["localhost"], now(), now() + days * DAY
        )
        there = key_to_pem(key) + to_pem(soon)
        authority.server.write_bytes(there)
        assert (authority.server_certificate(["localhost"]).read_bytes() == there) == kept
    for bad in ("", "a b", "host:80", "https://x", "-a", "*.org", "ü.org"):
        with refused("host"):
            authority.server_certificate([bad])
    with refused("host"):
        authority.server_certificate([])


# --- invitations --------------------------------------------------------------------------------------------------


def test_an_invitation_tells_the_authority_and_is_kept_as_a_hash(authority: Authority) -> None:
    token = authority.invite("hospital-a")
    word, name, secret, pin = token.split(".")
    assert (word, name, len(secret)) == ("atoll1", "hospital-a", 26)
    assert authority.fingerprint.startswith(pin) and len(pin) == 32
    for path in authority.place.iterdir():
        assert secret.encode() not in path.read_bytes(), path
    assert secret not in repr(Invitation.parse(token))
    assert authority.invite("hospital-a") != token


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a" * 64, "a.b", "a\n", "é"])
def test_names_are_short_and_plain(authority: Authority, name: str) -> None:
    with refused("name"):
        authority.invite(name)


def test_roles_and_lives(authority: Authority) -> None:
    with refused("role"):
        authority.invite("a", "admin")
    for lives in (timedelta(0), -DAY, 366 * DAY):
        with refused("lives"):
            authority.invite("a", lives=lives)


@settings(max_examples=60)
@given(st.text() | st.text("abz237.-").map("atoll1.".__add__))
def test_other_texts_are_no_invitations(text: str) -> None:
    with contextlib.suppress(IdentityError):
        assert str(Invitation.parse(text)) == text.strip()


def test_an_invitation_serves_once(authority: Authority) -> None:
    token, first = authority.invite("a"), asked()
    made = authority.certify(token, *first)
    assert authority.certify(token, *first) == made  # the answer was lost
    with refused("token-used"):
        authority.certify(token, *asked())
    assert [(each.name, each.state) for each in authority.list()] == [("a", "valid")]
    with refused("exists"):
        authority.invite("a")  # two machines of one name
    authority.revoke("a")
    with refused("token"):
        authority.certify(token, *first)
    assert authority.certify(authority.invite("a"), *first) != made


def test_a_certificate_that_was_revoked_by_its_serial_is_not_given_again(authority: Authority) -> None:
    token, first = authority.invite("a"), asked()
    authority.certify(token, *first)
    serial = authority.list()[0].serial
    assert serial is not None and authority.revoke(serial) == 1
    with refused("token"):
        authority.certify(token, *first)


def test_invitations_end_and_later_ones_take_their_place(authority: Authority) -> None:
    ended = authority.invite("a", lives=timedelta(microseconds=1))
    with refused("token-expired"):
        authority.certify(ended, *asked())
    assert [each.state for each in authority.list()] == ["lapsed"]
    old, new = authority.invite("a"), authority.invite("a")
    with refused("token"):
        authority.certify(old, *asked())
    authority.revoke("a")
    with refused("token"):
        authority.certify(new, *asked())


def test_wrong_secrets_are_all_alike(authority: Authority, tmp_path: Path) -> None:
    """Neither the words nor the checks tell which names are invited."""
    token, other = authority.invite("a"), authority.invite("b", "operator")
    word, _, secret, pin = token.split(".")
    ended = authority.invite("c", lives=timedelta(microseconds=1)).split(".")[2]
    foreign = Authority.init(tmp_path / "other").invite("a")
    messages = set()
    for wrong in (
        f"{word}.b.{secret}.{pin}",  # for another name
        f"{word}.z.{secret}.{pin}",  # for nobody's
        f"{word}.c.{secret}.{pin}",
        f"{word}.a.{ended}.{pin}",
        f"{word}.a.{other.split('.')[2]}.{pin}",
        foreign,
        "",
        "atoll1",
        "x" * 256,
    ):
        with pytest.raises(IdentityError) as error:
            authority.certify(wrong, *asked())
        messages.add((error.value.problem, error.value.message, error.value.hint))
    assert len(messages) == 1
    authority.certify(token, *asked())


# --- requests -----------------------------------------------------------------------------------------------------


def test_nothing_but_the_key_is_taken_from_a_request(authority: Authority) -> None:
    key = certificates.new_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.UniformResourceIdentifier("atoll:role:operator")]
            ),
            critical=False,
        )
        .sign(key, SHA256())
    )
    made = x509.load_pem_x509_certificate(authority.certify(authority.invite("a"), *asked(csr=greedy)))
    assert made.public_key() == key.public_key()
    assert made.subject.rfc4514_string() == "CN=a"
    found = {each.oid: each.value for each in made.extensions}
    constraints = found[x509.BasicConstraints.oid]
    usage = found[x509.ExtendedKeyUsage.oid]
    names = found[x509.SubjectAlternativeName.oid]
    assert isinstance(constraints, x509.BasicConstraints) and not constraints.ca
    assert isinstance(usage, x509.ExtendedKeyUsage) and [*usage] == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert isinstance(names, x509.SubjectAlternativeName)
    assert [each.value for each in names] == [
        "atoll:node:a", "atoll:role:node", "atoll:ed25519:" + asked().ed25519.hex(),
    ]  # fmt: skip
    assert timedelta(days=89.9) < made.not_valid_after_utc - now() <= 90 * DAY
    known = authority.check(der(made))
    assert (known.name, known.role, known.ed25519) == ("a", "node", asked().ed25519)


def test_requests_must_be_signed_by_their_key_and_under_the_ed25519_key(authority: Authority) -> None:
    token, sound = authority.invite("a"), asked()
    whole = x509.load_pem_x509_csr(sound.csr).public_bytes(Encoding.DER)
    place = whole.index(b"whoever")
    tampered = bytearray(whole)
    tampered[place : place + 7] = b"another"
    proof = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).sign(to_sign(bytes(tampered)))
    pem = x509.load_der_x509_csr(bytes(tampered)).public_bytes(Encoding.PEM)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    wide = builder.sign(ec.generate_private_key(ec.SECP384R1()), SHA256())
    older = builder.sign(rsa.generate_private_key(65537, 2048), SHA256())
    other = Ed25519PrivateKey.generate()
    bare = other.sign(whole)  # without the words before it: a signature for another purpose
    for bad in (
        (pem, sound.ed25519, proof),
        asked(csr=wide),
        asked(csr=older),
        (b"", sound.ed25519, sound.proof),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", sound.ed25519, sound.proof),
        (authority.pem, sound.ed25519, sound.proof),
        (sound.csr, other.public_key().public_bytes_raw(), sound.proof),
        (sound.csr, other.public_key().public_bytes_raw(), bare),
        (sound.csr, sound.ed25519, asked().proof),
        (sound.csr, sound.ed25519[:-1], sound.proof),
    ):
        with refused("request"):
            authority.certify(token, *bad)
    authority.certify(token, *sound)  # none of these has spent it


KILLED = """
import os, signal, sys
from pathlib import Path
from atoll.network import keyfiles, register
from atoll.network.authority import Authority

place, token, csr, ed25519, proof, when = sys.argv[1:]
real = register.keep
def keep(*given, **more):
    if when == "after":
        real(*given, **more)
    os.kill(os.getpid(), signal.SIGKILL)
register.keep = keep
Authority(Path(place)).certify(token, Path(csr).read_bytes(), bytes.fromhex(ed25519), bytes.fromhex(proof))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_authority_that_is_killed_gives_no_second_certificate(
    authority: Authority, tmp_path: Path, when: str
) -> None:
    token, first = authority.invite("a"), asked()
    (tmp_path / "csr").write_bytes(first.csr)
    command = [
        sys.executable, "-c", KILLED, str(authority.place), token, str(tmp_path / "csr"), first.ed25519.hex(),
        first.proof.hex(), when,
    ]  # fmt: skip
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    if when == "after":  # it is spent, and its key alone gets the certificate that nobody has seen yet
        with refused("token-used"):
            authority.certify(token, *asked())
        made = x509.load_pem_x509_certificate(authority.certify(token, *first))
        assert authority.check(der(made)).name == "a"
    else:
        authority.certify(token, *asked())
    assert [each.state for each in authority.list()] == ["valid"]


def test_of_many_at_a_time_one_gets_a_certificate(authority: Authority) -> None:
    token, won, lost = authority.invite("a"), [], []
    ready = threading.Barrier(8)

    def come(number: int) -> None:
        mine, request = Authority(authority.place), asked()
        ready.wait()
        try:
            mine.certify(token, *request)
            won.append(number)
        except IdentityError as error:
            lost.append(error.problem)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and lost == ["token-used"] * 7
    assert len(authority.list()) == 1


INVITES = """
import sys
from pathlib import Path
from atoll.network.authority import Authority
authority = Authority(Path(sys.argv[1]))
for number in range(25):
    authority.invite(f"{sys.argv[2]}-{number}")
"""


def test_processes_do_not_undo_what_others_wrote(authority: Authority) -> None:
    command = [sys.executable, "-c", INVITES, str(authority.place)]
    going = [subprocess.Popen([*command, name]) for name in ("x", "y", "z")]
    assert [each.wait(60) for each in going] == [0, 0, 0]
    assert len(authority.list()) == 75


# --- knowing ------------------------------------------------------------------------------------------------------


def test_who_is_known_and_who_is_not(authority: Authority, tmp_path: Path) -> None:
    def shown(*given: object, **more: object) -> bytes:
        files = member(*given, **more)  # type: ignore[arg-type]
        return der(x509.load_pem_x509_certificate(files.pem.read_bytes()))

    assert authority.check(shown(authority, tmp_path, "a", "auditor")).role == "auditor"
    other = Authority.init(tmp_path / "other")
    server = x509.load_pem_x509_certificates(authority.server_certificate(["localhost"]).read_bytes())[0]
    for unknown in (
        shown(other, tmp_path, "a"),
        shown(authority, tmp_path, "a", written=False),
        shown(authority, tmp_path, "a", "root"),
        shown(authority, tmp_path, "a", "operator", signer=certificates.new_key()),
        der(server),
        der(authority.certificate),
        b"no certificate",
    ):
        with refused("unknown"):
            authority.check(unknown)
    with refused("expired"):
        authority.check(shown(authority, tmp_path, "a", begins=-2 * DAY, ends=-DAY))
    with refused("expired"):
        authority.check(shown(authority, tmp_path, "a", begins=DAY, ends=2 * DAY))


def test_what_another_process_revokes_counts_at_once(authority: Authority) -> None:
    shown, other = der(certified(authority, "a")), der(certified(authority, "b"))
    assert authority.check(shown).name == "a"
    command = [sys.executable, "-c", "from atoll.cli import main; main()", "ca", "revoke", "a"]
    done = subprocess.run(
        [*command, "--ca", str(authority.place)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    with refused("revoked"):
        authority.check(shown)
    assert authority.check(other).name == "b"
    with refused("revoked"):
        Authority(authority.place).check(shown)


def test_the_register_is_read_again_whenever_it_is_another(authority: Authority) -> None:
    """As many revocations as there are must be seen, however quickly they follow, and alike in size."""
    mine = Authority(authority.place)
    for _ in range(30):
        shown = der(certified(authority, "a"))
        assert mine.check(shown).name == "a"
        authority.revoke("a")
        with refused("revoked"):
            mine.check(shown)


def test_a_name_is_revoked_with_all_its_certificates_and_a_serial_alone(
    authority: Authority, tmp_path: Path
) -> None:
    shown = [
        der(x509.load_pem_x509_certificate(member(authority, tmp_path, "a").pem.read_bytes()))
        for _ in range(3)
    ]
    serial = authority.check(shown[0]).serial
    assert authority.revoke(serial) == 1
    with refused("revoked"):
        authority.check(shown[0])
    assert authority.check(shown[1]).name == "a"
    assert authority.revoke("a") == 2
    for each in shown:
        with refused("revoked"):
            authority.check(each)
    assert authority.revoke("a") == 0
    with refused("unknown"):
        authority.revoke("nobody")


def test_certificates_are_renewed_late_for_who_they_name(tmp_path: Path) -> None:
    authority = Authority.init(tmp_path / "ca", lives=timedelta(minutes=20))
    old, key = certified(authority, "a", "auditor"), certificates.new_key()
    made = x509.load_pem_x509_certificate(authority.renew(der(old), asked(key).csr))
    before, after = authority.check(der(old)), authority.check(der(made))
    assert made.public_key() == key.public_key() != old.public_key()
    assert (after.name, after.role, after.ed25519) == (before.name, before.role, before.ed25519)
    assert after.serial != before.serial
    with refused("request"):
        authority.renew(der(old), b"")
    authority.revoke("a")
    with refused("revoked"):
        authority.renew(der(old), asked().csr)
    fresh = Authority(authority.place)
    with refused("early"):
        fresh.renew(der(certified(fresh, "b")), asked().csr)
    ended = member(authority, tmp_path, "c", begins=-2 * DAY, ends=-DAY)
    with refused("expired"):
        authority.renew(der(x509.load_pem_x509_certificate(ended.pem.read_bytes())), asked().csr)


def test_what_ended_long_ago_is_forgotten_and_stays_refused(authority: Authority, tmp_path: Path) -> None:
    old = member(authority, tmp_path, "a", begins=-90 * DAY, ends=-31 * DAY)
    recent = member(authority, tmp_path, "b", begins=-90 * DAY, ends=-29 * DAY)
    authority.invite("c")
    assert [each.name for each in authority.list()] == ["b", "c"]
    for files in (old, recent):
        with refused("expired"):
            authority.check(der(x509.load_pem_x509_certificate(files.pem.read_bytes())))


def test_nothing_is_left_half_written(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.invite("a")
    there = authority.register.path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        authority.invite("b")
    monkeypatch.undo()
    assert authority.register.path.read_bytes() == there
    assert sorted(path.name for path in authority.place.iterdir()) == [
        "ca.key",
        "ca.pem",
        "lock",
        "register.json",
    ]
