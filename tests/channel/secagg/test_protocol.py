"""The whole protocol gives the sum of the encoded updates, to the bit, whoever drops out, as long as enough remain."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from atoll.channel.secagg import (
    AbortedError,
    Encoding,
    Floors,
    Total,
    from_client,
    from_server,
    masks,
    pack,
    plan,
)
from atoll.channel.secagg import keys as primitives
from atoll.channel.secagg.messages import Inbox, Invitation, Keys, Roster, Survivors, membership
from atoll.errors import CodecError, ConfigError

from .cohort import Cohort, client, cohort, entropy, terms

STAGES = ["keys", "shares", "masked", "consistency", "unmask"]


def same(found: Total, due: Total) -> bool:
    return (
        found.nodes == due.nodes
        and np.array_equal(found.sums, due.sums)
        and np.array_equal(found.mean, due.mean)
    )


def floors(active: bool, cohort: int = 3) -> Floors:
    return Floors(active=active, cohort=cohort)


def missing(stage: str, gone: set[str]) -> set[str]:
    """Who of those that are gone is not in the sum: the later ones have sent what they had."""
    return gone if stage in STAGES[:3] else set()


@pytest.mark.parametrize(
    ("n", "active", "stage"),
    [
        (n, active, stage)
        for n, active in ((3, False), (10, False), (10, True))
        for stage in STAGES
        if active or stage != "consistency"  # a curious server asks for no confirmations
    ],
)
def test_losses_at_every_stage_down_to_the_threshold(n: int, active: bool, stage: str) -> None:
    given = terms(n, threshold=n // 2 + 1 if not active else None, active=active)
    made = cohort(given, floors=floors(active, cohort=given.threshold))
    gone = set(given.nodes[1 : 1 + n - given.threshold])
    assert same(made.play({stage: gone}), made.ideal(missing(stage, gone)))
    one_more = cohort(given, floors=floors(active, cohort=2))
    with pytest.raises(AbortedError, match=f"stage '{stage}'.*{given.threshold} are needed") as caught:
        one_more.play({stage: {*gone, given.nodes[0]}})
    assert caught.value.stage == stage and caught.value.exit_code == 5 and caught.value.hint
    with pytest.raises(ConfigError, match="no sum yet"):
        _ = one_more.server.total


@pytest.mark.parametrize(("n", "degree", "threshold", "active"), [(50, 20, 14, False), (100, 16, 12, True)])
def test_losses_after_every_stage(n: int, degree: int, threshold: int, active: bool) -> None:
    """One client is lost in each stage; then of one client so many holders that one more would be too many."""
    given = terms(n, 5, degree, threshold, active=active)
    made = cohort(given, floors=floors(active))
    holders = [given.nodes[v] for v in given.graph.holders(n // 2)]
    lost = dict(
        zip(
            STAGES if active else ("keys", "shares", "masked", "unmask"), ({h} for h in holders), strict=False
        )
    )
    before = set().union(*lost.values())
    lost["unmask"] = lost["unmask"] | set(holders[len(lost) : degree + 1 - threshold])
    absent = before - (lost["unmask"] | lost.get("consistency", set()))
    assert same(made.play(lost), made.ideal(absent)) and len(absent) == 3
    one_more = cohort(given, floors=floors(active))
    lost["unmask"] = lost["unmask"] | {holders[degree + 1 - threshold]}
    with pytest.raises(AbortedError, match=f"{threshold - 1} are left, and {threshold} are needed"):
        one_more.play(lost)


def test_five_hundred_clients() -> None:
    given = terms(500, 3, 6, 4, active=False)
    made = cohort(given, floors=floors(False))
    gone = set(given.nodes[::100])
    assert same(made.play({"masked": gone}), made.ideal(gone))


@pytest.mark.slow
@pytest.mark.parametrize("active", [False, True])
def test_five_hundred_clients_as_planned(active: bool) -> None:
    degree, threshold = plan(500, 0.05, 0.05, active)
    given = terms(500, 3, degree, threshold, active=active)
    assert degree < 60
    made = cohort(given, floors=floors(active))
    gone = set(given.nodes[::20])
    assert same(made.play({"masked": gone}), made.ideal(gone))


def test_a_million_numbers() -> None:
    given = terms(4, encoding=Encoding(1_000_000, clip=1.0, bits=16, levels=8, heaviest=100.0))
    made = cohort(given)
    gone = {given.nodes[2]}
    given_back = made.play({"masked": gone})
    assert same(given_back, made.ideal(gone))
    assert len(given_back.mean) == 1_000_000


def test_the_sid_and_the_first_messages_are_what_they_were() -> None:
    given = terms(3)
    assert given.sid.hex() == "339f9122ec6c39960e1eb59db56e421757ab6d0e5469a83377cf73255b59b5c1"
    others = [
        terms(3, run="another"), terms(3, round=4), terms(3, attempt=1), terms(4), terms(3, threshold=2),
        terms(3, model=b""), terms(3, active=False), terms(3, nodes=("a", "b", "c")), terms(3, size=8),
        terms(3, run="a run\0", round=3), terms(5, 7, 2), terms(5, 7, 2, beacon=bytes(32)),
    ]  # fmt: skip
    assert len({each.sid for each in [given, *others]}) == len(others) + 1
    answer = client("node-0001", given, entropy=entropy("vector")).receive(Invitation(given.sid, given))
    assert (
        hashlib.sha256(pack(answer)).hexdigest()
        == "2193ddb6b128162352819414089e18f04603fb0cd14aa1430846ecdedd65f36d"
    )


def masked(start: np.ndarray) -> tuple[np.ndarray, Cohort]:
    """What one of four clients with fixed keys sends for an update, and the cohort. `start` has no weight behind it."""
    given = terms(4, encoding=Encoding(len(start), clip=1.0, bits=16))
    values = np.append(start, 1).astype(np.uint32)
    made = cohort(given)
    for k, node in enumerate(given.nodes):
        made.clients[node] = client(node, given, values, entropy=entropy(f"client {k}"))
    rosters = step(made, dict.fromkeys(given.nodes, made.server.open()))
    inboxes = step(made, rosters)
    sent = made.clients[given.nodes[1]].receive(inboxes[given.nodes[1]])
    return np.frombuffer(sent.values, "<u4")[:-1], made  # type: ignore[union-attr]


def step(made: Cohort, messages):  # type: ignore[no-untyped-def]
    for node, message in messages.items():
        made.server.deliver(node, made.clients[node].receive(from_server(pack(message))))
    return made.server.close()


@pytest.mark.parametrize("start", [0, 65535])
def test_what_a_client_sends_is_uniform(start: int) -> None:
    values, _ = masked(np.full(200_000, start, np.uint32))
    assert kstest(values / 2**32, "uniform").pvalue > 0.001
    for byte in values.view(np.uint8).reshape(-1, 4).T:
        assert chisquare(np.bincount(byte, minlength=256)).pvalue > 0.001
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / np.sqrt(200_000)


def test_neighbours_who_tell_all_do_not_unmask_a_client() -> None:
    """With every pair's mask known, a client's own mask still hides it; with that off, too, its update is there."""
    start = np.arange(50_000, dtype=np.uint32) % 65536
    values, made = masked(start)
    sid, registered = made.terms.sid, made.server._keys
    plus, minus = [], []
    for other in (0, 2, 3):
        draw = entropy(f"client {other}")
        shared = primitives.Private(draw(32)).agree(registered[1].mask)
        (plus if other < 1 else minus).append(primitives.mask_seed(shared, sid))
    left = np.append(values, 0).astype(np.uint32)
    masks.apply(left, plus, minus)
    assert kstest(left[:-1] / 2**32, "uniform").pvalue > 0.001
    draw = entropy("client 1")
    draw(32)
    masks.apply(left, [], [primitives.self_seed(draw(32), sid)])
    assert np.array_equal(left[:-1], start)


def test_messages_cross_as_bytes_and_nothing_else_does() -> None:
    given = terms(3)
    invitation = Invitation(given.sid, given)
    assert from_server(pack(invitation)) == invitation
    keys = Keys(given.sid, 1, b"b", b"m", b"s")
    roster = Roster(given.sid, (keys,))
    assert from_client(pack(keys)) == keys and from_server(pack(roster)) == roster
    for read, blob in (
        (from_client, pack(invitation)), (from_server, pack(keys)), (from_client, b""), (from_client, b"\xc1"),
        (from_client, pack(keys)[:-1]), (from_client, pack(keys) + b"x"), (from_server, b"\x93\xa5Inbox\xc0\xc0"),
    ):  # fmt: skip
        with pytest.raises(CodecError, match="no message of secure aggregation"):
            read(blob)
    assert from_server(pack(Inbox(b"", {3: b"x"}))) == Inbox(b"", {3: b"x"})
    assert from_server(pack(Survivors(b"", membership(frozenset({0, 9}), 10)))).members == b"\x01\x02"  # type: ignore[union-attr]


def test_clients_can_be_asked_in_any_order_and_the_server_says_who_is_missing() -> None:
    given = terms(4, active=True)
    made = cohort(given)
    messages = dict.fromkeys(given.nodes, made.server.open())
    assert made.server.awaited == given.nodes
    while stage := made.server.stage:
        for node in reversed(given.nodes):
            assert node in made.server.awaited and made.server.stage == stage
            made.server.deliver(node, made.clients[node].receive(messages[node]))
        assert made.server.awaited == ()
        messages = made.server.close()
    assert messages == {} and same(made.server.total, made.ideal())
    with pytest.raises(ConfigError, match="open already"):
        made.server.open()
    with pytest.raises(ConfigError, match="no stage to close"):
        made.server.close()
