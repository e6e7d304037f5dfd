"""WAV files as waveforms, by the standard library's `wave`: PCM of 8, 16, 24 and 32 bit, of any number of channels."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atoll.errors import DataError

__all__ = ["read_wav"]

_CONVERT = "PCM of 8, 16, 24 or 32 bit is read; ffmpeg -i FILE -c:a pcm_s16le OTHER.wav writes it"


def read_wav(path: Path) -> tuple[Tensor, int]:
    """A recording [samples] in [-1, 1], the mean of its channels, and its rate in Hz.

    Raises DataError for a file that is damaged, empty, ends early, or holds anything but PCM.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            held = path.stat().st_size // (channels * width)  # a header may say more than there is memory
            content = file.readframes(min(count, held + 1))
    except (OSError, EOFError, ValueError, wave.Error) as error:
        why = str(error) or "it ends within its header"
        raise DataError(f"{path}: this is no sound that can be read ({why})", hint=_CONVERT) from None
    if not count or not rate:
        raise DataError(f"{path}: there is no sound in it", hint="leave the file out, or record it anew")
    if len(content) != count * channels * width:
        found = len(content) // (channels * width)
        raise DataError(
            f"{path}: ends after {found:,} of {count:,} samples", hint="the file is damaged; copy it anew"
        )
    if width > 4:
        raise DataError(
            f"{path}: this is no sound that can be read (numbers of {8 * width} bit)", hint=_CONVERT
        )
    values = _values(content, width).reshape(count, channels)
    return torch.from_numpy(values.mean(1, dtype=np.float64).astype(np.float32)), rate


def _values(content: bytes, width: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Little-endian whole numbers of so many bytes, as shares of the largest; those of one byte have no sign."""
    whole = np.frombuffer(content, np.uint8).reshape(-1, width)
    if width == 1:
        return (whole[:, 0].astype(np.float64) - 128) / 128
    wide = np.zeros((len(whole), 4), np.uint8)
    wide[:, 4 - width :] = whole
    return wide.view("<i4")[:, 0].astype(np.float64) / 2**31
