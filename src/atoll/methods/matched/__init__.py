"""Averaging networks after their hidden units are matched."""

from atoll.methods.matched.bbp import Matching, match_units
from atoll.methods.matched.fedma import PFNM, FedMA
from atoll.methods.matched.networks import Matched, match_models
from atoll.methods.parts.axes import Axis, Groups, Segment
from atoll.methods.parts.units import permutation_groups

__all__ = [
    "PFNM",
    "Axis",
    "FedMA",
    "Groups",
    "Matched",
    "Matching",
    "Segment",
    "match_models",
    "match_units",
    "permutation_groups",
]
