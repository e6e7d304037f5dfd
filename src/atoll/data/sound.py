"""Sound as numbers: log mel spectrograms, other rates, mu-law. Pure functions of waveforms in [-1, 1]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll.errors import ConfigError

__all__ = ["BANDS", "GAIN", "expanded", "log_mel", "resampled"]

BANDS = 32
"""Of a spectrogram."""

GAIN = 8.0
"""What waves in [-1, 1] are multiplied by for a network: speech at a usual level then has a deviation about 1."""

_WINDOW = 0.032
"""Seconds of a frame; frames overlap by half."""
_LOWEST = 40.0
"""Where the lowest band begins, in Hz: below is hum."""
_FLOOR, _MIDDLE, _UNIT = 1e-6, -3.0, 1.5
"""Powers below the floor are silence. Logarithms of speech at a usual level then have a mean about 0 and a deviation
about 1; as constants they are the same for everybody and tell nothing of anybody's data."""

_TAPS = 1 << 24
"""Of all filters of a resampling together: 128 MiB."""
_FARTHEST = 1000
"""How many times the old rate a new one can be."""


def log_mel(waves: Tensor, rate: int, bands: int = BANDS) -> Tensor:
    """Waveforms [..., samples] as log mel spectrograms [..., bands, frames].

    Frames of 32 ms begin every 16 ms, under a Hann window, and none reaches over an end: of n samples each,
    1 + (samples - n) // (n // 2) of them. Bands are triangles, even in mel = 2595 log10(1 + f / 700) from
    40 Hz to rate / 2, that weigh the power spectrum. A value is (log10(power + 1e-6) + 3) / 1.5.

    Raises ConfigError for waves shorter than a frame, and for a rate so low that a band has no frequency.
    """
    size = round(_WINDOW * rate)
    if waves.shape[-1] < size:
        raise ConfigError(
            f"a recording of {waves.shape[-1]} samples at {rate} Hz is too short for a spectrogram",
            hint=f"a frame is 32 ms, {size} samples at this rate",
        )
    window = torch.hann_window(size, dtype=waves.dtype, device=waves.device)
    spectrum = torch.fft.rfft(waves.unfold(-1, size, size // 2) * window)
    power = (spectrum.real.square() + spectrum.imag.square()) / window.square().sum()
    levels = torch.log10(power @ _triangles(rate, size, bands).to(power) + _FLOOR)
    return ((levels - _MIDDLE) / _UNIT).transpose(-1, -2).contiguous()


def _triangles(rate: int, size: int, bands: int) -> Tensor:
    """The weight of each frequency of a frame in each band, [size // 2 + 1, bands]."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (_LOWEST, rate / 2))
    edges = 700 * (10 ** (torch.linspace(low, high, bands + 2, dtype=torch.float64) / 2595) - 1)
    at = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None] * rate / size
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    found = torch.minimum(rising, falling).clamp(min=0)
    if not bool((found.sum(0) > 0).all()):
        raise ConfigError(
            f"a spectrogram of {bands} bands needs a higher rate than {rate} Hz", hint="2,000 Hz at least"
        )
    return found


def resampled(waves: Tensor, rate: int, wanted: int, width: int = 16) -> Tensor:
    """Waveforms [..., samples] at another rate, ceil(samples wanted / rate) of them.

    Polyphase, with windowed sincs (J. O. Smith, Digital Audio Resampling): where wanted / rate is p / q in
    lowest terms, each of p filters makes every p-th sample, in a convolution of stride q. A filter cuts off at
    95 % of the lower rate's half and reaches over `width` of its zeros to either side, under a Hann window.
    Before the beginning and after the end there is silence.

    Raises ConfigError for rates so far apart, or with so little in common, that it would take more memory than it is
    worth.
    """
    common = math.gcd(rate, wanted)
    step, phases = rate // common, wanted // common
    if step == phases:
        return waves
    cut = 0.95 * min(1.0, phases / step)  # of the half of the old rate
    reach = math.ceil(width / cut)
    if phases * (step + 2 * reach) > _TAPS or phases > _FARTHEST * step:
        raise ConfigError(
            f"what is recorded at {rate:,} Hz cannot be resampled to {wanted:,} Hz",
            hint="rates have a large common divisor, such as 100, and the new one is at most a thousand times the old",
        )
    taps = torch.arange(-reach, reach + step, dtype=torch.float64)
    away = taps[None, :] - torch.arange(phases, dtype=torch.float64)[:, None] * step / phases
    hann = torch.cos(math.pi / 2 * (away * cut / width).clamp(-1, 1)).square()
    filters = (torch.sinc(away * cut) * cut * hann).to(waves.dtype)
    count = -(-waves.shape[-1] * phases // step)
    blocks = -(-count // phases)
    flat = F.pad(waves.reshape(-1, 1, waves.shape[-1]), (reach, reach + blocks * step))
    made: Tensor = F.conv1d(flat, filters[:, None].to(waves.device), stride=step)[..., :blocks]
    return made.transpose(1, 2).reshape(*waves.shape[:-1], -1)[..., :count]


def expanded(codes: Tensor) -> Tensor:
    """Mu-law of 8 bits, 0 to 255 along the curve, as waveforms: sign(y) (256^|y| - 1) / 255 of y in [-1, 1]."""
    y = codes.to(torch.float32) / 127.5 - 1
    return y.sign() * (torch.pow(256.0, y.abs()) - 1) / 255
