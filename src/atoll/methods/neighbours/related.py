"""Neighbours by likeness of data: what FEDORA knows of peers decides who hears whom (`topology = "related:2"`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import seeds
from atoll.contract import Replies, Work
from atoll.methods.personal.relatedness import likeness, nowhere, placed
from atoll.methods.personal.sketches import Sketch
from atoll.tensors import Record
from atoll.topology import related

__all__ = ["Related"]

_LISTED = 64  # peers whose likeness is shown


@dataclass(frozen=True)
class Related:
    """Whom a peer takes for neighbours: the k whose sketches are most like its own, and all that take it for one.

    A peer tells all others a sketch of its training data (`Sketch`, of rank 1) before its first round, and nothing of
    the kind later. Whoever knows all sketches knows the graph, so that nobody has to draw it up. It changes where peers
    come or leave.

    Args:
        k: how many each chooses.
        dim, noise: `sketch_dim` and `sketch_noise` of FEDORA.

    What is kept of it in a state: `near` (who is nearest to whom, see `relatedness`), `links` (a row for each, from,
    to, -1), and `said`, the bytes of sketches since the last round.
    """

    k: int
    dim: int = 0
    noise: float = 0.0

    @staticmethod
    def of(text: str) -> Related | None:
        """That of a topology; None for graphs that go by something else.  Raises ConfigError."""
        found = related(text)
        return None if found is None else Related(**found)

    @property
    def sketch(self) -> Sketch:
        """The program that makes a peer's sketch."""
        return Sketch(rank=1, label_scale=1.0, dim=self.dim, noise=self.noise)

    def begin(self) -> Record:
        """Nobody has said anything."""
        return Record(near=nowhere(1, self.k), said=0)

    def enrol(self, state: Record, cohort: Sequence[int]) -> tuple[Sequence[int], Work] | None:
        """Those of the cohort that have not told their sketches, and what they are asked."""
        known = set(state.near.ids.tolist())
        new = [peer for peer in cohort if peer not in known]
        projection = torch.tensor(seeds.address(state.seed, "sketch"))
        return (new, Work(Record(projection=projection), program="sketch")) if new else None

    def welcome(self, state: Record, replies: Replies) -> Record:
        """The state with new peers among the others: they hear all sketches, and all others hear theirs."""
        sketches = torch.stack([reply.values.sketch for reply in replies.each]).cpu()
        near = placed(state.near, replies.clients, sketches, self.k)
        new, old = len(sketches), len(state.near.ids)
        one = sketches[0].numel() * sketches.element_size()
        said = state.said + one * (new * (new - 1) + 2 * new * old)
        return state.replace(near=near, links=_links(near), said=said)

    def leave(self, state: Record, peers: Sequence[int]) -> Record:
        """The state without these."""
        gone, near = set(peers), state.near
        stays = torch.tensor([int(peer) not in gone for peer in near.ids], dtype=torch.bool)
        rest = placed(nowhere(1, self.k), near.ids[stays].tolist(), near.sketches[stays], self.k)
        return state.replace(near=rest, links=_links(rest))

    def affinity(self, state: Record) -> tuple[list[int], Tensor] | None:
        """(peers, likeness [n, n], from 0 to 1)."""
        order = state.near.ids.argsort()[:_LISTED]
        if len(order) < 2:
            return None
        sketches = state.near.sketches[order]
        return state.near.ids[order].tolist(), likeness(sketches, sketches)


def _links(near: Record) -> Tensor:
    """Links of everybody to its nearest."""
    there = torch.isfinite(near.scores)
    whose = near.ids.unsqueeze(1).expand_as(near.neighbours)[there]
    to = near.ids[near.neighbours[there]]
    return torch.stack([whose, to, torch.full_like(to, -1)], dim=1).double()
