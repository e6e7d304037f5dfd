"""CHOCO-SGD: neighbours hear only what changed, in few bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.compress import Codec, parse
from atoll.errors import ConfigError
from atoll.methods.neighbours.decentralised import Decentralised
from atoll.methods.parts.settings import require
from atoll.tensors import Record, nbytes
from atoll.topology import Topology, Weights

__all__ = ["Choco"]


@dataclass(frozen=True, kw_only=True)
class Choco(Decentralised):
    """Send differences through a codec; neighbours keep copies and add them up.   Koloskova et al., ICML 2019

    client:  z_k as in D-PSGD
    mixing:  q_i = C(z_i - h_i) is sent;   h_j <- h_j + q_j  at j and at all that hear it
             x_i <- z_i + gamma (sum_j W_ij h_j - h_i)

    h is what others know of a model: what C leaves out stays in z - h and is sent later. A peer keeps a copy for each
    neighbour. Whoever was absent asks its neighbours for theirs when it is back (a simulation has them).

    Args:
        codec: what C is: "topk:0.01", "int8", "sign", "qsgd:4" ... (see docs/compression.md).
        gamma: how far models move to what is heard, 1 without loss; the less C leaves, the smaller it must be.
    """

    codec: str = "topk:0.01"
    gamma: float = 0.1

    paper: ClassVar[str] = "Koloskova et al. 2019 (CHOCO-SGD)"
    cost: ClassVar[str] = "1 packed model to each neighbour; a copy of each neighbour's"
    apart: ClassVar[str] = "what it says is a change of what its neighbours have of it"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "gamma", 0 < self.gamma <= 1, "must be above 0, and at most 1")
        require(
            self,
            "codec",
            not self.packing.apart,
            "must not want each tensor for itself: a model is one vector here",
        )
        require(
            self, "codec", self.packing.contracts, "must come nearer to what it packs: topk, sign, int8 ..."
        )

    @property
    def packing(self) -> Codec:
        """The codec."""
        return parse(self.codec)

    def outset(self, model: Tensor) -> Record:
        return Record(known=model)

    def offer(self, own: Record, trained: Record) -> Record:
        apart = trained.model - own.known
        if apart.ndim == 1:
            sent = self.packing.through(apart, trained.key[0])
        else:
            sent = torch.stack(
                [self.packing.through(each, key[0]) for each, key in zip(apart, trained.key, strict=True)]
            )
        return Record(known=own.known + sent, buffers=trained.buffers)

    def pack(self, own: Record, trained: Record) -> Record:
        sent = self.packing.encode(trained.model - own.known, trained.key[0])
        return Record(change=sent, buffers=trained.buffers)

    def unpack(self, known: Record, packed: Record) -> Record:
        return Record(
            known=known.known + self.packing.decode(packed.change, known.known.shape), buffers=packed.buffers
        )

    def settle(self, own: Record, trained: Record, offered: Record, mixed: Record) -> Record:
        model = trained.model + (mixed.known - offered.known) * self.gamma
        return Record(model=model, known=offered.known, buffers=mixed.buffers)

    def message(self, offered: Record) -> int:
        return self.packing.nbytes(offered.known.shape[-1:]) + nbytes(offered.buffers)

    def exchanges(self, graphs: Topology, round: int, there: Sequence[int]) -> tuple[Weights, ...]:
        found = super().exchanges(graphs, round, there)
        if len(found) > 1:
            raise ConfigError(
                f"topology = {graphs.text}: its hub passes on means, and nobody knows what these differ from",
                hint="take topology = complete, or method = dpsgd",
            )
        return found
