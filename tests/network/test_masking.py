"""A node's part in secure sums, without a network: whom it believes, and what it refuses."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding as Form
from cryptography.x509.oid import NameOID

from atoll.channel import Chain, Local, Setting, channel
from atoll.channel.secagg import Encoding, RefusedError, from_client, pack, proposed
from atoll.channel.secagg.server import Server
from atoll.channel.sums import packed, unpacked
from atoll.codec import encode
from atoll.contract import Answer, Reply
from atoll.dpsgd.records import DPSGD, Records
from atoll.errors import ConfigError
from atoll.network.masking import Masking, certified, told
from atoll.network.node import Node, Station
from atoll.network.remote import _Check
from atoll.network.shelf import Shelf
from atoll.network.signing import Signer
from atoll.network.sums import between, chain_of, hidden, whole
from atoll.network.wire import Blob, Failure, Member, Plan, Registry, Task
from atoll.network.wire import pack as packed_message
from atoll.privacy.source import Source
from atoll.tensors import Record, Tensors
from tests.channel.test_chain import fitted, job

NAMES = ("ann", "bob", "cat", "dan")
MODEL = "0b" * 32
ENCODING = Encoding(6, 1.0, 16, 1)


class Cohort:
    """Four nodes with an update each, and the messages between them and a server."""

    def __init__(self, place: Path, smallest: int = 0) -> None:
        self.place, self.smallest = place, smallest
        self.updates = {name: np.arange(7, dtype=np.uint32) * (at + 1) for at, name in enumerate(NAMES)}
        self.signers, self.nodes = {}, {}
        for name in NAMES:
            (place / name).mkdir()
            self.signers[name] = Signer(place / name)
            self.start(name)
            self.updates[name][-1] = 1
            self.updates[name].tofile(self.nodes[name].shelf.vector("3-0-0", MODEL))

    def start(self, name: str) -> None:
        shelf = Shelf(self.place / name / "run")
        self.nodes[name] = Masking(name, "a run", shelf, Signer(self.place / name), told, self.smallest)

    def attempt(self, number: int = 1, **terms: Any) -> Server:
        given = {"run": "a run", "round": 3, "encoding": ENCODING, "model": bytes.fromhex(MODEL), **terms}
        keys = {name: self.signers[name].public for name in NAMES}
        return Server(proposed(attempt=number, nodes=NAMES, **given), keys)

    def asked(self, name: str, server: Server, message: Any, **keys: str) -> bytes | Failure:
        """What a node says; `keys` are those that the registry has wrong."""
        members = tuple(
            Member(name=each, ed25519=keys.get(each, self.signers[each].public.hex())) for each in NAMES
        )
        blob = Blob(sha256="0" * 64, size=1)
        task = Task(id="3-0-1-keys", round=3, program="keys", shared=blob, kind="secagg", of="3-0-0")
        return self.nodes[name].answer(task, pack(message), packed_message(Registry(members=members)))

    def play(self, server: Server, until: str = "") -> dict[str, Any]:
        """Everybody answers until a stage; what is sent to begin it."""
        sent: dict[str, Any] = dict.fromkeys(NAMES, server.open())
        while server.stage != until:
            for name, message in sent.items():
                said = self.asked(name, server, message)
                assert isinstance(said, bytes)
                server.deliver(name, from_client(said))
            sent = server.close()
        return sent


def refused(found: bytes | Failure, words: str, kind: str = "refused") -> None:
    assert isinstance(found, Failure) and words in found.reason and found.kind == kind


def test_nodes_come_to_the_sum_and_a_restart_drops_out(tmp_path: Path) -> None:
    made = Cohort(tmp_path)
    server = made.attempt()
    made.play(server)
    assert np.array_equal(server.total.sums, sum(made.updates.values()))
    for at, stage in enumerate(("shares", "masked", "consistency", "unmask")):
        server = made.attempt(at + 2)
        sent = made.play(server, stage)
        made.start("dan")
        refused(made.asked("dan", server, sent["dan"]), "has been restarted since")
        refused(made.asked("dan", server, made.attempt(at + 2).open()), "in this attempt before")


def test_after_a_restart_a_node_agrees_to_the_same_sum_and_to_no_other(tmp_path: Path) -> None:
    made = Cohort(tmp_path)
    made.play(made.attempt(1), "unmask")
    made.start("ann")
    made.play(made.attempt(2))
    made.start("ann")
    server = made.attempt(3)
    sent = made.play(server, "masked")
    for name in ("ann", "bob", "cat"):
        said = made.asked(name, server, sent[name])
        assert isinstance(said, bytes)
        server.deliver(name, from_client(said))
    refused(made.asked("ann", server, server.close()["ann"]), "may be in another sum", "spent")


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"run": "another"}, "another round"), ({"round": 4}, "another round"),
        ({"model": b"\x0c" * 32}, "no update of task 3-0-0"),
    ],
)  # fmt: skip
def test_what_is_asked_must_be_of_the_work_that_was_done(
    tmp_path: Path, terms: dict[str, Any], words: str
) -> None:
    made = Cohort(tmp_path)
    server = made.attempt(**terms)
    refused(made.asked("ann", server, server.open()), words)


def test_floors_and_keys_are_the_nodes_own(tmp_path: Path) -> None:
    made = Cohort(tmp_path, smallest=5)
    server = made.attempt()
    refused(made.asked("ann", server, server.open()), "floor is 5")
    (tmp_path / "more").mkdir()
    other = Cohort(tmp_path / "more")
    refused(other.asked("ann", server, other.attempt().open(), ann="11" * 32), "another key of 'ann'")
    assert Signer(tmp_path / "ann").public == made.signers["ann"].public
    assert (tmp_path / "ann" / "ed25519.pem").stat().st_mode & 0o077 == 0
    (tmp_path / "ann" / "ed25519.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="no Ed25519 key"):
        Signer(tmp_path / "ann")


# --- certificates -----------------------------------------------------------------------------------------------------


def certificate(
    key: ec.EllipticCurvePrivateKey, words: list[str], days: tuple[int, int] = (-1, 1), issuer: str = "ca"
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca" if not words else "node")])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
    )
    if words:
        uris = [x509.UniformResourceIdentifier(each) for each in words]
        built = built.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    return built.sign(key, SHA256()).public_bytes(Form.PEM)


def test_a_key_is_believed_that_a_certificate_of_the_authority_names() -> None:
    authority, stranger = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    trusts = certified(certificate(authority, []))
    key = "ab" * 32
    words = ["atoll:node:bob", "atoll:role:node", f"atoll:ed25519:{key}"]

    def member(pem: bytes | None) -> Member:
        return Member(name="bob", ed25519=key, certificate=None if pem is None else pem.decode())

    assert trusts(member(certificate(authority, words))) == bytes.fromhex(key)
    for pem, says in [
        (None, "has no certificate"),
        (certificate(stranger, words), "has no certificate"),
        (certificate(authority, words, (-3, -2)), "out of its dates"),
        (certificate(authority, words, (1, 2)), "out of its dates"),
        (certificate(authority, ["atoll:node:eve", *words[1:]]), "names somebody else"),
        (certificate(authority, [*words[:2], f"atoll:ed25519:{'cd' * 32}"]), "names somebody else"),
        (certificate(authority, [words[0], "atoll:role:operator", words[2]]), "names somebody else"),
        (certificate(authority, [*words, f"atoll:ed25519:{'cd' * 32}"]), "names somebody else"),
    ]:
        with pytest.raises(RefusedError, match=says):
            trusts(member(pem))


# --- channels between machines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "due"),
    [
        (None, None), ("clip:0.5 | noise:1", "clip:0.5 | noise:1"), ("secagg", "secagg:how=protocol"),
        ("clip:0.5|secagg:16,ideal,0.3", "clip:0.5 | secagg:16,protocol,0.3"),
        ("secagg:8,protocol", "secagg:8,protocol"),
        ("secagg:range=0.25", "secagg:range=0.25,how=protocol"),
    ],
)  # fmt: skip
def test_secure_aggregation_is_the_whole_protocol_between_machines(
    given: str | None, due: str | None
) -> None:
    assert whole(given) == due
    if given is not None:
        found, plain = channel(whole(given)), channel(given)  # type: ignore[arg-type]
        assert isinstance(found, Chain) and isinstance(plain, Chain)
        assert found.hides == (found.protocol is not None)
        assert found.text.replace(",protocol", "") == plain.text.replace(",protocol", "")


def test_what_nodes_cannot_play_is_refused() -> None:
    for text in ("secagg:16", "he"):
        with pytest.raises(ConfigError, match="secure aggregation alone"):
            between(channel(text), secret=True)
    found = between(channel("clip:0.5 | local:1"), secret=True)
    assert isinstance(found, Chain) and found.setting is not None and found.setting.secret
    around = between(Records(channel("secagg:16,protocol"), DPSGD(1.0, 1.0)), secret=True)
    assert isinstance(around, Records) and around.rule == DPSGD(1.0, 1.0)
    assert hidden(job(around)) and (inner := chain_of(around)) is not None and inner.setting is not None
    with pytest.raises(ConfigError, match="secure aggregation alone"):
        between(Records(channel("secagg:16")), secret=True)


def test_vectors_are_unpacked_as_they_were_packed() -> None:
    values = Record(
        update=Tensors(w=torch.arange(6, dtype=torch.int32).reshape(2, 3), a=torch.tensor([7], dtype=torch.int32)),
        channel=Record(weight=torch.tensor(9, dtype=torch.int32), cut=torch.tensor(8, dtype=torch.int32)),
    )  # fmt: skip
    assert packed(values).tolist() == [8, 7, 0, 1, 2, 3, 4, 5, 9]
    found = unpacked(packed(values).astype(np.int64), values)
    assert torch.equal(found.update["w"], values.update["w"].long()) and int(found.channel.weight) == 9


def test_noise_of_a_node_follows_from_its_source_and_has_its_deviation() -> None:
    chain = channel("clip:0.5 | local:2")
    assert isinstance(chain, Chain)
    chain = chain.settled(Setting())
    from atoll.channel.transform import Update

    def sent(source: Source, key: int) -> torch.Tensor:
        local = chain.drawing(source).transforms[1]
        assert isinstance(local, Local) and local == chain.transforms[1]  # steps are captured once
        update = Update(Record(w=torch.zeros(20_000)), torch.tensor(1.0), Record(), Record())
        return local.send(update, Record(), Record(), torch.tensor(key))[0].values.w  # type: ignore[no-any-return]

    one, other = Source(), Source()
    assert torch.equal(sent(one, 1), sent(one, 2)) and not torch.equal(sent(one, 1), sent(other, 1))
    assert float(sent(one, 1).std()) == pytest.approx(1.0, rel=0.03)


def test_a_task_done_again_has_the_same_draws_and_any_other_has_others(tmp_path: Path) -> None:
    plan = Plan(
        method="fedavg", hyper={}, model="softmax", loss=None, metrics=None, augment=None, channel="secagg",
        dp_sgd=None, seed=1, engine="processes", data={}, validation=0, test=None, rounds=1, cohort=None,
    )  # fmt: skip
    task = Task(id="1-0-0", round=1, program="train", shared=Blob(sha256="0" * 64, size=1), seconds=5.0)

    def noise(plan: Plan, task: Task, place: str = "a", **more: Any) -> bytes | None:
        node = Node(Station("", "ann", "", tmp_path, **more))
        node.shelf = Shelf(tmp_path / place)
        return node._noise(plan, task)

    change = msgspec.structs.replace
    one = noise(plan, task)
    assert one is not None and one == noise(plan, change(task, seconds=1.0)) == noise(
        plan, task, repeatable=True
    )
    others = [
        noise(plan, task, "b"), noise(change(plan, seed=2), task), noise(plan, change(task, id="1-0-1")),
        noise(plan, change(task, shared=Blob(sha256="1" * 64, size=1))), noise(plan, change(task, limit=3)),
        noise(change(plan, repeatable=True), task),
    ]  # fmt: skip
    assert len({one, *others}) == 7 and None not in others
    assert noise(change(plan, repeatable=True), task, repeatable=True) is None


def test_an_answer_with_an_update_in_it_is_refused_where_updates_are_hidden(tmp_path: Path) -> None:
    chain = fitted("secagg:16,protocol")
    values = Record(update=Tensors(w=torch.zeros(1000)))
    for text, held, says in (
        (chain, values, "not to leave the node"), (chain, Record(), None), (fitted("clip:1"), values, None),
        (fitted("clip:1"), Record(), "it has no 'update'"),
    ):  # fmt: skip
        answer = Answer(1, Reply(held, torch.tensor(1.0), Record()))
        found = _Check(job(text), 1, 1 << 20, tmp_path)(bytearray(encode(answer.to_record())))
        assert (found is None) if says is None else (says in str(found))
