"""Attacks on a federation's privacy, to be run where protection must hold: they succeed where it is off."""

from __future__ import annotations

from atoll.audit.bounds import epsilon_lower
from atoll.audit.canary import Canaries, plant
from atoll.audit.claims import reported
from atoll.audit.draw import write
from atoll.audit.findings import ATTACKS, Audit, audit, check
from atoll.audit.inversion import Inversion, invert
from atoll.audit.membership import Membership, infer
from atoll.audit.skipped import Skipped
from atoll.audit.view import Seen, seen
from atoll.audit.words import CAVEAT, lines

__all__ = [
    "ATTACKS",
    "CAVEAT",
    "Audit",
    "Canaries",
    "Inversion",
    "Membership",
    "Seen",
    "Skipped",
    "audit",
    "check",
    "epsilon_lower",
    "infer",
    "invert",
    "lines",
    "plant",
    "reported",
    "seen",
    "write",
]
