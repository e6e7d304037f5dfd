"""Channels as text: ``clip:0.5 | noise:1.0``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from atoll import spec
from atoll.channel.auto import Auto
from atoll.channel.chain import Chain
from atoll.channel.clip import Clip
from atoll.channel.fetchsgd import FetchSGD
from atoll.channel.he import HE
from atoll.channel.local import Local
from atoll.channel.masked import SecAgg
from atoll.channel.momentum import Momentum
from atoll.channel.noise import Noise
from atoll.channel.shrink import Shrink
from atoll.channel.skellam import Skellam
from atoll.channel.transform import Transform
from atoll.compress import Same
from atoll.compress.parse import CODECS, codecs, read
from atoll.contract import Channel
from atoll.errors import ConfigError
from atoll.spec import Call, Parameter, number, whole

__all__ = ["channel", "transforms"]


def _bands(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


_HOW = Parameter("how", '"ideal" or "protocol"', {"ideal": "ideal", "protocol": "protocol"}.__getitem__, True)
_MATRIX = Parameter(
    "matrix", '"tree" or a number of bands', lambda text: text if text == "tree" else _bands(text), True
)

_KNOWN: dict[str, tuple[type[Transform], tuple[Parameter, ...]]] = {
    "momentum": (Momentum, (number("beta", at_least=0, below=1),)),
    "clip": (
        Clip,
        (
            number("norm"),
            number("quantile", optional=True),
            number("rate", optional=True),
            Parameter("order", "1 or 2", {"1": 1, "2": 2}.__getitem__, True),
        ),
    ),
    "noise": (
        Noise,
        (number("multiplier", optional=True), whole("seed", optional=True, at_least=0), _MATRIX),
    ),
    "local": (
        Local,
        (
            number("multiplier"),
            Parameter(
                "kind", '"gaussian" or "laplace"', {k: k for k in ("gaussian", "laplace")}.__getitem__, True
            ),
        ),
    ),
    "fetchsgd": (
        FetchSGD,
        (
            number("times"),
            number("share", optional=True),
            number("momentum", optional=True),
            whole("rows", optional=True),
        ),
    ),
    "auto": (Auto, (number("share", optional=True),)),
    "skellam": (Skellam, (number("multiplier"), number("lost", optional=True))),
    "he": (HE, (whole("degree", optional=True),)),
    "secagg": (SecAgg, (whole("bits", optional=True), _HOW, number("range", optional=True))),
}


def transforms() -> list[tuple[str, str]]:
    """How each transform is written, and the first line of what its class says of itself."""
    found = [
        (spec.usage(name, parameters), (inspect.getdoc(kind) or "").split("\n")[0])
        for name, (kind, parameters) in _KNOWN.items()
    ]
    return found + codecs()


def channel(given: str | Sequence[Transform] | Channel) -> Channel:
    """The channel of a text or of a list of transforms; a `Channel` is taken as it is.  Raises ConfigError.

    >>> channel("clip:0.5 | noise:1.0").text
    'clip:0.5 | noise:1'
    """
    if isinstance(given, Channel):
        return given
    if isinstance(given, Transform):
        return Chain([given])
    if isinstance(given, str):
        return Chain([_made(part.strip(), given) for part in given.split("|")])
    if isinstance(given, Sequence):
        return Chain([*given])
    raise ConfigError(
        f"channel is a {type(given).__name__}",
        hint='give a text such as "clip:0.5 | noise:1.0", or a list of transforms',
    )


def _behind(part: str) -> tuple[str, list[str]]:
    """What stands before, and the words that stand behind + in a transform."""
    words: list[str] = []
    while True:
        inner, plus, more = (each.strip() for each in part.rpartition("+"))
        if not plus or not more[:1].isalpha():  # "1e+3" is a number
            return part, words
        part, words = inner, [more, *words]


def _made(part: str, text: str) -> Transform:
    """One transform of a channel that is written as `text`."""
    part, words = _behind(part)
    calls = []
    for each in part.split("/"):
        name, colon, given = each.strip().partition(":")
        calls.append(Call(name.strip(), given if colon else None, "channel", text))
    heads = {**{name: parameters for name, (_, parameters) in _KNOWN.items()}, **CODECS, "zstd": ()}
    call, (arguments, *_) = calls[0], [each.read(heads) for each in calls]
    for at, word in enumerate(words):
        if word not in ("zstd", "feedback") or word in words[:at]:
            raise spec.unknown("channel", word, ["zstd", "feedback"], text)
    wrapped, zstd = "feedback" in words, "zstd" in words
    if all(each.name in CODECS for each in calls):
        first, *others = map(read, calls)
        return Shrink(first, wrapped, tuple(others), zstd)
    if call.name == "zstd" and len(calls) == 1 and not zstd:
        return Shrink(Same(), wrapped, zstd=True)
    if len(calls) > 1:
        raise ConfigError(
            f"channel {text!r}: clients choose between codecs, and {part.strip()} names something else",
            hint='write the others behind |: "clip:0.5 | int8 / drive"',
        )
    if call.name == "fetchsgd" and not words:
        return FetchSGD.made(**arguments)
    if zstd:
        raise ConfigError(
            f"channel {text!r}: + zstd stands behind a codec, and {call.name} is none",
            hint='write "bf16 + zstd"; alone it is "zstd"',
        )
    if call.name == "auto":
        return Auto(**arguments, feedback=wrapped)
    if wrapped:
        raise ConfigError(
            f"channel {text!r}: {call.name} loses nothing that feedback could make good",
            hint=f"it goes with a codec: {', '.join(CODECS)}",
        )
    return _KNOWN[call.name][0](**arguments)
