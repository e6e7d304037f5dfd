"""Rules against their definitions, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ConfigError
from atoll.robust import (
    Aggregation,
    Bound,
    Bucket,
    CenteredClip,
    Columns,
    Flame,
    Groups,
    MultiKrum,
    Points,
    Rows,
    Shorten,
    Smoothed,
    Trimmed,
    aggregate,
    parse,
    rules,
)  # fmt: skip
from tests.robust import plain

COUNTS = st.integers(11, 14)
FEW = settings(max_examples=12, deadline=None)
MOVES_ALONG = [  # with a shift of all updates, since they know distances alone
    "mean", "median", "trimmed:2", "meamed:2", "geometric", "krum:2", "multikrum:2", "bulyan:2", "mda:2", "caf:2",
    "dnc:2", "nnm + trimmed:2", "nnm:2 + median",
]  # fmt: skip


def updates(seed: int, count: int, size: int = 5, far: float = 10.0) -> np.ndarray:
    """Most of them near one another, two of them elsewhere."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, size)) + 1.0
    found[:2] += far * rng.normal(size=size)
    return rng.permutation(found)


def made(x: np.ndarray, text: str, **more: torch.Tensor) -> np.ndarray:
    return aggregate(torch.from_numpy(x).float(), text, **more).double().numpy()


def near(a: np.ndarray, b: np.ndarray, tolerance: float = 2e-4) -> bool:
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))


@pytest.mark.parametrize("text", plain.RULES)
@FEW
@given(st.integers(0, 10_000), COUNTS)
def test_a_rule_is_its_definition(text: str, seed: int, count: int) -> None:
    x = updates(seed, count)
    assert near(made(x, text), plain.RULES[text](x))


@FEW
@given(st.integers(0, 10_000), st.integers(5, 9), st.integers(0, 2))
def test_the_smallest_diameter_is_found(seed: int, count: int, f: int) -> None:
    x = updates(seed, count, far=2.0)
    assert any(near(made(x, f"mda:{f}"), each) for each in plain.mda(x, f))


@FEW
@given(st.integers(0, 10_000), COUNTS)
def test_trust_by_a_root(seed: int, count: int) -> None:
    x, root = updates(seed, count), np.random.default_rng(seed).normal(size=5) + 1.0
    assert near(made(x, "fltrust", beside=torch.from_numpy(root).float()), plain.fltrust(x, root))


@FEW
@given(st.integers(0, 10_000), COUNTS)
def test_clipping_goes_on_from_where_it_was(seed: int, count: int) -> None:
    x, last = updates(seed, count), np.random.default_rng(seed).normal(size=5)
    found = made(x, "cclip:0.7,2", beside=torch.from_numpy(last).float())
    assert near(found, plain.cclip(x, 0.7, 2, last))


@pytest.mark.parametrize("text", [*plain.RULES, "mda:2", "bulyan:2", "fltrust"])
@FEW
@given(st.integers(0, 10_000))
def test_who_is_first_makes_no_difference(text: str, seed: int) -> None:
    x = updates(seed, 12)
    order = np.random.default_rng(seed + 1).permutation(12)
    beside = {"beside": torch.ones(5)} if text == "fltrust" else {}
    assert near(made(x, text, **beside), made(x[order], text, **beside), 1e-4)


@pytest.mark.parametrize("text", MOVES_ALONG)
@FEW
@given(st.integers(0, 10_000), st.sampled_from([0.1, 3.0, 300.0]))
def test_a_shift_of_all_is_one_of_the_result(text: str, seed: int, far: float) -> None:
    x = updates(seed, 12)
    shift = far * np.random.default_rng(seed + 1).normal(size=5)
    assert near(made(x + shift, text) - shift, made(x, text), 1e-3)


@pytest.mark.parametrize(
    "text", ["trimmed:0", "meamed:0", "multikrum:0", "mda:0", "caf:0", "dnc:0", "bulyan:0", "nnm:0 + mean",
             "nnm + trimmed:0", "arc:0 + mean", "bucket:1 + mean", "clip:1e6 + mean", "bound:1e6", "cclip:1e6"],
)  # fmt: skip
@FEW
@given(st.integers(0, 10_000), COUNTS)
def test_without_liars_it_is_the_mean(text: str, seed: int, count: int) -> None:
    x = updates(seed, count)
    assert near(made(x, text), x.mean(0), 1e-4)


@FEW
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_buckets_are_means_of_everybody_once(seed: int, size: int) -> None:
    x = updates(seed, 12)
    found = parse(f"bucket:{size} + mean").of(Rows([[row] for row in torch.from_numpy(x).float()]), seed, 1)
    buckets = -(-12 // size)
    assert found.kept.sum() == pytest.approx(12)
    shares = np.sort(found.kept * buckets / 12)
    whole = 12 - (12 % size)
    assert np.allclose(shares[:whole], 1 / size) and np.allclose(shares[whole:], 1 / max(12 % size, 1))


def test_lots_are_drawn_by_step() -> None:
    rows = Rows([[row] for row in torch.randn(12, 3, generator=torch.Generator().manual_seed(1))])
    aggregation = parse("bucket:3 + median")
    first, again, later = (aggregation.of(rows, 5, step).parts[0] for step in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, later)


# --- numbers at the edge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["foolsgold", "flame:0", "cclip:1", "bound:1", "clip:1 + mean", "arc:1 + mean"]
)
def test_who_sends_nothing_is_no_trouble(text: str) -> None:
    x = updates(1, 12)
    x[3] = 0.0
    assert np.isfinite(made(x, text)).all()


def test_trust_where_somebody_sends_nothing() -> None:
    x, root = updates(1, 12), np.ones(5)
    x[3] = 0.0
    beside = torch.from_numpy(root).float()
    assert near(made(x, "fltrust", beside=beside), plain.fltrust(np.delete(x, 3, 0), root))
    assert not made(x, "fltrust", beside=torch.zeros(5)).any()  # nor is anybody trusted by a root of nothing


@pytest.mark.parametrize(
    "text", ["mda:2", "caf:2", "dnc:2", "foolsgold", "flame:0", "geometric", "krum:2", "bulyan:2"]
)
def test_where_all_are_alike_it_is_that(text: str) -> None:
    assert near(made(np.tile([3.0, 0.0], (12, 1)), text), np.array([3.0, 0.0]))


@pytest.mark.parametrize("text", ["krum:2", "multikrum:2", "geometric", "caf:2"])
@pytest.mark.parametrize("size", [1e-25, 1e20])
def test_sizes_make_no_difference(text: str, size: float) -> None:
    """Even where squares are no numbers of single precision."""
    x = updates(4, 12)
    assert near(made(x * size, text) / size, made(x, text))


def test_distances_are_right_far_from_the_origin() -> None:
    x = torch.from_numpy(updates(4, 12) + 1e4).float()
    wide = x.double().numpy()
    due = np.square(wide[:, None] - wide[None]).sum(2)
    assert np.allclose(Points.of(Rows([[row] for row in x])).near, due, rtol=1e-3)


def test_a_huge_lie_far_from_the_origin_blurs_nothing() -> None:
    x = np.random.default_rng(4).normal(size=(12, 5)) + 1000.0
    x[0] = 3e38
    assert np.abs(made(x, "multikrum:2") - 1000.0).max() < 2.0


def test_no_distance_is_the_root_of_less_than_nothing() -> None:
    gram = np.array([[1.0, 1.0 + 1e-9, 0.0], [1.0 + 1e-9, 1.0, 0.0], [0.0, 0.0, 0.0]])
    points = Points(gram, 2)
    assert points.near.min() == 0.0
    assert points.away(np.array([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_a_geometric_median_may_be_one_of_the_updates() -> None:
    assert near(made(np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]]), "geometric"), np.zeros(1))


def test_no_more_can_be_chosen_than_there_are() -> None:
    x = updates(4, 12)
    assert near(made(x, "multikrum:2,40"), x.mean(0))


# --- lies -----------------------------------------------------------------------------------------------------------

SOUND = ["median", "trimmed:3", "meamed:3", "geometric", "krum:3", "multikrum:3", "mda:3", "caf:3", "dnc:3",
         "cclip:2,20", "bound:3", "flame:0", "bulyan:3", "nnm + trimmed:3", "nnm + geometric", "arc:3 + median",
         "bucket:2 + median"]  # fmt: skip


@pytest.mark.parametrize("text", SOUND)
@pytest.mark.parametrize("how", ["far", "huge", "against", "beyond"])
def test_three_liars_of_fifteen_do_not_carry_the_rest_away(text: str, how: str) -> None:
    text = text.replace("nnm + geometric", "nnm:3 + geometric")
    rng = np.random.default_rng(7)
    x = rng.normal(size=(15, 40)) * 0.3 + 1.0
    honest = x[3:].mean(0)
    x[:3] = {"far": 100.0, "huge": 1e15, "against": -honest * 3, "beyond": 3e38}[how]
    found = made(x, text)
    assert np.isfinite(found).all()
    # krum gives one update, which lies sqrt(40) * 0.3 = 1.9 from the mean; bound lets in what is no longer than itself
    assert np.linalg.norm(found - honest) < (5.5 if text == "bound:3" else 2.5)


def test_the_mean_is_carried_away() -> None:
    x = np.ones((15, 40))
    x[:3] = 1e15
    assert made(x, "mean").min() > 1e14


def test_liars_under_many_names_count_for_less() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 200))
    x[:4] = rng.normal(size=200) + 0.01 * rng.normal(size=(4, 200))
    kept = parse("foolsgold").of(Rows([[torch.from_numpy(row)] for row in x]), 0, 1).kept
    assert kept[:4].max() < 0.01 and kept[4:].min() > 1.0


def test_nobody_is_trusted_who_points_against_the_root() -> None:
    x, root = -np.abs(updates(1, 12)), np.ones(5)
    assert not made(x, "fltrust", beside=torch.from_numpy(root).float()).any()


# --- what was kept --------------------------------------------------------------------------------------------------


SHORTENED = ("clip", "bound", "cclip", "arc", "flame")


@pytest.mark.parametrize("text", [text for text in plain.RULES if not text.startswith(SHORTENED)])
def test_what_counts_adds_up(text: str) -> None:
    rows = Rows([[row] for row in torch.from_numpy(updates(3, 12)).float()])
    kept = parse(text).of(rows, 0, 1).kept
    assert kept.sum() == pytest.approx(12) and kept.min() >= 0


def test_of_a_median_the_middle_counts() -> None:
    rows = Rows([[torch.tensor([1.0, 5.0])], [torch.tensor([2.0, 2.0])], [torch.tensor([3.0, 3.0])]])
    assert parse("median").of(rows, 0, 1).kept.tolist() == [0.0, 1.5, 1.5]


@pytest.mark.parametrize("text", ["median", "trimmed:2", "meamed:2", "bulyan:2"])
@FEW
@given(st.integers(0, 10_000), COUNTS)
def test_quick_middles_are_what_counts_added_up(text: str, seed: int, count: int) -> None:
    rule = parse(text).rule
    assert isinstance(rule, Columns)
    values = torch.from_numpy(updates(seed, count).T.copy())
    parts = rule.parts(values)
    assert torch.allclose(rule.middle(values.sort(dim=1).values), (parts * values).sum(1))
    assert torch.allclose(parts.sum(1), torch.ones(5, dtype=torch.float64))


# --- in pieces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nnm + trimmed:2", "krum:2", "geometric", "cclip:1", "bulyan:2", "flame"])
def test_pieces_make_no_difference(text: str) -> None:
    x = torch.randn(12, 700, generator=torch.Generator().manual_seed(2))
    beside = torch.zeros(700)
    rows = [*x, beside] if parse(text).beside else [*x]
    parts = Rows([[row[:10].reshape(2, 5), row[10:12], row[12:].reshape(4, 172)] for row in rows])
    found = parse(text).of(parts, 3, 1)
    assert [tuple(part.shape) for part in found.parts] == [(2, 5), (2,), (4, 172)]
    if text != "flame":  # whose noise has an address for each tensor
        whole = aggregate(x, text, seed=3, step=1)
        assert torch.allclose(torch.cat([part.flatten() for part in found.parts]), whole, atol=1e-5)


def test_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(12, 5000, generator=torch.Generator().manual_seed(2))
    whole = [aggregate(x, text) for text in ("nnm + trimmed:2", "multikrum:2")]
    monkeypatch.setattr("atoll.robust.rows._PIECE", 1)  # 256 columns at a time
    cut = [aggregate(x, text) for text in ("nnm + trimmed:2", "multikrum:2")]
    for a, b in zip(whole, cut, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_halves_are_counted_in_single_precision() -> None:
    x = torch.randn(12, 50, generator=torch.Generator().manual_seed(2)).half()
    found = aggregate(x, "trimmed:2")
    assert found.dtype == torch.float32
    assert torch.allclose(found, aggregate(x.float(), "trimmed:2"))


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    *plain.RULES, "mda:2", "fltrust", "flame", "bound:1,0.25", "bucket:2 + krum:1", "cclip:0.1234567891",
])  # fmt: skip
def test_texts_come_back(text: str) -> None:
    found = parse(text)
    assert parse(found.text) == found
    assert parse(list(found.stages)) == found


def test_every_stage_is_explained() -> None:
    known = rules()
    assert len(known) == 22
    assert all(len(line) > 20 for _, line in known)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("trimed:2", "unknown aggregate 'trimed' in 'trimed:2'", "trimmed"),
        ("arc + median", "nobody says how many clients may lie", "write arc:2 + median"),
        ("nnm + median", "nobody says how many clients may lie", "write nnm:2 + median"),
        (
            "median + krum:2",
            "median makes one update of many, and nothing can follow it",
            "put median at the end",
        ),
        ("nnm:2 + groups:3 + median", "groups are made of clients", "put groups:3 at the beginning"),
        ("nnm:2", "no rule follows it", "nnm:2 + trimmed:2"),
        ("trimmed", "trimmed needs f", "write trimmed:F"),
        ("trimmed:-1", "f = '-1' is not a whole number at least 0", "write trimmed:F"),
        ("cclip:0", "tau = '0' is not a number above 0", "write cclip:TAU"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in caught.value.message and hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "count", "message", "hint"),
    [
        ("trimmed:4", 8, "trimmed:4 needs 2f + 1 = 9 updates or more for f = 4, and there are 8", "f = 3 at most"),
        ("krum:4", 10, "krum:4 needs 2f + 3 = 11 updates or more", "f = 3 at most, or set cohort to 11"),
        ("bulyan:2", 10, "bulyan:2 needs 4f + 3 = 11 updates or more", "f = 1 at most, or set cohort to 11"),
        ("nnm + trimmed:5", 10, "nnm needs 2f + 1 = 11", "nnm with f = 4 at most"),
        ("bucket:3 + trimmed:2", 12, "trimmed:2 needs 2f + 1 = 5 updates or more for f = 2, and there are 4", "f = 1"),
        ("flame", 2, "flame needs 3 updates or more", "set cohort to 3"),
    ],
)  # fmt: skip
def test_too_few_updates_are_refused(text: str, count: int, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        aggregate(torch.zeros(count, 2), text)
    assert message in caught.value.message and hint in str(caught.value.hint)
    assert not parse(text).enough(count)


def test_stages_may_be_objects() -> None:
    assert Aggregation([Trimmed(2)]) == parse(Trimmed(2)) == parse("trimmed:2")
    with pytest.raises(ConfigError, match="no list of rules"):
        parse([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="aggregate is a int"):
        parse(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Bound(0.0), "tau = 0.0 must be above 0"),
        (lambda: Bound(1.0, -1.0), "deviation = -1.0 must not be negative"),
        (lambda: Shorten(0.0), "tau = 0.0 must be above 0"),
        (lambda: CenteredClip(0.0), "tau = 0.0 must be above 0"),
        (lambda: CenteredClip(1.0, 0), "iterations = 0 must be at least 1"),
        (lambda: Smoothed(0), "iterations = 0 must be at least 1"),
        (lambda: Smoothed(1, 0.0), "nu = 0.0 must be above 0"),
        (lambda: Flame(-0.1), "share = -0.1 must not be negative"),
        (lambda: Groups(1), "k = 1 must be at least 2"),
        (lambda: Bucket(0), "s = 0 must be at least 1"),
        (lambda: MultiKrum(1, 0), "m = 0 must be at least 1"),
        (lambda: Aggregation([Trimmed(-1)]), "f = -1, and nobody lies less than never"),
    ],
)
def test_objects_are_held_to_what_texts_are(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert says in caught.value.message and caught.value.hint
