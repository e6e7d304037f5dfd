"""What parties can make of what they were sent: attacks that succeed, and what noise on embeddings leaves of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import ndtr

from atoll.errors import DataError
from atoll.privacy.source import Source
from atoll.vertical.figures import auc
from atoll.vertical.protocol import Progress
from atoll.vertical.side import Side
from atoll.vertical.splitnn import SplitNN, attacks
from atoll.vertical.splitnn.embeddings import Blur, spent
from atoll.vertical.splitnn.nets import Scale, built, own_seed
from tests.vertical.split_runs import BINARY, asked, divided, learn, real, sides, whole

# --- labels ---------------------------------------------------------------------------------------------------------


def test_leaks_are_of_either_end() -> None:
    y = np.array([0.0, 0, 1, 1])
    assert attacks.leak(y, np.array([4.0, 3, 2, 1])) == attacks.leak(y, np.array([1.0, 2, 3, 4])) == 1
    assert attacks.leak(y, np.ones(4)) == 0.5
    g = torch.tensor([[0.1, 0.0], [-0.1, 0.1], [2.0, 0.0], [0.0, 3.0]])
    assert attacks.norm_attack(g, y) == 1
    opposite = torch.tensor([[-1.0, 0.1], [-2.0, 0.0], [1.0, 0.2], [3.0, 0.1]])
    assert attacks.direction_attack(opposite, y) == 1
    assert attacks.norm_attack(opposite, np.array([1.0, 0, 0, 1])) == 0.5


@real
def test_a_trained_bottom_and_a_few_labels_complete_the_model() -> None:
    guest, host = sides("breast")
    assert guest.y is not None
    how = SplitNN(epochs=15, batch=64)
    h = whole(learn(how, guest, [host]), "split.embedding", how, 569)
    known = [*np.flatnonzero(guest.y == 1)[:4], *np.flatnonzero(guest.y == 0)[:4]]
    trained = attacks.completion(h[-1], guest.y, known)
    assert trained > 0.95
    noise = torch.randn(h[-1].shape, generator=torch.Generator().manual_seed(0))
    assert attacks.completion(noise, guest.y, known) < 0.65
    with pytest.raises(DataError, match="both classes"):
        attacks.completion(h[-1], guest.y, known[:4])


# --- columns --------------------------------------------------------------------------------------------------------


def linear(**settings: Any) -> tuple[Side, torch.Tensor, torch.Tensor, float]:
    """A host with a linear bottom and plain SGD: its side, all embeddings and gradients, and its step size."""
    chance = np.random.default_rng(1)
    host = Side(chance.normal(size=(24, 5)), tuple("abcde"))
    mine = chance.normal(size=(24, 2))
    y = (host.x[:, 0] + mine[:, 0] + 0.5 * chance.normal(size=24) > 0).astype(float)
    how = SplitNN(
        bottom="logistic", top="mlp:32", width=8, epochs=40, batch=24, optimizer="sgd", lr=1.0, **settings
    )
    played = learn(how, Side(mine, ("a", "b"), y), [host])
    h, g = (whole(played, f"split.{what}", how, 24) for what in ("embedding", "gradient"))
    return host, h, g, how.lr


def test_steps_of_a_linear_bottom_give_the_inner_products_of_its_rows() -> None:
    host, h, g, lr = linear()
    x = Scale.of(host.x)(host.x).double()
    due = x @ x.T + 1  # the bias
    found = attacks.gram(h, g[:-1], lr)
    assert float((found - due).norm() / due.norm()) < 1e-3
    _, blurred, slopes, _ = linear(clip=5.0, noise=0.1, noise_seed=1)
    found = attacks.gram(blurred, slopes[:-1], lr)
    assert float((found - due).norm() / due.norm()) > 0.5


def test_a_few_known_rows_invert_a_linear_bottom_and_noise_hides_them() -> None:
    host, h, _, _ = linear()
    x = Scale.of(host.x)(host.x)
    known = range(12)
    assert attacks.explained(x, attacks.inversion(h[0], x, known), known) > 0.9999
    # Three numbers of five: one epoch is too little, and three are enough.
    assert attacks.explained(x, attacks.inversion(h[0][:, :3], x, known), known) < 0.9
    assert attacks.explained(x, attacks.inversion(h[:10, :, :3], x, known, 1e-9), known) > 0.99
    _, blurred, _, _ = linear(clip=2.0, noise=1.0, noise_seed=1)
    assert attacks.explained(x, attacks.inversion(blurred[0], x, known, 0.1), known) < 0.3


def test_first_embeddings_are_open_to_who_can_draw_the_same_weights_and_nobody_can() -> None:
    host, h, _, _ = linear()
    x = Scale.of(host.x)(host.x)

    def solved(seed: int) -> float:
        """What of the columns is found with the weights that a seed gives."""
        with SplitNN().first(seed):
            layer = built("logistic", 5, 8)
        weight, bias = (value.detach() for value in layer.parameters())
        guess = (h[0] - bias) @ torch.linalg.pinv(weight.T)
        return attacks.explained(x, guess, ())

    stranger = Side(np.zeros((24, 0)), (), np.zeros(24))
    assert solved(own_seed(0, host)) > 0.9999
    assert solved(own_seed(0, stranger)) < 0.5
    assert solved(0) < 0.5


# --- noise on embeddings --------------------------------------------------------------------------------------------


def test_embeddings_are_no_longer_than_the_clip_and_have_the_noise_that_is_said() -> None:
    h = torch.tensor([[3.0, 4.0], [0.3, 0.4]]).repeat(20_000, 1)
    blur = Blur(2.0, 0.7)
    bound = blur.bound(h)
    assert torch.allclose(bound[:2], torch.tensor([[1.2, 1.6], [0.3, 0.4]]))
    added = (blur.noised(bound, Source().at("test")) - bound).double()
    assert float(added.std()) == pytest.approx(1.4, rel=0.02)
    assert float(added.mean()) == pytest.approx(0, abs=0.03)
    assert torch.equal(Blur(2.0, 0).noised(bound, Source().at("test")), bound)
    _, sent, _, _ = linear(clip=0.5)
    assert float(sent.norm(dim=2).max()) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("noise", "epochs"), [(4.0, 1), (10.0, 20)])
def test_epsilon_is_that_of_as_many_gaussian_mechanisms_with_sensitivity_two_clips(
    noise: float, epochs: int
) -> None:
    """By hand: Balle and Wang 2018, theorem 8, with mu = 2 sqrt(T) / noise; and below the Renyi bound."""
    delta, mu = 1e-5, 2 * math.sqrt(epochs) / noise

    def above(eps: float) -> float:
        return float(ndtr(mu / 2 - eps / mu) - math.exp(eps) * ndtr(-mu / 2 - eps / mu)) - delta

    due = brentq(above, 1e-6, 100)
    found = spent(noise, 1000, epochs, delta)
    assert found == pytest.approx(due, rel=1e-6)
    orders = np.linspace(1.01, 200, 20_000)
    renyi = np.min(epochs * orders * 4 / (2 * noise**2) + math.log(1 / delta) / (orders - 1))
    assert 0.6 * renyi < found < renyi
    assert spent(noise / 2, 1000, epochs, delta) > found
    assert spent(noise, 1000, epochs + 1, delta) > found


def test_epsilon_is_told_by_both_sides_and_noise_comes_from_the_operating_system() -> None:
    chance = np.random.default_rng(0)
    guest = Side(chance.normal(size=(60, 1)), ("a",), (chance.random(60) > 0.5).astype(float))
    host = Side(chance.normal(size=(60, 3)), ("b", "c", "d"))
    said: dict[str, list[Any]] = {"guest": [], "host": []}
    begin = {
        name: Progress(tell=lambda _, __, figures, to=to: to.append(figures.get("epsilon")))
        for name, to in said.items()
    }
    how = SplitNN(epochs=3, batch=20, clip=1.0, noise=2.0, delta=1e-3)
    one = learn(how, guest, [host], begin=begin)
    assert said["guest"] == said["host"] == [spent(2.0, 60, epochs, 1e-3) for epochs in (1, 2, 3)]
    two = learn(how, guest, [host])
    first, second = (whole(run, "split.embedding", how, 60)[0] for run in (one, two))
    assert not torch.equal(first, second)
    both = [
        learn(SplitNN(epochs=1, batch=20, clip=1.0, noise=2.0, noise_seed=7), guest, [host]) for _ in range(2)
    ]
    assert torch.equal(*(run.results["host"].net.params.flat() for run in both))
    # The same rows asked for twice get other noise.
    scores = [asked(how, guest, {"host": host}, one.results) for _ in range(2)]
    assert (scores[0] != scores[1]).any()


@real
def test_two_hundred_known_rows_give_most_of_the_columns_of_the_others_but_for_noise() -> None:
    guest, host = (side.take(slice(0, 2000)) for side in sides("default_credit"))
    x, known = Scale.of(host.x)(host.x), range(200)
    found = {}
    for name, more in {"bare": {}, "noisy": {"clip": 1.0, "noise": 1.0, "noise_seed": 1}}.items():
        how = SplitNN(epochs=3, batch=64, **more)
        h = whole(learn(how, guest, [host]), "split.embedding", how, 2000)
        found[name] = attacks.explained(x, attacks.inversion(h, x, known, 1e-2), known)
    assert found["bare"] > 0.7
    assert found["noisy"] < 0.1


@real
def test_with_noise_the_model_is_still_better_than_chance() -> None:
    guest, host = sides("breast")
    assert guest.y is not None
    train, test = divided(guest.y)
    guest_only = Side(np.zeros((len(guest), 0)), (), guest.y)
    how = SplitNN(epochs=10, batch=64, lr=0.01, clip=1.0, noise=1.0, noise_seed=3)
    halves = learn(how, guest_only.take(train), [host.take(train)]).results
    found = auc(guest.y[test], asked(how, guest_only.take(test), {"host": host.take(test)}, halves, BINARY))
    assert found > 0.85
