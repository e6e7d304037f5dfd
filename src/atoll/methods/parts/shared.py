"""Models of which one part is shared and the rest stays with the clients: which tensors are which, and their union."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from atoll.contract import ClientData, Model, Population, Reply
from atoll.errors import ConfigError
from atoll.methods.fedavg import FedAvg
from atoll.task import Task
from atoll.tensors import Record, Tensors, to_device

__all__ = ["PartlyShared", "head", "joined", "layers", "split", "trainable", "with_body"]


@dataclass(frozen=True, kw_only=True)
class PartlyShared(FedAvg):
    """Average one part of the model, u; leave the rest, v, with the clients. The base of such methods.

    client:  (u_k, v_k) <- (u_t, v_k as this client left it), trained as in FedAvg;  u_k - u_t is sent
    server:  u_{t+1} = u_t + sum_k (n_k / n_S) (u_k - u_t)

    Parameters and buffers are parted alike. v_k starts as the task's initial v, for every client, and is its
    memory; it never travels. A client predicts with (u_t, v_k). The global model is u_t with the initial v.
    """

    cost: ClassVar[str] = "the shared part up and down; the rest remembered"

    @abstractmethod
    def private(self, task: Task) -> frozenset[str]:
        """Names of the parameters and buffers that stay with the clients."""

    # ---- server half -------------------------------------------------------------------------------------

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        names = self.private(task)
        params, own_params = split(state.params, names)
        buffers, own_buffers = split(state.buffers, names)
        own = Record(params=own_params, buffers=own_buffers)
        return state.replace(params=params, buffers=buffers, private=own)

    def model(self, state: Record) -> Model:
        return joined(state, state.private)

    # ---- client half -------------------------------------------------------------------------------------

    def remember(self, task: Task, received: Record) -> Record:
        names = self.private(task)
        params, buffers = (split(part, names)[1] for part in task.initial())
        own = Record(params=params, buffers=buffers)
        return to_device(own, received.lr.device)  # type: ignore[no-any-return]

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        params, buffers = joined(received, memory)
        return super().begin(task, received.replace(params=params, buffers=buffers), Record(), data)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, _ = super().finish(task, local, data)
        names = self.private(task)
        values = Record({name: split(part, names)[0] for name, part in reply.values.items()})
        own = Record(params=split(local.params, names)[1], buffers=split(local.buffers, names)[1])
        return reply._replace(values=values), own

    def personal(self, received: Record, memory: Record) -> Model:
        return joined(received, memory)


def split(tensors: Tensors, names: Collection[str]) -> tuple[Tensors, Tensors]:
    """Tensors that are not among `names`, and those that are."""
    rest = Tensors({name: value for name, value in tensors.items() if name not in names})
    return rest, Tensors({name: value for name, value in tensors.items() if name in names})


def joined(one: Record, other: Record) -> Model:
    """The model of which each record has some `params` and `buffers`."""
    return Tensors({**one.params, **other.params}), Tensors({**one.buffers, **other.buffers})


def layers(task: Task) -> list[list[str]]:
    """The model's layers in the order in which its forward uses them, each as the names of its parameters and buffers.

    A layer is a submodule that owns tensors itself: a convolution, a BatchNorm, an LSTM of any depth. What it was
    used for last counts, and the order of definition only among layers that are used at once; those that are never
    used come first. A tensor that two layers share belongs to the first of them that is
    defined, and a reparametrised weight to the layer that uses it. (A task that was not shown any inputs, see
    `Task.follow`, has its layers as they are defined.)
    """
    module = task.module
    owned: dict[str, list[str]] = {name: [] for name, _ in module.named_modules()}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        owner = name.rpartition(".")[0].partition(".parametrizations.")[0]
        owned[owner].append(name)
    found = [names for names in owned.values() if names]
    return sorted(found, key=lambda names: max(task.used.get(name, -1) for name in names))


def head(task: Task, count: int) -> frozenset[str]:
    """Names of all tensors from the `count`-th last trainable layer on; those of all layers if there are as many.

    Layers without trainable parameters do not count, and belong to the side of the cut on which they are used.
    """
    found = layers(task)
    starts = trainable(task, found)
    if count > len(starts):
        raise ConfigError(
            f"head_layers = {count}, but the model has {len(starts)} layers with trainable parameters",
            hint="count from the output: head_layers=1 is the last layer",
        )
    starts[0] = 0
    first = starts[-count] if count else len(found)
    return frozenset(name for names in found[first:] for name in names)


def trainable(task: Task, found: Sequence[Sequence[str]]) -> list[int]:
    """Which of these layers have parameters that are trained."""
    names = {name for name, p in task.module.named_parameters() if p.requires_grad}
    return [at for at, own in enumerate(found) if not names.isdisjoint(own)]


def with_body(state: Record, head_layers: int) -> Record:
    """The state as it is.  Raises ConfigError if the head has left nothing to be shared."""
    if not state.params:
        raise ConfigError(
            f"head_layers = {head_layers} makes the whole model the head: no body is left to be shared",
            hint="choose a smaller head_layers, or method='local'",
        )
    return state
