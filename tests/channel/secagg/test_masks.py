"""Masks and keys: published vectors, our own labels, and masks that hide."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from atoll.channel.secagg import keys, masks

SID = bytes(range(32))


def stream(seed: bytes, d: int) -> np.ndarray:
    total = np.zeros(d, np.uint32)
    masks.apply(total, [seed])
    return total


def test_the_stream_is_aes_128_in_counter_mode() -> None:
    """NIST SP 800-38A, F.5.1: the output blocks, read as little-endian numbers."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    blocks = (
        "ec8cdf7398607cb0f2d21675ea9ea1e4" "362b7c3c6773516318a077d7fc5073ae"
        "6a2cc3787889374fbeb4c81b17ba6c44" "e89c399ff0f198c6d40a31db156cabfe"
    )  # fmt: skip
    assert stream(key + counter, 16).astype("<u4").tobytes().hex() == blocks


def test_keys_are_derived_by_hkdf() -> None:
    """RFC 5869, case 3 (no salt, no info), its first 32 bytes; X25519 as in RFC 7748, 6.1."""
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert keys.derive(b"\x0b" * 22, b"", b"").hex() == okm
    bob = keys.Private(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert bob.agree(alice).hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


def test_labels_and_sids_keep_keys_apart() -> None:
    shared = b"\x07" * 32
    found = [keys.mask_seed(shared, SID), keys.self_seed(shared, SID), keys.mask_seed(shared, bytes(32))]
    assert len({seed for seed in found if len(seed) == 32}) == 3
    assert [seed.hex()[:16] for seed in found] == ["a1211254a2b9d016", "51b1b566a21c34c6", "a40414585f48aea8"]


def test_each_direction_has_a_box_of_its_own() -> None:
    """Both ways share a secret, and nonces are fixed: the same key would encrypt two messages."""
    shared, plain = b"\x07" * 32, bytes(64)
    box, back = keys.seal(shared, plain, SID, 1, 2), keys.seal(shared, plain, SID, 2, 1)
    assert len(box) == keys.BOX and box[:64] != back[:64]
    assert box.hex()[:16] == "80cbddda5c53ab2c"
    assert keys.unseal(shared, box, SID, 1, 2) == plain
    for sid, sender, receiver, what in (
        (bytes(32), 1, 2, box), (SID, 2, 1, box), (SID, 1, 3, box), (SID, 1, 2, box[:-1] + bytes((box[-1] ^ 1,))),
        (SID, 1, 2, b""),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="not made by its sender"):
            keys.unseal(shared, what, sid, sender, receiver)


def test_seeds_that_fold_to_the_same_32_bits_give_other_masks() -> None:
    """All 256 bits of a seed count, in its key half and in its counter half."""
    seed = bytes(range(32))
    first = stream(seed, 64)
    for here, there in ((0, 4), (0, 16), (17, 29), (31, 27)):
        other = bytearray(seed)
        other[here] ^= 0x80
        other[there] ^= 0x80
        fold = [int(np.bitwise_xor.reduce(np.frombuffer(bytes(s), "<u4"))) for s in (seed, other)]
        assert fold[0] == fold[1]
        assert np.count_nonzero(stream(bytes(other), 64) == first) == 0
    for bit in range(256):
        other = bytearray(seed)
        other[bit // 8] ^= 1 << bit % 8
        assert not np.array_equal(stream(bytes(other), 64), first)


@pytest.mark.parametrize("d", [1, 3, masks.BLOCK - 1, masks.BLOCK, masks.BLOCK + 1, 3 * masks.BLOCK + 5])
def test_masks_are_added_and_taken_off_modulo_two_to_the_32(d: int) -> None:
    start = np.arange(d, dtype=np.uint32) * np.uint32(2_654_435_761)
    total = start.copy()
    many = [bytes((k,)) * 32 for k in range(70)]
    masks.apply(total, many[:50], many[50:])
    by_hand = start + sum(stream(s, d).astype(np.uint64) for s in many[:50]) % 2**32
    by_hand = (by_hand + sum(2**32 - stream(s, d).astype(np.uint64) for s in many[50:])) % 2**32
    assert np.array_equal(total, by_hand)
    masks.apply(total, many[50:], many[:50])
    assert np.array_equal(total, start)


def test_the_stream_is_uniform() -> None:
    numbers = stream(bytes(range(32)), 400_000)
    assert kstest(numbers / 2**32, "uniform").pvalue > 0.01
    for byte in numbers.view(np.uint8).reshape(-1, 4).T:
        assert chisquare(np.bincount(byte, minlength=256)).pvalue > 0.001


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), bytes(31), b""])
def test_keys_of_low_order_are_not_sound(public: bytes) -> None:
    assert not keys.sound(public) and keys.sound(keys.Private(bytes(range(32))).public)


def test_signatures_that_are_none() -> None:
    assert not keys.verify(bytes(32), bytes(64), b"") and not keys.verify(b"short", bytes(64), b"")
    assert keys.advertised(SID, 1, b"a", b"bc") != keys.advertised(SID, 1, b"ab", b"c")
