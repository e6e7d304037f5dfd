"""All that a guest and its hosts say to each other while trees grow, and when they are used."""

from __future__ import annotations

from atoll.parties import Field, Kind

__all__ = [
    "ASK", "BEGIN", "BLOCK", "CHOSEN", "CHUNK", "COLUMNS", "KINDS", "NODES", "OUTCOMES", "PAIRS", "SIDES", "SPLITS",
    "SUMS", "TREE",
]  # fmt: skip

CHUNK = 1 << 18
"""Ciphertexts in a message."""

BLOCK = 1 << 14
"""Rows whose outcomes are in one message."""

BEGIN = Kind(
    "boost.begin",
    {"key": Field("uint8", (None,)), "steps": Field("int"), "rows": Field("int")},
    "the public key of the guest, how many trees there are already, and how many rows",
)
SPLITS = Kind("boost.splits", {"count": Field("int")}, "how many splits the host's columns allow in all")
TREE = Kind(
    "boost.tree",
    {"levels": Field("int"), "rows": Field("uint8", (None,))},
    "which rows a tree is grown on: all, or those with large gradients and some others",
)
PAIRS = Kind(
    "boost.pairs", {"c": Field("uint8", (None, None))}, "encrypted gradients of rows: nothing without the key"
)
NODES = Kind(
    "boost.nodes",
    {"node": Field("int16", (None,)), "built": Field("int64", (None,))},
    "which rows are together in a node: rows whose labels or scores may be alike",
)
SUMS = Kind(
    "boost.sums",
    {"c": Field("uint8", (None, None))},
    "sums of gradients of the rows inside each of the host's splits, in an order that is drawn anew for each tree:"
    " not whose columns or thresholds they are",
)
CHOSEN = Kind(
    "boost.chosen",
    {"node": Field("int64", (None,)), "split": Field("int64", (None,))},
    "which of its splits the host is to make, that is, which set labels apart best in these nodes",
)
SIDES = Kind(
    "boost.sides",
    {"inside": Field("uint8", (None,))},
    "on which side of a chosen split each row of a node is",
)
ASK = Kind("boost.ask", {"rows": Field("int")}, "that so many rows are to be predicted")
OUTCOMES = Kind(
    "boost.outcomes",
    {"inside": Field("uint8", (None, None))},
    "on which side of each of the host's splits in the model each row is, whether it comes to that node or not",
)

COLUMNS = Kind(
    "boost.columns",
    {"number": Field("int64", (None,))},
    "which of the host's splits in the model are of one column, under numbers without meaning",
)

KINDS = (BEGIN, SPLITS, TREE, PAIRS, NODES, SUMS, CHOSEN, SIDES, ASK, OUTCOMES, COLUMNS)
