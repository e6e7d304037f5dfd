"""Writing the outputs of a captured step into the inputs they replace.

An output that is a sum, with its own input as a term, becomes operations in place on that input (`terms`): which
outputs can, and in which order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from atoll.engines.graph import dtype_of, is_view, root, shape_of
from atoll.engines.terms import Term, add_in_place, operands, product, terms_of

__all__ = ["write_in_place"]


def write_in_place(graph: fx.Graph, inputs: list[fx.Node], changed: set[int]) -> None:
    """Rewrite ``output_i = a * input_i + sum of terms`` as operations in place on ``input_i``.

    The input may be a term several times, as in ``w - lr * (g + mu * (w - anchor))``, where it becomes
    ``w.lerp_(anchor, lr * mu)``. An output that is several such steps away from its input is written in as many.

    Everything else that reads the input, or a view of it, is moved before the writing; where that cannot be, because
    two outputs need each other's old values, or the old value is itself an output, the output stays a new tensor.
    """
    (output,) = [node for node in graph.nodes if node.op == "output"]
    outputs = list(output.args[0])
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    chosen: dict[fx.Node, tuple[fx.Node, list[Term]]] = {}
    owner: dict[fx.Node, fx.Node] = {}  # a node that a rewrite absorbs -> the output it becomes part of
    order, before = nodes, dict[fx.Node, set[fx.Node]]()
    for i in sorted(changed):
        alone = outputs.count(outputs[i]) == 1 and output not in _readers(inputs[i])
        steps = _steps(outputs[i], inputs[i]) if alone else None
        if steps is None:
            continue
        inside = {inner: node for node, (_, terms) in steps.items() for inner in _absorbed(node, terms)}
        attempt = _order(nodes, {**chosen, **steps}, {**owner, **inside})
        if attempt is not None:
            chosen.update(steps)
            owner.update(inside)
            order, before = attempt
    factors: dict[str, Any] = {}
    written: dict[fx.Node, fx.Node] = {}
    for node in _early(order, before, chosen):
        if node not in chosen:
            output.prepend(node)
            continue
        target, terms = chosen[node]
        with graph.inserting_before(output):
            now = [(written.get(term, term), scale) for term, scale in terms]
            new = add_in_place(graph, written.get(target, target), now, factors)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        written[node] = new
        output.prepend(node)  # nothing uses it any more


def _steps(node: Any, target: fx.Node) -> dict[fx.Node, tuple[fx.Node, list[Term]]] | None:
    """The rewritings that lead from an input to its output: node -> (what it is written into, its terms)."""
    found: dict[fx.Node, tuple[fx.Node, list[Term]]] = {}
    while True:
        terms = _rewritable(node, target)
        if terms is not None:
            found[node] = (target, terms)
            return found
        between = [term for term, _ in terms_of(node) or [] if _is_between(term, node)]
        terms = _rewritable(node, between[0]) if between else None
        if terms is None:
            return None
        found[node] = (between[0], terms)
        node = between[0]


def _is_between(term: fx.Node, node: fx.Node) -> bool:
    """Whether a term is a tensor of its own that could be written over: an earlier state of what `node` is."""
    own = term is not node and term.op == "call_function" and root(term) is term and product(term) is None
    same = shape_of(term) == shape_of(node) and dtype_of(term) == dtype_of(node)
    return own and same and not any(user.op == "output" for user in _readers(term))


def _readers(node: fx.Node) -> set[fx.Node]:
    """What reads a node, or a view of it."""
    readers: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        users = set(waiting.pop().users) - readers
        readers |= users
        waiting += [user for user in users if user.op != "output" and is_view(user)]
    return readers


def _rewritable(node: Any, target: fx.Node) -> list[Term] | None:
    if not isinstance(node, fx.Node) or node.op != "call_function" or not shape_of(target):
        return None
    if dtype_of(target) != dtype_of(node) or shape_of(target) != shape_of(node):
        return None
    terms = terms_of(node)
    if (
        terms is None
        or all(term is target for term, _ in terms)
        or all(term is not target for term, _ in terms)
    ):
        return None
    reads = [source for term, _ in terms if term is not target for source in operands(term)]
    if any(root(source) is target for source in reads):
        return None
    return terms if all(shape_of(t) == shape_of(node) or _broadcasts(t, node) for t, _ in terms) else None


def _absorbed(node: fx.Node, terms: list[Term]) -> set[fx.Node]:
    """The nodes between an output and the terms (and the operands of products) that it is made of."""
    ends = {source for term, _ in terms for source in operands(term)}
    ends |= {factor for _, factors in terms for factor in factors if isinstance(factor, fx.Node)}
    inside: set[fx.Node] = set()
    waiting = [source for source in node.all_input_nodes if source not in ends]
    while waiting:
        inner = waiting.pop()
        if inner.op == "call_function" and inner not in inside and len(shape_of(inner) or ()) > 0:
            inside.add(inner)
            waiting += [source for source in inner.all_input_nodes if source not in ends]
    return inside


def _order(
    nodes: list[fx.Node], chosen: dict[fx.Node, tuple[fx.Node, list[Term]]], owner: dict[fx.Node, fx.Node]
) -> tuple[list[fx.Node], dict[fx.Node, set[fx.Node]]] | None:
    """An order in which every input is read before it is overwritten, with what precedes each node; None: none is."""
    index = {node: at for at, node in enumerate(nodes)}
    before: dict[fx.Node, set[fx.Node]] = {
        node: {owner.get(source, source) for source in node.all_input_nodes if source in index}
        for node in nodes
    }
    for inner, node in owner.items():
        before[node] |= before.pop(inner, set())
    for node, (target, _) in chosen.items():
        before[node] |= {owner.get(user, user) for user in _readers(target) if user.op != "output"}
    for node, sources in before.items():
        sources.discard(node)
    state: dict[fx.Node, int] = {}
    result: list[fx.Node] = []
    for start in before:
        stack = [start]
        while stack:
            node = stack[-1]
            if state.get(node) == 2:
                stack.pop()
                continue
            if state.get(node) == 1:
                state[node] = 2
                result.append(stack.pop())
                continue
            state[node] = 1
            for source in sorted(before[node], key=index.__getitem__, reverse=True):
                if state.get(source) == 1:
                    return None
                if source not in state:
                    stack.append(source)
    return result, before


def _early(
    order: list[fx.Node], before: dict[fx.Node, set[fx.Node]], writes: dict[fx.Node, Any]
) -> list[fx.Node]:
    """The same order, with each writing as early as it can be: the operands of a product are needed until then."""
    missing = {node: set(before[node]) for node in writes}
    found: dict[fx.Node, None] = {}
    for start in order:
        ready = [] if start in found else [start]
        for node in ready:
            found[node] = None
            for write, sources in missing.items():
                if node in sources:
                    sources.remove(node)
                    ready += [] if sources else [write]
    return list(found)


def _broadcasts(term: fx.Node, node: fx.Node) -> bool:
    small, large = shape_of(term), shape_of(node)
    return (
        small is not None and large is not None and torch.broadcast_shapes(small, large) == torch.Size(large)  # type: ignore[no-untyped-call]
    )
