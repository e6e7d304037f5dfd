"""What happens to an update on its way from client to server: a chain of transforms, each with both its halves."""

from __future__ import annotations

from atoll.channel.chain import Chain
from atoll.channel.clip import Clip
from atoll.channel.he import HE
from atoll.channel.local import Local
from atoll.channel.masked import SecAgg
from atoll.channel.noise import Noise
from atoll.channel.parse import channel, transforms
from atoll.channel.skellam import Skellam
from atoll.channel.transform import Setting, Transform, Update

__all__ = [
    "HE",
    "Chain",
    "Clip",
    "Local",
    "Noise",
    "SecAgg",
    "Setting",
    "Skellam",
    "Transform",
    "Update",
    "channel",
    "transforms",
]
