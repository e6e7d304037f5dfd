"""Who hears whom in one exchange, and what each model counts for: the rows of a mixing matrix that is never dense.

    x_i <- sum_j W_ij x_j        j: peer i itself, and the neighbours that it hears

Rows are kept as lists of peers and weights; equal rows (groups that all end with one mean, a complete graph) are kept,
and computed, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atoll.errors import ConfigError

__all__ = ["Row", "Sums", "Weights"]

Sums = Literal["both", "columns", "rows"]
"""Which sums of a mixing matrix are to be 1: those of rows and columns (means stay, consensus is reached), of columns
(masses stay: push-sum), or of rows (a mean of what is heard)."""

_CLOSE = 1e-12


@dataclass(frozen=True)
class Row:
    """Whom a peer hears, itself among them, ascending, and what they count for."""

    peers: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Weights:
    """A mixing matrix W [peers, peers] of one exchange: W[i, j] is what j's model counts for at i.

    Args:
        rows: the distinct rows.
        row: which of them each peer has [peers].
    """

    rows: tuple[Row, ...]
    row: NDArray[np.int64]

    @staticmethod
    def of(rows: Iterable[tuple[Sequence[int], Sequence[float]]]) -> Weights:
        """From each peer's (peers, weights), in the order of peers; those heard in any order."""
        known: dict[Row, int] = {}
        places = []
        for whose, counts in rows:
            order = np.argsort(whose, kind="stable")
            found = Row(tuple(int(whose[at]) for at in order), tuple(float(counts[at]) for at in order))
            places.append(known.setdefault(found, len(known)))
        return Weights(tuple(known), np.array(places, np.int64))

    @staticmethod
    def means(groups: Iterable[Sequence[int]], peers: int) -> Weights:
        """Every group (disjoint ones) ends with its mean; who is in none stays as it is."""
        place = np.full(peers, -1, np.int64)
        rows: list[Row] = []
        for group in groups:
            members = tuple(sorted(int(peer) for peer in group))
            place[list(members)] = len(rows)
            rows.append(Row(members, (1 / len(members),) * len(members)))
        for alone in np.flatnonzero(place < 0).tolist():
            place[alone] = len(rows)
            rows.append(Row((alone,), (1.0,)))
        return Weights(tuple(rows), place)

    @property
    def peers(self) -> int:
        """How many there are."""
        return len(self.row)

    def of_peer(self, peer: int) -> Row:
        """Whom this peer hears."""
        return self.rows[int(self.row[peer])]

    def hears(self, peer: int) -> list[int]:
        """Whom this peer hears, without itself, ascending."""
        return [other for other in self.of_peer(peer).peers if other != peer]

    @cached_property
    def heard(self) -> list[list[int]]:
        """By whom each peer is heard, without itself, ascending: where it has to send."""
        found: list[list[int]] = [[] for _ in range(self.peers)]
        for peer in range(self.peers):
            for other in self.hears(peer):
                found[other].append(peer)
        return found

    @property
    def links(self) -> int:
        """How many messages one exchange takes."""
        return sum(len(self.hears(peer)) for peer in range(self.peers))

    @property
    def degree(self) -> int:
        """The most neighbours that one peer hears."""
        return max((len(self.hears(peer)) for peer in range(self.peers)), default=0)

    @cached_property
    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """(i, j, W_ij) of all that are not 0, row after row."""
        every = [self.of_peer(peer) for peer in range(self.peers)]
        sizes = [len(row.peers) for row in every]
        i = np.repeat(np.arange(self.peers), sizes)
        j = np.fromiter((other for row in every for other in row.peers), np.int64, sum(sizes))
        w = np.fromiter((value for row in every for value in row.weights), np.float64, sum(sizes))
        return i, j, w

    def dense(self) -> NDArray[np.float64]:
        """The whole matrix; for figures and checks of few peers."""
        i, j, w = self.entries
        found = np.zeros((self.peers, self.peers))
        found[i, j] = w
        return found

    # --- sums -------------------------------------------------------------------------------------------------

    def sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sums of the rows, and of the columns [peers]."""
        i, j, w = self.entries
        return np.bincount(i, w, self.peers).astype(np.float64), np.bincount(j, w, self.peers).astype(
            np.float64
        )

    @cached_property
    def symmetric(self) -> bool:
        """Whether W_ij = W_ji, to 1e-12."""
        i, j, w = self.entries
        there, back = np.lexsort((j, i)), np.lexsort((i, j))
        same = np.array_equal(i[there], j[back]) and np.array_equal(j[there], i[back])
        return bool(same and np.allclose(w[there], w[back], rtol=0, atol=_CLOSE))

    @cached_property
    def doubly(self) -> bool:
        """Whether rows and columns sum to 1, to 1e-12."""
        return all(bool((np.abs(each - 1) < _CLOSE).all()) for each in self.sums())

    def check(self, sums: Sums, what: str) -> Weights:
        """These weights, whose sums are what they must be, to 1e-12.  Raises ConfigError, naming `what` and a peer."""
        _, _, w = self.entries
        if not (np.isfinite(w).all() and (w >= 0).all()):
            raise ConfigError(
                f"{what}: a weight is negative, or no number", hint="weights are shares, 0 to 1"
            )
        rows, columns = self.sums()
        for name, found in (("rows", rows), ("columns", columns)):
            if sums in ("both", name) and (np.abs(found - 1) > _CLOSE).any():
                worst = int(np.abs(found - 1).argmax())
                said = "what it hears counts for" if name == "rows" else "what others make of it counts for"
                raise ConfigError(
                    f"{what}: the weights are not stochastic: of peer {worst} {said} {found[worst]:.6g}, and not 1",
                    hint="leave the weights out, and they follow from the links"
                    if name == "rows"
                    else "leave the weights out, or take a method for links that go one way: pushsum",
                )
        return self

    # --- who is there -----------------------------------------------------------------------------------------

    def among(self, there: Sequence[int], sums: Sums = "both") -> Weights:
        """The weights where only these peers are there (ascending), who are now numbered 0, 1 ... in their order.

        A group that ends with its mean ends with the mean of those who are there. Elsewhere what somebody absent would
        count for is added to what the peer's own model counts for, so that rows keep their sums, and symmetric weights
        stay symmetric; or, where columns are to keep theirs, whoever cannot send keeps that share itself.
        """
        if len(there) == self.peers:
            return self
        place = {int(peer): at for at, peer in enumerate(there)}
        users = np.bincount(self.row, minlength=len(self.rows))
        kept: dict[int, Row] = {}
        mine = dict.fromkeys(place, 0.0)
        if sums == "columns":
            for i, j, w in zip(*(part.tolist() for part in self.entries), strict=True):
                if j in place and i not in place:
                    mine[j] += w
        rows = []
        for peer in place:
            number = int(self.row[peer])
            row = self.rows[number]
            alike = users[number] > 1 and users[number] == len(row.peers) and len(set(row.weights)) == 1
            if alike and self.doubly:
                if number not in kept:
                    members = tuple(place[other] for other in row.peers if other in place)
                    kept[number] = Row(members, (1 / len(members),) * len(members))
                found = kept[number]
            else:
                here = [(other, w) for other, w in zip(row.peers, row.weights, strict=True) if other in place]
                lost = [w for other, w in zip(row.peers, row.weights, strict=True) if other not in place]
                more = mine[peer] if sums == "columns" else float(sum(lost))
                found = Row(
                    tuple(place[other] for other, _ in here),
                    tuple(w + more if other == peer else w for other, w in here),
                )
            rows.append((found.peers, found.weights))
        return Weights.of(rows)

    def least(self, others: int, sums: Sums = "both") -> Weights:
        """These weights, where whoever would hear fewer than so many others hears nobody, and keeps what it has.

        Where columns are to keep their sums, who is not heard keeps that share.
        """
        few = {peer for peer in range(self.peers) if 0 < len(self.hears(peer)) < others}
        if not few:
            return self
        more = dict.fromkeys(range(self.peers), 0.0)
        if sums == "columns":
            for i, j, w in zip(*(part.tolist() for part in self.entries), strict=True):
                if i in few and i != j:
                    more[j] += w
        rows: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
        for peer in range(self.peers):
            row = self.of_peer(peer)
            own = row.weights[row.peers.index(peer)] + more[peer]
            if peer in few:
                rows.append(((peer,), (own if sums == "columns" else 1.0,)))
                continue
            counts = [own if other == peer else w for other, w in zip(row.peers, row.weights, strict=True)]
            rows.append((row.peers, tuple(counts)))
        return Weights.of(rows)
