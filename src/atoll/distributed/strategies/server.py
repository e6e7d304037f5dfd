"""A parameter server: workers give gradients and get parameters, and wait for each other as much as is said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from atoll import spec
from atoll.distributed.strategy import Free
from atoll.errors import ConfigError
from atoll.optimizers import Optimizer

__all__ = ["Asynchronous", "ParameterServer"]

_RULES = {"bsp": False, "ssp": True, "async": False, "dcasgd": True}
"""By name, and whether a number belongs to it."""


@dataclass(frozen=True)
class ParameterServer(Free):
    """Servers have the parameters and the optimiser's state in parts; workers push gradients and pull parameters.

    bsp:     one update a step, by the sum of all workers' gradients.             Li et al., OSDI 2014
    ssp,s:   a worker is at most s steps ahead of the slowest; with 0 it is bsp.  Ho et al., NeurIPS 2013
             Gradients that need not wait are an update each.
    async:   nobody waits, every gradient is an update, with lr / (1 + tau) where tau updates came between the
             parameters it was computed on and it.                                Zhang et al., IJCAI 2016
    dcasgd,lambda:  nobody waits; g + lambda g g (w - w_seen) for g.              Zheng et al., ICML 2017

    bsp and ssp step along the worker's part of the batch's mean gradient. async and dcasgd step along the mean gradient
    of a worker's own samples, and a step of the settings is one update of each worker.

    Args:
        rule: bsp, ssp, async or dcasgd.
        value: s, or lambda.
        servers: how many have a part of the model each.
    """

    rule: str
    value: float | None = None
    servers: int = 1

    name: ClassVar[str] = "ps"
    says: ClassVar[str] = "a parameter server: ps:bsp, ps:ssp,3, ps:async, ps:dcasgd,0.04; servers=2 for two"
    takes: ClassVar[tuple[spec.Parameter, ...]] = (
        spec.word("rule"),
        spec.number("value", optional=True, at_least=0, below=math.inf),
        spec.whole("servers", optional=True, at_least=1, at_most=64),
    )

    def __post_init__(self) -> None:
        if self.rule not in _RULES:
            raise ConfigError(
                f"strategy 'ps:{self.rule}' is unknown",
                hint=f"known: {', '.join(f'ps:{rule}' for rule in _RULES)}",
            )
        needs = {"ssp": "how many steps a worker may be ahead", "dcasgd": "lambda"}
        if _RULES[self.rule] != (self.value is not None):
            said = f"needs {needs[self.rule]}" if self.rule in needs else "takes no number"
            examples = {"ssp": "ps:ssp,3", "dcasgd": "ps:dcasgd,0.04"}
            raise ConfigError(
                f"strategy 'ps:{self.rule}' {said}",
                hint=f"write {examples.get(self.rule, f'ps:{self.rule}')}",
            )
        if self.rule == "ssp" and self.value != int(self.value or 0):
            raise ConfigError(f"strategy 'ps:ssp,{self.value:g}': steps are whole", hint="write ps:ssp,3")

    @property
    def text(self) -> str:
        parts = [self.rule] + ([] if self.value is None else [f"{self.value:g}"])
        return f"ps:{','.join(parts + ([] if self.servers == 1 else [f'servers={self.servers}']))}"

    @property
    def bound(self) -> float:
        """How far a worker may be ahead of the slowest."""
        return {"bsp": 0.0, "ssp": self.value or 0.0}.get(self.rule, math.inf)

    @property
    def local(self) -> bool:  # type: ignore[override]
        """Whether a worker's gradient is a mean of its own."""
        return math.isinf(self.bound)

    @property
    def applies(self) -> str:
        """What becomes of a gradient (see `Shard`)."""
        return {"async": "rates", "dcasgd": "delay"}.get(self.rule, "sum")

    @property
    def compensation(self) -> float:
        """Lambda."""
        return (self.value or 0.0) if self.rule == "dcasgd" else 0.0

    def admit(self, optimizer: Optimizer, clip: float | None) -> None:
        if clip is not None and not self.local:
            raise ConfigError(
                f"clip = {clip:g} bounds the gradient of a batch, which no server of {self.text!r} has whole",
                hint="ps:async bounds each worker's gradient; ddp the batch's",
            )


@dataclass(frozen=True)
class Asynchronous(ParameterServer):
    """`ps:async` by its short name."""

    rule: str = "async"

    name: ClassVar[str] = "async"
    says: ClassVar[str] = "as ps:async: nobody waits, and late gradients move the model less"
    takes: ClassVar[tuple[spec.Parameter, ...]] = ParameterServer.takes[2:]
