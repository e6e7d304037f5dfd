"""Augmentation: changes of training batches that are drawn anew each time a batch is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll import own, spec
from atoll.errors import ConfigError
from atoll.modalities import modalities, present, wanting
from atoll.parts import Inputs, shapes

__all__ = [
    "Augmentation",
    "augmentation",
    "augmentations",
    "band_shift",
    "crop",
    "drop",
    "flip",
    "frequency_mask",
    "noise",
    "scale",
    "shift",
    "time_mask",
]

_KNOWN = {
    "flip": (),
    "crop": (spec.whole("pixels", at_least=1, optional=True),),
    "noise": (spec.number("sigma", above=0),),
    "scale": (spec.number("sigma", above=0),),
    "shift": (spec.whole("steps", at_least=1),),
    "band-shift": (spec.whole("bands", at_least=1),),
    "time-mask": (spec.whole("steps", at_least=1),),
    "frequency-mask": (spec.whole("bands", at_least=1),),
    "drop": (spec.number("chance", above=0, at_most=1),),
}
_LINES = {
    "flip": "half of the images are mirrored left to right",
    "crop": "images move by up to PIXELS (4) along both axes, with zeros where nothing was (He et al. 2016)",
    "noise": "normal noise of the deviation SIGMA: of sensors, jitter",
    "scale": "each channel of a recording times a factor about 1, of the deviation SIGMA (Um et al. 2017)",
    "shift": "recordings move by up to STEPS in time; what is missing at an end is as the end",
    "band-shift": "spectrograms move by up to BANDS up or down, as voices of other sizes sound",
    "time-mask": "up to STEPS of a spectrogram in a row are 0 (SpecAugment, Park et al. 2019)",
    "frequency-mask": "up to BANDS of a spectrogram side by side are 0 (SpecAugment)",
    "drop": "samples of several parts lose one that they have, with this chance each (modality dropout)",
}


def augmentations() -> list[tuple[str, str]]:
    """How each augmentation is written, and what it does."""
    return [(spec.usage(name, _KNOWN[name]), line) for name, line in _LINES.items()]


@dataclass(frozen=True)
class Augmentation:
    """What is done to the inputs of a training batch, one function after the other.

    Args:
        text: what it is called.
        functions: inputs [b, ...] -> inputs of the same form. They may draw with torch's random functions.
    """

    text: str
    functions: tuple[Callable[[Any], Any], ...]

    def __call__(self, inputs: Inputs) -> Inputs:
        for function in self.functions:
            inputs = function(inputs)
        return inputs

    def check(self, inputs: Inputs) -> None:
        """Try it on some inputs.  Raises ConfigError where it fails, or gives inputs of another form."""
        try:
            made = self(inputs)
            same = type(made) is type(inputs) and shapes(made) == shapes(inputs) and len(made) == len(inputs)
        except ConfigError as error:
            raise ConfigError(f"augment = {self.text!r}: {error.message}", hint=error.hint) from None
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"augment = {self.text!r}: inputs of shape {shapes(inputs)} gave {what}"
            ) from error
        if not same:
            given = shapes(made, 0) if isinstance(made, Tensor) else type(made).__name__
            raise ConfigError(
                f"augment = {self.text!r} makes {given} of inputs of shape {shapes(inputs, 0)}",
                hint="return inputs of the form that came in: a batch, the first axis counting the samples",
            )


def augmentation(what: str | Callable[[Any], Any]) -> Augmentation:
    """An augmentation from a text ("crop:4 + flip", `atoll.own` names functions of the user's own) or a function."""
    if callable(what):
        return Augmentation(getattr(what, "__name__", type(what).__name__), (what,))
    made: dict[str, Callable[..., Inputs]] = {
        "flip": flip, "crop": crop, "noise": noise, "scale": scale, "shift": shift, "band-shift": band_shift,
        "time-mask": time_mask, "frequency-mask": frequency_mask, "drop": drop,
    }  # fmt: skip
    functions: list[Callable[[Any], Any]] = []
    for call in spec.chain(what, "augment", "+"):
        name = call.name if call.given is None else f"{call.name}:{call.given}"
        if call.name not in _KNOWN and own.named(name):
            functions.append(own.found(name, "augment"))
            continue
        given = call.read(_KNOWN)
        functions.append(partial(made[call.name], **given) if given else made[call.name])
    return Augmentation(what, tuple(functions))


def flip(images: Tensor) -> Tensor:
    """Half of the images [b, ..., width], drawn one by one, mirrored left to right."""
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(mirrored.reshape(-1, *(1,) * (images.ndim - 1)), images.flip(-1), images)


def crop(images: Tensor, pixels: int = 4) -> Tensor:
    """Images [b, ..., height, width] moved by up to so many pixels along both axes, with zeros where nothing was.

    What He et al. (2016) do with CIFAR-10: zeros around the image, and a piece of its size cut out at random.
    """
    if images.ndim < 3:
        raise ConfigError("crop is for images [..., height, width]", hint="leave it out for other inputs")
    height, width = images.shape[-2:]
    moved = torch.randint(0, 2 * pixels + 1, (len(images), 2), device=images.device)
    ones = (1,) * (images.ndim - 3)
    rows = (torch.arange(height, device=images.device) + moved[:, :1]).reshape(-1, *ones, height, 1)
    columns = (torch.arange(width, device=images.device) + moved[:, 1:]).reshape(-1, *ones, 1, width)
    wide = F.pad(images, [pixels] * 4)
    tall = wide.gather(-2, rows.expand(*images.shape[:-1], wide.shape[-1]))
    return tall.gather(-1, columns.expand(images.shape))


def noise(inputs: Tensor, sigma: float) -> Tensor:
    """Inputs with normal noise of the deviation `sigma`."""
    return inputs + sigma * torch.randn_like(inputs)


def scale(recordings: Tensor, sigma: float) -> Tensor:
    """Recordings [b, channels, time] with each channel times a factor, normal about 1 with the deviation `sigma`."""
    _recordings("scale", recordings)
    ones = (1,) * (recordings.ndim - 2)
    drawn = torch.randn(len(recordings), recordings.shape[1], device=recordings.device)
    return recordings * (1 + sigma * drawn.reshape(*drawn.shape, *ones))


def shift(recordings: Tensor, steps: int) -> Tensor:
    """Recordings [b, ..., time] moved by up to so many steps; what is missing at an end is as the end."""
    return _moved("shift", recordings, steps, -1)


def band_shift(spectrograms: Tensor, bands: int) -> Tensor:
    """Spectrograms [b, ..., bands, time] moved by up to so many bands; what is missing at an end is as the end.

    Where bands are even in mel that is about what a vocal tract of another length does to all frequencies at once: a
    coarse kin of vocal tract length perturbation (Jaitly and Hinton, 2013).
    """
    return _moved("band-shift", spectrograms, bands, -2)


def _moved(name: str, inputs: Tensor, most: int, axis: int) -> Tensor:
    size = _recordings(name, inputs, most, axis)
    moved = torch.randint(-most, most + 1, (len(inputs), 1), device=inputs.device)
    at = (torch.arange(size, device=inputs.device) + moved).clamp(0, size - 1)
    return inputs.gather(axis, _along(at, inputs, axis).expand(inputs.shape))


def time_mask(spectrograms: Tensor, steps: int) -> Tensor:
    """Spectrograms [b, ..., bands, time] with 0, their middle, in up to so many steps in a row."""
    return _masked("time-mask", spectrograms, steps, -1)


def frequency_mask(spectrograms: Tensor, bands: int) -> Tensor:
    """Spectrograms [b, ..., bands, time] with 0, their middle, in up to so many bands side by side."""
    return _masked("frequency-mask", spectrograms, bands, -2)


def _masked(name: str, inputs: Tensor, most: int, axis: int) -> Tensor:
    """How many are hidden is uniform from 0 to `most`, and then where they begin (Park et al. 2019, section 2)."""
    size = _recordings(name, inputs, most, axis)
    width = torch.randint(0, most + 1, (len(inputs), 1), device=inputs.device)
    start = (torch.rand(len(inputs), 1, device=inputs.device) * (size - width + 1)).floor()
    at = torch.arange(size, device=inputs.device)
    return inputs.masked_fill(_along((at >= start) & (at < start + width), inputs, axis), 0.0)


def _along(values: Tensor, inputs: Tensor, axis: int) -> Tensor:
    """Values [b, n] of each input along one of its axes, in a shape that the inputs' can be multiplied with."""
    return values.reshape(len(values), *(1,) * (inputs.ndim - 1 + axis), -1, *(1,) * (-1 - axis))


def _recordings(name: str, inputs: Tensor, most: int = 0, axis: int = -1) -> int:
    """How long the axis is.  Raises ConfigError for what is no recording, or shorter than what would be changed."""
    if inputs.ndim < 3 or not inputs.is_floating_point():
        raise ConfigError(
            f"{name} is for recordings [channels, time] or spectrograms [bands, time]",
            hint="leave it out for other inputs",
        )
    if most >= inputs.shape[axis]:
        raise ConfigError(
            f"{name}:{most} leaves nothing of {inputs.shape[axis]} {'steps' if axis == -1 else 'bands'}",
            hint="a tenth to a fifth of them is usual",
        )
    return inputs.shape[axis]


def drop(inputs: Inputs, chance: float) -> Inputs:
    """Samples of several parts of which each, with this chance, loses one that it has, but never its last.

    Modality dropout: a model learns to do with each of the parts, and not by the easiest alone.
    """
    if len(modalities(inputs)) < 2:
        raise ConfigError(
            "drop takes parts of samples away, and these do not say which of several they have",
            hint='leave it out, or take data that do: data = "av-mnist", or missing_parts',
        )
    here = present(inputs)
    draws = torch.rand(len(here), 1 + here.shape[1], device=here.device)
    drawn = draws[:, 1:] * here
    first = drawn >= drawn.amax(1, keepdim=True)  # each of those that are there is as likely
    lost = first & (here > 0) & (draws[:, :1] < chance) & (here.sum(1, keepdim=True) > 1)
    return wanting(inputs, 1 - lost.to(here.dtype))
