"""Robust aggregation: one update out of many, of which some may be lies.

Pure functions of vectors, which know nothing of clients and rounds. A rule of distances is written in coefficients: it
sees the inner products of updates (`Points`), found in one pass, and says what each counts for; a rule of coordinates
sees numbers in their order. `Before` makes other updates of them first.
"""

from __future__ import annotations

from torch import Tensor

from atoll.robust.aggregation import Aggregated, Aggregation
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
from atoll.robust.parse import parse, rules
from atoll.robust.points import Points
from atoll.robust.rows import Rows
from atoll.robust.rule import Before, Columns, Rule
from atoll.robust.trimmed import Trimmed

__all__ = [
    "ARC",
    "CAF",
    "MDA",
    "NNM",
    "Aggregated",
    "Aggregation",
    "Average",
    "Before",
    "Bound",
    "Bucket",
    "Bulyan",
    "CenteredClip",
    "Columns",
    "DnC",
    "FLTrust",
    "Flame",
    "FoolsGold",
    "Geometric",
    "Groups",
    "Krum",
    "Meamed",
    "Median",
    "MultiKrum",
    "Points",
    "Rows",
    "Rule",
    "Shorten",
    "Smoothed",
    "Trimmed",
    "aggregate",
    "parse",
    "rules",
]


def aggregate(
    rows: Tensor, rule: str | Aggregation, *, beside: Tensor | None = None, seed: int = 0, step: int = 0
) -> Tensor:
    """What a rule makes of updates, the rows [n, d] of a matrix; [d].

    `beside` is its point of reference, [d], where it needs one: what it gave last, or the server's own update.
    Raises ConfigError where there are too few rows.

    >>> import torch
    >>> aggregate(torch.tensor([[1.0], [2.0], [99.0]]), "median")
    tensor([2.])
    """
    found = parse(rule)
    found.check(len(rows))
    if found.beside:
        rows = [*rows, rows.new_zeros(rows.shape[1]) if beside is None else beside]  # type: ignore[assignment]
    return found.of(Rows([[row] for row in rows]), seed, step).parts[0]
