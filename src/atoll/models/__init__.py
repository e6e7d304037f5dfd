"""Reference networks, and `build`, which makes one from its name for data of a given shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from atoll.errors import ConfigError, suggest
from atoll.models.convolutional import cnn, conv1d, lenet, vgg
from atoll.models.dense import logistic, mlp, two_nn
from atoll.models.normalised import with_batchnorm
from atoll.models.recurrent import CharacterLSTM, lstm

__all__ = [
    "MODELS",
    "CharacterLSTM",
    "build",
    "cnn",
    "conv1d",
    "lenet",
    "logistic",
    "lstm",
    "mlp",
    "two_nn",
    "vgg",
    "with_batchnorm",
]

Shape = tuple[int, ...]


def _auto(shape: Shape, classes: int) -> nn.Module:
    if len(shape) == 3 and min(shape[1:]) >= 16:
        return lenet(shape, classes)
    if len(shape) == 2 and shape[1] >= 16:
        return conv1d(shape, classes)
    return mlp(math.prod(shape), 128, classes)


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "auto": _auto,
    "logistic": lambda shape, classes: logistic(math.prod(shape), classes),
    "mlp": lambda shape, classes: mlp(math.prod(shape), 128, classes),
    "2nn": lambda shape, classes: mlp(math.prod(shape), 200, 200, classes),
    "cnn": cnn,
    "lenet": lenet,
    "vgg": vgg,
    "conv1d": conv1d,
    "lstm": lambda shape, classes: lstm(classes),
}
"""Models by the name they have in a configuration file: functions of (shape of a sample, classes)."""


def build(text: str, shape: Sequence[int], classes: int) -> nn.Module:
    """The model that `text` names, for samples of `shape` and this many classes (or outputs).

    "auto" chooses by the shape: "lenet" for images, "conv1d" for [channels, time], else "mlp". "mlp:128,64"
    names the hidden widths, "vgg:8" the channels of the first layer, which all others are multiples of. "mlp-bn:64",
    "lenet-bn" and so on have BatchNorm between the layers. "lstm" reads integer tokens; its vocabulary is `classes`.
    Raises ConfigError for anything else.
    """
    name, colon, rest = text.partition(":")
    if name.endswith("-bn"):
        return with_batchnorm(build(f"{name[:-3]}{colon}{rest}", shape, classes))
    if name not in MODELS:
        raise ConfigError(f"unknown model {text!r}", hint=suggest(name, MODELS))
    if not colon:
        return MODELS[name](tuple(shape), classes)
    widths = [int(width) if width.strip().isdecimal() else 0 for width in rest.split(",")]
    if name == "mlp":
        if min(widths) < 1:
            raise ConfigError(f"model {text!r}: {rest!r} is no list of widths", hint='write "mlp:128,64"')
        return mlp(math.prod(shape), *widths, classes)
    if name == "vgg":
        if len(widths) > 1 or widths[0] < 1:
            raise ConfigError(f"model {text!r}: {rest!r} is no width", hint='write "vgg:8"')
        return vgg(shape, classes, widths[0])
    raise ConfigError(f"model {text!r}: {name} has nothing to set", hint=f"write {name!r}")
