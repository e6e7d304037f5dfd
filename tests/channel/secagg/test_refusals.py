"""What must not work: each of these would give an update away, or spoil the sum."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from atoll.channel.secagg import (
    AbortedError,
    Client,
    Encoding,
    Floors,
    MarksInMemory,
    OutOfTurnError,
    RefusedError,
    RejectedError,
    Server,
    Terms,
    plan,
)
from atoll.channel.secagg.messages import (
    Boxes,
    Confirmation,
    Confirmations,
    Inbox,
    Invitation,
    Keys,
    Masked,
    Roster,
    Shares,
    Survivors,
    membership,
)  # fmt: skip
from atoll.errors import ConfigError

from .cohort import BEACON, MODEL, Cohort, client, cohort, identity, names, registry, terms, update

NODE = "node-0001"


def until(stage: str, made: Cohort) -> dict[str, Any]:
    """What the server sends to begin a stage, all having answered before."""
    messages: dict[str, Any] = dict.fromkeys(made.terms.nodes, made.server.open())
    while made.server.stage != stage:
        for node, message in messages.items():
            assert made.server.deliver(node, made.clients[node].receive(message))
        messages = made.server.close()
    return messages


def invited(given: Terms, **others: Any) -> Keys:
    answer = client(NODE, given, **others).receive(Invitation(given.sid, given))
    assert isinstance(answer, Keys)
    return answer


def refuses(made: Cohort, message: Any, match: str) -> None:
    """The client refuses, and has no secrets any more; what is due then is nothing."""
    who = made.clients[NODE]
    with pytest.raises(RefusedError, match=match) as caught:
        who.receive(message)
    assert not isinstance(caught.value, OutOfTurnError)
    assert who.due is None and who._held == {} and who._shared == {} and not any(who._mask_secret)
    with pytest.raises(OutOfTurnError):
        who.receive(message)


# ---- floors, which the server cannot lower


@pytest.mark.parametrize(
    ("proposed", "floors", "match"),
    [
        ({"n": 4}, {"cohort": 5}, "floor is 5"),
        ({"n": 5, "threshold": 4}, {"threshold": 5}, "threshold.*floor is 5"),
        ({"n": 9, "degree": 4}, {"degree": 6}, "degree.*floor is 6"),
        ({"n": 6, "active": False}, {}, "insists on one"),
        ({"n": 6, "threshold": 4}, {}, "not more than two thirds"),
        ({"n": 6, "model": bytes(32)}, {}, "another model"),
        ({"n": 9, "degree": 4, "beacon": bytes(32)}, {}, "public randomness"),
        ({"n": 6, "threshold": 1}, {}, "must be from 2 to 6"),
        ({"n": 6, "threshold": 7}, {}, "must be from 2 to 6"),
        ({"n": 6, "nodes": (*names(5), names(5)[0])}, {}, "not sorted, or not different"),
        ({"n": 9, "degree": 3}, {}, "no graph"),
        ({"n": 3, "encoding": Encoding(1, 1.0, 24, 200)}, {}, r"reach 2\^32"),
    ],
)  # fmt: skip
def test_floors(proposed: dict[str, Any], floors: dict[str, Any], match: str) -> None:
    given = terms(**{"size": 3, **proposed})
    values = np.zeros(4, np.uint32)
    with pytest.raises(RefusedError, match=match):
        invited(given, values=values, floors=Floors(**floors), registry=registry(names(9)))
    sound = terms(9, 3, 4)
    assert invited(sound, values=values, floors=Floors(cohort=9, threshold=4, degree=4))


def test_a_client_takes_part_in_an_attempt_once_even_after_a_restart() -> None:
    given, marks = terms(4), MarksInMemory()
    invited(given, marks=marks)
    with pytest.raises(RefusedError, match="was in this attempt before"):
        invited(given, marks=marks)
    assert invited(terms(4, attempt=1), marks=marks)


def test_who_is_not_asked_or_not_known_stays_away() -> None:
    given = terms(4)
    with pytest.raises(RefusedError, match="not for it"):
        client("node-0007", given).receive(Invitation(given.sid, given))
    with pytest.raises(RefusedError, match="another sid"):
        client(NODE, given).receive(Invitation(bytes(32), given))
    with pytest.raises(RefusedError, match="nobody knows 'node-0003'"):
        invited(given, registry=registry(names(3)))
    with pytest.raises(ConfigError, match="'node-0003' is not in the registry"):
        Server(given, registry(names(3)))


# ---- keys: signed, each one's own, and all different


def with_keys(message: Roster, change: dict[int, dict[str, Any]]) -> Roster:
    return Roster(
        message.sid, tuple(msgspec.structs.replace(k, **change.get(k.client, {})) for k in message.keys)
    )


def test_keys_in_the_roster() -> None:
    forged = identity("the server").sign(b"")
    other = identity("x").public_key().public_bytes_raw()
    changes: list[tuple[Any, str]] = [
        (lambda mine, his: {2: {"signature": bytes(64)}}, "not signed"),
        (lambda mine, his: {2: {"signature": forged}}, "not signed"),
        (lambda mine, his: {2: {"box": his.mask, "mask": his.box}}, "not signed"),
        (lambda mine, his: {2: {"mask": other}}, "not signed"),
        (lambda mine, his: {2: {"client": 3}, 3: {"client": 2}}, "not signed"),
        (lambda mine, his: {2: {"sid": bytes(32)}}, "not signed"),
        (lambda mine, his: {1: {"mask": his.mask}}, "changes its own keys"),
        (lambda mine, his: {1: {"signature": bytes(64)}}, "changes its own keys"),
        (lambda mine, his: {2: {"box": his.mask}}, "are the same"),
        (lambda mine, his: {2: {"mask": mine.mask}}, "are the same"),
        (lambda mine, his: {2: {"client": 3}}, "twice"),
        (lambda mine, his: {2: {"client": 77}}, "no neighbour"),
    ]
    for change, match in changes:
        made = cohort(terms(4))
        sent = until("shares", made)[NODE]
        mine, his = (next(k for k in sent.keys if k.client == client) for client in (1, 2))
        refuses(made, with_keys(sent, change(mine, his)), match)
    made = cohort(terms(4))
    sent = until("shares", made)[NODE]
    refuses(made, Roster(sent.sid, sent.keys[:2]), "2 holders are there, and 3 are needed")


def test_keys_from_another_attempt_are_not_signed_for_this_one() -> None:
    first, second = cohort(terms(4)), cohort(terms(4, attempt=1))
    old = {k.client: k for k in until("shares", first)[NODE].keys}[2]
    sent = until("shares", second)[NODE]
    stale = {"box": old.box, "mask": old.mask, "signature": old.signature}
    refuses(second, with_keys(sent, {2: stale}), "'node-0002' are not signed")


def test_a_neighbour_with_a_key_of_low_order_is_found_by_the_server_and_by_clients() -> None:
    from atoll.channel.secagg import keys as primitives

    made = cohort(terms(4))
    made.server.open()
    for low in ({"box": bytes(32)}, {"mask": bytes(32)}):
        own = msgspec.structs.replace(invited(made.terms), **low)
        signed = primitives.advertised(made.terms.sid, 1, own.box, own.mask)
        own = msgspec.structs.replace(own, signature=identity(NODE).sign(signed))
        with pytest.raises(RejectedError, match="no two sound keys"):
            made.server.deliver(NODE, own)
    made = cohort(terms(4))
    sent = until("shares", made)[NODE]
    mask = next(k for k in sent.keys if k.client == 2).mask
    signed = primitives.advertised(made.terms.sid, 2, bytes(32), mask)
    refuses(
        made,
        with_keys(sent, {2: {"box": bytes(32), "signature": identity("node-0002").sign(signed)}}),
        "no secret",
    )


# ---- boxes


def test_boxes_that_were_changed_or_come_from_elsewhere() -> None:
    for change, match in (
        (
            lambda b: {**b, 2: b[2][:-1] + bytes((b[2][-1] ^ 1,))},
            "'node-0002': it was not made by its sender",
        ),
        (lambda b: {**b, 2: b[3], 3: b[2]}, "not made by its sender"),
        (lambda b: {**b, 1: b[2]}, "not on the roster"),
        (lambda b: {**b, 9: b[2]}, "not on the roster"),
        (lambda b: {2: b[2]}, "2 holders are there, and 3 are needed"),
    ):
        made = cohort(terms(4))
        sent = until("masked", made)[NODE]
        refuses(made, Inbox(sent.sid, change(sent.boxes)), match)


# ---- updates


def test_an_update_that_is_too_large_is_not_sent() -> None:
    given = terms(4)
    good = update(given.encoding, NODE)
    heavy, high, long = good.copy(), good.copy(), np.append(good, np.uint32(1))
    heavy[-1] = given.encoding.levels + 1
    high[0] = good[-1] * given.encoding.top + 1
    for values in (heavy, high, long, good.astype(np.int64)):
        made = cohort(given)
        made.clients[NODE] = client(NODE, given, values)
        refuses(made, until("masked", made)[NODE], "not encoded as the terms say")


def test_an_update_is_given_once_and_in_time() -> None:
    given = terms(4)
    who = client(NODE, given)
    with pytest.raises(ConfigError, match="once"):
        who.contribute(update(given.encoding, NODE))
    made = cohort(given)
    made.clients[NODE] = Client(
        NODE, identity(NODE).sign, registry(given.nodes), Floors(), MarksInMemory(), MODEL
    )
    refuses(made, until("masked", made)[NODE], "no update")
    with pytest.raises(ConfigError, match="before the inbox"):
        made.clients[NODE].contribute(update(given.encoding, NODE))


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize(
    ("survivors", "other", "refused"),
    [((0, 1, 2, 3), False, False), ((0, 1, 2), False, True), ((0, 1, 2, 3), True, True)],
)
def test_an_update_of_one_round_goes_into_one_sum_unless_the_client_allows_it(
    active: bool, survivors: tuple[int, ...], other: bool, refused: bool
) -> None:
    """Another attempt may end in the same sum, and in no other: not of others, not with another update."""
    for repeats in (False, True):
        marks, floors = MarksInMemory(), Floors(active=active, repeats=repeats)
        for attempt, alive in enumerate(((0, 1, 2, 3), survivors)):
            made = cohort(terms(4, attempt=attempt, threshold=3, active=active), floors=Floors(active=active))
            values = update(made.terms.encoding, "node-0009" if attempt and other else NODE)
            made.clients[NODE] = client(NODE, made.terms, values, marks=marks, floors=floors)
            until("consistency" if active else "unmask", made)
            sent = Survivors(made.terms.sid, bits(*alive))
            if attempt and refused and not repeats:
                refuses(made, sent, "may be in another sum")
            else:
                assert made.clients[NODE].receive(sent)


def test_who_has_only_contributed_is_bound_to_nothing() -> None:
    marks = MarksInMemory()
    for attempt in (0, 1):
        made = cohort(terms(4, attempt=attempt))
        made.clients[NODE] = client(NODE, made.terms, marks=marks)
        assert made.clients[NODE].receive(until("masked", made)[NODE])


# ---- unmasking: one answer, one kind of share of each


def bits(*clients: int) -> bytes:
    return membership(frozenset(clients), 4)


def test_nobody_gives_both_shares_of_a_client() -> None:
    """A second list of survivors would get the other share. It is not even looked at, nor after a restart."""
    given = terms(4, threshold=2, active=False)
    made = cohort(given, floors=Floors(active=False))
    until("unmask", made)
    who = made.clients[NODE]
    answer = who.receive(Survivors(given.sid, bits(0, 1, 2)))
    assert isinstance(answer, Shares)
    assert answer.survived.keys() == {0, 1, 2} and answer.lost.keys() == {3}
    for again in (bits(1, 2, 3), bits(0, 1, 2)):
        with pytest.raises(OutOfTurnError):
            who.receive(Survivors(given.sid, again))
    assert who._held == {}


def test_the_answer_is_marked_before_it_is_given() -> None:
    class Broken(MarksInMemory):
        def once(self, what: str, of: bytes) -> bool:
            if what == "answered":
                raise OSError("the disk is full")
            return super().once(what, of)

    given = terms(4, threshold=2, active=False)
    marks = MarksInMemory()
    for kind, error in ((Broken(), OSError), (marks, None)):
        made = cohort(given, floors=Floors(active=False))
        made.clients[NODE] = client(NODE, given, floors=Floors(active=False), marks=kind)
        sent = until("unmask", made)[NODE]
        if error:
            with pytest.raises(error):
                made.clients[NODE].receive(sent)
            assert made.clients[NODE]._held == {} and made.clients[NODE].due is None
        else:
            made.clients[NODE].receive(sent)
    assert ("answered", given.sid) in marks.done
    made = cohort(given, floors=Floors(active=False))
    sent = until("unmask", made)[NODE]
    made.clients[NODE]._marks.once("answered", given.sid)
    refuses(made, sent, "handed out shares in this attempt before")


@pytest.mark.parametrize(
    ("survivors", "match"),
    [
        (bits(0, 2, 3), "says that it dropped out"),
        (bits(0, 1), "2 of its holders survive, and 3 are needed"),
        (b"", "no bits of 4 clients"), (b"\x1f", "no bits of 4 clients"), (b"\x0f\x00", "no bits of 4 clients"),
    ],
)  # fmt: skip
def test_lists_of_survivors(survivors: bytes, match: str) -> None:
    made = cohort(terms(4))
    until("consistency", made)
    refuses(made, Survivors(made.terms.sid, survivors), match)


def test_a_sum_of_fewer_than_the_floor_is_not_unmasked() -> None:
    made = cohort(terms(4), floors=Floors(cohort=4))
    until("consistency", made)
    refuses(
        made, Survivors(made.terms.sid, bits(0, 1, 2)), "a sum of 3 clients, and this client's floor is 4"
    )


def test_nobody_survives_that_never_shared_its_keys() -> None:
    made = cohort(terms(4))
    messages: dict[str, Any] = dict.fromkeys(made.terms.nodes, made.server.open())
    for stage in ("keys", "shares", "masked"):
        for node, message in messages.items():
            if (stage, node) != ("shares", "node-0002"):
                made.server.deliver(node, made.clients[node].receive(message))
        messages = made.server.close()
    refuses(made, Survivors(made.terms.sid, bits(0, 1, 2, 3)), "never shared its keys")


def test_an_active_server_cannot_tell_two_lists_of_survivors() -> None:
    """Split views: each half confirms its own list, and no list has more than two thirds behind it."""
    given = terms(6)
    made = cohort(given)
    until("consistency", made)
    one, two = membership(frozenset({0, 1, 2, 3, 4}), 6), membership(frozenset({0, 1, 2, 3, 5}), 6)
    signatures = {}
    for k, node in enumerate(given.nodes[:4]):
        answer = made.clients[node].receive(Survivors(given.sid, one if k < 2 else two))
        assert isinstance(answer, Confirmation)
        signatures[k] = answer.signature
    refuses(made, Confirmations(given.sid, signatures), "'node-000[23]' has not confirmed the same|4 confirm")


def test_confirmations() -> None:
    for change, match in (
        (lambda s: dict(list(s.items())[:2]), "2 confirm who survived, and 3 are needed"),
        (lambda s: {**s, 2: s[3]}, "'node-0002' has not confirmed"),
        (lambda s: {**s, 9: s[3]}, "no neighbour"),
        (lambda s: {**s, 3: bytes(64)}, "'node-0003' has not confirmed"),
    ):
        made = cohort(terms(4))
        sent = until("unmask", made)[NODE]
        refuses(made, Confirmations(sent.sid, change(sent.signatures)), match)


# ---- turns


def test_messages_out_of_turn_change_nothing() -> None:
    """Repeats, what comes too early, and the same stage of another attempt."""
    made, other = cohort(terms(4)), cohort(terms(4, attempt=1))
    who, sid = made.clients[NODE], made.terms.sid
    mine: dict[str, Any] = dict.fromkeys(made.terms.nodes, made.server.open())
    foreign: dict[str, Any] = dict.fromkeys(made.terms.nodes, other.server.open())
    while stage := made.server.stage:
        early = Inbox(sid, {}) if stage != "masked" else Confirmations(sid, {})
        for wrong in (early, *([] if stage == "keys" else [foreign[NODE]])):
            with pytest.raises(OutOfTurnError):
                who.receive(wrong)
        answer = who.receive(mine[NODE])
        with pytest.raises(OutOfTurnError):
            who.receive(mine[NODE])
        assert made.server.deliver(NODE, answer) and not made.server.deliver(NODE, answer)
        mine = advance(made, {node: m for node, m in mine.items() if node != NODE}, {})
        foreign = advance(other, foreign, {})
    assert np.array_equal(made.server.total.sums, made.ideal().sums)


# ---- what the server does not take


def rejected(made: Cohort, message: Any, match: str, node: str = NODE) -> None:
    awaited, sums = made.server.awaited, made.server._sum.copy()
    with pytest.raises(RejectedError, match=match):
        made.server.deliver(node, message)
    assert made.server.awaited == awaited and np.array_equal(made.server._sum, sums)


def test_messages_that_the_server_rejects_leave_it_as_it_was() -> None:
    made = cohort(terms(4))
    sid, who = made.terms.sid, made.clients[NODE]
    messages = until("keys", made)
    own = who.receive(messages[NODE])
    assert isinstance(own, Keys)
    rejected(made, msgspec.structs.replace(own, signature=bytes(64)), "not signed")
    rejected(made, own, "not signed", node="node-0002")
    rejected(made, msgspec.structs.replace(own, sid=bytes(32)), "another attempt")
    rejected(made, own, "nobody who was asked", node="node-0009")
    made.clients[NODE] = Client.__new__(Client)  # answered by hand from here on
    rest = {node: made.clients[node].receive(messages[node]) for node in made.terms.nodes if node != NODE}
    assert made.server.deliver(NODE, own) and not made.server.deliver(NODE, own)
    assert not made.server.deliver(NODE, Masked(sid, b""))
    for node, answer in rest.items():
        made.server.deliver(node, answer)
    made.clients[NODE] = who
    messages = made.server.close()

    boxes = who.receive(messages[NODE])
    assert isinstance(boxes, Boxes)
    for wrong in ({}, {**boxes.boxes, 1: bytes(80)}, {**boxes.boxes, 7: bytes(80)}):
        rejected(made, Boxes(sid, wrong), "a box for each neighbour")
    rejected(made, Boxes(sid, {**boxes.boxes, 0: bytes(81)}), "80 bytes")
    messages = advance(made, messages, {NODE: boxes})

    masked = who.receive(messages[NODE])
    assert isinstance(masked, Masked)
    rejected(made, Masked(sid, masked.values[:-4]), "should have 32")
    rejected(made, Masked(sid, masked.values + b"\0"), "should have 32")
    messages = advance(made, messages, {NODE: masked})

    rejected(made, Confirmation(sid, bytes(64)), "does not confirm")
    messages = advance(made, messages, {})

    shares = who.receive(messages[NODE])
    assert isinstance(shares, Shares) and not shares.lost
    for survived, lost in (({}, {}), (shares.survived, {2: bytes(32)}), ({}, shares.survived)):
        rejected(made, Shares(sid, survived, lost), "one share of each client")
    for share in (bytes(31), b"\xff" * 32):
        rejected(made, Shares(sid, {**shares.survived, 2: share}, {}), "no number below p")
    advance(made, messages, {NODE: shares})
    assert np.array_equal(made.server.total.sums, made.ideal().sums)


def advance(made: Cohort, messages: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    for node, message in messages.items():
        assert made.server.deliver(
            node, given[node] if node in given else made.clients[node].receive(message)
        )
    return made.server.close()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: msgspec.structs.replace(s, survived={**s.survived, 2: bytes(32)}), "no sum of updates"),
        (lambda s: msgspec.structs.replace(s, lost={3: bytes(32)}), "do not give its key"),
    ],
)  # fmt: skip
def test_wrong_shares_end_the_attempt_without_a_sum(change: Any, match: str) -> None:
    made = cohort(terms(4, size=40))
    messages: dict[str, Any] = dict.fromkeys(made.terms.nodes, made.server.open())
    while made.server.stage != "unmask":
        stage = made.server.stage
        for node, message in messages.items():
            if (stage, node) != ("masked", "node-0003"):
                made.server.deliver(node, made.clients[node].receive(message))
        messages = made.server.close()
    for node, message in messages.items():
        answer = made.clients[node].receive(message)
        assert made.server.deliver(node, change(answer) if node == NODE else answer)
    with pytest.raises(AbortedError, match=match):
        made.server.close()


def test_a_masked_update_that_is_none_is_found_in_the_sum() -> None:
    made = cohort(terms(4, size=40))
    messages = until("masked", made)
    wrong = np.random.default_rng(0).integers(0, 2**32, 41, dtype=np.uint32)
    made.clients[NODE].receive(messages[NODE])
    made.clients[NODE].receive = lambda m: Masked(made.terms.sid, wrong.tobytes())  # type: ignore[method-assign]
    assert made.server.deliver(NODE, made.clients[NODE].receive(messages[NODE]))
    del made.clients[NODE].receive  # type: ignore[method-assign]
    for node, message in messages.items():
        if node != NODE:
            made.server.deliver(node, made.clients[node].receive(message))
    messages = made.server.close()
    for _ in range(2):
        for node, message in messages.items():
            made.server.deliver(node, made.clients[node].receive(message))
        if made.server.stage == "consistency":
            messages = made.server.close()
    with pytest.raises(AbortedError, match="no sum of updates"):
        made.server.close()


def test_secrets_are_gone_after_use() -> None:
    made = cohort(terms(4))
    who = made.clients[NODE]
    messages = until("masked", made)
    secret = who._mask_secret
    assert any(secret) and any(who._self_secret) and who._shared
    who.receive(messages[NODE])
    assert not any(secret) and not any(who._self_secret) and who._mask_key is None and who._box_key is None
    assert who._values is None and who._shared == {} and len(who._held) == 4
    made = cohort(terms(4))
    assert made.play() and all(c._held == {} and c.due is None for c in made.clients.values())


def test_the_beacon_is_not_the_servers_word() -> None:
    degree, threshold = plan(100, 0.05, 0.05, active=True)
    given = terms(100, 3, degree, threshold)
    with pytest.raises(RefusedError, match="public randomness"):
        invited(given, beacon=None)
    assert invited(given, beacon=BEACON)
    assert invited(terms(100, 3, degree, threshold, active=False), beacon=None, floors=Floors(active=False))


def test_who_was_lost_is_not_heard_again() -> None:
    """A masked update that comes without shares of its masks could never be unmasked, nor the sum with it."""
    made = cohort(terms(4))
    messages = until("shares", made)
    for node, message in messages.items():
        answer = made.clients[node].receive(message)
        if node != NODE:
            made.server.deliver(node, answer)
    made.server.close()
    assert not made.server.deliver(NODE, Masked(made.terms.sid, bytes(4 * 8)))
    assert NODE not in made.server.awaited and not made.server._sum.any()
