"""Ciphers that add: sums are exact or refused, who has no key cannot decrypt, and damage is refused by name."""

from __future__ import annotations

import os
import sys
from typing import Any

import gmpy2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import he
from atoll.errors import CodecError, ConfigError, MissingExtraError
from atoll.he import AdditiveHE, Layout, SecretHE, numbers, octets
from atoll.he.forked import forked
from atoll.he.ou import OU, OUSecret
from atoll.he.paillier import Paillier, PaillierSecret
from atoll.he.plain import Open
from atoll.he.powers import Lifted, Powers

SMALL: dict[str, SecretHE] = {
    "ou": OUSecret.generate(768),
    "paillier": PaillierSecret.generate(512),
    "none": Open(256),
}
"""Keys that are too short for anything but tests of what is reckoned."""


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that are forked."""
    found: list[int] = []
    real = os.fork

    def fork() -> int:
        pid = real()
        found.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", fork)
    return found


SCHEMES = pytest.mark.parametrize("scheme", SMALL)


def pair(scheme: str) -> tuple[SecretHE, AdditiveHE]:
    """A key, and the public half as another party reads it from bytes."""
    secret = SMALL[scheme]
    other: Any = {"ou": OU, "paillier": Paillier}.get(scheme)
    if other is None:
        return secret, he.load(secret.public.name, secret.public.key())
    return secret, other.load(secret.public.bits, secret.public.key())


def opened(secret: SecretHE, c: Any, bits: int) -> list[int]:
    return numbers(secret.decrypt(c, bits, "test.sums"))


@SCHEMES
@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.integers(0, (1 << 100) - 1), min_size=1, max_size=6), factor=st.integers(0, 1 << 20)
)
def test_what_is_decrypted_is_the_sum(scheme: str, values: list[int], factor: int) -> None:
    secret, public = pair(scheme)
    by_key, by_other = secret.encrypt(values), public.encrypt(values)
    assert opened(secret, by_key, 100) == values == opened(secret, by_other, 100)
    assert opened(secret, public.add(by_key, by_other), 101) == [2 * v for v in values]
    assert opened(secret, public.mul_plain(by_other, factor), 121) == [factor * v for v in values]
    assert opened(secret, public.add_plain(by_key, factor), 101) == [factor + v for v in values]


@SCHEMES
def test_sums_by_bins_are_those_of_numpy_whoever_shares_the_work(scheme: str, forks: list[int]) -> None:
    secret, public = pair(scheme)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 40, 500)
    rows, bins = rng.integers(0, 500, 25_000), rng.integers(0, 7, 25_000)
    bins[bins == 3] = 2  # one is empty
    due = np.zeros(8, np.int64)
    np.add.at(due, bins, values[rows])
    c = secret.encrypt(values.tolist())
    for workers in (1, 2):
        public.workers = workers
        assert opened(secret, public.sum_by_bins(c, rows, bins, 8), 60) == due.tolist()
    assert opened(secret, public.sum_by_bins(c, rows[:0], bins[:0], 2), 60) == [0, 0]
    assert len(forks) == (scheme != "none")


@SCHEMES
def test_several_are_packed_into_one_the_first_lowest(scheme: str) -> None:
    secret, public = pair(scheme)
    values = [(1 << 60) - 1 - at for at in range(9)]
    per = public.per(60)
    assert per > 1
    plain = opened(secret, public.pack(secret.encrypt(values), 60), 60 * per)
    assert len(plain) == -(-9 // per)
    assert [plain[at // per] >> 60 * (at % per) & ((1 << 60) - 1) for at in range(9)] == values


@SCHEMES
def test_work_shared_by_processes_gives_the_same(scheme: str, forks: list[int]) -> None:
    secret, public = pair(scheme)
    values = list(range(1500))
    secret.public.workers = public.workers = 2
    try:
        c = secret.encrypt(values)
        per = public.per(20)
        replies = public.from_bytes(public.reply(public.encrypt(values), 20, 3), "test.sums")
        slots = [m >> 20 * at & 0xFFFFF for m in opened(secret, replies, 20 * per) for at in range(per)]
        assert slots[:1500] == [value + 3 for value in values]
        assert set(slots[1500:]) <= {3}
        assert opened(secret, c, 11) == values
    finally:
        secret.public.workers = public.workers = 1
    assert scheme == "none" or len(forks) >= 4
    for each in forks:
        with pytest.raises(ChildProcessError):
            os.waitpid(each, os.WNOHANG)  # none is left


def test_what_a_process_did_not_do_is_done_here() -> None:
    here = os.getpid()

    def work(a: int, b: int) -> Any:
        if os.getpid() != here:
            os._exit(3)
        return np.arange(a, b, dtype=np.uint8)[:, None]

    assert forked(work, [0, 2, 4, 7])[:, 0].tolist() == list(range(7))

    def failing(a: int, b: int) -> Any:
        if a:
            raise ZeroDivisionError(f"part {a}")
        return np.zeros((b - a, 1), np.uint8)

    with pytest.raises(ZeroDivisionError, match="part 2"):
        forked(failing, [0, 2, 4])


@SCHEMES
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), data=st.data())
def test_signed_columns_side_by_side_come_back_from_sums(scheme: str, rows: int, data: st.DataObject) -> None:
    secret, public = pair(scheme)
    layout = Layout((-(1 << 20), 0), (1 << 20, 1 << 20), rows)
    layout.fits(public.capacity, public.name)
    columns = [
        np.array(data.draw(st.lists(st.integers(low, 1 << 20), min_size=rows, max_size=rows)))
        for low in layout.least
    ]
    c = public.from_bytes(secret.seal(layout.join(columns)), "test.pairs")
    total = public.sum_by_bins(c, np.arange(rows), np.zeros(rows, np.int64), 1)
    plain = secret.decrypt(public.add_plain(total, layout.lift), layout.bits, "test.sums")
    assert [int(column[0]) for column in layout.split(plain)] == [int(column.sum()) for column in columns]


@SCHEMES
def test_sums_are_exact_at_the_most_rows_that_fit_and_refused_above(scheme: str) -> None:
    """All rows at both ends of their range, as many slots in a ciphertext as fit: nothing runs into its neighbour."""
    secret, public = pair(scheme)
    top = 1 << 30

    def layout(rows: int) -> Layout:
        return Layout((-top, 0, 0), (top, top, top), rows)

    def fits(rows: int) -> bool:
        try:
            layout(rows).fits(public.capacity, public.name)
        except ConfigError:
            return False
        return True

    low, high = 1, 1 << 25  # the most rows by bisection; beyond, a column has no 56 bits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    most = layout(low)
    for column in (-top, top):
        plain = most.join([np.array([column]), np.array([top]), np.array([top])])
        each = public.from_bytes(secret.seal(plain), "test.pairs")
        total = public.mul_plain(public.add_plain(each, most.lift // low), low)  # `low` equal rows
        packed = public.pack(np.concatenate([total] * public.per(most.bits)), most.bits)
        found_at = secret.decrypt(packed, most.bits * public.per(most.bits), "test.sums")
        for found, due in zip(most.split(found_at), (column, top, top), strict=True):
            assert found.tolist() == [due * low] * public.per(most.bits)
    with pytest.raises(ConfigError, match=r"more than 56 bits|need \d+"):
        layout(high).fits(public.capacity, public.name)


@SCHEMES
def test_a_plaintext_without_room_is_refused_before_anything_is_encrypted(scheme: str) -> None:
    secret, public = pair(scheme)
    room = 1 << public.capacity
    assert opened(secret, public.encrypt([room - 1]), public.capacity) == [room - 1]
    for half in (secret, public):
        with pytest.raises(ConfigError, match="one is longer"):
            half.encrypt([0, room])
        with pytest.raises(ConfigError, match="negative"):
            half.encrypt([-1])
    with pytest.raises(ConfigError, match="one is longer"):
        secret.seal(octets([room], public.width + 1))
    with pytest.raises(ConfigError, match="not between"):
        Layout((0,), (5,), 3).join([np.array([6])])


@SCHEMES
def test_a_decryption_out_of_range_is_refused_and_not_told(scheme: str) -> None:
    secret, public = pair(scheme)
    assert opened(secret, public.encrypt([1023]), 10) == [1023]
    with pytest.raises(CodecError, match=r"test\.sums") as caught:
        secret.decrypt(public.encrypt([5, 1024]), 10, "test.sums")
    assert "1024" not in str(caught.value)


def test_a_wrapped_decryption_would_tell_p_and_is_refused() -> None:
    """For a plaintext M above p, who knows M and sees M mod p has a multiple of p, and then n's factors."""
    secret, public = pair("ou")
    assert isinstance(secret, OUSecret)
    chosen = 1 << public.capacity + 7
    c = public.mul_plain(public.encrypt([1]), chosen)
    wrapped = chosen % secret._p
    assert gmpy2.gcd(chosen - wrapped, public.modulus) % secret._p == 0
    with pytest.raises(CodecError, match="no sum can be"):
        secret.decrypt(c, public.capacity - 8, "test.sums")


@pytest.mark.parametrize("scheme", ["ou", "paillier"])
def test_damaged_ciphertexts_are_refused_by_name(scheme: str) -> None:
    secret, public = pair(scheme)
    good = public.to_bytes(secret.encrypt([1, 2, 3]))
    assert opened(secret, public.from_bytes(good, "x"), 8) == [1, 2, 3]
    modulus = int(public.modulus)
    factor = int(secret._p if isinstance(secret, OUSecret) else secret._primes[0])
    for value, problem in [(0, "range"), (modulus, "range"), (modulus + 1, "range"), (factor, "factor")]:
        bad = good.copy()
        bad[1] = octets([value], public.width)[0]
        with pytest.raises(CodecError, match=rf"boost\.pairs of guest: ciphertext 1 .*{problem}"):
            public.from_bytes(bad, "boost.pairs of guest")
    for wrong in (good[:, :-1], good[0]):
        with pytest.raises(CodecError, match=rf"boost\.pairs of guest has .* {public.width} a ciphertext"):
            public.from_bytes(wrong, "boost.pairs of guest")


@pytest.mark.parametrize("scheme", ["ou", "paillier"])
def test_what_is_no_key_is_refused(scheme: str) -> None:
    secret, public = pair(scheme)
    key, kind = secret.public.key(), type(public)
    for bad in (key[:-1], np.zeros_like(key), np.concatenate([key[:8] * 0, key[8:]])):
        with pytest.raises(CodecError, match="key"):
            kind.load(public.bits, bad)


@pytest.mark.parametrize("scheme", ["ou", "paillier"])
def test_nothing_is_left_of_how_a_sum_came_about(scheme: str) -> None:
    """A sum shows its owner whose ciphertexts are in it; after `rerandomise` it does not, and no two are alike."""
    secret, public = pair(scheme)
    c = secret.encrypt([5, 7])
    assert (
        public.to_bytes(public.add(c[:1], c[1:])).tolist()
        == public.to_bytes(public.add(c[:1], c[1:])).tolist()
    )
    fresh = [public.rerandomise(public.add(c[:1], c[1:])) for _ in range(2)]
    assert fresh[0][0] != fresh[1][0]
    assert all(opened(secret, each, 8) == [12] for each in fresh)
    # Exponents that reach beyond the order of h by 64 bits: uniform, whatever was there before.
    order_bits = public.bits - (public.capacity + 1) if scheme == "ou" else public.bits
    assert public.long >= order_bits + 64
    digits = public.zeros(200, public.long)
    assert len(set(digits)) == 200


def test_the_owners_encryption_of_okamoto_uchiyama_is_an_encryption_of_the_same_kind() -> None:
    """E(m) / h^r is 1 + m k: the same logarithm as g^m, and 1 modulo q."""
    secret, public = pair("ou")
    assert isinstance(secret, OUSecret)
    p, q, n = secret._p, secret._q, secret.public.modulus
    for m in (1, 12345, (1 << public.capacity) - 1):
        by_g = gmpy2.powmod(secret.public.g, m, n)
        by_k = 1 + m * secret._k
        assert secret._log(by_g) == secret._log(by_k)
        assert by_k % q == 1
    assert gmpy2.powmod(secret.public.h, (p - 1) * (q - 1), n) == 1


def test_tables_give_powers() -> None:
    secret = SMALL["ou"]
    assert isinstance(secret, OUSecret)
    p, base = secret._p, secret.public.h % (secret._p**2)
    digits = np.array([[3, 0, 15], [1, 0, 15], [7, 2, 15]], np.uint16)
    exponents = [3 + 16 + 7 * 256, 2 * 256, 4095]
    due = [gmpy2.powmod(base, e, p * p) for e in exponents]
    assert Powers(base, p * p, 3, 4)(digits) == due
    lifted = Lifted(base, p, 3, 4)(digits)
    assert [u * (1 + p * k) % (p * p) for u, k in lifted] == due


def test_names_of_ciphers() -> None:
    assert he.check("ou") == ("ou", 2048)
    assert he.check("ou-3072") == ("ou", 3072)
    assert he.keygen("none").public.name == "none-128"
    for text, problem in [
        ("rsa", "no cipher"),
        ("ou-abc", "no cipher"),
        ("ou-2050", "multiple"),
        ("ou-1024", "broken"),
    ]:
        with pytest.raises(ConfigError, match=problem):
            he.keygen(text)


def test_without_gmpy2_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gmpy2", None)
    key = SMALL["ou"].public.key()
    for call in (lambda: he.keygen("ou"), lambda: he.load("paillier", key)):
        with pytest.raises(MissingExtraError, match="gmpy2"):
            call()
    assert he.keygen("none").public.capacity == 128


@pytest.mark.slow
@pytest.mark.parametrize("crypto", ["ou", "ou-3072", "paillier"])
def test_keys_of_real_length(crypto: str) -> None:
    secret = he.keygen(crypto)
    public = he.load(crypto, secret.public.key())
    values = list(range(50))
    assert public.width == (public.bits // 8) * (2 if crypto == "paillier" else 1)
    assert opened(secret, public.rerandomise(secret.encrypt(values)), 8) == values
