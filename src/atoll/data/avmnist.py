"""Digits that are seen and heard: MNIST's images beside spoken digits, both noisy, paired by what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atoll.errors import ConfigError
from atoll.modalities import told
from atoll.parts import alone
from atoll.seeds import rng

from .dataset import Dataset
from .samples import Samples
from .spoken import spoken_digits

__all__ = ["av_mnist"]

_IMAGES = {"train": 1, "test": 3}
"""Images that a clip is paired with. One in training, so that no client is tested on a clip that it trained on."""

_NOISE = {"image": 0.7, "audio": 1.6}
"""Deviation of normal noise on pixels in [0, 1] and on spectrograms, whose own deviation is about 0.9."""


def av_mnist(root: Path, part: str | None = None) -> Dataset:
    """The parts image [1, 28, 28] and audio [32, 39] of a digit; clients are the voices of `spoken_digits`.

    Each clip is paired with an image of its digit that no other clip has, by fixed draws, and noise that is part of the
    data is added to both. The test split is the six voices of which no client has any, beside MNIST's test images, each
    clip with three of them. With `part` samples are that one alone, tensors: what a model makes of it by itself.

    Raises ConfigError for another part.
    """
    if part is not None and part not in _NOISE:
        raise ConfigError(
            f"av-mnist has the parts {' and '.join(_NOISE)}, and none called {part!r}",
            hint='data = "av-mnist:audio", or "av-mnist" for both',
        )
    spoken = spoken_digits(root)
    assert spoken.test is not None
    with np.load(root / "mnist" / "mnist.npz", allow_pickle=False) as stored:
        images = {split: (stored[f"x_{split}"], stored[f"y_{split}"]) for split in _IMAGES}
    made = {}
    for split, clips in (("train", spoken.train), ("test", spoken.test)):
        rows = np.repeat(np.arange(clips.count), _IMAGES[split])
        digits = clips.targets.numpy()[rows]
        pixels, labels = images[split]
        found = np.zeros(len(rows), dtype=np.int64)
        for digit in range(10):
            wanted = np.flatnonzero(digits == digit)
            known = np.flatnonzero(labels == digit)
            found[wanted] = known[
                rng(0, f"av-mnist.{split}", client=digit).permutation(len(known))[: len(wanted)]
            ]
        parts = {
            "image": torch.from_numpy(pixels[found]).to(torch.float32).div_(255).unsqueeze_(1),
            "audio": alone(clips.inputs, "av-mnist")[torch.from_numpy(rows)],
        }
        noisy = {name: _noisy(part, name, split) for name, part in parts.items()}
        made[split] = Samples(told(noisy) if part is None else noisy[part], torch.from_numpy(digits))
    return Dataset(
        "av-mnist", made["train"], made["test"], classes=10, columns=spoken.columns, natural="voice"
    )


def _noisy(part: Tensor, name: str, split: str) -> Tensor:
    draw = rng(0, f"av-mnist.{split}.{name}").standard_normal(part.shape, dtype=np.float32)
    return part + _NOISE[name] * torch.from_numpy(draw)
