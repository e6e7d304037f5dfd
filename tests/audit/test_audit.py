"""Audits succeed where protection is off, and only there."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import atoll
from atoll.audit import audit, infer, invert, lines, plant, seen, write
from atoll.audit.draw import png
from atoll.audit.inversion import linear_leak
from atoll.audit.membership import area
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.tensors import Tensors, leaves


@cache
def data(name: str = "digits") -> Any:
    if name == "small":  # little to train on, for runs by the dozen
        x = torch.randn(120, 40, generator=torch.Generator().manual_seed(0))
        return atoll.data.from_arrays(x, torch.arange(120) % 10).partition("iid", clients=5)
    return atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=12, alpha=0.5), seed=0)


def mlp() -> nn.Module:
    return atoll.models.mlp(64, 16, 10)


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10))


def federation(channel: Any = None, method: str = "fedavg", model: Any = mlp, **more: Any) -> Federation:
    usual = {"rounds": 3, "cohort": 6, "seed": 1, "device": "cpu", "engine": "loop", "eval_every": 0}
    return Federation(model, data(), method, channel=channel, **{**usual, **more})


# --- inversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "method"),
    [
        (None, "fedavg"),
        (None, "fedsgd"),
        ("clip:0.1", "scaffold"),
        ("clip:0.1", "fednova"),
        ("clip:0.5 | noise:1", "fedavg"),
        ("clip:0.5 | noise:1", "fedsgd"),
    ],
)
def test_a_linear_layer_gives_the_sample_away_and_neither_clip_nor_central_noise_keeps_it(
    channel: str | None, method: str
) -> None:
    found = invert(federation(channel, method))
    assert found.attack == "linear layer"
    assert found.psnr > 40 and found.succeeded and not found.hidden
    torch.testing.assert_close(found.guesses, found.originals, rtol=0, atol=1e-3)


@pytest.mark.parametrize("channel", ["secagg", "clip:0.5 | secagg:20", "clip:0.5 | noise:1 | secagg"])
def test_behind_secure_sums_a_linear_layer_says_nothing(channel: str) -> None:
    found = invert(federation(channel))
    assert found.hidden and not found.succeeded
    assert found.psnr <= found.chance


def test_without_masks_whole_numbers_give_the_sample_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would see it if masks were left off."""
    monkeypatch.setattr("atoll.audit.view.masked", lambda values: values)
    found = invert(federation("clip:0.5 | secagg:20"))
    assert found.psnr > 30 and found.succeeded


def test_gradients_of_convolutions_are_matched_unless_they_are_hidden() -> None:
    bare = invert(federation(model=convolutions), samples=1, steps=200)
    assert bare.attack == "gradient matching"
    assert bare.psnr > 18 > bare.chance + 3 and bare.succeeded
    hidden = invert(federation("secagg", model=convolutions), samples=1, steps=200)
    assert hidden.psnr <= hidden.chance


def test_the_leak_of_a_layer_is_exact() -> None:
    layer, x = nn.Linear(7, 4), torch.randn(1, 7)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None
    torch.testing.assert_close(linear_leak(-0.3 * layer.weight.grad, -0.3 * layer.bias.grad), x[0])


# --- masks ----------------------------------------------------------------------------------------------------------


def numbers(channel: str) -> np.ndarray[Any, Any]:
    view = seen(federation(channel), 0)
    return torch.cat([v.reshape(-1).long() for v in leaves(view.values)]).numpy()


def uniform(values: np.ndarray[Any, Any]) -> float:
    """The p-value of a Kolmogorov-Smirnov test against uniform numbers in [0, 2^32)."""
    return float(stats.kstest(values / 2**32, "uniform").pvalue)


def test_what_the_server_sees_of_a_client_is_uniform() -> None:
    found = numbers("clip:0.5 | secagg:16")
    assert len(found) > 1000
    assert found.min() >= 0 and found.max() < 2**32
    assert uniform(found) > 1e-6  # wrong once in a million
    assert (found != numbers("clip:0.5 | secagg:16")).mean() > 0.99  # no mask is used twice


def test_without_masks_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.audit.view.masked", lambda values: values)
    assert uniform(numbers("clip:0.5 | secagg:16")) < 1e-30


# --- membership -----------------------------------------------------------------------------------------------------


def overfitted(**more: Any) -> Federation:
    """Labels by chance: all that can be learned of them is the training samples themselves."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 64, generator=generator), torch.randint(0, 10, (300,), generator=generator)
    clients = {
        f"c{k}": {"train": (x[k::6][:25], y[k::6][:25]), "test": (x[k::6][25:], y[k::6][25:])}
        for k in range(6)
    }
    made = atoll.data.from_clients(clients, classes=10)
    usual = {
        "rounds": 8,
        "cohort": 6,
        "epochs": 5,
        "lr": 0.5,
        "batch_size": 13,
        "device": "cpu",
        "engine": "loop",
        "eval_every": 0,
    }
    return Federation(lambda: atoll.models.mlp(64, 64, 10), made, **{**usual, **more})


@pytest.mark.parametrize("method", ["fedavg", "ditto"])
def test_a_model_that_learned_samples_by_heart_tells_them(method: str) -> None:
    made = overfitted(method=method)
    made.fit(progress=False)
    found = infer(made)
    assert found.model == ("personal" if method == "ditto" else "global")
    assert found.members == found.others == 150
    assert found.auc > 0.9 and found.advantage > 0.6 and found.succeeded


def test_a_model_behind_much_noise_does_not() -> None:
    found = audit(overfitted(channel="clip:0.1 | noise:5,1", rounds=5), ["membership"])
    assert found.membership is not None
    assert abs(found.membership.auc - 0.5) < 0.15 and not found.leaks


def test_the_area_is_that_of_the_rank_test() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 40).astype(float), rng.integers(2, 12, 31).astype(float)
    exact = stats.mannwhitneyu(outside, inside).statistic / (40 * 31)
    assert area(inside, outside) == pytest.approx(exact)


# --- canaries -------------------------------------------------------------------------------------------------------


def small(channel: str | None, seed: int = 0) -> Federation:
    return Federation(
        lambda: atoll.models.logistic(40, 10), data("small"), channel=channel, rounds=2, cohort=5, seed=seed,
        sampling="fixed", device="cpu", engine="loop", eval_every=0,
    )  # fmt: skip


def gaussian(multiplier: float, rounds: int, delta: float) -> float:
    """Epsilon of so many rounds of noise, everybody in each.   Balle and Wang, ICML 2018, Theorem 8"""
    mu, normal = math.sqrt(rounds) / multiplier, stats.norm.cdf

    def spent(epsilon: float) -> float:
        return float(normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu))

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


EPSILON = gaussian(2.8, 2, 1e-5)


def test_twenty_of_twenty_bounds_lie_below_the_epsilon_of_the_noise() -> None:
    assert 1.5 < EPSILON < 2.5
    bounds = [plant(small("clip:0.5 | noise:2.8", seed), reported=EPSILON, delta=1e-5) for seed in range(20)]
    assert sum(each.epsilon_lower <= EPSILON for each in bounds) == 20
    assert not any(each.succeeded for each in bounds)


@pytest.mark.parametrize(
    "channel", [None, "clip:0.5", "clip:0.5 | noise:0", "secagg", "clip:0.5 | noise:2.8,9"]
)
def test_without_noise_or_with_noise_that_others_know_canaries_are_seen(channel: str | None) -> None:
    found = plant(small(channel), reported=EPSILON, delta=1e-5)
    assert found.epsilon_lower > EPSILON > 1
    assert found.succeeded
    assert plant(small(channel)).succeeded


def test_too_little_noise_is_found_out() -> None:
    """The audit is for this: noise of a fiftieth of what is reported."""
    assert plant(small("clip:0.5 | noise:0.05"), reported=EPSILON, delta=1e-5).succeeded


@pytest.mark.parametrize("method", ["scaffold", "fedadam", "ditto"])
def test_canaries_live_in_every_method_that_averages(method: str) -> None:
    assert plant(federation(method=method, rounds=1), most=60).epsilon_lower > 1


def test_an_audit_leaves_the_federation_as_it_was() -> None:
    made, other = (federation("clip:0.5 | noise:1,3", rounds=1) for _ in range(2))
    audit(made, ["inversion", "canary"])
    for each in (made, other):
        each.fit(progress=False)
    assert torch.equal(made.state.params.flat(), other.state.params.flat())


# --- all of it ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_and_not_tried() -> None:
    found = audit(federation(method="local", rounds=1))
    assert set(found.skipped) == {"inversion", "canary"}
    assert "not tried" in lines(found)[0]


def test_a_fitted_federation_is_attacked_from_its_beginning() -> None:
    made = federation(rounds=1)
    fresh = audit(made, ["inversion", "canary"])
    made.fit(progress=False)
    again = audit(made)
    assert (again.inversion, again.canary) == (fresh.inversion, fresh.canary)
    assert again.membership is not None


def test_unknown_attacks_are_refused() -> None:
    with pytest.raises(ConfigError, match="no attack 'canaries'") as error:
        audit(federation(), ["canaries"])
    assert "'canary'" in str(error.value.hint)


def test_pictures_hold_all_they_show(tmp_path: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    found = audit(federation(rounds=1), ["inversion", "membership"])
    names = {each.name for each in write(found, tmp_path / "audit")}
    assert names == {"audit.json", "inversion.svg", "membership.svg"}
    for name in ("inversion.svg", "membership.svg"):
        text = (tmp_path / "audit" / name).read_text()
        assert text.startswith("<svg") and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    for pixels in (
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    ):
        (tmp_path / "a.png").write_bytes(png(pixels))
        assert (np.asarray(image.open(tmp_path / "a.png")) == pixels).all()


def test_a_view_of_a_method_that_sends_whole_models_is_its_change() -> None:
    view = seen(federation(), 3)
    assert isinstance(view.change, Tensors) and view.change.keys() == view.start[0].keys()
