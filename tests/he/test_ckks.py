"""CKKS with one key holder: sums are right, and whoever sees ciphertexts sees no more than is meant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from atoll.errors import CodecError, ConfigError
from atoll.he import ckks
from atoll.he.ckks import CKKS, CKKSKey, Open, OpenKey, drawn

pytest.importorskip("tenseal")
GRAIN = 2.0**-12


@pytest.fixture(scope="module")
def key() -> CKKSKey:
    return CKKSKey()


@pytest.fixture(scope="module")
def public(key: CKKSKey) -> CKKS:
    return CKKS(key.public())


def columns(rng: np.random.Generator) -> Iterator[ckks.Column]:
    yield 0, rng.normal(size=5000)  # two ciphertexts
    yield 4090, rng.normal(size=910)  # over the border
    yield 10, np.zeros(50)  # nothing
    yield 4999, np.ones(1)


def test_sums_over_columns_are_those_of_the_open_numbers(key: CKKSKey, public: CKKS) -> None:
    rng = np.random.default_rng(0)
    d, masks = rng.normal(size=5000), drawn(4, GRAIN, 49)
    asked = list(columns(rng))
    sent = public.pack(public.totals(public.encrypt(d), asked, masks, GRAIN))
    assert sent.dtype == torch.uint8 and len(sent) == 4
    due = np.array([d[at : at + len(x)] @ x for at, x in asked])
    assert np.abs(key.sums(sent) - masks - due).max() < 1e-4  # masks of up to 2^36 are in them
    plain = Open()
    found = OpenKey().sums(plain.pack(plain.totals(plain.encrypt(d), asked, masks, GRAIN))) - masks
    assert np.abs(found - due).max() <= GRAIN / 2
    assert np.array_equal(found, np.round(due / GRAIN) * GRAIN)  # to the bit, whatever the masks are


def test_sums_without_masks_are_right_to_a_millionth(
    key: CKKSKey, public: CKKS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ckks, "drawn", lambda count, grain, bits: np.zeros(count))
    rng = np.random.default_rng(1)
    d, x = rng.normal(size=4096), rng.normal(size=4096)
    sent = public.pack(public.totals(public.encrypt(d), [(0, x)], np.zeros(1), GRAIN))
    assert abs(key.sums(sent)[0] - d @ x) < 1e-5  # 2.4e-9 of a mean


def test_vectors_are_added_and_scaled(key: CKKSKey, public: CKKS) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 5000))
    total = public.add(public.times(public.encrypt(a), b), public.encrypt(a))
    sent = public.pack(total)
    assert np.abs(key.decrypt(sent, 5000) - (a * b + a)).max() < 1e-5
    back = public.unpack(sent)
    assert np.abs(key.decrypt(public.pack(back), 5000) - (a * b + a)).max() < 1e-5
    none = public.times(public.encrypt(a), np.zeros(5000))
    assert np.abs(key.decrypt(public.pack(none), 5000)).max() < 1e-6


def test_products_one_after_the_other_take_a_larger_ring() -> None:
    key = CKKSKey(3)
    public, x = CKKS(key.public()), np.linspace(0.5, 1.5, 8192)
    total = public.times(public.times(public.encrypt(x), x), x)
    mask = drawn(1, GRAIN, 49)
    sent = public.pack(public.totals(total, [(0, x)], mask, GRAIN))
    assert public.slots == 8192
    assert key.sums(sent)[0] - mask[0] == pytest.approx((x**4).sum(), rel=1e-5)
    with pytest.raises(ConfigError, match="no 9 products"):
        CKKSKey(9)


def test_the_key_holder_sees_the_masked_sum_and_noise_in_all_other_slots(
    key: CKKSKey, public: CKKS, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    d, x = rng.normal(size=600), rng.normal(size=600)

    def view() -> np.ndarray:
        total = public.totals(public.encrypt(d), [(0, x)], drawn(1, GRAIN, 49), GRAIN)
        return key.decrypt(public.pack(total), public.slots) / (GRAIN * 2.0**48)

    assert stats.kstest(view(), "uniform", (-1, 2)).pvalue > 1e-6
    # Without: the same sum in all slots, which is what the test above guards.
    monkeypatch.setattr(ckks, "drawn", lambda count, grain, bits: np.zeros(count))
    assert stats.kstest(view(), "uniform", (-1, 2)).pvalue < 1e-100


def test_a_product_cannot_be_undone_by_who_has_encrypted(public: CKKS) -> None:
    """Ciphertexts (c0, c1): what is added open leaves c1, and TenSEAL refuses a difference whose c1 is 0."""
    d = np.linspace(-1, 1, public.slots)
    mine = public.encrypt(d)[0]
    with pytest.raises(RuntimeError, match="transparent"):
        (mine + d.tolist()) - mine
    assert public.add([mine], public.encrypt(d))[0] - mine is not None
    twos = np.full(public.slots, 2.0)
    with pytest.raises(RuntimeError, match="transparent"):
        (mine * twos.tolist()) - (mine * twos.tolist())
    assert public.times([mine], twos)[0] - (mine * twos.tolist()) is not None


def test_the_public_key_decrypts_nothing(key: CKKSKey, public: CKKS) -> None:
    assert not public.context.has_secret_key()
    with pytest.raises(ValueError, match="secret"):
        public.encrypt(np.ones(3))[0].decrypt()
    blob = key.degree.to_bytes(4, "little") + key.context.serialize(save_secret_key=True)
    with pytest.raises(CodecError, match="secret is in it"):
        CKKS(torch.frombuffer(bytearray(blob), dtype=torch.uint8))


@pytest.mark.parametrize("damage", [b"", b"\x01\x02\x03\x04\x05", bytes(1000)])
def test_what_is_no_key_or_ciphertext_is_refused(public: CKKS, damage: bytes) -> None:
    with pytest.raises(CodecError, match="no public key"):
        CKKS(torch.tensor(list(damage), dtype=torch.uint8))
    with pytest.raises(CodecError, match="no ciphertext"):
        public.unpack(torch.tensor([[9, 0, 0, 0, *damage]], dtype=torch.uint8))
    with pytest.raises(CodecError, match="are not 4096 numbers"):
        Open().unpack(torch.tensor([list(damage)], dtype=torch.uint8).reshape(1, -1))


@given(st.integers(1, 300), st.integers(2, 52), st.integers(-30, 5))
@settings(max_examples=30, deadline=None)
def test_masks_are_multiples_of_their_grain_and_within_their_bits(count: int, bits: int, power: int) -> None:
    grain = 2.0**power
    masks = drawn(count, grain, bits) / grain
    assert masks.shape == (count,) and np.array_equal(masks, np.round(masks))
    assert masks.min() >= -(2.0 ** (bits - 1)) and masks.max() < 2.0 ** (bits - 1)


def test_masks_are_uniform() -> None:
    masks = drawn(20_000, GRAIN, 49) / (GRAIN * 2.0**48)
    assert stats.kstest(masks, "uniform", (-1, 2)).pvalue > 1e-6
    low = drawn(20_000, 1.0, 49) % 256  # the last bits as well
    assert stats.chisquare(np.bincount(low.astype(int), minlength=256)).pvalue > 1e-6
