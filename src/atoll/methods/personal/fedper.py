"""Personal last layers on a shared body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.methods.parts.settings import require
from atoll.methods.parts.shared import PartlyShared, head
from atoll.task import Task

__all__ = ["FedPer"]


@dataclass(frozen=True, kw_only=True)
class FedPer(PartlyShared):
    """Share the body, keep the last layers.   Arivazhagan et al. 2019, Algorithms 1 and 2

    client:  (b_k, h_k) <- (b_t, h_k as this client left it);  for each batch of E epochs, both together:
             (b_k, h_k) <- (b_k, h_k) - lr grad F_k(b_k, h_k; batch)
    server:  b_{t+1} = b_t + sum_k (n_k / n_S) (b_k - b_t)

    b is the body and h the head; all heads start as the task's initial one and never travel, nor do their
    buffers. With head_layers=0 this is FedAvg to the bit, with all layers in the head it is local training.

    Args:
        head_layers: how many layers, counted from the output, stay with the client. A layer is a submodule with
            trainable parameters of its own, a BatchNorm as much as a convolution.

    Traps: a head belongs to its client from round to round; one that starts anew each round, or is overwritten
    by what is received, makes another method. Buffers of the body are averaged like its parameters. Two layers
    that share a weight count it with the first of them.
    """

    head_layers: int = 1

    paper: ClassVar[str] = "Arivazhagan et al. 2019"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "head_layers", self.head_layers >= 0, "must not be negative")

    def private(self, task: Task) -> frozenset[str]:
        return head(task, self.head_layers)
