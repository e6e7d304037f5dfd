"""Mixing: one peer and all at once, peers that are absent, and rules for peers that lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import CodecError, ConfigError, RunError
from atoll.topology import Fixed, Mixture, Weights, average, topology

TEXTS = ["ring", "complete", "star", "erdos:0.4", "exponential", "base:2", "grid:2", "regular:4"]


@settings(max_examples=25, deadline=None)
@given(text=st.sampled_from(TEXTS), seed=st.integers(0, 50), data=st.data())
def test_absent_peers_leave_sums_and_symmetry(text: str, seed: int, data: st.DataObject) -> None:
    there = sorted(data.draw(st.sets(st.integers(0, 11), min_size=1)))
    for weights in topology(text, 12, seed).exchanges(0):
        found = weights.among(there)
        assert found.peers == len(there)
        assert np.abs(found.sums()[0] - 1).max() < 1e-12
        if weights.symmetric:
            assert found.symmetric
            assert np.abs(found.sums()[1] - 1).max() < 1e-12


def test_the_weight_of_who_is_absent_goes_to_ones_own() -> None:
    (ring,) = topology("ring", 6).exchanges(0)
    found = ring.among([0, 1, 3, 4, 5]).dense()
    assert found[1] == pytest.approx([1 / 3, 2 / 3, 0, 0, 0])
    assert found[2] == pytest.approx([0, 0, 2 / 3, 1 / 3, 0])
    (complete,) = topology("complete", 6).exchanges(0)
    assert (complete.among([1, 4]).dense() == 0.5).all()  # a mean of those who are there


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 50), data=st.data())
def test_absent_peers_leave_masses(seed: int, data: st.DataObject) -> None:
    there = sorted(data.draw(st.sets(st.integers(0, 9), min_size=1)))
    found = topology("epidemic:3", 10, seed).exchanges(seed, "columns")[0].among(there, "columns")
    assert np.abs(found.sums()[1] - 1).max() < 1e-12


@pytest.mark.parametrize("text", ["exponential", "regular:6", "complete"])
def test_sums_in_strips_have_the_bits_of_sums_row_by_row(text: str) -> None:
    peers = 96
    values = torch.randn(peers, 300, generator=torch.Generator().manual_seed(0))
    (weights,) = topology(text, peers).exchanges(0)
    found = Mixture().all(values, weights)
    for peer in range(peers):
        row = weights.of_peer(peer)
        assert torch.equal(found[peer], average([values[at] for at in row.peers], row.weights))
    assert (found.double() - torch.from_numpy(weights.dense()) @ values.double()).abs().max() < 1e-6


def test_clipped_gossip_by_hand() -> None:
    values = [torch.tensor([0.0, 0.0]), torch.tensor([30.0, 40.0]), torch.tensor([0.0, 1.0])]
    found = Mixture.parse("clipped:5").one(values, (0.2, 0.4, 0.4), 0)
    assert found.tolist() == pytest.approx([0.4 * 3, 0.4 * 4 + 0.4 * 1])
    wide = Mixture.parse("clipped:1000").one(values, (0.2, 0.4, 0.4), 0)
    assert torch.allclose(wide, average(values, (0.2, 0.4, 0.4)))


def test_trimmed_by_hand() -> None:
    values = [torch.tensor([float(v)]) for v in (1, 2, 3, 100, -50)]
    assert (
        float(Mixture.parse("trimmed:1").one(values, (0.2,) * 5, 0)) == 2.0
    )  # of 1, and 2 and 3 in the middle
    assert float(Mixture.parse("trimmed:2").one(values, (0.2,) * 5, 0)) == 1.0  # nobody is left


@pytest.mark.parametrize("rule", ["clipped:1", "trimmed:1"])
def test_numbers_that_are_none_do_not_spread(rule: str) -> None:
    values = [torch.ones(2), torch.full((2,), float("inf")), torch.ones(2), torch.ones(2)]
    assert torch.isfinite(Mixture.parse(rule).one(values, (0.25,) * 4, 0)).all()


@pytest.mark.parametrize("text", ["clipped", "clipped:0", "trimmed:0.5", "median"])
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="mixing"):
        Mixture.parse(text)


def test_weights_that_are_no_shares() -> None:
    with pytest.raises(ConfigError, match="negative"):
        Weights.of([([0, 1], [1.5, -0.5]), ([1], [1.0])]).check("rows", "a test")


# --- masked ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["ring", "complete", "exponential", "regular:4"])
def test_masked_is_the_sum_to_half_a_step_for_each(text: str) -> None:
    values = torch.randn(9 if text != "regular:4" else 10, 50, generator=torch.Generator().manual_seed(0))
    (weights,) = topology(text, len(values)).exchanges(0)
    found = Mixture.parse("masked").all(values, weights)
    exact = torch.from_numpy(weights.dense()) @ values.double()
    step, terms = Fixed(32.0, 1.0).step, weights.degree + 1
    assert step == 32 * 2.0**-29
    assert (
        found.double() - exact
    ).abs().max() <= terms * step / 2 + 2.0**-24  # and the float32 that it becomes
    if text == "complete":
        assert (found == found[0]).all()  # one sum of whole numbers: all have the same model


@settings(max_examples=30, deadline=None)
@given(
    numbers=st.lists(st.floats(-32, 32, width=32), min_size=1, max_size=6),
    masks=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6),
)
def test_shares_add_up_to_the_bit_whatever_hides_them(numbers: list[float], masks: list[int]) -> None:
    """In any order, and with what cancels modulo 2^32 added on the way."""
    fixed = Fixed(32.0, 0.75)
    values = [torch.tensor([number]) for number in numbers]
    shares = [fixed.share(value, 1 / len(values)) for value in values]
    plain = torch.stack(shares).sum(0)  # int64
    total = torch.zeros(1, dtype=torch.int32)
    for mask in masks:
        total.add_(torch.tensor([mask], dtype=torch.int32))
    for share in reversed(shares):
        total.add_(share)
    for mask in masks:
        total.sub_(torch.tensor([mask], dtype=torch.int32))
    assert int(total) == int(plain)
    assert torch.equal(fixed.opened(total, values[0]), (plain.double() * fixed.step).float())


def test_what_is_heard_and_counts_for_more_than_one_has_room() -> None:
    """Columns sum to 1 with push-sum, and rows do not."""
    fixed = Fixed(32.0, 5.5)
    value = torch.tensor([32.0, -32.0])
    total = fixed.share(value, 1.0)
    for _ in range(11):
        total.add_(fixed.share(value, 0.5))
    assert fixed.opened(total, value).tolist() == [32 * 6.5, -32 * 6.5]


def test_what_is_heard_is_without_ones_own() -> None:
    fixed = Fixed.of(32.0, (0.75, 0.5, 0.25), 1)
    assert fixed.heard == 1 and fixed.step == Fixed(32.0, 1.0).step  # with its own it would be twice that


def test_masks_that_do_not_cancel_are_no_sum() -> None:
    noise = torch.randint(-(2**31), 2**31, (64,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    with pytest.raises(CodecError, match="does not add up"):
        Fixed(32.0, 1.0).opened(noise, torch.zeros(1))


@pytest.mark.parametrize(
    ("number", "hint"), [(33.0, "masked:128"), (float("nan"), "diverged"), (-1e30, "masked:")]
)
def test_numbers_beyond_what_masks_carry_are_said(number: float, hint: str) -> None:
    values = [torch.ones(3), torch.tensor([0.0, number, 0.0])]
    with pytest.raises(RunError, match="masks carry 32") as found:
        Mixture.parse("masked").one(values, (0.5, 0.5), 0)
    assert hint in str(found.value.hint)


@settings(max_examples=25, deadline=None)
@given(text=st.sampled_from(TEXTS), seed=st.integers(0, 50), data=st.data())
def test_nobody_hears_one_alone(text: str, seed: int, data: st.DataObject) -> None:
    there = sorted(data.draw(st.sets(st.integers(0, 11), min_size=1)))
    for sums in ("both", "columns"):
        if text == "star" and sums == "columns":
            continue
        for weights in topology(text, 12, seed).exchanges(0, sums):  # type: ignore[arg-type]
            before = weights.among(there, sums)  # type: ignore[arg-type]
            found = before.least(2, sums)  # type: ignore[arg-type]
            for peer in range(found.peers):
                assert found.hears(peer) == (before.hears(peer) if len(before.hears(peer)) > 1 else [])
            assert np.abs(found.sums()[sums == "columns"] - before.sums()[sums == "columns"]).max() < 1e-12
