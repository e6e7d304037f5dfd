"""Clients that lie, in simulations: poisoned data, updates that were never computed, and who does it."""

from __future__ import annotations

from atoll.attacks.alie import ALIE, OptimalALIE
from atoll.attacks.attack import Attack, attack, attacks
from atoll.attacks.edge import Edge
from atoll.attacks.extremes import MinMax, MinSum
from atoll.attacks.gaussian import Gaussian
from atoll.attacks.infinity import Infinity
from atoll.attacks.ipm import IPM, OptimalIPM
from atoll.attacks.labelflip import LabelFlip
from atoll.attacks.lie import Lie, Seen
from atoll.attacks.lying import Attacked
from atoll.attacks.mimic import Mimic
from atoll.attacks.poison import Attacker, Poison
from atoll.attacks.scaling import Scaling
from atoll.attacks.signflip import SignFlip
from atoll.attacks.trigger import DBA, Backdoor
from atoll.attacks.who import Amount, drawn

__all__ = [
    "ALIE",
    "DBA",
    "IPM",
    "Amount",
    "Attack",
    "Attacked",
    "Attacker",
    "Backdoor",
    "Edge",
    "Gaussian",
    "Infinity",
    "LabelFlip",
    "Lie",
    "Mimic",
    "MinMax",
    "MinSum",
    "OptimalALIE",
    "OptimalIPM",
    "Poison",
    "Scaling",
    "Seen",
    "SignFlip",
    "attack",
    "attacks",
    "drawn",
]
