"""The virtual clock: what devices can do, when they are there, and how long orders take.

Nothing here reads the time of the machine: how long something would take follows from the devices, and every draw from
an address. So a simulation on a virtual clock repeats, whatever computes it.
"""

from __future__ import annotations

from .devices import Devices
from .parse import devices, kinds
from .parts import Part
from .presence import Presence, There
from .profiles import MEDIANS, Profiles, Spans

__all__ = [
    "MEDIANS", "Devices", "Part", "Presence", "Profiles", "Spans", "There", "devices", "kinds",
]  # fmt: skip
