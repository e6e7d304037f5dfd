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
from atoll.parts import Inputs, shapes

__all__ = ["Augmentation", "augmentation", "crop", "flip", "noise"]

_KNOWN = {
    "flip": (),
    "crop": (spec.whole("pixels", at_least=1, optional=True),),
    "noise": (spec.number("sigma", above=0),),
}


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
    made: dict[str, Callable[..., Tensor]] = {"flip": flip, "crop": crop, "noise": noise}
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
