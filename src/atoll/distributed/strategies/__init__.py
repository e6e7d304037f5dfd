"""The ways in which several workers train one model, one short file each."""

from __future__ import annotations

from atoll import spec
from atoll.distributed.strategies.compressed import Compressed
from atoll.distributed.strategies.ddp import DDP
from atoll.distributed.strategies.diloco import DiLoCo, LocalSGD
from atoll.distributed.strategies.fsdp import FSDP
from atoll.distributed.strategies.hogwild import Hogwild
from atoll.distributed.strategies.pipeline import Pipeline
from atoll.distributed.strategies.ring import Ring
from atoll.distributed.strategies.server import Asynchronous, ParameterServer
from atoll.distributed.strategies.tensor import Tensor
from atoll.distributed.strategies.zero import Zero1
from atoll.distributed.strategy import Strategy

__all__ = ["STRATEGIES", "describe", "parse"]

STRATEGIES: dict[str, type[Strategy]] = {
    each.name: each
    for each in (
        DDP,
        Ring,
        Compressed,
        Zero1,
        FSDP,
        Tensor,
        Pipeline,
        LocalSGD,
        DiLoCo,
        ParameterServer,
        Asynchronous,
        Hogwild,
    )
}
"""By name."""


def describe() -> list[tuple[str, str]]:
    """How each strategy is written, and what it is."""
    return [(spec.usage(name, kind.takes), kind.says) for name, kind in STRATEGIES.items()]


def parse(text: str) -> Strategy:
    """The strategy that a text names, such as "ddp" or "diloco:50".  Raises ConfigError."""
    call = spec.parse(text, "strategy")
    given = call.read({name: kind.takes for name, kind in STRATEGIES.items()})
    return STRATEGIES[call.name](**given)
