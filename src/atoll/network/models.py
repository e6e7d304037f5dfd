"""The models of a plan, as a node makes them."""

from __future__ import annotations

from typing import Any

from atoll import own, seeds
from atoll.errors import ConfigError
from atoll.network.here import Here
from atoll.network.policy import method_of
from atoll.network.wire import Plan
from atoll.networks import architectures, networks
from atoll.task import Task

__all__ = ["models_of"]


def models_of(plan: Plan, here: Here, start: str | None = None) -> tuple[Task, ...]:
    """The architectures that a plan names, over the numbers of this node's file `start`.

    Raises ConfigError for a plan that names a file: which of its files are read says the node alone.
    """
    if any(each.strip().startswith("hf:") for each in plan.model.split("+")):
        raise ConfigError(
            f"the plan's model is {plan.model!r}, and a path of another machine says nothing here",
            hint="talk to whoever runs the coordinator: code that both sides have may make it (atoll join --code)",
        )
    loss: Any = own.found(plan.loss, "loss") if plan.loss and own.named(plan.loss) else plan.loss
    with seeds.scoped(plan.seed, "node"):
        return architectures(
            networks(plan.model, here),
            here,
            method_of(plan),
            plan.seed,
            loss,
            plan.metrics,
            plan.adapter,
            start,
        )
