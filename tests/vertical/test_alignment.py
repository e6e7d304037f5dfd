"""Private set intersection: what is found, what is said, and what is refused."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import lzma
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import AtollError, CodecError, ConfigError, DataError
from atoll.parties import Kind, Link, PartyError, Played, Transcript, play
from atoll.tensors import Record
from atoll.vertical.alignment import KINDS, Alignment, Common, align, curve, kinds, normal
from atoll.vertical.alignment.align import _salt
from atoll.vertical.alignment.ids import distinct

DATA = Path(os.environ.get("ATOLL_DATA", "absent")) / "fate-vertical"
P, A = curve.PRIME, 486662
NAMES = ("guest", "host", "bank", "shop")


USUAL = Alignment()


def aligned(*sets: Sequence[str], options: Alignment = USUAL, **more: dict[str, Any]) -> Played:
    """All parties' results; `more` are arguments by party."""
    names = NAMES[: len(sets)]
    return play(
        {
            name: partial(align, ids=ids, parties=names, options=options, **more.get(name, {}))
            for name, ids in zip(names, sets, strict=True)
        },
        keep=True,
    )


def named(played: Played, *sets: Sequence[str], fold: bool = False) -> list[list[str]]:
    """The ids that each party found, in their order."""
    return [
        [normal(ids[row], fold) for row in found.rows]
        for ids, found in zip(sets, played.results.values(), strict=True)
    ]


def said(transcript: Transcript, kind: Kind) -> Iterator[tuple[str, str, Record]]:
    for sender, receiver, name, record in transcript.said:
        if name == kind.name:
            yield sender, receiver, record


def points(transcript: Transcript, *of: str) -> list[bytes]:
    """All blinded points that somebody sent."""
    return [
        row.tobytes()
        for sender, _, record in said(transcript, kinds.BLINDED)
        for row in record.points.numpy()
        if not of or sender in of
    ]


# --- what is found ----------------------------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4).filter(lambda t: normal(t, True))
pool = st.lists(text, max_size=12, unique_by=lambda t: normal(t, True))


@settings(max_examples=60, deadline=None)
@given(
    pool.flatmap(lambda ids: st.tuples(*[st.lists(st.sampled_from(ids), unique=True) if ids else st.just([])] * 4)),
    st.integers(2, 4),
    st.sampled_from([1, 3, 1 << 16]),
    st.booleans(),
)  # fmt: skip
def test_what_is_found_is_what_sets_find_in_one_order(
    sets: tuple[list[str], ...], count: int, chunk: int, fold: bool
) -> None:
    mine = sets[:count]
    played = aligned(*mine, options=Alignment(chunk=chunk, fold=fold))
    want = set.intersection(*({normal(t, fold) for t in ids} for ids in mine))
    first, *others = named(played, *mine, fold=fold)
    assert len(first) == len(want) and set(first) == want
    assert all(other == first for other in others)
    assert all(found.ids == len(want) and found.rows.dtype == np.int64 for found in played.results.values())


def test_ids_are_the_same_in_any_form_of_unicode_and_space_and_case_where_asked() -> None:
    guest = ["Zoé", " b ", "ﬁn", "Straße"]
    host = ["Zoe\u0301", "b", "fin", "STRASSE"]
    assert named(aligned(guest, host), guest, host)[0].__len__() == 3
    folded = aligned(guest, host, options=Alignment(fold=True))
    assert sorted(folded.results["host"].rows.tolist()) == [0, 1, 2, 3]
    assert (folded.results["guest"].rows == folded.results["host"].rows).all()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_who_learns_what_is_as_revealed(count: int) -> None:
    sets = [[f"{at}" for at in range(90) if at % (2 + party)] for party in range(count)]
    want = set.intersection(*map(set, sets))
    assert 10 < len(want) < 45
    for reveal in ("guest", "count"):
        played = aligned(*sets, options=Alignment(reveal=reveal))
        guest, *hosts = played.results.values()
        told = None if reveal == "guest" and count == 2 else len(want)
        assert hosts == [Common(None, told)] * (count - 1)
        assert guest.ids == len(want)
        if reveal == "guest":
            assert {sets[0][row] for row in guest.rows} == want
        else:
            assert guest.rows is None
            assert kinds.PLACES.name not in played.transcript.nbytes()


def test_a_host_that_is_to_learn_nothing_is_sent_sizes_and_blinded_points_alone() -> None:
    played = aligned(["a", "b"], ["b", "c"], options=Alignment(reveal="guest"))
    to_host = {kind for _, receiver, kind, _ in played.transcript.said if receiver == "host"}
    assert to_host == {"psi.hello", "psi.blinded"}


def test_the_common_order_is_drawn_anew_each_time() -> None:
    ids = [f"{at:03d}" for at in range(40)]
    orders = {tuple(aligned(ids, ids).results["guest"].rows) for _ in range(3)}
    assert len(orders) == 3 and tuple(range(40)) not in orders


@pytest.mark.skipif(not DATA.exists(), reason="ATOLL_DATA has no fate-vertical")
def test_breast_is_aligned_by_its_ids() -> None:
    def read(name: str) -> list[str]:
        with lzma.open(DATA / f"breast_hetero_{name}.csv.xz", "rt") as lines:
            return [row["id"] for row in csv.DictReader(lines)]

    guest, host = read("guest")[:500], read("host")[100:][::-1]
    first, second = named(aligned(guest, host), guest, host)
    assert first == second and set(first) == set(guest) & set(host) and len(first) > 300


class Narrow:
    """A way that holds nothing: who sends waits until it is taken."""

    def __init__(
        self, there: asyncio.Queue[tuple[bytes, bytes]], back: asyncio.Queue[tuple[bytes, bytes]]
    ) -> None:
        self.there, self.back = there, back

    async def put(self, head: bytes, body: bytes) -> None:
        await self.there.put((head, body))
        await self.there.join()

    async def get(self) -> tuple[bytes, bytes]:
        message = await self.back.get()
        self.back.task_done()
        return message


@pytest.mark.parametrize("reveal", ["both", "guest", "count"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_ways_need_no_room(count: int, reveal: Any) -> None:
    names = NAMES[:count]
    sets = [[f"{at}" for at in range(30) if at % (2 + party)] for party in range(count)]

    async def run() -> list[Common]:
        queues = {(a, b): asyncio.Queue[tuple[bytes, bytes]]() for a in names for b in names}
        links = [Link(a, {b: Narrow(queues[a, b], queues[b, a]) for b in names if a != b}) for a in names]
        options = Alignment(reveal=reveal, chunk=4)
        samples = {"sample_ids": sets[0]}
        async with asyncio.timeout(30):
            return await asyncio.gather(
                *(
                    align(link, ids, names, options, **(samples if link is links[0] else {}))
                    for link, ids in zip(links, sets, strict=True)
                )
            )

    guest = asyncio.run(run())[0]
    assert guest.ids == len(set.intersection(*map(set, sets)))


# --- rows that repeat an id -------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9)), unique=True, max_size=15),
    st.lists(st.sampled_from("abcdefg"), unique=True),
    st.integers(2, 3),
    st.booleans(),
)
def test_many_rows_of_one_side_meet_one_row_of_the_others(
    many: list[tuple[str, int]], one: list[str], count: int, guest: bool
) -> None:
    repeated = [name for name, _ in many]
    sets = [one[: len(one) - at] for at in range(count)]
    at = 0 if guest else count - 1
    sets[at] = repeated
    who = {NAMES[at]: {"sample_ids": [str(number) for _, number in many]}}
    played = aligned(*sets, **who)
    names = named(played, *sets)
    want = set.intersection(*map(set, sets))
    assert all(each == names[0] for each in names)
    assert sorted(names[0]) == sorted(name for name in repeated if name in want)
    rows = played.results[NAMES[at]].rows
    assert len(set(rows.tolist())) == len(rows)
    found = [many[row] for row in rows]
    assert found == sorted(found, key=lambda pair: (names[0].index(pair[0]), str(pair[1])))
    assert {each.ids for each in played.results.values()} == {len(want)}


def test_repeats_that_only_the_guest_learns() -> None:
    sets = (["a", "b", "a"], ["a", "c"])
    options = Alignment(reveal="guest")
    played = aligned(*sets, options=options, guest={"sample_ids": ["2", "1", "1"]})
    assert played.results["guest"].rows.tolist() == [2, 0]
    assert played.results["host"] == Common(None, None)
    assert kinds.REPEATS.name not in played.transcript.nbytes()
    with pytest.raises(ConfigError, match="host has sample ids"):
        aligned(*reversed(sets), options=options, host={"sample_ids": ["2", "1", "1"]})


def test_an_id_that_is_there_twice_is_named_to_its_owner_and_to_nobody_else() -> None:
    told = []

    async def host(link: Link) -> None:
        try:
            await align(link, ["x"], ("guest", "host"))
        except PartyError as error:
            told.append(str(error))
            raise

    async def guest(link: Link) -> Common:
        try:
            return await align(link, ["anna", "bob", " anna"], ("guest", "host"))
        except AtollError as error:
            await link.end(error)
            raise

    with pytest.raises(DataError, match="1 ids are there more than once") as caught:
        play({"host": host, "guest": guest})
    assert "'anna' in rows 0, 2" in str(caught.value.hint)
    assert told and all("its data cannot be used" in each and "anna" not in each for each in told)


def test_sample_ids_must_tell_rows_apart() -> None:
    with pytest.raises(DataError, match="same sample id") as caught:
        distinct(["a", "a", "b"], sample_ids=["1", "1", "1"])
    assert "rows 0 and 1" in str(caught.value.hint)
    with pytest.raises(DataError, match="2 sample ids for 3 ids"):
        distinct(["a", "a", "b"], sample_ids=["1", "1"])


@pytest.mark.parametrize("bad", ["", " \t", "\ud800", None, 7, b"x"])
def test_what_is_no_id_is_refused_with_its_row(bad: Any) -> None:
    with pytest.raises(DataError, match="an id is") as caught:
        distinct(["a", bad])
    assert "row 1" in str(caught.value.hint)


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reveal", ["both", "guest", "count"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_bytes_are_those_of_the_formula(count: int, reveal: Any) -> None:
    sizes = [23, 31, 17, 29][:count]
    sets = [[f"c{at}" for at in range(9)] + [f"{party}-{at}" for at in range(size - 9)]
            for party, size in enumerate(sizes)]  # fmt: skip
    options = Alignment(reveal=reveal, chunk=7)
    found = aligned(*sets, options=options).transcript.nbytes()
    owners = {"both": count, "guest": 1, "count": 0}[reveal]
    several = count > 2
    want = {
        "psi.blinded": 32 * sum(sizes) * (count - 1),
        "psi.sifted": 16 * sizes[0] * (count - 1),
        "psi.count": 8 * (count - 1) * (several or reveal == "count"),
        # the one who finds them is the holder of one of the sets
        "psi.common": 16 * 9 * (max(0, owners - (owners == count)) if several else 0),
        "psi.places": 4 * 9 * (owners * (count - 1) if several else int(reveal == "both")),
    }
    found.pop("psi.hello")
    assert found == {kind: nbytes for kind, nbytes in want.items() if nbytes}


def test_points_are_counted_and_every_kind_tells_what_it_tells() -> None:
    counts = aligned(["a", "b", "c"], ["c", "d"]).transcript.counts()
    assert {(each.sender, each.kind, each.under, each.ciphertexts) for each in counts if each.under} == {
        ("guest", "psi.blinded", "x25519", 3),
        ("host", "psi.blinded", "x25519", 2),
        ("host", "psi.sifted", "x25519", 3),
    }
    assert all(each.tells for each in counts) and {each.kind for each in counts} <= {k.name for k in KINDS}


def exposed(transcript: Transcript, ids: Sequence[str]) -> bool:
    """Whether an id, or what anybody can compute of it without a secret, is in a message."""
    everything = b"|".join(
        value.numpy().tobytes() if isinstance(value, torch.Tensor) else str(value).encode()
        for *_, record in transcript.said
        for value in record.values()
    )
    salts = {sender: record.salt.numpy().tobytes() for sender, _, record in said(transcript, kinds.HELLO)}
    salt = _salt("", [salts[name] for name in NAMES if name in salts])
    return any(
        piece in everything
        for name in ids
        for piece in (
            name.encode(),
            sha256(name.encode()).digest()[:16],
            blake2b(name.encode(), digest_size=16).digest(),
            curve.point(name.encode(), salt)[:16],
            curve.point(name.encode(), b"")[:16],
        )
    )


@pytest.mark.parametrize("count", [2, 3])
def test_messages_hold_no_id_and_no_digest_of_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [[f"customer {at + 3 * party}" for at in range(9)] for party in range(count)]
    ids = sorted({name for each in sets for name in each})
    assert not exposed(aligned(*sets).transcript, ids)
    monkeypatch.setattr(curve, "raised", lambda flat, key: flat)  # without the secret
    played = aligned(*sets)
    assert named(played, *sets)[0] and exposed(played.transcript, ids)


def test_sets_are_sent_in_an_order_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "secret", lambda: bytes(range(32)))
    ids = [f"{at}" for at in range(60)]
    for options in (Alignment(), Alignment(reveal="count")):
        one, other = (aligned(ids, ids[::-1], options=options).transcript for _ in range(2))
        for who in ("guest", "host"):
            assert points(one, who) != points(other, who)
            assert sorted(points(one, who)) == sorted(points(other, who))
        # With "count" the guest must not see which of its points came back either.
        back = [next(said(each, kinds.SIFTED))[2].points.numpy().tobytes() for each in (one, other)]
        sent = [
            np.frombuffer(b"".join(points(each, "guest")), np.uint8).reshape(-1, 32) for each in (one, other)
        ]
        both = [b"".join(curve.raised(row.tobytes(), bytes(range(32)))[:16] for row in each) for each in sent]
        assert (back == both) is (options.reveal == "both")


def test_of_more_than_two_nobody_sees_how_few_are_left_by_the_size() -> None:
    sets = [[f"{party}-{at}" for at in range(12)] for party in range(4)]
    transcript = aligned(*sets).transcript
    assert [len(record.points) for *_, record in said(transcript, kinds.SIFTED)] == [12, 12, 12]


# --- the map to the curve ---------------------------------------------------------------------------------------------


def raw(name: bytes, salt: bytes) -> bytes:
    """The map that leaks: a digest as it is."""
    u = int.from_bytes(sha256(salt + name).digest(), "little") % 2**255 % P
    return u.to_bytes(32, "little")


def of_curve(octets: bytes) -> bool:
    return curve.on_curve(int.from_bytes(octets, "little"))


def test_the_bit_that_a_raw_digest_leaks_is_not_in_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ([f"g{at}" for at in range(60)], [f"h{at}" for at in range(60)])
    assert all(of_curve(each) for each in points(aligned(*sets).transcript))
    # With the raw map the bit of a name is that of its point, whatever the secret.
    names, key = [name.encode() for name in sets[0]], curve.secret()
    bits = [of_curve(raw(name, b"s")) for name in names]
    assert bits == [of_curve(curve.raised(raw(name, b"s"), key)) for name in names]
    assert 10 < sum(bits) < 50
    monkeypatch.setattr(curve, "point", raw)
    sent = points(aligned(*sets).transcript)
    assert 30 < sum(map(of_curve, sent)) < 90


def test_on_curve_is_eulers_criterion_for_the_equation() -> None:
    for u in [0, 1, 2, 9, P - 1, *(int.from_bytes(sha256(bytes([at])).digest()) % P for at in range(40))]:
        assert curve.on_curve(u) == (pow(u**3 + A * u**2 + u, (P - 1) // 2, P) == 1)


def ladder(scalar: int, u: int) -> int | None:
    """RFC 7748, section 5, without clamping; None for the point at infinity."""
    x2, z2, x3, z3 = 1, 0, u, 1
    for at in reversed(range(scalar.bit_length())):
        bit = scalar >> at & 1
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        e, da, cb = (a * a - b * b) % P, d * a, c * b
        x3, z3 = (da + cb) ** 2 % P, u * (da - cb) ** 2 % P
        x2, z2 = a * a * b * b % P, e * (a * a + (A - 2) // 4 * e) % P
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return x2 * pow(z2, -1, P) % P if z2 else None


ORDER = 2**252 + 27742317777372353535851937790883648493


def root(square: int) -> int:
    found = pow(square, (P + 3) // 8, P)
    return found if found * found % P == square % P else found * pow(2, (P - 1) // 4, P) % P


def test_points_are_raised_into_the_subgroup_and_lose_their_coset() -> None:
    key = bytes(range(1, 33))
    scalar = int.from_bytes(key, "little") & ~7 & (1 << 255) - 1 | 1 << 254
    quarter, t = 1, root(A + 2)  # a point of order 4
    assert (t * t - (1 + A + 1)) % P == 0 and ladder(4, quarter) is None and ladder(2, quarter) == 0
    outside = 0
    for at in range(24):
        u = int.from_bytes(curve.point(b"%d" % at, b"salt"), "little")
        outside += ladder(ORDER, u) is not None
        up = int.from_bytes(curve.raised(u.to_bytes(32, "little"), key), "little")
        assert up == ladder(scalar, u) and ladder(ORDER, up) is None
        v = root(u**3 + A * u * u + u)
        slope = (v - t) * pow(u - quarter, -1, P)
        moved = (slope * slope - A - u - quarter) % P  # the point plus that of order 4
        assert moved != u
        assert int.from_bytes(curve.raised(moved.to_bytes(32, "little"), key), "little") == up
    assert outside > 12  # 7 of 8 names' points


def test_raising_commutes() -> None:
    one, other = curve.secret(), curve.secret()
    flat = curve.point(b"a", b"") + curve.point(b"b", b"")
    assert curve.raised(curve.raised(flat, one), other) == curve.raised(curve.raised(flat, other), one)
    assert curve.blinded([b"a", b"b"], b"", one) == curve.raised(flat, one)


def test_points_depend_on_the_salt_and_the_salt_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert curve.point(b"a", b"one") != curve.point(b"a", b"two")
    salts = {_salt(name, parts) for name in ("", "x") for parts in ((b"1", b"2"), (b"1", b"3"), (b"0", b"2"))}
    assert len(salts) == 6
    monkeypatch.setattr(curve, "raised", lambda flat, key: flat)
    sent = {points(aligned(["a"], ["a"]).transcript, "guest")[0] for _ in range(3)}
    assert len(sent) == 3


# --- what is refused --------------------------------------------------------------------------------------------------


class Tampering(Link):
    """A party whose messages of one kind are changed on their way."""

    def __init__(self, link: Link, kind: Kind, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.__dict__.update(link.__dict__)
        self.kind, self.change = kind, change

    async def send(
        self, to: str, kind: Kind, record: Record, under: str | None = None, ciphertexts: int = 0
    ) -> None:
        if kind.name == self.kind.name:
            ((name, value),) = record.items()
            loose = Kind(kind.name, {}, "")
            object.__setattr__(loose, "check", lambda *_: None)
            kind, record = loose, Record({name: self.change(value)})
        await super().send(to, kind, record, under, ciphertexts)


def first(value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Another point in the place of the first."""

    def change(sent: torch.Tensor) -> torch.Tensor:
        sent[0] = torch.frombuffer(bytearray(value.to_bytes(32, "little")), dtype=torch.uint8)
        return sent

    return change


EIGHTH = 325606250916557431795983626356110631294008115727848805560023387167927233504
TAMPERED: dict[str, tuple[Kind, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "all zero": (kinds.BLINDED, first(0), "low order"),
    "order 4": (kinds.BLINDED, first(1), "low order"),
    "order 4 of the twist": (kinds.BLINDED, first(P - 1), "low order"),
    "order 8": (kinds.BLINDED, first(EIGHTH), "low order"),
    "not canonical": (kinds.BLINDED, first(P + 3), "not below"),
    "a bit too many": (kinds.BLINDED, first((1 << 255) + 9), "not below"),
    "another length": (kinds.BLINDED, lambda sent: sent[:, :31], r"points holds uint8 \[4, 31\]"),
    "one too few": (kinds.BLINDED, lambda sent: sent[1:], "has 3 rows, and 4 are due"),
    "one twice": (kinds.BLINDED, lambda sent: sent[[0, 0, 2, 3]], "twice"),
    "a key twice": (kinds.SIFTED, lambda sent: sent[[0, 0, 2, 3]], "twice"),
    "a place twice": (kinds.PLACES, lambda sent: sent[[0, 0]], "a place twice"),
    "a place below": (kinds.PLACES, lambda sent: sent - 9, "a place twice, or one that is not below"),
    "a place above": (kinds.PLACES, lambda sent: sent + 9, "a place twice, or one that is not below"),
    "a wide place": (kinds.PLACES, lambda sent: sent.long(), "places holds int64"),
    "too many": (kinds.COUNT, lambda sent: 5, "cannot be 5"),
    "less than none": (kinds.COUNT, lambda sent: -1, "cannot be -1"),
    "not common": (kinds.COMMON, lambda sent: 255 - sent, "not all of it"),
    "not in order": (kinds.COMMON, lambda sent: sent.flip(0), "not all of it"),
    "repeats": (kinds.REPEATS, lambda sent: sent * 0, "it must have 2 numbers from 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_what_nobody_says_who_keeps_to_the_protocol_is_refused(what: str) -> None:
    kind, change, problem = TAMPERED[what]
    assert ladder(8, EIGHTH) is None and ladder(4, EIGHTH) is not None
    sets = [["a", "b", *f"{party}{party + 5}"] for party in range(3)]
    count = 3 if kind in (kinds.COMMON, kinds.COUNT) else 2
    liar = "guest" if kind in (kinds.PLACES, kinds.REPEATS) or what == "one twice" else "host"

    def role(name: str, ids: list[str]) -> Callable[[Link], Any]:
        samples = ids if kind is kinds.REPEATS and name == "guest" else None

        async def run(link: Link) -> Common:
            used = Tampering(link, kind, change) if name == liar else link
            return await align(used, ids, NAMES[:count], sample_ids=samples)

        return run

    with pytest.raises(CodecError, match=problem):
        play({name: role(name, ids) for name, ids in zip(NAMES[:count], sets, strict=False)})


def test_parties_that_differ_in_their_options_part_at_once() -> None:
    roles = {
        "guest": partial(align, ids=["a"], parties=NAMES[:2], options=Alignment(session="june")),
        "host": partial(align, ids=["a"], parties=NAMES[:2], options=Alignment(session="july")),
    }
    with pytest.raises(ConfigError, match=r"guest has .*june.*host has .*july"):
        play(roles)
    for what in ({"sample_ids": ["1"]}, {"cache": Path("nowhere")}):
        with pytest.raises(ConfigError, match="guest and host have"):
            aligned(["a"], ["a"], guest=what, host=what)
    with pytest.raises(ConfigError, match="guest cannot align with host"):
        play({"guest": partial(align, ids=["a"], parties=["host"])})
    for wrong in ({"reveal": "all"}, {"chunk": 0}, {"session": "s" * 300}):
        with pytest.raises(ConfigError):
            Alignment(**wrong)  # type: ignore[arg-type]


# --- again, and faster ------------------------------------------------------------------------------------------------


def test_a_set_that_is_kept_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, place = [f"{at}" for at in range(80)], tmp_path / "ids"
    made: list[int] = []
    honest = curve.blinded
    monkeypatch.setattr(
        curve, "blinded", lambda names, *rest: (made.append(len(names)), honest(names, *rest))[1]
    )

    def once(small: list[str], large: list[str], **options: Any) -> tuple[Played, list[int]]:
        made.clear()
        played = aligned(small, large, options=Alignment(**options), host={"cache": place})
        one, other = named(played, small, large)
        assert one == other and set(one) == set(small) & set(large)
        return played, sorted(made)

    first, computed = once(["1", "7", "x"], large)
    assert computed == [3, 80] and stat.S_IMODE(place.stat().st_mode) == 0o600
    again, computed = once(["2", "79", "300", "y"], large)
    assert computed == [4]
    host = points(first.transcript, "host")
    assert points(again.transcript, "host") == host
    # Other ids, or another session, are another set under another secret.
    for ids, options in ((large[1:], {}), (large[1:], {"session": "s"}), (large[1:][::-1], {"session": "s"})):
        changed, computed = once(["2"], ids, **options)
        assert computed == [1, 79] and not set(points(changed.transcript, "host")) & set(host)
    for damage in (
        lambda b: b[:-1],
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        lambda b: b[:1500] + b[-1:] + b[1501:],
    ):
        whole = place.read_bytes()
        place.write_bytes(damage(whole))
        with pytest.raises(CodecError):
            once(["2"], large[1:][::-1], session="s")
        place.write_bytes(whole)
    with pytest.raises(DataError, match="cannot be kept"):
        aligned(["1"], large, host={"cache": tmp_path / "absent" / "ids"})


@pytest.mark.slow
def test_several_processes_find_the_same() -> None:
    sets = [[f"{at}" for at in range(at, at + 5000)] for at in (0, 2500)]
    played = aligned(*sets, guest={"workers": 2}, host={"workers": 2})
    first, second = named(played, *sets)
    assert first == second and len(first) == 2500


# --- libsodium ------------------------------------------------------------------------------------------------------

NEUTRAL, ORDER_4 = bytes([1, *[0] * 31]), bytes(32)  # as points of Ed25519: (0, 1), and one with y = 0


@given(st.sets(st.text(min_size=1, max_size=6)), st.sets(st.text(min_size=1, max_size=6)))
@settings(max_examples=10, deadline=None)
def test_libsodium_finds_the_intersection_too(one: set[str], other: set[str]) -> None:
    pytest.importorskip("nacl")
    first, second = ([each for each in {normal(text) for text in ids} if each] for ids in (one, other))
    played = aligned(first, second, options=Alignment(ecdh="nacl"))
    found = named(played, first, second)
    assert found[0] == found[1]
    assert set(found[0]) == set(first) & set(second)
    assert {count.under for count in played.transcript.counts()} <= {None, "ed25519"}


def test_points_of_libsodium_commute_and_lie_in_the_subgroup() -> None:
    pytest.importorskip("nacl")
    from nacl.bindings import (
        crypto_core_ed25519_add,
        crypto_core_ed25519_from_uniform,
        crypto_core_ed25519_is_valid_point,
    )

    from atoll.vertical.alignment import edwards

    one, other = curve.secret(), curve.secret()
    flat = b"".join(edwards.point(b"%d" % at, b"salt") for at in range(20))
    assert edwards.raised(edwards.raised(flat, one), other) == edwards.raised(
        edwards.raised(flat, other), one
    )
    assert edwards.blinded([b"0", b"1"], b"salt", one) == edwards.raised(flat[:64], one)
    assert edwards.point(b"1", b"one") != edwards.point(b"1", b"two")
    # One map alone would reach half of the points; the sum of two is as good as a random one (RFC 9380, section 3).
    digest = hashlib.sha512(b"salt1").digest()
    halves = (crypto_core_ed25519_from_uniform(digest[at : at + 32]) for at in (0, 32))
    assert edwards.point(b"1", b"salt") == crypto_core_ed25519_add(*halves)
    assert all(crypto_core_ed25519_is_valid_point(flat[at : at + 32]) for at in range(0, len(flat), 32))
    for wrong in (NEUTRAL, ORDER_4, bytes([255] * 32), bytes([2, *[0] * 31])):
        with pytest.raises(ValueError, match="no point"):
            edwards.raised(flat[:32] + wrong, one)


def test_parties_compute_in_one_group(tmp_path: Path) -> None:
    pytest.importorskip("nacl")
    with pytest.raises(ConfigError, match="ecdh = 'rsa'"):
        Alignment(ecdh="rsa")  # type: ignore[arg-type]
    roles = {
        name: partial(align, ids=["a", "b"], parties=["guest", "host"], options=Alignment(ecdh=ecdh))
        for name, ecdh in (("guest", "x25519"), ("host", "nacl"))
    }
    with pytest.raises(ConfigError, match="ecdh = nacl"):
        play(roles)
    place = tmp_path / "kept"
    for ecdh in ("x25519", "nacl", "nacl"):  # points of the other group are not taken for those of this one
        played = aligned(["a"], ["b", "a"], options=Alignment(ecdh=ecdh), host={"cache": place})  # type: ignore[arg-type]
        assert named(played, ["a"], ["b", "a"])[0] == ["a"]
