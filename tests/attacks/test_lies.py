"""Lies against their definitions, written down once more in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from atoll.attacks import ALIE, IPM, Mimic, MinMax, MinSum, OptimalALIE, OptimalIPM, Scaling, Seen, SignFlip
from atoll.attacks.alie import most
from atoll.attacks.attack import KNOWN, attack
from atoll.attacks.lie import Lie, worst

Rows = NDArray[np.float64]


def seen(
    others: Rows, liars: int = 2, own: Rows | None = None, harm: Callable[[Any], float] = lambda _: 0.0
) -> Seen:
    own = others[0] if own is None else own
    return Seen(torch.tensor(own), torch.tensor(others), liars, 0.2, torch.tensor(7), harm)


def sent(lie: Lie, *args: Any, **more: Any) -> Rows:
    return lie.sent(seen(*args, **more)).numpy()


honest = st.integers(0, 2**32 - 1).map(
    lambda seed: (
        np.random.default_rng(seed).normal(size=(3 + seed % 6, 1 + seed % 9)) * 10.0 ** (seed % 5 - 2)
    )
)


@settings(deadline=None, max_examples=30)
@given(honest)
def test_lies_are_what_their_formulas_say(others: Rows) -> None:
    mean, off, own = others.mean(0), others.std(0), others[-1]
    for lie, expected in (
        (SignFlip(3.0), -3 * own),
        (Scaling(2.5), 2.5 * own),
        (Scaling(), 5 * own),
        (IPM(0.4), -0.4 * mean),
        (ALIE(1.5), mean - 1.5 * off),
        (Mimic(2), others[1]),
        (Mimic(99), others[-1]),
    ):
        np.testing.assert_allclose(sent(lie, others, own=own), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("clients", "liars"), [(50, 24), (50, 10), (20, 4), (11, 5), (101, 30)])
def test_the_z_of_a_little_is_the_papers(clients: int, liars: int) -> None:
    share = (clients - liars - (math.floor(clients / 2 + 1) - liars)) / (clients - liars)
    z = most(clients, liars)
    assert 0.5 * (1 + math.erf(z / math.sqrt(2))) == pytest.approx(max(share, 0.5))
    others = np.random.default_rng(clients).normal(size=(clients - liars, 4))
    np.testing.assert_allclose(sent(ALIE(), others, liars), others.mean(0) - z * others.std(0))


def test_the_z_of_the_papers_example() -> None:
    """n = 50, m = 24: s = 2, and 24 of 26 lie below z_max."""
    assert most(50, 24) == pytest.approx(1.4261, abs=1e-4)
    assert most(20, 1) == 0.0
    assert math.isfinite(most(5, 4)) and most(3, 3) == 0.0


@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
@settings(deadline=None, max_examples=20)
@given(honest)
def test_min_max_goes_as_far_as_two_of_them_are_apart(direction: Any, others: Rows) -> None:
    apart = np.linalg.norm(others[:, None] - others[None], axis=2)
    lie = sent(MinMax(direction), others)
    assert np.linalg.norm(others - lie, axis=1).max() == pytest.approx(apart.max(), rel=1e-6)
    _on_the_way(direction, others, lie)
    lie = sent(MinSum(direction), others)
    most_of_one = np.square(apart).sum(1).max()
    assert np.square(others - lie).sum() == pytest.approx(most_of_one, rel=1e-6)
    _on_the_way(direction, others, lie)


def _on_the_way(direction: str, others: Rows, lie: Rows) -> None:
    """Whether a lie is the mean and something in the direction that it is to go."""
    mean = others.mean(0)
    way = {"std": -others.std(0), "unit": -mean / np.linalg.norm(mean), "sign": -np.sign(mean)}[direction]
    gone = (lie - mean) @ way / (way @ way)
    assert gone >= 0
    np.testing.assert_allclose(lie, mean + gone * way, rtol=1e-6, atol=1e-9 * np.abs(others).max())


def test_nobody_can_go_anywhere_where_all_are_alike() -> None:
    others = np.ones((4, 3))
    for lie in (MinMax(), MinSum(), MinMax("unit"), ALIE()):
        np.testing.assert_allclose(sent(lie, others), np.ones(3))


def test_noise_has_an_address() -> None:
    lie, others = attack("gaussian:0.5").lie, np.zeros((2, 4000))
    assert lie is not None
    one = lie.sent(seen(others))
    assert torch.equal(one, lie.sent(seen(others)))
    assert not torch.equal(one, lie.sent(seen(others)._replace(key=torch.tensor(8))))
    assert float(one.std()) == pytest.approx(0.5, rel=0.05) and abs(float(one.mean())) < 0.05


def test_infinity_is_as_large_as_a_reply_may_be() -> None:
    lie = attack("infinity").lie
    assert lie is not None
    found = lie.sent(seen(np.zeros((2, 3)).astype(np.float32)))
    assert found.isfinite().all() and found.square().isinf().all()


# --- against a rule -------------------------------------------------------------------------------------------------


def trimmed(others: Rows, liars: int, lie: Rows) -> Rows:
    """The trimmed mean of a round in which all liars send the same."""
    rows = np.sort(np.concatenate([others, np.tile(lie, (liars, 1))]), axis=0)
    return rows[liars:-liars].mean(0)  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=20)
@given(honest)
def test_who_knows_the_rule_does_no_less_harm(others: Rows) -> None:
    def harm(lie: Any) -> float:
        return float(np.linalg.norm(trimmed(others, 1, np.asarray(lie)) - others.mean(0)))

    z = most(len(others) + 1, 1)
    for fixed, optimal in ((IPM(), OptimalIPM()), (ALIE(z), OptimalALIE())):
        assert harm(sent(optimal, others, 1, harm=harm)) >= harm(sent(fixed, others, 1)) - 1e-12


def test_the_search_finds_the_top_of_a_hill() -> None:
    assert worst(lambda x: -((x - 3.0) ** 2), 0.1, tries=40) == pytest.approx(3.0, abs=1e-3)
    assert worst(lambda x: -x, 0.5, tries=40) == pytest.approx(0.0, abs=1e-3)
    assert worst(lambda x: x, 1.0, tries=5) == 32.0
    assert worst(lambda _: math.nan, 1.0) == 1.0


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_every_part_reads_as_it_is_written(name: str) -> None:
    needed = ":1" if any(not each.optional for each in KNOWN[name].parameters) else ""
    made = attack(f"{name}{needed}")
    assert made.text == f"{name}{needed}" and attack(made.text) == made == attack(list(made.parts))
    assert hash(made) == hash(attack(made.text))


def test_settings_are_written_where_they_are_not_the_usual_ones() -> None:
    for text in (
        "signflip:2",
        "labelflip:7,1",
        "backdoor:0,0.2,4 + scaling:10",
        "dba:3,size=2",
        "minsum:unit",
    ):
        assert attack(text).text == text
    assert attack("backdoor:0,0.5").text == "backdoor:0"
