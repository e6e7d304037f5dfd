"""Labels kept from hosts: MARVELL's noise is the least, its bound holds, and without protection hosts read labels."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.optimize import minimize

from atoll.privacy.source import Source
from atoll.vertical.figures import auc
from atoll.vertical.protocol import Progress
from atoll.vertical.side import Side
from atoll.vertical.splitnn import Noise, SplitNN, attacks, auc_bound, least_noise
from atoll.vertical.splitnn.labels import Marvell, MaxNorm, responses, truthful
from atoll.vertical.splitnn.marvell import enough_noise, kl_for
from tests.vertical.split_runs import asked, heard, learn, made, real, sides, whole

# --- the optimisation -----------------------------------------------------------------------------------------------


def objective(z: Any, u: float, v: float, gap: float, d: int) -> float:
    """f of the noise's variances (along and across D, of positive and negative rows), as it stands in the paper."""
    along1, across1, along0, across0 = z
    one = (d - 1) * (across0 + u) / (across1 + v) + (d - 1) * (across1 + v) / (across0 + u)
    return float(one + (along0 + u + gap) / (along1 + v) + (along1 + v + gap) / (along0 + u))


def power(z: Any, p: float, d: int) -> float:
    """What the noise's squared length is in the mean."""
    return float(p * (z[0] + (d - 1) * z[1]) + (1 - p) * (z[2] + (d - 1) * z[3]))


def variances(noise: Noise) -> list[float]:
    return [noise.along[1], noise.across[1], noise.along[0], noise.across[0]]


positive = some.floats(1e-3, 1e3)


@settings(deadline=None, max_examples=60)
@given(positive, positive, positive, some.floats(0.01, 0.99), some.integers(2, 64), some.floats(1e-3, 1e2))
def test_no_other_noise_of_that_power_hides_more(
    u: float, v: float, gap: float, p: float, d: int, share: float
) -> None:
    """Against sequential quadratic programming, at the power that its answer has really used."""
    budget = share * gap
    found = minimize(
        objective,
        np.array([0.3, 0.1, 0.3, 0.1]) * budget / d,
        args=(u, v, gap, d),
        bounds=[(0, None)] * 4,
        constraints=[
            {"type": "ineq", "fun": lambda z: (budget - power(z, p, d)) / budget},
            {"type": "ineq", "fun": lambda z: (z[0] - z[1]) / budget},
            {"type": "ineq", "fun": lambda z: (z[2] - z[3]) / budget},
        ],
        method="SLSQP",
        options={"maxiter": 200, "ftol": 1e-13},
    )
    theirs = np.maximum(found.x, 0)
    theirs[0], theirs[2] = max(theirs[0], theirs[1]), max(theirs[2], theirs[3])
    ours = least_noise(u, v, gap, p, d, power(theirs, p, d))
    assert objective(variances(ours), u, v, gap, d) <= objective(theirs, u, v, gap, d) * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(positive, positive, positive, some.floats(0.01, 0.99), some.integers(1, 64), some.floats(1e-3, 1e2))
def test_the_noise_keeps_to_its_power_and_says_what_is_left(
    u: float, v: float, gap: float, p: float, d: int, share: float
) -> None:
    noise = least_noise(u, v, gap, p, d, share * gap)
    z = variances(noise)
    assert min(z) >= 0
    if d > 1:
        assert z[0] >= z[1] * (1 - 1e-9) and z[2] >= z[3] * (1 - 1e-9)
    assert power(z, p, d) == pytest.approx(share * gap, rel=1e-6, abs=1e-13 * (u + v) * d)
    assert noise.kl == pytest.approx(objective(z, u, v, gap, d) / 2 - d, rel=1e-6, abs=1e-9 * d)
    assert least_noise(v, u, gap, 1 - p, d, share * gap).kl == pytest.approx(noise.kl, rel=1e-9, abs=1e-12)
    assert least_noise(u, v, gap, p, d, 2 * share * gap).kl <= noise.kl + 1e-9


def test_with_equal_variances_the_noise_lies_along_the_difference_alone() -> None:
    """u = v, p = 1/2: a = A = u + P by symmetry, and KL = |D|^2 / (u + P)."""
    noise = least_noise(0.5, 0.5, 2.0, 0.5, 8, 3.5)
    assert noise.across == (0, 0)
    assert noise.along == pytest.approx((3.5, 3.5))
    assert noise.kl == pytest.approx(2.0 / 4.0)


def test_the_bound_is_no_bound_from_four_on() -> None:
    assert auc_bound(0) == 0.5
    assert auc_bound(1) == 0.875
    assert auc_bound(4) == auc_bound(9) == 1.0
    assert auc_bound(3.999999) == pytest.approx(1.0, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(positive, positive, positive, some.floats(0.01, 0.99), some.integers(2, 64), some.floats(0.51, 0.99))
def test_a_bound_that_is_asked_for_is_kept_with_the_least_power(
    u: float, v: float, gap: float, p: float, d: int, bound: float
) -> None:
    kl = kl_for(bound)
    assert auc_bound(kl) == pytest.approx(bound, abs=1e-9)
    noise = enough_noise(u, v, gap, p, d, kl)
    assert noise.kl <= kl
    used = power(variances(noise), p, d)
    if used > 1e-6 * (u + v):
        assert least_noise(u, v, gap, p, d, 0.999 * used).kl > kl


def test_normal_gradients_leak_no_more_than_the_bound() -> None:
    """The best guess by the likelihood ratio of two normal distributions, which the bound is about."""
    chance = torch.Generator().manual_seed(0)
    d, rows, p = 6, 20_000, 0.1
    mean = torch.zeros(d)
    mean[0] = 1.5
    y = torch.rand(rows, generator=chance) < p
    draw = torch.randn(rows, d, generator=chance)
    g = torch.where(y[:, None], mean + 0.8 * draw, 0.3 * draw)
    shield = Marvell(2.0)
    sent = shield(g, y, Source.repeatable(1).at("test")).double()
    noise, direction = shield.last or (None, None)
    assert noise is not None and direction is not None
    ratio = torch.zeros(rows, dtype=torch.float64)
    for sign, rows_of, var, at in ((1, y, 0.64, 1), (-1, ~y, 0.09, 0)):
        centre = g[rows_of].double().mean(0)
        spread = (noise.along[at] - noise.across[at]) * torch.outer(direction, direction)
        spread = spread + (noise.across[at] + var) * torch.eye(d, dtype=torch.float64)
        each = torch.distributions.MultivariateNormal(centre, spread)
        ratio += sign * each.log_prob(sent)
    bound = auc_bound(noise.kl)
    best = auc(y.double().numpy(), ratio.numpy())
    assert 0.6 < best < bound < 0.9
    bare = auc(y.double().numpy(), g.norm(dim=1).double().numpy())
    assert bare > 0.97


def test_noise_has_the_covariance_that_was_solved_for() -> None:
    g = torch.zeros(40_000, 3)
    y = torch.arange(40_000) % 4 == 0
    g[y] = torch.tensor([1.0, 1.0, 0.0])
    g = g + torch.where(y[:, None], 0.5, 0.1) * torch.randn(
        g.shape, generator=torch.Generator().manual_seed(1)
    )
    shield = Marvell(3.0)
    added = (shield(g, y, Source.repeatable(2).at("test")) - g).double()
    assert shield.last is not None
    noise, direction = shield.last
    assert noise.across[0] > 0.05
    for at, rows in ((0, ~y), (1, y)):
        due = (noise.along[at] - noise.across[at]) * torch.outer(direction, direction)
        due = due + noise.across[at] * torch.eye(3)
        assert torch.allclose(torch.cov(added[rows].T), due, atol=0.05 * float(due.trace()))
    gap = float((g[y].mean(0) - g[~y].mean(0)).square().sum())
    assert float(added.square().sum(1).mean()) == pytest.approx(3.0 * gap, rel=0.03)


def test_a_batch_of_one_class_is_blurred_as_the_one_before() -> None:
    chance = torch.Generator().manual_seed(0)
    g, y = torch.randn(64, 4, generator=chance), torch.arange(64) % 4 == 0
    g[y] += 3
    for known in (False, True):
        shield = Marvell(4.0)
        if known:
            shield(g, y, Source.repeatable(1).at("test"))
        added = shield(g, torch.zeros(64, dtype=torch.bool), Source.repeatable(2).at("test")) - g
        assert float(added.norm(dim=1).min()) > 0
    assert (shield.kl() > 0, shield.last, shield.kl()) == (True, None, 0.0)
    zero = Marvell(4.0)(torch.zeros(8, 3), torch.arange(8) < 2, Source.repeatable(1).at("test"))
    assert float(zero.abs().max()) < 1e-100


def test_max_norm_makes_all_gradients_as_long_as_the_longest_in_the_mean() -> None:
    g = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 1.0], [0.0, 0.0]]).repeat(5000, 1)
    sent = MaxNorm()(g, torch.zeros(len(g), dtype=torch.bool), Source.repeatable(3).at("test"))
    square = sent.double().square().sum(1).reshape(-1, 4).mean(0)
    assert torch.allclose(square, torch.full((4,), 25.0, dtype=torch.float64), rtol=0.06)
    assert torch.equal(sent[::4], g[::4])
    cosine = torch.cosine_similarity(sent, g, dim=1).reshape(-1, 4)[:, :3].abs()
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-5)


# --- randomised response --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_responses_keep_the_odds_of_epsilon(classes: int) -> None:
    epsilon, count = 1.0, 60_000
    truth = np.full(count, classes - 1.0)
    found = Counter(responses(truth, classes, epsilon, Source()).tolist())
    assert set(found) == set(range(classes))
    keep = truthful(epsilon, classes)
    assert keep / ((1 - keep) / (classes - 1)) == pytest.approx(math.e)
    for value in range(classes):
        share = keep if value == classes - 1 else (1 - keep) / (classes - 1)
        assert found[value] / count == pytest.approx(share, abs=5 * math.sqrt(share / count))


def test_labels_that_may_be_wrong_are_the_same_in_all_epochs_and_others_in_each_run() -> None:
    y = np.zeros(200)
    source = Source()
    assert (responses(y, 2, 1.0, source) == responses(y, 2, 1.0, Source(source.key))).all()
    assert (responses(y, 2, 1.0, source) != responses(y, 2, 1.0, Source())).any()
    guest, hosts = made()
    how = SplitNN(epochs=1, labels="response:1")
    one, two = (learn(how, guest, hosts).results["guest"].key for _ in range(2))
    assert not torch.equal(one, two)
    assert "key" not in learn(SplitNN(epochs=1), guest, hosts).results["guest"]


# --- a run on data where positive rows are rare ---------------------------------------------------------------------

ROWS = 4000


@cache
def rare() -> tuple[Side, Side, Side, Side]:
    """default_credit with 10 % positive rows to learn from, and 5000 other rows."""
    guest, host = sides("default_credit")
    assert guest.y is not None
    chance = np.random.default_rng(0)
    some_of = [chance.permutation(np.flatnonzero(guest.y == each)) for each in (0, 1)]
    rows = np.sort(np.concatenate([some_of[0][: ROWS * 9 // 10], some_of[1][: ROWS // 10]]))
    rest = chance.permutation(np.setdiff1d(np.arange(len(guest)), rows))[:5000]
    return guest.take(rows), host.take(rows), guest.take(rest), host.take(rest)


@cache
def attacked(labels: str | None) -> dict[str, float]:
    """What attacks find in the batches of a run, its own figures, and how good the model is."""
    guest, host, more, theirs = rare()
    how = SplitNN(epochs=6, batch=500, lr=0.01, labels=labels, noise_seed=1)
    figures: dict[str, float] = {}
    progress = Progress(tell=lambda _, __, said: figures.update(said))
    played = learn(how, guest, [host], begin={"guest": progress})
    found: dict[str, list[float]] = {"norm": [], "direction": []}
    assert guest.y is not None and more.y is not None
    for epoch, batch, g in heard(played, "split.gradient", how, ROWS):
        if epoch:  # first gradients are of a top that knows nothing
            y = guest.y[batch.numpy()]
            found["norm"].append(attacks.norm_attack(g, y))
            found["direction"].append(attacks.direction_attack(g, y))
    score = asked(how, more, {"host": theirs}, played.results)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    norms = whole(played, "split.gradient", how, ROWS).norm(dim=2)[1:]
    every = attacks.leak(guest.y, norms.mean(0).double().numpy())
    return {**figures, **means, "all": every, "auc": auc(more.y, score)}


@real
def test_marvell_brings_the_leak_from_above_0_9_to_within_its_bound() -> None:
    bare, kept = attacked(None), attacked("marvell:4")
    assert bare["norm"] > 0.9
    assert bare["direction"] > 0.9
    assert "leak_bound" not in bare
    assert kept["norm"] < kept["leak_bound"] < 0.8
    assert kept["direction"] < kept["leak_bound"]
    assert bare["leak"] > 0.9 > 0.6 > kept["leak"]
    assert kept["all"] < kept["leak_bound_all"]
    assert kept["leak_bound"] < kept["leak_bound_all"]
    asked = attacked("marvell:bound=0.65")
    assert asked["norm"] < asked["leak_bound"] <= 0.65
    assert asked["direction"] < 0.65
    assert kept["auc"] > 0.6


@real
def test_more_power_leaks_less_and_max_norm_hides_norms_but_not_directions() -> None:
    little, much, longest = attacked("marvell:1"), attacked("marvell:10"), attacked("max_norm")
    assert much["norm"] < little["norm"] - 0.03
    assert much["leak_bound"] < little["leak_bound"]
    assert longest["norm"] < 0.7 < longest["direction"]
    assert little["auc"] > 0.62


@real
def test_labels_that_may_be_wrong_bound_what_any_attack_finds() -> None:
    """Whoever knows all responses has an AUC of at most what the odds of one give."""
    found = attacked("response:1")
    guest = rare()[0]
    assert guest.y is not None
    best = attacks.leak(guest.y, responses(guest.y, 2, 1.0, Source.repeatable(1)))
    assert found["norm"] < best + 0.02 < 0.8
    assert found["label_epsilon"] == 1.0
