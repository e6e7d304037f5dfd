"""Spoken digits, which a program speaks: synthetic speech in the voices of 36 speakers who do not exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from atoll.errors import ConfigError

from .dataset import Dataset
from .samples import Samples
from .sound import GAIN, expanded, log_mel

__all__ = ["HELD", "RATE", "spoken_digits"]

RATE = 8000
"""Samples a second."""

HELD = ("Andy", "Lee", "Nguyen", "boris", "linda", "victor")
"""The voices of the test split: of the 23 that are no variant of another (as Gene2 is of Gene) every fourth, by
name, from the third on. By their names, no voice that is trained on is a variant of one of these."""

_FORMS = ("spectrograms", "waves")


def spoken_digits(root: Path, form: str = "spectrograms") -> Dataset:
    """Clips of 0.64 s, as log mel spectrograms [32, 39] or as waves [1, 5120] in [-8, 8].

    The test split is six voices of which no client has any; each voice's own test is for the division to set apart.
    """
    if form not in _FORMS:
        raise ConfigError(
            f"spoken-digits comes as {' or '.join(_FORMS)}, not as {form!r}",
            hint='data = "spoken-digits:waves"',
        )
    with np.load(root / "spoken-digits" / "spoken_digits.npz", allow_pickle=False) as stored:
        waves = expanded(torch.from_numpy(stored["audio"]))
        digits = torch.from_numpy(stored["digit"].astype(np.int64))
        voices = stored["voices"][stored["voice"]]
    clips = Samples(log_mel(waves, RATE) if form == "spectrograms" else GAIN * waves.unsqueeze(1), digits)
    test = np.isin(voices, HELD)
    rows, held = np.flatnonzero(~test), np.flatnonzero(test)
    return Dataset(
        "spoken-digits",
        clips.take(rows),
        clips.take(held),
        classes=10,
        columns={"voice": voices[rows]},
        natural="voice",
    )
