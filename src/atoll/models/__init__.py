"""Reference networks, and `build`, which makes one from its name for data of a given shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from atoll.errors import ConfigError, suggest
from atoll.models.convolutional import cnn, conv1d, lenet
from atoll.models.dense import logistic, mlp, two_nn
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
    "conv1d": conv1d,
    "lstm": lambda shape, classes: lstm(classes),
}
"""Models by the name they have in a configuration file: functions of (shape of a sample, classes)."""


def build(text: str, shape: Sequence[int], classes: int) -> nn.Module:
    """The model that `text` names, for samples of `shape` and this many classes (or outputs).

    "auto" chooses by the shape: "lenet" for images, "conv1d" for [channels, time], else "mlp". "mlp:128,64"
    names the hidden widths. "lstm" reads integer tokens; its vocabulary is `classes`. Raises ConfigError for
    anything else.
    """
    name, colon, rest = text.partition(":")
    if name not in MODELS:
        raise ConfigError(f"unknown model {text!r}", hint=suggest(name, MODELS))
    if not colon:
        return MODELS[name](tuple(shape), classes)
    widths = rest.split(",")
    if name != "mlp":
        raise ConfigError(f"model {text!r}: {name} has nothing to set", hint=f"write {name!r}")
    if not all(width.strip().isdecimal() and int(width) > 0 for width in widths):
        raise ConfigError(f"model {text!r}: {rest!r} is no list of widths", hint='write "mlp:128,64"')
    return mlp(math.prod(shape), *(int(width) for width in widths), classes)
