"""Peers without a server: who hears whom, what it counts for, and how what is heard is mixed."""

from __future__ import annotations

from atoll.topology.figures import Figures, exact_after, figures, gap
from atoll.topology.fixed import Fixed
from atoll.topology.mixing import Mixture, average
from atoll.topology.topology import TOPOLOGIES, Topology, related, topology
from atoll.topology.weights import Row, Sums, Weights

__all__ = [
    "TOPOLOGIES",
    "Figures",
    "Fixed",
    "Mixture",
    "Row",
    "Sums",
    "Topology",
    "Weights",
    "average",
    "exact_after",
    "figures",
    "gap",
    "related",
    "topology",
]
