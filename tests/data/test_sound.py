"""Spectrograms, other rates and mu-law, against what is known of sines; the spoken digits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from atoll.data import load
from atoll.data.sound import BANDS, expanded, log_mel, resampled
from atoll.data.spoken import HELD
from atoll.errors import ConfigError


def sine(hertz: float, rate: int, seconds: float = 0.5) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [2000, 8000, 16000, 22050, 44100])
def test_a_sine_is_loudest_in_its_band(rate: int) -> None:
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (40, rate / 2))
    edges = 700 * (10 ** (torch.linspace(low, high, BANDS + 2) / 2595) - 1)
    for band in (8, 20, BANDS - 2):
        levels = log_mel(sine(float(edges[band + 1]), rate), rate)
        size = round(0.032 * rate)
        assert levels.shape == (BANDS, 1 + (round(0.5 * rate) - size) // (size // 2))
        assert set(levels.argmax(0).tolist()) == {band}


def test_a_spectrogram_is_the_logarithm_of_power_and_of_each_recording_alone() -> None:
    waves = torch.randn(3, 2, 1000, generator=torch.Generator().manual_seed(0)) * 0.1
    whole = log_mel(waves, 8000)
    assert whole.shape == (3, 2, BANDS, 6)
    assert torch.equal(whole[1, 0], log_mel(waves[1, 0], 8000))
    assert torch.allclose(log_mel(10 * waves, 8000), whole + 2 / 1.5, atol=2e-3)  # a hundred times the power
    assert torch.equal(log_mel(torch.zeros(300), 8000), torch.full((BANDS, 1), -2.0))  # silence: the floor


def test_what_cannot_be_a_spectrogram_is_said() -> None:
    with pytest.raises(ConfigError, match=r"255 samples at 8000 Hz is too short(.|\n)*256 samples"):
        log_mel(torch.zeros(255), 8000)
    with pytest.raises(ConfigError, match="needs a higher rate than 800 Hz"):
        log_mel(torch.zeros(800), 800)


@pytest.mark.parametrize(
    ("old", "new"), [(8000, 16000), (44100, 16000), (16000, 8000), (22050, 8000), (8000, 11025)]
)
def test_a_sine_at_another_rate_is_the_sine_of_that_rate(old: int, new: int) -> None:
    for hertz in (200.0, 1000.0, 0.35 * min(old, new)):
        made, exact = resampled(sine(hertz, old), old, new), sine(hertz, new)
        assert abs(len(made) - len(exact)) <= 1
        inner = slice(new // 50, -new // 50)  # at the ends there is silence beyond
        assert float((made[: len(exact)] - exact[: len(made)])[inner].abs().max()) < 2e-3


def test_what_a_lower_rate_cannot_hold_is_gone() -> None:
    left = resampled(sine(7000, 16000), 16000, 8000)[200:-200]
    assert float(left.abs().max()) < 2e-3  # without the filter it would be a tone of 1000 Hz


@given(some.integers(1, 60), some.integers(1, 60), some.integers(1, 400))
def test_lengths_and_constants_at_any_ratio(old: int, new: int, samples: int) -> None:
    made = resampled(torch.ones(2, samples), old, new)
    assert made.shape == (2, -(-samples * new // old))
    if old == new:
        assert torch.equal(made, torch.ones(2, samples))
    reach = 20 * max(1.0, new / old)
    inner = made[:, round(reach) : -round(reach)]
    assert inner.numel() == 0 or float((inner - 1).abs().max()) < 0.01


def test_mu_law_is_odd_and_ends_at_one() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    waves = expanded(codes)
    assert torch.allclose(waves, -waves.flip(0), atol=1e-7)
    assert float(waves[-1]) == pytest.approx(1)
    assert bool((waves.diff() > 0).all())


# --- the spoken digits ------------------------------------------------------------------------------------------------


def test_six_voices_are_nobodys(real: Path) -> None:
    if not (real / "spoken-digits").is_dir():
        pytest.skip("ATOLL_DATA has no spoken-digits")
    data = load("spoken-digits")
    fed = data.partition("natural")
    assert fed.dataset == "spoken-digits"
    assert len(fed) == 30
    assert not set(HELD) & set(fed.names)
    assert data.test is not None
    assert fed.test_set is not None
    assert fed.test_set is data.test  # the pooled test is the voices that never trained
    assert torch.bincount(data.test.targets).tolist() == [36] * 10
    assert {(fed.size(k), fed.held(k, "test")) for k in range(30)} == {(48, 12)}
    waves = load("spoken-digits:waves")
    assert isinstance(waves.train.inputs, Tensor)
    assert tuple(waves.train.inputs.shape[1:]) == (1, 5120)
    assert isinstance(data.train.inputs, Tensor)
    assert torch.equal(log_mel(waves.train.inputs[:3, 0] / 8, 8000), data.train.inputs[:3])
    with pytest.raises(ConfigError, match="comes as spectrograms or waves, not as 'wave'"):
        load("spoken-digits:wave")
