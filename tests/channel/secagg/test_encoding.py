"""Updates as whole numbers: vectors, exact means, no overflow, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atoll.channel.secagg import Encoding, ideal
from atoll.errors import ConfigError

F = np.float32


def test_known_answers_with_given_draws() -> None:
    """L = 15, C = 1: x = 0.2 is 1.2 / 2 * 15 = 9 exactly, and 0.25 is 9.375, which a draw from 0.625 on rounds up."""
    encoding = Encoding(6, clip=1.0, bits=4)
    x = np.array([-1, 1, 0.25, 0.25, 7, -7], F)
    draws = np.array([0, 65535, 40959, 40960, 0, 65535], np.uint16)
    assert encoding.quantise(x, 1.0, draws).tolist() == [0, 15, 9, 10, 15, 0, 1]
    heavy = Encoding(2, clip=1.0, bits=4, levels=10, heaviest=5.0)
    assert heavy.quantise(np.array([0.25, 1], F), 2.0, np.array([0, 0], np.uint16)).tolist() == [37, 60, 4]


def test_known_answers_with_a_generator() -> None:
    encoding = Encoding(5, clip=0.5, bits=16, levels=4, heaviest=8.0)
    rng = np.random.Generator(np.random.Philox(1))
    found = encoding.encode(np.array([0.1, -0.2, 0.3, -0.4, 0.5], F), 6.0, rng)
    assert found.tolist() == [117963, 58981, 157284, 19660, 196605, 3]


def test_rounding_is_right_on_average() -> None:
    encoding = Encoding(400_000, clip=1.0, bits=3)
    for x in (0.11, -0.9, 0.999):
        total = encoding.encode(np.full(400_000, x, F), 1.0, np.random.default_rng(5))[:-1]
        exact = (x + 1) / 2 * 7
        assert set(np.unique(total)) <= {int(exact), int(exact) + 1}
        assert abs(total.mean() - exact) < 5 * 0.5 / np.sqrt(400_000)


@given(
    hnp.arrays(F, st.integers(1, 40), elements=st.floats(-3, 3, width=32)), st.integers(1, 16), st.integers(1, 300),
    st.floats(0.001, 1),
)  # fmt: skip
def test_one_update_comes_back_within_a_step(x: np.ndarray, bits: int, levels: int, share: float) -> None:
    encoding = Encoding(len(x), clip=2.0, bits=bits, levels=levels, heaviest=3.0)
    values = encoding.encode(x, 3.0 * share, np.random.default_rng(0))
    assert encoding.fits(values)
    total = ideal(encoding, {"a": values})
    step = 4.0 / (encoding.top * int(values[-1]))
    assert np.abs(total.mean - np.clip(x, -2, 2)).max() <= step * 1.001 + 1e-6
    assert total.weight == pytest.approx(3.0 * max(1, round(share * levels)) / levels)


def test_the_weighted_mean() -> None:
    encoding = Encoding(50_000, clip=0.1, bits=16, levels=256, heaviest=600.0)
    rng = np.random.default_rng(0)
    updates = {f"{k:02d}": rng.normal(0, 0.01, 50_000).astype(F) for k in range(20)}
    weights = dict(zip(updates, rng.integers(1, 601, 20).astype(float), strict=True))
    total = ideal(encoding, {k: encoding.encode(u, weights[k], rng) for k, u in updates.items()})
    rounded = np.array([max(1, round(w / 600 * 256)) for w in weights.values()])
    exact = (rounded[:, None] * np.stack(list(updates.values()))).sum(0) / rounded.sum()
    assert np.linalg.norm(total.mean - exact) / np.linalg.norm(exact) < 1e-5
    assert total.weight == pytest.approx(rounded.sum() * 600 / 256)


def test_sums_that_could_reach_two_to_the_32_are_refused_before_they_are_made() -> None:
    Encoding(1, clip=1.0, bits=16).check(65537)  # 65537 * 65535 = 2^32 - 1
    with pytest.raises(ConfigError, match=r"reach 2\^32"):
        Encoding(1, clip=1.0, bits=16).check(65538)
    with pytest.raises(ConfigError, match="bits=14 has room"):
        Encoding(1, clip=1.0, bits=16, levels=256).check(1000)
    Encoding(1, clip=1.0, bits=14, levels=256).check(1000)
    with pytest.raises(ConfigError, match=r"reach 2\^32"):
        ideal(Encoding(1, clip=1.0, bits=24, levels=200), dict.fromkeys("ab", np.array([1, 1], np.uint32)))


def test_the_largest_sum_is_no_overflow() -> None:
    encoding = Encoding(1, clip=1.0, bits=16, levels=256)
    n = 255
    encoding.check(n)
    top = encoding.encode(np.array([9], F), 1.0, np.random.default_rng(0))
    assert top.tolist() == [256 * 65535, 256]
    assert ideal(encoding, {str(k): top for k in range(n)}).mean.tolist() == [1.0]


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"clip": 0.0}, {"clip": float("nan")}, {"bits": 0}, {"bits": 25}, {"levels": 0}, {"heaviest": -1.0}],
)  # fmt: skip
def test_encodings_that_are_none(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="encoding of updates"):
        Encoding(**{"size": 3, "clip": 1.0, **wrong}).check(2)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.0, -1.0, 2.0000001, float("nan"), float("inf")])
def test_weights_out_of_range(weight: float) -> None:
    with pytest.raises(ConfigError, match="a weight of"):
        Encoding(1, clip=1.0, levels=8, heaviest=2.0).encode(np.zeros(1, F), weight, np.random.default_rng(0))


@pytest.mark.parametrize("x", [[float("nan")], [float("inf")], [1.0, 2.0]])
def test_updates_that_cannot_be_encoded(x: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"not finite|has shape"):
        Encoding(1, clip=1.0).encode(np.array(x, F), 1.0, np.random.default_rng(0))


@pytest.mark.parametrize("values", [[16, 1], [5, 0], [5, 3], [5], [31, 2]])
def test_numbers_that_are_no_update(values: list[int]) -> None:
    encoding = Encoding(1, clip=1.0, bits=4, levels=2)
    assert encoding.fits(np.array([30, 2], np.uint32)) and not encoding.fits(np.array(values, np.uint32))
    assert not encoding.fits(np.array([5, 1], np.int64))
    with pytest.raises(ConfigError, match="no encoded update"):
        ideal(encoding, {"a": np.array(values, np.uint32)})


def test_a_sum_outside_of_its_range_is_none() -> None:
    encoding = Encoding(1, clip=1.0, bits=4, levels=2)
    for sums in ([61, 4], [0, 5], [0, 1], [2**32 - 1, 4]):
        assert encoding.total(np.array(sums, np.uint32), ("a", "b")) is None
    assert encoding.total(np.array([0, 0], np.uint32), ()) is None
    assert encoding.total(np.array([60, 4], np.uint32), ("a", "b")) is not None
