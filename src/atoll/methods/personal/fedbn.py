"""Normalisation that fits the client's own features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from atoll.errors import ConfigError
from atoll.methods.parts.settings import require
from atoll.methods.parts.shared import PartlyShared
from atoll.task import Task

__all__ = ["FedBN"]

_BATCH = (nn.modules.batchnorm._BatchNorm,)
_ALL = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class FedBN(PartlyShared):
    """Share everything but BatchNorm.   Li et al., ICLR 2021, Algorithm 1

    client:  (w_k, n_k) <- (w_t, n_k as this client left it), trained together as in FedAvg
    server:  w_{t+1} = w_t + sum_k (n_k / n_S) (w_k - w_t)

    n is all that BatchNorm layers own: scale, shift, running mean and variance, and the counter. A model
    without any is refused: it would be FedAvg under another name.

    Args:
        norms: which layers stay with the client: "batch" (BatchNorm in any dimension, synchronised or not) or "all"
            (LayerNorm, GroupNorm, RMSNorm and InstanceNorm too).

    Traps: layers are found by their type, not by "bn" in their name, which misses those of a Sequential and of
    ResNet's shortcuts. Running statistics stay as well; averaging them undoes the method. A client that has
    never taken part has the initial statistics (mean 0, variance 1), and so has the global model: judge the
    personal ones.
    """

    norms: Literal["batch", "all"] = "batch"

    paper: ClassVar[str] = "Li et al. 2021, Algorithm 1"
    cost: ClassVar[str] = "1 model without its norm layers up and down; those remembered"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "norms", self.norms in ("batch", "all"), "must be batch or all")

    def private(self, task: Task) -> frozenset[str]:
        kinds = _BATCH if self.norms == "batch" else _ALL
        known = {name for name, _ in [*task.module.named_parameters(), *task.module.named_buffers()]}
        owners = {name for name, layer in task.module.named_modules() if isinstance(layer, kinds)}
        names = frozenset(name for name in known if name.rpartition(".")[0] in owners)
        if not names:
            what = "BatchNorm layer" if self.norms == "batch" else "normalisation layer"
            raise ConfigError(
                f"FedBN keeps normalisation layers apart, and the model has no {what} with a state",
                hint="choose a model with BatchNorm; for LayerNorm and GroupNorm set norms='all'",
            )
        return names
