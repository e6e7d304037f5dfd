"""What happens to an update on its way from client to server: a chain of transforms, each with both its halves.

Names are looked up when they are asked for: `atoll.channel.secagg` needs no torch, and neither does who plays it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.channel.chain import Chain
    from atoll.channel.clip import Clip
    from atoll.channel.he import HE
    from atoll.channel.local import Local
    from atoll.channel.masked import SecAgg
    from atoll.channel.momentum import Momentum
    from atoll.channel.noise import Noise
    from atoll.channel.parse import channel, transforms
    from atoll.channel.robust import Robust
    from atoll.channel.shrink import Shrink
    from atoll.channel.skellam import Skellam
    from atoll.channel.transform import Setting, Transform, Update

__all__ = [
    "HE",
    "Chain",
    "Clip",
    "Local",
    "Momentum",
    "Noise",
    "Robust",
    "SecAgg",
    "Setting",
    "Shrink",
    "Skellam",
    "Transform",
    "Update",
    "channel",
    "transforms",
]

_WHERE = {
    "HE": "he", "Chain": "chain", "Clip": "clip", "Local": "local", "Momentum": "momentum", "Noise": "noise",
    "Robust": "robust", "SecAgg": "masked", "Setting": "transform", "Shrink": "shrink", "Skellam": "skellam",
    "Transform": "transform", "Update": "transform", "channel": "parse", "transforms": "parse",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
