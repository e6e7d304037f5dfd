"""Digits that are seen and heard: what is paired with what, and the noise on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import atoll
from atoll.errors import ConfigError
from atoll.parts import Inputs, Parts


def both(inputs: Inputs) -> Parts:
    assert isinstance(inputs, Parts)
    return inputs


def test_av_mnist_pairs_what_is_seen_and_heard(real: Path) -> None:
    if not (real / "spoken-digits" / "spoken_digits.npz").is_file():
        pytest.skip("ATOLL_DATA has no spoken-digits")
    data, spoken = atoll.data.load("av-mnist"), atoll.data.load("spoken-digits")
    images = atoll.data.load("mnist").train
    parts = {str(name): part for name, part in both(data.train.inputs).items()}
    assert torch.equal(data.train.targets, spoken.train.targets)
    assert isinstance(spoken.train.inputs, torch.Tensor)
    assert isinstance(images.inputs, torch.Tensor)
    for name, clean, noise in (("audio", spoken.train.inputs, 1.6), ("image", None, 0.7)):
        if clean is None:  # which image it was: the nearest of its digit
            four = images.inputs[images.targets == data.train.targets[0]].flatten(1)
            first = parts[name][0].flatten()
            clean, part = four[(four - first).norm(dim=1).argmin()], first
        else:
            part = parts[name]
        assert float((part - clean).std()) == pytest.approx(noise, rel=0.05)
    assert torch.equal(atoll.data.load("av-mnist:audio").train.inputs, parts["audio"])  # type: ignore[arg-type]
    held = {str(voice) for voice in data.columns["voice"]}
    assert len(held) == 30
    with pytest.raises(ConfigError, match="none called"):
        atoll.data.load("av-mnist:smell")
