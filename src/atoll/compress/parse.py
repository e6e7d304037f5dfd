"""Codecs as text: ``int8``, ``topk:0.01``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from atoll import spec
from atoll.compress.codec import Codec
from atoll.compress.halves import Half
from atoll.compress.lowrank import PowerSGD
from atoll.compress.qsgd import QSGD
from atoll.compress.randk import RandK
from atoll.compress.rotated import Eden
from atoll.compress.sign import Sign
from atoll.compress.topk import TopK
from atoll.compress.whole import Whole
from atoll.spec import Call, Parameter, number, whole

__all__ = ["CODECS", "parse", "read"]

_UNBIASED = Parameter("unbiased", '"unbiased"', {"unbiased": True}.__getitem__, True)

_MADE: Mapping[str, tuple[Callable[..., Codec], tuple[Parameter, ...]]] = {
    "bf16": (lambda: Half("bf16"), ()),
    "fp16": (lambda: Half("fp16"), ()),
    "int8": (lambda: Whole(8), ()),
    "int4": (lambda: Whole(4), ()),
    "topk": (TopK, (number("share"),)),
    "randk": (RandK, (number("share"),)),
    "sign": (Sign, ()),
    "qsgd": (QSGD, (whole("levels"),)),
    "drive": (lambda **more: Eden(1, **more), (_UNBIASED,)),
    "eden": (Eden, (whole("bits"), _UNBIASED)),
    "powersgd": (PowerSGD, (whole("rank"),)),
}

CODECS: Mapping[str, tuple[Parameter, ...]] = {name: parameters for name, (_, parameters) in _MADE.items()}
"""The codecs by name, and what may follow it."""


def read(call: Call) -> Codec:
    """The codec of a text that was taken apart.  Raises ConfigError."""
    found: dict[str, Any] = call.read(CODECS)
    return _MADE[call.name][0](**found)


def parse(text: str) -> Codec:
    """The codec of a text.  Raises ConfigError.

    >>> parse("topk:0.01").text
    'topk:0.01'
    """
    return read(spec.parse(text, "codec"))
