"""Reference networks, and `build`, which makes one from its name for data of a given shape."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from atoll import own, spec
from atoll.errors import ConfigError
from atoll.models.convolutional import cnn, conv1d, lenet, m5, vgg
from atoll.models.dense import logistic, mlp, two_nn
from atoll.models.factors import Factors
from atoll.models.fused import Fused
from atoll.models.hf import from_folder
from atoll.models.llama import Llama, llama
from atoll.models.normalised import with_batchnorm
from atoll.models.recurrent import CharacterLSTM, lstm
from atoll.models.stored import begin_from
from atoll.models.transformer import GPT, gpt

__all__ = [
    "GPT",
    "MODELS",
    "CharacterLSTM",
    "Factors",
    "Fused",
    "Llama",
    "begin_from",
    "build",
    "cnn",
    "conv1d",
    "describe",
    "gpt",
    "lenet",
    "llama",
    "logistic",
    "lstm",
    "m5",
    "mlp",
    "two_nn",
    "vgg",
    "with_batchnorm",
]

Shape = tuple[int, ...]
_WAVES = 1024
"""Steps of time from which on recordings are waveforms: `conv1d` has a weight for every few steps."""

Parts = Mapping[str, Shape]
"""The shapes of samples of several parts, by their names."""


def _fused(shape: Shape | Parts, classes: int, fusion: Literal["late", "attention"] = "late") -> Fused:
    if not isinstance(shape, Mapping):
        raise ConfigError(
            f"fused reads samples of several parts by name, not one tensor of shape {shape}",
            hint="leave model and fusion out, or name a model for this shape (atoll models)",
        )
    return Fused(shape, classes, _auto, fusion)


def _auto(shape: Shape | Parts, classes: int) -> nn.Module:
    if isinstance(shape, Mapping):
        return _fused(shape, classes)
    if len(shape) == 3 and min(shape[1:]) >= 16:
        return lenet(shape, classes)
    if len(shape) == 2 and shape[1] >= _WAVES:
        return m5(shape, classes)
    if len(shape) == 2 and shape[1] >= 16:
        return conv1d(shape, classes)
    return mlp(math.prod(shape), 128, classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "auto": _auto,
    "logistic": lambda shape, classes: logistic(math.prod(shape), classes),
    "mlp": lambda shape, classes, widths=(128,): mlp(math.prod(shape), *widths, classes),
    "2nn": lambda shape, classes: mlp(math.prod(shape), 200, 200, classes),
    "cnn": cnn,
    "lenet": lenet,
    "vgg": vgg,
    "conv1d": conv1d,
    "fused": _fused,
    "m5": m5,
    "lstm": lambda shape, classes: lstm(classes),
    "gpt": lambda shape, classes, **given: gpt(classes, shape[0], **given),
    "llama": lambda shape, classes, **given: llama(classes, **given),
    "factors": lambda shape, classes, rank=8: Factors(classes, rank),
    "hf": lambda shape, classes, path: from_folder(path, shape[0], classes),
}
"""Models by the name they have in a configuration file: functions of (shape of a sample, classes, settings if any)."""

_FUSION = spec.Parameter(
    "fusion", '"late" or "attention"', {"late": "late", "attention": "attention"}.__getitem__, True
)
_SETTINGS: dict[str, tuple[spec.Parameter, ...]] = {
    "mlp": (spec.many(spec.whole("widths", at_least=1, optional=True)),),
    "vgg": (spec.whole("width", at_least=1, optional=True),),
    "gpt": tuple(spec.whole(name, at_least=1, optional=True) for name in ("layers", "width", "heads")),
    "factors": (spec.whole("rank", at_least=1, optional=True),),
    "fused": (_FUSION,),
    "hf": (spec.rest("path"),),
    "llama": tuple(
        spec.whole(name, at_least=1, optional=True) for name in ("layers", "width", "heads", "groups")
    ),
}


_LINES = {
    "auto": "by the shape: lenet for images, conv1d for [channels, time] and [bands, time], m5 for waveforms (1,024"
    " steps and more), lstm for tokens, fused for several parts, else an mlp of 128 units",
    "logistic": "one linear layer",
    "mlp": "hidden layers of these widths (128), ReLU between them",
    "2nn": "two hidden layers of 200 units (McMahan et al. 2017)",
    "cnn": "two convolutions of 5 x 5 and a hidden layer (McMahan et al. 2017)",
    "lenet": "two convolutions and three linear layers, for images from 16 x 16",
    "vgg": "convolutions of 3 x 3; WIDTH channels in the first, which all others are multiples of",
    "conv1d": "convolutions over time, for sensors [channels, time] and spectrograms [bands, time]",
    "m5": "convolutions over waveforms [channels, time] and the largest over time (after Dai et al. 2017)",
    "fused": "a network for each part, as auto takes it, and one prediction of those that are there: the mean of"
    " their logits (late), or attention over embeddings",
    "lstm": "next characters: an embedding, LSTMs and a linear layer, for whole-number tokens",
    "gpt": "next characters: a transformer of LAYERS blocks (4), WIDTH (128) and HEADS (4), for whole-number tokens",
    "llama": "likewise, with RMSNorm, rotary positions and SwiGLU; GROUPS of heads that share a key (half of HEADS)",
    "factors": "scores of all items for one user (RANK factors, 8): the items' layer, then the user's, for ratings",
    "hf": "a model of transformers, from a folder with its config.json (random weights without model.safetensors)",
}


def describe() -> list[tuple[str, str]]:
    """How each model is written, and what it is."""
    return [(spec.usage(name, _SETTINGS.get(name, ())), line) for name, line in _LINES.items()]


def build(text: str | spec.Call, shape: Sequence[int] | Parts, classes: int) -> nn.Module:
    """The model that `text` names, for samples of `shape` and this many classes (or outputs).

    "auto" chooses by the shape: "lenet" for images, "conv1d" for [channels, time], "m5" where time is long, else
    "mlp". "mlp:128,64" names the hidden widths, "vgg:8" the channels of the first layer, which all others are
    multiples of. "mlp-bn:64", "lenet-bn" and so on have BatchNorm between the layers. "lstm", "gpt" and "llama" read
    integer tokens; their vocabulary is `classes`.
    "hf:PATH" is a model of `transformers` from a folder (see `atoll.models.hf`).
    "fused:late" and "fused:attention" are for samples of several parts, whose shapes come by name (see `Fused`).
    "package.module:Name" is a module of the user's own, or makes one without arguments (see `atoll.own`).
    Raises ConfigError for anything else.
    """
    call = spec.parse(text, "model") if isinstance(text, str) else text
    return _made(call, shape if isinstance(shape, Mapping) else tuple(shape), classes)


def _own(name: str) -> nn.Module:
    """The module that a name of the user's own stands for, or what it makes without arguments."""
    found = own.found(name, "model")
    if isinstance(found, nn.Module):
        return found
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"model = {name!r} cannot be made: {error}",
            hint="name a module, or a class or function that makes one without arguments",
        ) from error
    module = found()
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model = {name!r} makes a {type(module).__name__}", hint="let it make an nn.Module"
        )
    return module


def _made(call: spec.Call, shape: Shape | Parts, classes: int) -> nn.Module:
    if call.given is not None and call.name not in MODELS and own.named(name := f"{call.name}:{call.given}"):
        return _own(name)
    if call.name.endswith("-bn"):
        plain = replace(call, name=call.name.removesuffix("-bn"))
        return with_batchnorm(_made(plain, shape, classes))
    if call.name not in MODELS:
        error = spec.unknown("model", call.name, MODELS, call.text)
        others = "" if str(error.hint).startswith("known: ") else f" known: {', '.join(sorted(MODELS))}"
        raise ConfigError(
            error.message, hint=f"{error.hint}{others}; a module of your own is package.module:Name"
        )
    given = call.read({name: _SETTINGS.get(name, ()) for name in MODELS})
    return MODELS[call.name](shape, classes, **given)
