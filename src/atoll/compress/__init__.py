"""Codecs: a tensor in fewer bytes, and back, with an error that is known.

A codec is pure and of one tensor; it knows nothing of clients, rounds or links. Who uses it decides what for: a channel
(`atoll.channel.Shrink`), a sum between workers.
"""

from __future__ import annotations

from atoll.compress.codec import Codec
from atoll.compress.halves import Half
from atoll.compress.lowrank import PowerSGD
from atoll.compress.nf4 import NF4
from atoll.compress.parse import CODECS, parse
from atoll.compress.qsgd import QSGD
from atoll.compress.randk import RandK
from atoll.compress.rotated import Eden
from atoll.compress.same import Same
from atoll.compress.sign import Sign
from atoll.compress.sketch import Sketch
from atoll.compress.topk import TopK
from atoll.compress.whole import Whole

__all__ = [
    "CODECS",
    "NF4",
    "QSGD",
    "Codec",
    "Eden",
    "Half",
    "PowerSGD",
    "RandK",
    "Same",
    "Sign",
    "Sketch",
    "TopK",
    "Whole",
    "parse",
]
