"""Models of shared weights: those of one table, and nothing but uniform numbers on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from atoll.errors import CodecError, ConfigError, DataError, DivergedError
from atoll.he import numbers, octets
from atoll.parties import play
from atoll.seeds import rng
from atoll.tensors import Record
from atoll.vertical.glm import GLM, adding, kinds, sshe
from atoll.vertical.glm.shares import cut, fixed, floats, rational, ring, split
from atoll.vertical.protocol import Case, Progress, Task
from tests.vertical.test_glm import (
    ask,
    centralised,
    fit,
    joined,
    kept,
    made,
    named,
    needs_data,
    public,
    said,
    scores,
    train,
)

SHARED = GLM(epochs=4, batch=50, lr=0.2, optimizer="sgd:0.9", l2=0.01, mode="sshe")


def two(task: Task) -> tuple[Case, Any]:
    case, sides = made(task)
    return replace(case, arbiter=None), sides


# --- the same model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_model_is_that_of_one_table(task: Task) -> None:
    case, sides = two(task)
    halves = train(SHARED, case, sides).results
    assert np.abs(joined(case, halves) - centralised(SHARED, case, sides)).max() < 2e-4
    assert set(halves["host"]) == {"weights", "means", "scales"}
    assert set(halves["guest"]) == {"weights", "intercept", "means", "scales", "label"}
    found = scores(SHARED, case, sides, halves)
    arbitrated = replace(SHARED, mode="arbiter")
    other = replace(case, arbiter="arbiter")
    due = scores(arbitrated, other, sides, train(arbitrated, other, sides).results)
    assert np.allclose(found, due, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov:0.8", "sgd:0.5,0.01"])
def test_every_linear_optimiser_is_that_of_the_arbiter_mode(optimizer: str) -> None:
    case, sides = two("binary")
    protocol = replace(SHARED, optimizer=optimizer)
    halves = train(protocol, case, sides).results
    due = train(replace(protocol, mode="arbiter"), replace(case, arbiter="arbiter"), sides).results
    assert np.abs(joined(case, halves) - joined(case, due)).max() < 2e-4


def test_a_host_without_columns_takes_part() -> None:
    case, sides = two("binary")
    alone = {"guest": sides["guest"], "host": named(np.zeros((120, 0)))}
    found = joined(case, train(SHARED, case, alone).results)
    assert np.abs(found - centralised(SHARED, case, alone)).max() < 2e-4


@needs_data
def test_breast_is_within_a_hundredth_of_one_table() -> None:
    protocol = GLM(mode="sshe", batch=300)
    assert fit(protocol, Case("binary"), public("breast"))["auc"] > 0.99 * 0.9974


@pytest.mark.slow
@needs_data
def test_default_credit_is_within_a_hundredth_of_one_table() -> None:
    assert fit(GLM(mode="sshe"), Case("binary"), public("default_credit"))["auc"] > 0.99 * 0.7242


def test_a_run_that_goes_on_ends_with_the_same_model_up_to_the_last_places() -> None:
    case, sides = two("binary")
    progress, told = kept(["guest", "host"])
    whole = train(SHARED, case, sides, progress).results
    assert [number for number, _ in told["guest"]] == [1, 2, 3, 4]
    began = {name: Progress(2, told[name][1][1]) for name in told}
    again = train(SHARED, case, sides, began).results
    assert np.abs(joined(case, whole) - joined(case, again)).max() < 2e-4
    # What is kept on the way is no model: shares, which mean nothing alone.
    for name in told:
        assert float(told[name][3][1].own.weights.double().abs().min()) > 2.0**40
    began["host"] = Progress(1, told["host"][0][1])
    with pytest.raises(DataError, match="done: "):
        train(SHARED, case, sides, began)


# --- shares and products ------------------------------------------------------------------------------------------

values = st.lists(st.floats(-1000, 1000, allow_subnormal=False), min_size=1, max_size=20)


@given(values)
def test_shares_sum_to_what_they_share(numbers: list[float]) -> None:
    v = fixed(np.array(numbers))
    a, b = split(v)
    assert np.array_equal(a + b, v)  # modulo 2^64
    assert np.array_equal(ring(a.astype(object) + b.astype(object)), v)
    assert np.abs(floats(v) - np.array(numbers)).max() <= 2.0**-21


@given(values, st.floats(1e-6, 100))
def test_cutting_shares_is_wrong_by_two_in_the_last_place_at_most(
    numbers: list[float], factor: float
) -> None:
    v = fixed(np.array(numbers))
    a, b = split(v)
    due = v.astype(object) * rational(factor)
    off = ring(cut(a, rational(factor)) + cut(b, rational(factor))).astype(object) - due
    assert all(-2 < each <= 0 for each in off)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_matrix_times_a_vector_by_additions(rows: int, columns: int, bits: int, seed: int) -> None:
    draw = rng(seed, "matrix")
    x = draw.integers(0, 1 << bits, size=(rows, columns))
    v = [int(each) for each in draw.integers(0, 1 << 62, size=columns)]
    cipher = adding.keygen("none").public
    found = adding.times(cipher, x, cipher.encrypt(octets(v, 64)), bits)
    assert numbers(cipher.to_bytes(found)) == [
        int(each) for each in x.astype(object) @ np.array(v, dtype=object)
    ]


# --- what nobody may see ------------------------------------------------------------------------------------------


def unpacked(blob: list[int], bits: int) -> list[int]:
    """Masked sums of so many bits, or none where whole ciphertexts hold one number each (shares)."""
    if bits == 64:
        return blob
    slot = 8 * (bits // 8 + 1)
    per = adding.keygen("none").public.per(slot)
    found = [value >> (slot * at) & ((1 << slot) - 1) for value in blob for at in range(per)]
    return found[: {40: 120, 1: 3, 2: 4}[len(blob)]] if per == 3 else found


def test_parties_see_uniform_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    case, sides = two("binary")
    protocol = replace(SHARED, batch=1000, epochs=10)

    def views(kind: str, widths: tuple[int, int]) -> list[float]:
        """How likely what the parties decrypt in first and second products would be, where it is uniform."""
        found = []
        for sender in ("guest", "host"):
            blobs = [numbers(each.cipher.numpy()) for each in said(played, kind, sender)]
            for start, width in enumerate(widths):
                shown = [value / 2.0**width for blob in blobs[start::2] for value in unpacked(blob, width)]
                found.append(stats.kstest(shown, "uniform").pvalue)
        return found

    played = train(protocol, case, sides)
    # Residuals are shared anew for each batch; weights once, and what follows depends on what was before.
    assert min(views(kinds.VECTOR.name, (64, 64))[1::2]) > 1e-6
    first = split(fixed(np.zeros(10_000)))
    assert min(stats.kstest(share / 2.0**63, "uniform", (-1, 2)).pvalue for share in first) > 1e-6
    # 120 rows: 25 + 1 bits of a lifted number, 64 of a share, 2 or 7 for the sum.
    widths = (26 + 64 + 2 + sshe.HIDE, 26 + 64 + 7 + sshe.HIDE)
    assert min(views(kinds.PRODUCT.name, widths)) > 1e-6
    monkeypatch.setattr(sshe, "_masks", lambda count, bits: np.zeros((count, bits // 8 + 1), np.uint8))
    played = train(protocol, case, sides)
    assert max(views(kinds.PRODUCT.name, widths)) < 1e-20


def test_without_masks_a_product_would_tell_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever knows the vector and sees as many products as there are columns solves for each row."""

    def rows_found() -> float:
        case, sides = two("binary")
        played = train(replace(SHARED, batch=1000, epochs=3), case, sides)
        asked, told = said(played, "glm.vector", "guest"), said(played, "glm.product", "host")
        vectors = [numbers(each.cipher.numpy()) for each in asked[::2]]
        products = [unpacked(numbers(each.cipher.numpy()), 26 + 64 + 2 + sshe.HIDE) for each in told[::2]]
        a = np.array(vectors, dtype=np.float64) / 2.0**64
        x = np.linalg.solve(a, np.array(products, dtype=np.float64) / 2.0**64).T / 2.0**20 - 2.0**5
        own = sides["host"].x
        return float(np.abs(x - (own - own.mean(0)) / own.std(0)).max())

    assert rows_found() > 1e6
    monkeypatch.setattr(sshe, "_masks", lambda count, bits: np.zeros((count, bits // 8 + 1), np.uint8))
    assert rows_found() < 1e-3


def test_masks_are_forty_bits_longer_than_what_they_hide() -> None:
    """With the largest columns and shares that there can be, a sum stays 2^-40 below the range of its mask."""
    rows, terms = 1000, 37
    party = sshe._Party.__new__(sshe._Party)
    party.x = np.zeros((rows, 1), dtype=np.int64)
    party.__post_init__()
    largest = fixed(np.array([np.sqrt(rows)]))[0] + (1 << party.size)
    assert largest < 1 << (party.size + 1)
    bound = terms * int(largest) * ((1 << 64) - 1)
    assert bound < 1 << (party.bits(terms) - sshe.HIDE)
    bits = party.bits(terms)
    masks = np.array([mask / 2**bits for mask in numbers(sshe._masks(20_000, bits))])
    assert stats.kstest(masks, "uniform").pvalue > 1e-6


def test_nothing_is_open_but_shares_and_each_partys_own_weights() -> None:
    case, sides = two("binary")
    played = train(SHARED, case, sides)
    assert {count.kind for count in played.transcript.counts()} == {
        "glm.plan", "glm.key", "glm.share", "glm.vector", "glm.product",
    }  # fmt: skip
    for sender in ("guest", "host"):
        first, last = said(played, "glm.share", sender)
        receiver = "host" if sender == "guest" else "guest"
        weights = played.results[receiver].weights.numpy()
        # A share alone is nowhere near the weights that it is of.
        assert np.abs(floats(last.share.numpy())[:3] - weights).min() > 1e6
        assert np.abs(floats(first.share.numpy())).min() > 1e6
    rows = [count for count in played.transcript.counts() if count.kind == "glm.product"]
    assert [count.messages for count in rows] == [2 * 3 * 4, 2 * 3 * 4]


def test_what_is_no_sum_is_refused() -> None:
    secret = adding.keygen("none")
    with pytest.raises(CodecError, match="no sum can be"):
        secret.decrypt(secret.encrypt(octets([1 << 80], 64)), 80, "a sum")
    with pytest.raises(CodecError, match="64 a number"):
        secret.public.from_bytes(np.zeros((2, 63), np.uint8), "a vector")


@pytest.mark.slow
@pytest.mark.parametrize("crypto", ["ou", "paillier"])
def test_weights_do_not_depend_on_the_cipher(crypto: str) -> None:
    case, sides = two("binary")
    protocol = replace(SHARED, epochs=1)
    sealed = joined(case, train(protocol, replace(case, crypto=crypto), sides).results)
    assert np.abs(sealed - joined(case, train(protocol, case, sides).results)).max() < 1e-4


# --- what it is nothing for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "change", "message"),
    [
        (SHARED, {"crypto": "ckks"}, "needs a cipher that adds whole numbers"),
        (SHARED, {"task": "poisson"}, "knows no counts"),
        (SHARED, {"hosts": ("host", "other")}, "is for one host, and there are 2"),
        (replace(SHARED, optimizer="adam"), {}, "needs a linear optimiser"),
        (replace(SHARED, l1=0.1), {}, "l1 and tolerance must be 0"),
        (replace(SHARED, tolerance=0.1), {}, "l1 and tolerance must be 0"),
        (GLM(), {"crypto": "ou", "arbiter": "arbiter"}, "crypto = 'ou'|needs crypto"),
    ],
)
def test_what_it_is_nothing_for_is_said(protocol: GLM, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        protocol.check(replace(Case("binary"), **change))


def test_weights_that_are_out_of_range_are_no_model() -> None:
    case, sides = two("binary")
    with pytest.raises(DivergedError, match="weights beyond"):
        train(replace(SHARED, lr=50.0, epochs=10), case, sides)


def test_parties_that_do_not_agree_are_told() -> None:
    case, sides = two("binary")
    with pytest.raises(DataError, match="rows: "):
        train(SHARED, case, {**sides, "host": sides["host"].take(slice(100))})
    other = replace(SHARED, lr=0.1)
    roles = {
        "guest": lambda link: SHARED.guest(link, sides["guest"], case, Progress()),
        "host": lambda link: other.host(link, sides["host"], case, Progress()),
    }
    with pytest.raises(DataError, match="settings: "):
        play(roles)


def test_prediction_is_that_of_the_other_mode() -> None:
    case, sides = two("binary")
    halves: dict[str, Record] = dict(train(SHARED, case, sides).results)
    played = ask(SHARED, case, sides, halves)
    assert {count.kind for count in played.transcript.counts()} == {"glm.partial"}
