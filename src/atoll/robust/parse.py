"""Aggregations as text: ``nnm + trimmed:4``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from atoll import spec
from atoll.errors import ConfigError
from atoll.robust.aggregation import Aggregation
from atoll.robust.average import Average
from atoll.robust.bound import Bound
from atoll.robust.bucket import Bucket
from atoll.robust.bulyan import Bulyan
from atoll.robust.caf import CAF
from atoll.robust.cclip import CenteredClip
from atoll.robust.clipping import ARC, Shorten
from atoll.robust.dnc import DnC
from atoll.robust.flame import Flame
from atoll.robust.fltrust import FLTrust
from atoll.robust.foolsgold import FoolsGold
from atoll.robust.geometric import Geometric, Smoothed
from atoll.robust.groups import Groups
from atoll.robust.krum import Krum, MultiKrum
from atoll.robust.mda import MDA
from atoll.robust.meamed import Meamed
from atoll.robust.median import Median
from atoll.robust.nnm import NNM
from atoll.robust.rule import Before, Columns, Rule
from atoll.robust.trimmed import Trimmed
from atoll.spec import Parameter, number, whole

__all__ = ["parse", "rules"]

_F = whole("f", at_least=0)
_MAYBE_F = whole("f", at_least=0, optional=True)

_M = whole("m", at_least=1, optional=True)
_TIMES = whole("iterations", at_least=1, optional=True)
_TAU = number("tau", above=0)
_NOISE = number("deviation", at_least=0, optional=True)
_SHARE = number("share", at_least=0, optional=True)

_KNOWN: dict[str, tuple[type[Before | Rule | Columns], tuple[Parameter, ...]]] = {
    "mean": (Average, ()),
    "median": (Median, ()),
    "trimmed": (Trimmed, (_F,)),
    "meamed": (Meamed, (_F,)),
    "geometric": (Geometric, ()),
    "rfa": (Smoothed, (_TIMES, number("nu", above=0, optional=True))),
    "krum": (Krum, (_F,)),
    "multikrum": (MultiKrum, (_F, _M)),
    "bulyan": (Bulyan, (_F,)),
    "mda": (MDA, (_F,)),
    "caf": (CAF, (_F,)),
    "dnc": (DnC, (_F,)),
    "cclip": (CenteredClip, (_TAU, _TIMES)),
    "bound": (Bound, (_TAU, _NOISE)),
    "fltrust": (FLTrust, ()),
    "foolsgold": (FoolsGold, ()),
    "flame": (Flame, (_SHARE,)),
    "nnm": (NNM, (_MAYBE_F,)),
    "arc": (ARC, (_MAYBE_F,)),
    "bucket": (Bucket, (whole("s", at_least=1),)),
    "clip": (Shorten, (_TAU,)),
    "groups": (Groups, (whole("k", at_least=2),)),
}


def rules() -> list[tuple[str, str]]:
    """How each stage is written, and the first line of what its class says of itself."""
    return [
        (spec.usage(name, parameters), (inspect.getdoc(kind) or "").split("\n")[0])
        for name, (kind, parameters) in _KNOWN.items()
    ]


def parse(given: str | Aggregation | Rule | Columns | Sequence[Before | Rule | Columns]) -> Aggregation:
    """The aggregation of a text, a rule or a list of stages; an `Aggregation` is taken as it is.  Raises ConfigError.

    >>> parse("nnm + trimmed:4").liars
    4
    """
    if isinstance(given, Aggregation):
        return given
    if isinstance(given, Rule | Columns):
        return Aggregation([given])
    if isinstance(given, str):
        known = {name: parameters for name, (_, parameters) in _KNOWN.items()}
        calls = spec.chain(given, "aggregate", "+")
        read = [(call.read(known), call.name) for call in calls]
        return Aggregation([_KNOWN[name][0](**arguments) for arguments, name in read])
    if isinstance(given, list | tuple):
        return Aggregation(given)
    raise ConfigError(
        f"aggregate is a {type(given).__name__}",
        hint='give a text such as "nnm + trimmed:4", or a list of rules',
    )
