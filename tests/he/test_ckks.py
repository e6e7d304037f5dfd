"""CKKS with one key holder: sums are right, and whoever sees ciphertexts sees no more than is meant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from atoll.errors import CodecError, ConfigError
from atoll.he import ckks
from atoll.he.ckks import CKKS, MASK, CKKSKey, Open, OpenKey, blocks, drawn

pytest.importorskip("tenseal")
GRAIN = 2.0**-8


@pytest.fixture(scope="module")
def key() -> CKKSKey:
    return CKKSKey()


@pytest.fixture(scope="module")
def public(key: CKKSKey) -> CKKS:
    return CKKS(key.public())


def table(rows: int, columns: int, scores: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    masks = drawn(columns * scores, GRAIN, MASK).reshape(columns, scores)
    return draw.normal(size=(rows, scores)), draw.normal(size=(rows, columns)), masks


@pytest.mark.parametrize(("rows", "columns", "scores"), [(1100, 11, 1), (600, 3, 2), (100, 40, 3), (2, 5, 1)])
def test_totals_are_those_of_the_open_numbers(
    key: CKKSKey, public: CKKS, rows: int, columns: int, scores: int
) -> None:
    d, x, masks = table(rows, columns, scores)
    x[:, 1] = 0.0  # a column that counts for nothing
    x[min(600, rows // 2) :, 2] = 0.0
    due = x.T @ d
    sent = public.pack(public.totals(public.encrypt(d), x, masks, GRAIN))
    assert sent.dtype == torch.uint8
    # Masks of up to 2^41 are in them, as float64 with 52 bits.
    assert np.abs(key.sums(sent, rows, columns, scores) - masks - due).max() < GRAIN
    plain = Open()
    packed = plain.pack(plain.totals(plain.encrypt(d), x, masks, GRAIN))
    assert len(packed) == len(sent)
    found = OpenKey().sums(packed, rows, columns, scores) - masks
    assert np.array_equal(found, np.round(due / GRAIN) * GRAIN)  # to the bit, whatever the masks are
    with pytest.raises(CodecError, match="are not the sums"):
        key.sums(sent, rows, columns + 4096, scores)


def test_totals_without_masks_are_right_to_a_hundred_thousandth(
    key: CKKSKey, public: CKKS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ckks, "drawn", lambda count, grain, bits: np.zeros(count))
    d, x, masks = table(2000, 9, 1)
    sent = public.pack(public.totals(public.encrypt(d), x, masks * 0, GRAIN))
    assert np.abs(key.sums(sent, 2000, 9, 1) - x.T @ d).max() < 5e-5  # 2.5e-8 of a mean


def test_vectors_are_added_and_scaled(key: CKKSKey, public: CKKS) -> None:
    a, b = np.random.default_rng(2).normal(size=(2, 700, 2))
    total = public.add(public.times(public.encrypt(a), b), public.encrypt(a))
    assert len(total) == public.chunks(700, 2) == 4

    def read(sent: torch.Tensor) -> np.ndarray:
        return key.decrypt(sent)[:, :512].reshape(2, -1)[:, :700].T

    sent = public.pack(total)
    assert np.abs(read(sent) - (a * b + a)).max() < 1e-5
    assert np.abs(read(public.pack(public.unpack(sent))) - (a * b + a)).max() < 1e-5
    none = public.times(public.encrypt(a), np.zeros((700, 2)))
    assert np.abs(read(public.pack(none))).max() < 1e-6


def test_products_one_after_the_other_take_a_larger_ring() -> None:
    key = CKKSKey(3)
    public, x = CKKS(key.public()), np.linspace(0.5, 1.5, 1000)[:, None]
    total = public.times(public.times(public.encrypt(x), x), x)
    mask = drawn(1, GRAIN, MASK)[:, None]
    sent = public.pack(public.totals(total, x, mask, GRAIN))
    assert public.slots == 8192
    assert (key.sums(sent, 1000, 1, 1) - mask)[0, 0] == pytest.approx((x**4).sum(), rel=1e-4)
    with pytest.raises(ConfigError, match="no 9 products"):
        CKKSKey(9)
    assert CKKSKey(1, 16384).slots == 8192


def test_the_key_holder_sees_masked_totals_and_noise_in_all_other_slots(
    key: CKKSKey, public: CKKS, monkeypatch: pytest.MonkeyPatch
) -> None:
    def view() -> np.ndarray:
        d, x, masks = table(600, 8, 1, 3)
        whole = public.totals(public.encrypt(d), x, masks, GRAIN)
        return key.decrypt(public.pack(whole)).ravel() / (GRAIN * 2.0 ** (MASK - 1))

    assert stats.kstest(view(), "uniform", (-1, 2)).pvalue > 1e-6
    # Without: sums of parts of the columns in nearly all slots, which is what the test above guards.
    monkeypatch.setattr(ckks, "drawn", lambda count, grain, bits: np.zeros(count))
    assert stats.kstest(view(), "uniform", (-1, 2)).pvalue < 1e-100


def test_what_is_computed_cannot_be_undone_by_who_has_encrypted(public: CKKS) -> None:
    """Ciphertexts (c0, c1): what is added open leaves c1, and TenSEAL refuses a difference whose c1 is 0."""
    d = np.linspace(-1, 1, 512)[:, None]
    tiled = np.tile(d.ravel(), 8).tolist()
    mine = public.encrypt(d)[0]
    with pytest.raises(RuntimeError, match="transparent"):
        (mine + tiled) - mine
    assert public.add([mine], public.encrypt(d))[0] - mine is not None
    with pytest.raises(RuntimeError, match="transparent"):
        (mine * tiled) - (mine * tiled)
    assert public.times([mine], d)[0] - (mine * tiled) is not None


def test_the_public_key_decrypts_nothing(key: CKKSKey, public: CKKS) -> None:
    assert not public.context.has_secret_key()
    with pytest.raises(ValueError, match="secret"):
        public.encrypt(np.ones((3, 1)))[0].decrypt()
    blob = key.degree.to_bytes(4, "little") + key.context.serialize(save_secret_key=True)
    with pytest.raises(CodecError, match="secret is in it"):
        CKKS(torch.frombuffer(bytearray(blob), dtype=torch.uint8))


@pytest.mark.parametrize("damage", [b"", b"\x01\x02\x03\x04\x05", bytes(1000)])
def test_what_is_no_key_or_ciphertext_is_refused(public: CKKS, damage: bytes) -> None:
    with pytest.raises(CodecError, match="no public key"):
        CKKS(torch.tensor(list(damage), dtype=torch.uint8))
    with pytest.raises(CodecError, match="no ciphertext"):
        public.unpack(torch.tensor([[9, 0, 0, 0, *damage]], dtype=torch.uint8))


def test_bytes_that_are_no_numbers_are_refused() -> None:
    for width in (0, 9):
        with pytest.raises(CodecError, match=f"{width} bytes are no numbers"):
            Open().unpack(torch.zeros(1, width, dtype=torch.uint8))


@given(st.integers(1, 100_000), st.sampled_from([4096, 8192]))
def test_blocks_fill_a_ciphertext(rows: int, slots: int) -> None:
    block, copies = blocks(slots, rows)
    assert block * copies == slots and block & (block - 1) == 0 and copies >= 8
    assert block >= rows or block == slots // 8


@given(st.integers(1, 300), st.integers(2, 52), st.integers(-30, 5))
@settings(max_examples=30, deadline=None)
def test_masks_are_multiples_of_their_grain_and_within_their_bits(count: int, bits: int, power: int) -> None:
    grain = 2.0**power
    masks = drawn(count, grain, bits) / grain
    assert masks.shape == (count,) and np.array_equal(masks, np.round(masks))
    assert masks.min() >= -(2.0 ** (bits - 1)) and masks.max() < 2.0 ** (bits - 1)


def test_masks_are_uniform() -> None:
    masks = drawn(20_000, GRAIN, MASK) / (GRAIN * 2.0 ** (MASK - 1))
    assert stats.kstest(masks, "uniform", (-1, 2)).pvalue > 1e-6
    low = drawn(20_000, 1.0, MASK) % 256  # the last bits as well
    assert stats.chisquare(np.bincount(low.astype(int), minlength=256)).pvalue > 1e-6
