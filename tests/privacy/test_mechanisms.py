"""Noise is what it is said to be: moments, probabilities, matrices, and what one participant can change."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from atoll.errors import ConfigError
from atoll.privacy import factorised
from atoll.privacy.mechanisms import (
    Banded,
    Tree,
    discrete_gaussian,
    gaussian,
    laplace,
    next_clip,
    noised,
    noisy_fraction,
    rounded,
    rounded_l1,
    rounded_l2,
    skellam,
    split,
)  # fmt: skip
from atoll.privacy.source import Draws, Source
from atoll.tensors import Tensors

SOURCE = Source.repeatable(5)
LIKE = Tensors({"w": torch.zeros(300, 100), "b": torch.zeros(7, dtype=torch.float64), "s": torch.zeros(())})


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_secret_unless_asked() -> None:
    one, other = Source(), Source()
    assert one.private and one.key != other.key and one.name != other.name
    assert one.key.hex() not in repr(one) and one.key.hex()[:8] not in one.name
    again = Source(one.key)
    assert (again.at("a", 1).words(5) == one.at("a", 1).words(5)).all()
    assert not Source.repeatable(3).private
    assert Source.repeatable(3).key == Source.repeatable(3).key != Source.repeatable(-3).key
    with pytest.raises(ConfigError, match="32 bytes"):
        Source(b"short")


def test_every_address_has_draws_of_its_own() -> None:
    addresses = [("a",), ("a", 0), ("a", 1), ("a", 0, 0), ("b", 1), ("a1",), ("", 1)]
    seen = [tuple(SOURCE.at(*each).words(4)) for each in addresses]  # type: ignore[arg-type]
    draws = SOURCE.at("a")
    seen += [tuple(draws.words(4)), tuple(draws.words(4))]
    assert len(set(seen)) == len(seen) - 1  # the first of ("a",) twice


def test_whole_numbers_below_a_bound_are_fair() -> None:
    draws = SOURCE.at("below")
    assert np.bincount(draws.below(np.full(60_000, 6)), minlength=6) == pytest.approx(10_000, abs=500)
    large = draws.below(np.full(40_000, 3 * 2**61))  # two words in eight are drawn again
    assert large.max() < 3 * 2**61 and float(np.mean(large < 2**61)) == pytest.approx(1 / 3, abs=0.012)


# --- real numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [SOURCE.at("real"), torch.tensor(987654321)])
@pytest.mark.parametrize(("draw", "moments"), [(gaussian, (1.0, 3.0, 0.6827)), (laplace, (2.0, 6.0, 0.6321))])
def test_moments(
    draw: Callable[..., Tensors], moments: tuple[float, float, float], key: Draws | torch.Tensor
) -> None:
    found = draw(LIKE, 3.0, key)
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in LIKE.items()
    }
    x = found["w"].double().flatten() / 3
    variance, kurtosis, within = moments
    assert float(x.mean()) == pytest.approx(0, abs=0.03)
    assert float(x.var()) == pytest.approx(variance, rel=0.05)
    assert float((x**4).mean() / x.var() ** 2) == pytest.approx(kurtosis, rel=0.12)
    assert float((x.abs() < 1).double().mean()) == pytest.approx(within, abs=0.01)
    assert abs(float((x[1:] * x[:-1]).mean())) < 0.05
    assert found["w"].dtype == (torch.float32 if isinstance(key, torch.Tensor) else torch.float64)


def test_noise_by_an_address_is_pure_and_may_be_batched() -> None:
    like = Tensors({"w": torch.zeros(3, 2), "v": torch.zeros(6)})
    keys = torch.tensor([11, 12, 13])
    for draw in (gaussian, laplace):
        stacked = torch.vmap(lambda key, draw=draw: dict(draw(like, 2.0, key)))(keys)
        for number, key in enumerate(keys):
            one = draw(like, 2.0, key)
            assert torch.equal(one["w"], stacked["w"][number])
            assert not torch.equal(one["w"].flatten(), one["v"])


def test_noise_is_added_in_double_and_rounded_once() -> None:
    values = Tensors({"w": torch.full((4,), 1e8), "b": torch.ones(2, dtype=torch.float64)})
    noise = Tensors(
        {"w": torch.tensor([3.0, 5.0, 0.1, -3.9]).double(), "b": torch.tensor([1e-12, 0.0]).double()}
    )
    found = noised(values, noise)
    assert found["w"].dtype == torch.float32
    assert found["w"].tolist() == [1e8, 1e8 + 8, 1e8, 1e8]
    assert found["b"].tolist() == [1 + 1e-12, 1.0]


# --- whole numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [Fraction(1, 4), 1, Fraction(10, 3), 50])
def test_the_discrete_normal_has_its_probabilities(variance: Fraction | int) -> None:
    size = 40_000
    found = discrete_gaussian(size, variance, SOURCE.at("discrete", int(variance))).numpy()
    at = np.arange(-60, 61)
    chances = np.exp(-(at**2) / (2 * float(variance)))
    expected = size * chances / chances.sum()
    counts = np.bincount(found + 60, minlength=121)
    often = expected > 8
    surprise = float(((counts[often] - expected[often]) ** 2 / expected[often]).sum())
    assert surprise < often.sum() + 5 * math.sqrt(2 * often.sum())
    assert counts[~often].sum() == pytest.approx(
        expected[~often].sum(), abs=5 + 5 * math.sqrt(expected[~often].sum())
    )


def test_the_discrete_normal_is_drawn_with_whole_numbers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "uniform", None)
    found = discrete_gaussian(20_000, 5000**2, SOURCE.at("large")).double()
    assert float(found.std()) == pytest.approx(5000, rel=0.03)
    for variance in (6000**2, Fraction(10**9, 7**9), 0, -1):
        with pytest.raises(ConfigError):
            discrete_gaussian(1, variance, SOURCE.at("large"))


@pytest.mark.parametrize("variance", [0.5, 9.0, 400.0, 1e8])
def test_skellam_has_its_moments_and_its_sums(variance: float) -> None:
    draws = SOURCE.at("skellam", int(variance))
    x = skellam(40_000, variance, draws).double()
    assert float(x.mean()) == pytest.approx(0, abs=5 * math.sqrt(variance / 40_000))
    assert float(x.var()) == pytest.approx(variance, rel=0.05)
    assert float((x**4).mean() / x.var() ** 2) == pytest.approx(3 + 1 / variance, rel=0.15)
    total = sum(skellam(40_000, variance / 4, draws).double() for _ in range(4))
    assert isinstance(total, torch.Tensor)
    assert float(total.var()) == pytest.approx(variance, rel=0.05)
    with pytest.raises(ConfigError):
        skellam(1, 0.0, draws)


def test_rounding_keeps_the_mean_and_the_bounds() -> None:
    draws = SOURCE.at("rounding")
    value = torch.tensor([0.25, -1.75, 3.0, 0.5])
    many = torch.stack([rounded(value, 4.0, draws, slack=0.0) for _ in range(4000)]).double()
    assert many.mean(0).tolist() == pytest.approx(value.tolist(), abs=0.05)
    assert ((many - value).abs() < 1).all()
    for clip, size in ((0.5, 400), (8.0, 50), (100.0, 1000)):
        x = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
        x *= clip / x.norm()
        found = rounded(x, clip, draws).double()
        l2 = rounded_l2(clip, size)
        assert float(found.norm()) <= l2 <= clip + math.sqrt(size)
        assert float(found.abs().sum()) <= rounded_l1(l2, size)
    for bad in (torch.tensor([5.0]), torch.tensor([math.nan]), torch.tensor([math.inf])):
        with pytest.raises(ConfigError, match="longer than clip"):
            rounded(bad, 4.0, draws)


def test_a_rounding_that_is_too_long_is_drawn_again() -> None:
    x = torch.full((100,), 0.5)
    plain = [float(rounded(x, 5.0, SOURCE.at("plain", k), slack=0.0).double().norm()) for k in range(300)]
    tight = rounded_l2(5.0, 100, slack=0.99)
    assert max(plain) > tight
    assert all(
        float(rounded(x, 5.0, SOURCE.at("plain", k), 0.99).double().norm()) <= tight for k in range(300)
    )


# --- correlated -------------------------------------------------------------------------------------------------------

SMALL = Tensors({"w": torch.zeros(2, 2), "b": torch.zeros(3)})


def tree_rows(count: int) -> list[tuple[int, int]]:
    return [(height, index) for height in range(count.bit_length()) for index in range(count >> height)]


def draws_of(purpose: str, *address: int) -> np.ndarray:
    return gaussian(SMALL, 2.0, SOURCE.at(purpose, *address)).flat().numpy()


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_a_tree_gives_the_best_estimate_of_its_nodes(count: int) -> None:
    """The running sum of each round is the least-variance unbiased estimate from the nodes within its blocks."""
    tree, total = Tree(SOURCE, SMALL, 2.0, count), np.zeros(7)
    for t in range(1, count + 1):
        total = total + tree.noise(t).flat().numpy()
        expected, start = np.zeros(7), 0
        for height in reversed(range(t.bit_length())):
            if t >> height & 1:
                inside = [
                    (h, i) for h, i in tree_rows(count)
                    if h <= height and start <= i << h and (i + 1) << h <= start + (1 << height)
                ]  # fmt: skip
                rows = np.zeros((len(inside), 1 << height))
                for row, (h, i) in zip(rows, inside, strict=True):
                    row[(i << h) - start : ((i + 1) << h) - start] = 1
                weights = np.ones(1 << height) @ np.linalg.pinv(rows)
                expected += sum(w * draws_of("tree", h, i) for w, (h, i) in zip(weights, inside, strict=True))
                start += 1 << height
        assert total == pytest.approx(expected, abs=1e-9)


def test_a_banded_stream_is_the_inverse_matrix_times_independent_noise() -> None:
    count, bands = 11, 4
    first = factorised.root_coefficients(bands)
    matrix = sum(np.diag(np.full(count - k, first[k]), -k) for k in range(bands))
    matrix = matrix / np.linalg.norm(matrix, axis=0)
    z = np.stack([draws_of("banded", t) for t in range(1, count + 1)])
    stream = Banded(SOURCE, SMALL, 2.0, count, bands)
    found = np.stack([stream.noise(t).flat().numpy() for t in range(1, count + 1)])
    assert found == pytest.approx(np.linalg.solve(matrix, z))
    assert len(stream._past) == bands - 1
    plain = Banded(SOURCE, SMALL, 2.0, count, 1)
    assert plain.noise(3).flat().numpy() == pytest.approx(z[2])


@pytest.mark.parametrize(
    "make", [lambda: Tree(SOURCE, SMALL, 2.0, 40), lambda: Banded(SOURCE, SMALL, 2.0, 40, 5)]
)
def test_a_stream_goes_on_from_its_key_at_any_round(make: Callable[[], Tree | Banded]) -> None:
    straight = make()
    noise = [straight.noise(t).flat() for t in range(1, 41)]
    jumping = make()
    for t in (17, 3, 4, 40, 33, 1):
        assert torch.allclose(jumping.noise(t).flat(), noise[t - 1], atol=1e-12)
    for t in (0, 41):
        with pytest.raises(ConfigError, match="not one of the 40"):
            jumping.noise(t)


def test_correlated_noise_cancels_over_rounds() -> None:
    like = Tensors({"w": torch.zeros(4000)})
    spread = {}
    for name, stream in (
        ("tree", Tree(SOURCE, like, 1.0, 64)),
        ("banded", Banded(SOURCE, like, 1.0, 64, 16)),
    ):
        total = sum(stream.noise(t)["w"] for t in range(1, 65))
        assert isinstance(total, torch.Tensor)
        spread[name] = float(total.var())
    assert spread["tree"] == pytest.approx(1 / (2 - 2**-6), rel=0.1)
    assert spread["banded"] < 10  # independent noise: 64
    event = Banded(SOURCE, like, 3.0, 64, 16).event(clip=1.5, separation=16)
    assert (event.noise, event.sensitivity, event.stream) == (2.0, 2.0, SOURCE.name)
    assert Tree(SOURCE, like, 3.0, 64).event(clip=1.5, separation=64).sensitivity == pytest.approx(
        math.sqrt(7)
    )


# --- a clip that adapts -----------------------------------------------------------------------------------------------


def test_a_split_costs_what_it_is_split_from() -> None:
    z, deviation = 1.0, 5.0
    update = split(z, deviation)
    assert update > z
    assert update**-2 + (2 * deviation) ** -2 == pytest.approx(z**-2)  # costs of normal noise add up so
    for bad in (0.5, 0.0, -1.0):
        with pytest.raises(ConfigError, match="larger cohort"):
            split(z, bad)


def test_a_clip_finds_the_quantile_of_norms() -> None:
    rng = np.random.default_rng(0)
    clip = 0.1
    for number in range(200):
        norms = rng.lognormal(1.0, 0.5, size=100)
        within = float(((norms <= clip) - 0.5).sum())
        clip = next_clip(clip, noisy_fraction(within, 100, 5.0, SOURCE.at("fraction", number)))
    assert clip == pytest.approx(math.exp(1.0), rel=0.1)
    assert next_clip(2.0, 0.5) == 2.0
    assert next_clip(2.0, 1.0, quantile=0.5, rate=0.2) == pytest.approx(2.0 * math.exp(-0.1))
    assert noisy_fraction(-50.0, 100, 0.0, SOURCE.at("x")) == 0.0
    assert noisy_fraction(50.0, 100, 0.0, SOURCE.at("x")) == 1.0


# --- what one participant can change ----------------------------------------------------------------------------------


def shown(with_it: np.ndarray, without: np.ndarray, delta: float) -> float:
    """An epsilon that outputs on two neighbouring populations show to be spent, at 99.9 % (Clopper-Pearson)."""
    stats = pytest.importorskip("scipy.stats")
    half = len(with_it) // 2
    cut = np.quantile(with_it[:half], [0.2, 0.5, 0.8])
    best = 0.0
    for at in cut:
        hits, misses = int((with_it[half:] > at).sum()), int((without[half:] > at).sum())
        left = len(with_it) - half
        low = stats.beta.ppf(0.0005, hits, left - hits + 1) if hits else 0.0
        high = stats.beta.ppf(0.9995, misses + 1, left - misses)
        best = max(best, math.log(max(low - delta, 1e-12) / high))
    return best


def test_an_audit_shows_no_more_than_was_said_and_finds_noise_that_is_missing() -> None:
    pytest.importorskip("dp_accounting")
    from atoll.privacy import DiscreteGaussian, Event, Gaussian, Laplace, Skellam, epsilon

    size, delta = 40_000, 1e-5
    like = Tensors({"x": torch.zeros(size)})
    l2 = 12
    cases: list[tuple[Event, float, Callable[[Draws], torch.Tensor]]] = [
        (Gaussian(noise=1.0), 1.0, lambda d: gaussian(like, 1.0, d)["x"]),
        (Laplace(noise=1.0), 1.0, lambda d: laplace(like, 1.0, d)["x"]),
        (
            DiscreteGaussian(share=12.0, shares=1, l2=l2, dimension=1),
            l2,
            lambda d: discrete_gaussian(size, 144, d),
        ),
        (Skellam(deviation=12.0, l1=l2, l2=l2), l2, lambda d: skellam(size, 144, d)),
    ]
    for number, (event, clip, draw) in enumerate(cases):
        without = draw(SOURCE.at("without", number)).double().numpy()
        with_it = (
            clip + draw(SOURCE.at("with", number)).double().numpy()
        )  # one more, as far as the clip lets it
        said = epsilon([event], delta).epsilon
        assert 0.3 < shown(with_it, without, delta) <= said
        assert (
            shown(clip + 0.1 * (with_it - clip), 0.1 * without, delta) > said
        )  # a tenth of the noise: found out
