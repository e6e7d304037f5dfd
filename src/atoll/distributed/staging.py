"""A model as a chain of layers, and the chain as stages of about equal cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from atoll.errors import ConfigError

__all__ = ["Layer", "chain", "cut_at", "divided"]


@dataclass
class Layer:
    """A link of the chain: its name in the model, what a sample costs in it, and what it gives.

    `cost` is the operations of a forward pass, and the numbers that it gives and holds; `shape` is without the batch.
    """

    name: str
    module: nn.Module
    cost: float
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def learns(self) -> bool:
        """Whether it has something that is trained."""
        return any(p.requires_grad for p in self.module.parameters())


@dataclass
class _Call:
    """A call of a module; `calls` are those made while it ran."""

    name: str
    module: nn.Module
    given: Any = None
    output: Any = None
    flops: int = 0
    calls: list[_Call] = field(default_factory=list)


def chain(module: nn.Module, inputs: Any) -> list[Layer]:
    """The layers that a forward pass goes through, each of which reads what the one before has given.

    A module whose forward does no more than to hand on what its children give is taken apart, likewise its children;
    one that does more is a layer. If the model itself does more, it is traced by torch.fx and cut wherever one tensor
    alone goes on. Raises ConfigError where that cannot be.

    Args:
        inputs: two samples; a tensor, or the model is no chain.
    """
    found = _found(module, inputs)
    if len(found) == 1 and (pieces := _traced(module)):
        found = _found(nn.Sequential(*pieces.values()), inputs)
        for call in found:  # "3", or "3.linear" where the piece is but that layer
            at, _, inside = call.name.partition(".")
            call.name = inside or (list(pieces)[int(at)] if at else "")
    if len(found) == 1:
        raise ConfigError(
            f"the model ({type(module).__name__}) is no chain of layers that a pipeline could be made of",
            hint="let its forward hand on what one child gives to the next, without branches that depend on values,"
            ' or take another strategy: "tensor:2" or "fsdp"',
        )
    return [_layer(call, len(inputs)) for call in found]


def _found(module: nn.Module, inputs: Any) -> list[_Call]:
    training = module.training
    with torch.no_grad(), _followed(module.eval()) as root:
        module(inputs)
    module.train(training)
    return list(_links(root.calls[0]))


def _traced(module: nn.Module) -> dict[str, nn.Module]:
    """Pieces of a forward, each by the name of its first layer; none where it cannot be traced."""
    try:
        traced = fx.symbolic_trace(module.train())  # which may write down that it trains
    except Exception:  # tracing may stumble over anything that a forward does
        return {}
    first, *nodes, last = traced.graph.nodes
    if any(node.op in ("placeholder", "output") for node in nodes):
        return {}
    place = {node: at for at, node in enumerate([first, *nodes, last])}
    ends = {node: max((place[user] for user in node.users), default=0) for node in place}
    pieces: dict[str, nn.Module] = {}
    given, held = first, list[fx.Node]()
    for node in nodes:
        held.append(node)
        live = [each for each in place if place[each] <= place[node] < ends[each]]
        if node is nodes[-1] or live == [node]:
            gives = last.args[0] if node is nodes[-1] else node
            name = next((str(each.target) for each in held if each.op == "call_module"), node.name)
            pieces[name if name not in pieces else node.name] = _piece(traced, given, held, gives)
            given, held = node, []
    return pieces


def _piece(traced: fx.GraphModule, given: fx.Node, nodes: Sequence[fx.Node], gives: Any) -> nn.Module:
    """A part of a traced forward."""
    graph = fx.Graph()
    known = {given: graph.placeholder("value")}
    for node in nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(fx.map_arg(gives, known.__getitem__))
    return fx.GraphModule(traced, graph)


@contextmanager
def _followed(module: nn.Module) -> Iterator[_Call]:
    """Inside, calls of the module's parts are noted, as a tree."""
    root = _Call("", module)
    stack = [root]
    handles = []

    with FlopCounterMode(display=False) as counter:

        def enters(name: str) -> Any:
            def enter(part: nn.Module, args: Any, kwargs: Any) -> None:
                given = args[0] if len(args) == 1 and not kwargs else None
                call = _Call(name, part, given, flops=-counter.get_total_flops())
                stack[-1].calls.append(call)
                stack.append(call)

            return enter

        def leave(part: nn.Module, args: Any, output: Any) -> None:
            call = stack.pop()
            call.output, call.flops = output, call.flops + counter.get_total_flops()

        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(enters(name), with_kwargs=True))
            handles.append(part.register_forward_hook(leave))
        try:
            yield root
        finally:
            for handle in handles:
                handle.remove()


def _links(call: _Call) -> Iterator[_Call]:
    """The call, or the calls that it consists of."""
    calls = call.calls
    handed = [call.given, *(each.output for each in calls)]
    whole = (
        bool(calls)
        and all(each.given is before for each, before in zip(calls, handed, strict=False))
        and calls[-1].output is call.output
        and all(isinstance(each, Tensor) for each in handed)
        and len({each.name for each in calls}) == len(calls)
        and not any(True for _ in call.module.parameters(recurse=False))
    )
    if not whole:
        yield call
        return
    for each in calls:
        yield from _links(each)


def _layer(call: _Call, samples: int) -> Layer:
    held = sum(p.numel() for p in call.module.parameters())
    if not isinstance(call.output, Tensor):  # the last one may give more than a tensor
        return Layer(call.name, call.module, call.flops / samples + held, (), torch.float32)
    given = call.output.numel() / samples
    shape = tuple(call.output.shape[1:])
    return Layer(call.name, call.module, call.flops / samples + given + held, shape, call.output.dtype)


def divided(layers: Sequence[Layer], count: int) -> list[list[Layer]]:
    """So many stages, of which the costliest costs least; each begins with a layer that learns, but for the first.

    Raises ConfigError where there are too few layers that learn.
    """
    blocks: list[list[Layer]] = []
    for layer in layers:
        if not blocks or (layer.learns and any(each.learns for each in blocks[-1])):
            blocks.append([])
        blocks[-1].append(layer)
    if len(blocks) < count:
        raise ConfigError(
            f"the model has {len(blocks)} layer{'s' * (len(blocks) > 1)} with parameters, too few for {count} stages",
            hint=f"take {len(blocks)} stages at most"
            if len(blocks) > 1
            else 'take another strategy: "fsdp" takes any model',
        )
    costs = [sum(layer.cost for layer in block) for block in blocks]
    ends = _ends(costs, count)
    return [
        [layer for block in blocks[start:end] for layer in block]
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _ends(costs: Sequence[float], count: int) -> list[int]:
    """Where each part ends, so that the largest sum is as small as can be."""
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    best: dict[int, tuple[float, list[int]]] = {end: (total[end], [end]) for end in range(1, len(costs) + 1)}
    for parts in range(2, count + 1):
        best = {
            end: min(
                (max(most, total[end] - total[start]), [*ends, end])
                for start, (most, ends) in best.items()
                if start < end
            )
            for end in range(parts, len(costs) + 1)
        }
    return best[len(costs)][1]


def cut_at(layers: Sequence[Layer], count: int, names: Sequence[str]) -> list[list[Layer]]:
    """Stages that begin where somebody has said.  Raises ConfigError where they cannot."""
    known = [layer.name for layer in layers]
    at = [known.index(name) for name in names if name in known]
    if len(at) != count - 1 or at != sorted(set(at)) or (at and not at[0]):
        raise ConfigError(
            f"cuts = {', '.join(names)}: {count} stages need the names of {count - 1} layers that begin one, in order",
            hint=f"the layers are {', '.join(known)}",
        )
    found = [list(layers[a:b]) for a, b in zip([0, *at], [*at, len(layers)], strict=True)]
    if not all(any(layer.learns for layer in stage) for stage in found):
        raise ConfigError(f"cuts = {', '.join(names)}: a stage has nothing to learn", hint="move the cuts")
    return found
