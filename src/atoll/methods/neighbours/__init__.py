"""Methods without a server, one file each: peers that train and mix with their neighbours (see docs/peer.md)."""

from __future__ import annotations

from atoll.methods.neighbours.adpsgd import ADPSGD
from atoll.methods.neighbours.choco import Choco
from atoll.methods.neighbours.d2 import D2
from atoll.methods.neighbours.decentralised import Decentralised
from atoll.methods.neighbours.diloco import DiLoCo
from atoll.methods.neighbours.dpsgd import DPSGD
from atoll.methods.neighbours.gossip import Gossip
from atoll.methods.neighbours.moshpit import Moshpit
from atoll.methods.neighbours.pushsum import PushSum
from atoll.methods.neighbours.tracking import Tracking

__all__ = [
    "ADPSGD", "D2", "DPSGD", "Choco", "Decentralised", "DiLoCo", "Gossip", "Moshpit", "PushSum", "Tracking",
]  # fmt: skip
