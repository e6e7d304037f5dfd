"""Decentralised SGD: train, then average with the neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.methods.neighbours.decentralised import Decentralised

__all__ = ["DPSGD"]


@dataclass(frozen=True, kw_only=True)
class DPSGD(Decentralised):
    """Train, then average with the neighbours.   Lian et al., NeurIPS 2017 (D-PSGD)

    client:  z_k <- x_k;  for each batch:  z_k <- z_k - lr grad F_k(z_k; batch)
    mixing:  x_i <- sum_j W_ij z_j

    Neighbours average what local steps led to; the paper averages the models before its one step, which can then be
    taken meanwhile. On the complete graph, and on the star, all peers have one model after each round, and this is
    FedAvg of clients that count alike.
    """

    plain: ClassVar[bool] = False
    paper: ClassVar[str] = "Lian et al. 2017 (D-PSGD)"
