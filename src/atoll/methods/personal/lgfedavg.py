"""Local representations under a shared head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atoll.methods.parts.settings import require
from atoll.methods.parts.shared import PartlyShared, head, layers
from atoll.task import Task

__all__ = ["LGFedAvg"]


@dataclass(frozen=True, kw_only=True)
class LGFedAvg(PartlyShared):
    """Share the last layers, keep the representation.   Liang et al. 2020, Algorithm 1

    client:  (l_k, g_k) <- (l_k as this client left it, g_t);  for each batch of E epochs, both together:
             (l_k, g_k) <- (l_k, g_k) - lr grad F_k(l_k, g_k; batch)
    server:  g_{t+1} = g_t + sum_k (n_k / n_S) (g_k - g_t)

    l is the local part near the input and g the global part near the output: FedPer with the parts exchanged.
    With head_layers=0 this is local training, with all layers in the head it is FedAvg to the bit.

    Args:
        head_layers: how many layers, counted from the output, are shared; the authors share 1 or 2. A layer is a
            submodule with trainable parameters of its own, a BatchNorm as much as a convolution.

    Traps: representations of different clients need not agree, so that the global model, the shared layers on
    the initial representation, is of little use alone. The authors start from a model trained with FedAvg;
    pass such a model to do the same.
    """

    head_layers: int = 1

    paper: ClassVar[str] = "Liang et al. 2020, Algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "head_layers", self.head_layers >= 0, "must not be negative")

    def private(self, task: Task) -> frozenset[str]:
        everything = {name for names in layers(task) for name in names}
        return frozenset(everything - head(task, self.head_layers))
