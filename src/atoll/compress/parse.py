"""Codecs as text: ``int8``, ``topk:0.01``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from atoll import spec
from atoll.compress.codec import Codec
from atoll.compress.halves import Half
from atoll.compress.lowrank import PowerSGD
from atoll.compress.nf4 import NF4
from atoll.compress.qsgd import QSGD
from atoll.compress.randk import RandK
from atoll.compress.rotated import Eden
from atoll.compress.same import Same
from atoll.compress.sign import Sign
from atoll.compress.sketch import Sketch
from atoll.compress.topk import TopK
from atoll.compress.whole import Whole
from atoll.spec import Call, Parameter, number, whole

__all__ = ["CODECS", "codecs", "parse", "read"]

_UNBIASED = Parameter("unbiased", '"unbiased"', {"unbiased": True}.__getitem__, True)

_MADE: Mapping[str, tuple[type[Codec], Mapping[str, Any], tuple[Parameter, ...]]] = {
    "bf16": (Half, {"kind": "bf16"}, ()),
    "fp16": (Half, {"kind": "fp16"}, ()),
    "int8": (Whole, {"bits": 8}, ()),
    "int4": (Whole, {"bits": 4}, ()),
    "nf4": (NF4, {}, (whole("block", optional=True),)),
    "topk": (TopK, {}, (number("share"),)),
    "randk": (RandK, {}, (number("share"),)),
    "sign": (Sign, {}, ()),
    "qsgd": (QSGD, {}, (whole("levels"),)),
    "drive": (Eden, {"bits": 1}, (_UNBIASED,)),
    "eden": (Eden, {}, (whole("bits"), _UNBIASED)),
    "sketch": (Sketch, {}, (number("times"), whole("rows", optional=True))),
    "powersgd": (PowerSGD, {}, (whole("rank"),)),
}

CODECS: Mapping[str, tuple[Parameter, ...]] = {name: parameters for name, (_, _, parameters) in _MADE.items()}
"""The codecs by name, and what may follow it."""


def codecs() -> list[tuple[str, str]]:
    """How each codec is written, and the first line of what its class says of itself."""
    return [
        (spec.usage(name, parameters), (inspect.getdoc(kind) or "").split("\n")[0])
        for name, (kind, _, parameters) in _MADE.items()
    ] + [(Same.name, (inspect.getdoc(Same) or "").split("\n")[0])]


def read(call: Call) -> Codec:
    """The codec of a text that was taken apart.  Raises ConfigError."""
    found = call.read(CODECS)
    kind, fixed, _ = _MADE[call.name]
    return kind(**fixed, **found)


def parse(text: str) -> Codec:
    """The codec of a text.  Raises ConfigError.

    >>> parse("topk:0.01").text
    'topk:0.01'
    """
    return read(spec.parse(text, "codec"))
