"""Writing the outputs of a captured step into the inputs they replace.

An output that is a sum, with its own input as a term, becomes operations in place on that input: products of
matrices are added by `addmm_`, scalars go along as factors. So do columns, one number a client, [n, 1, ..., 1]: in
a product of matrices they scale the smaller of the two.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import torch
from torch import fx

from atoll.engines.graph import aten, dtype_of, is_call, is_view, root, shape_of

__all__ = ["write_in_place"]

Term = tuple[fx.Node, list[Any]]


def _terms(node: fx.Node, top: bool = True) -> list[Term] | None:
    """`node` as a sum of terms, each a tensor times factors; None where a factor is no such thing.

    A factor is a number, a 0-dimensional node or a column. A node with several users is a term.
    """
    if not top and len(node.users) > 1:
        return [(node, [])]
    target = node.target if node.op == "call_function" else None
    if target in (aten.add.Tensor, aten.sub.Tensor) and not node.kwargs and len(node.args) == 2:
        left, right = node.args
        if (
            isinstance(left, fx.Node)
            and isinstance(right, fx.Node)
            and len(shape_of(left) or ()) > 0
            and len(shape_of(right) or ()) > 0
        ):
            first, second = _terms(left, False), _terms(right, False)
            if first is None or second is None:
                return None
            if target is aten.sub.Tensor:
                second = [(n, [*f, -1.0]) for n, f in second]
            return first + second
    if target in (aten.mul.Tensor, aten.mul.Scalar) and len(node.args) == 2:
        left, right = node.args
        if isinstance(left, fx.Node) and _is_factor(left, right):
            left, right = right, left
        if isinstance(left, fx.Node) and (not isinstance(right, fx.Node) or _is_factor(right, left)):
            inner = _terms(left, False)
            return None if inner is None else [(n, [*f, right]) for n, f in inner]
    if target is aten.neg.default:
        inner = _terms(node.args[0], False)  # type: ignore[arg-type]
        return None if inner is None else [(n, [*f, -1.0]) for n, f in inner]
    return [(node, [])]


def _is_factor(node: fx.Node, other: Any) -> bool:
    """Whether a node is a scalar, or a column beside `other`: [n, 1, ..., 1] against [n, ...]."""
    shape, large = shape_of(node), shape_of(other)
    if not shape or large is None:
        return not shape
    return len(shape) == len(large) > 1 and shape[0] == large[0] and set(shape[1:]) == {1} != set(large[1:])


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
            new = _emit(graph, written.get(target, target), now, factors)
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
        between = [term for term, _ in _terms(node) or [] if _is_between(term, node)]
        terms = _rewritable(node, between[0]) if between else None
        if terms is None:
            return None
        found[node] = (between[0], terms)
        node = between[0]


def _is_between(term: fx.Node, node: fx.Node) -> bool:
    """Whether a term is a tensor of its own that could be written over: an earlier state of what `node` is."""
    own = term is not node and term.op == "call_function" and root(term) is term and _product(term) is None
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
    terms = _terms(node)
    if (
        terms is None
        or all(term is target for term, _ in terms)
        or all(term is not target for term, _ in terms)
    ):
        return None
    reads = [source for term, _ in terms if term is not target for source in _operands(term)]
    if any(root(source) is target for source in reads):
        return None
    return terms if all(shape_of(t) == shape_of(node) or _broadcasts(t, node) for t, _ in terms) else None


def _absorbed(node: fx.Node, terms: list[Term]) -> set[fx.Node]:
    """The nodes between an output and the terms (and the operands of products) that it is made of."""
    ends = {source for term, _ in terms for source in _operands(term)}
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


def _emit(graph: fx.Graph, target: fx.Node, terms: list[Term], known: dict[str, Any]) -> fx.Node:
    def factor(factors: list[Any]) -> Any:
        key = repr(factors)
        if key not in known:
            known[key] = _factor(graph, factors)
        return known[key]

    current = target
    own = [factors for term, factors in terms if term is target]
    rest = [(term, factors) for term, factors in terms if term is not target]
    if [] not in own:
        total = _total(graph, [factor(each) for each in own])
        made = next((each for each in rest if _product(each[0]) is not None), None)
        if made is None or isinstance(total, (fx.Node, _Column)):
            current = graph.call_function(aten.mul_.Tensor, (current, _operand(graph, total)))
        else:  # a number goes along with a product, in the same pass
            rest.remove(made)
            current = _add_term(graph, current, made[0], factor(made[1]), total)
    elif len(own) > 1:  # not as one factor, 1 - small, which single precision would round badly
        own.remove([])
        partner = next(
            (each for each in rest if _opposite(own[0], each[1]) and _product(each[0]) is None), None
        )
        if partner is None or len(own) > 1:
            current = _add_term(graph, current, current, _total(graph, [factor(each) for each in own]))
        else:
            rest.remove(partner)
            by = factor(partner[1])
            kind = aten.lerp_.Tensor if isinstance(by, (fx.Node, _Column)) else aten.lerp_.Scalar
            current = graph.call_function(kind, (current, partner[0], _operand(graph, by)))
    for term, factors in rest:
        current = _add_term(graph, current, term, factor(factors))
    return current


def _operand(graph: fx.Graph, factor: Any) -> Any:
    """A factor as it stands in an operation: a number or a node."""
    if isinstance(factor, _Column):
        plain = factor.number == 1.0
        return factor.node if plain else graph.call_function(aten.mul.Tensor, (factor.node, factor.number))
    return factor.node if isinstance(factor, _Number) else factor


def _total(graph: fx.Graph, parts: list[Any]) -> Any:
    """The sum of factors."""
    total: Any = parts[0]
    for part in parts[1:]:
        kinds = {type(total), type(part)}
        one, other = _operand(graph, total), _operand(graph, part)
        if isinstance(one, fx.Node) or isinstance(other, fx.Node):
            added = graph.call_function(operator.add, (one, other))
            total = _Column(added, 1.0) if _Column in kinds else _Number(added) if _Number in kinds else added
        else:
            total = one + other
    return total


def _opposite(one: list[Any], other: list[Any]) -> bool:
    """Whether two products of factors differ in their sign only."""

    def parts(factors: list[Any]) -> tuple[float, list[str]]:
        number = 1.0
        for value in factors:
            number *= 1.0 if isinstance(value, fx.Node) else value
        return number, sorted(value.name for value in factors if isinstance(value, fx.Node))

    (left, names), (right, others) = parts(one), parts(other)
    return left == -right and names == others


def _broadcasts(term: fx.Node, node: fx.Node) -> bool:
    small, large = shape_of(term), shape_of(node)
    return (
        small is not None and large is not None and torch.broadcast_shapes(small, large) == torch.Size(large)  # type: ignore[no-untyped-call]
    )


_TRANSPOSES = (aten.transpose.int, aten.t.default)


def _product(term: fx.Node) -> tuple[fx.Node, bool] | None:
    """(matrix product node, whether it is transposed) if `term` is one that nothing else uses."""
    inner, turned = term, False
    if is_call(term, *_TRANSPOSES) and len(term.users) == 1:
        inner, turned = term.args[0], True  # type: ignore[assignment]
    if is_call(inner, aten.mm.default, aten.bmm.default) and len(inner.users) == 1:
        if turned and is_call(term, aten.transpose.int) and {a % 3 for a in term.args[1:]} != {1, 2}:  # type: ignore[operator]
            return None
        return inner, turned
    return None


def _operands(term: fx.Node) -> list[fx.Node]:
    product = _product(term)
    return [term] if product is None else list(product[0].args)  # type: ignore[arg-type]


def _factor(graph: fx.Graph, factors: list[Any]) -> Any:
    number, nodes = 1.0, []
    for value in factors:
        if isinstance(value, fx.Node):
            nodes.append(value)
        else:
            number *= value
    scalar = _product_of(graph, [node for node in nodes if not shape_of(node)], number)
    columns = [node for node in nodes if shape_of(node)]
    if not columns:
        return scalar
    column = _product_of(graph, columns, scalar if isinstance(scalar, fx.Node) else 1.0)
    return _Column(column, 1.0 if isinstance(scalar, fx.Node) else _operand(graph, scalar))


def _product_of(graph: fx.Graph, nodes: list[fx.Node], number: Any) -> Any:
    """Nodes of one form times a number: a number, a node, or where it is scalar and costs nothing, a `_Number`."""
    result: Any = number
    for node in nodes:
        plain = isinstance(result, float) and result == 1.0
        result = node if plain else graph.call_function(aten.mul.Tensor, (node, result))
    # A number costs nothing in a matrix product; on a GPU it would wait.
    if nodes and not shape_of(nodes[0]) and nodes[0].meta["val"].device.type == "cpu":
        return _Number(graph.call_method("item", (result,)))
    return result


class _Number(NamedTuple):
    """A factor that will be a Python number when the graph runs."""

    node: fx.Node


class _Column(NamedTuple):
    """A factor of each client, times a number (or a node that will be one)."""

    node: fx.Node
    number: Any


def _add_term(graph: fx.Graph, current: fx.Node, term: fx.Node, factor: Any, own: Any = 1.0) -> fx.Node:
    """`current` and a term times its factor; with a product, also times `own`, a number or what will be one."""
    product = _product(term)
    if product is None:
        if isinstance(factor, _Column):
            options = {} if factor.number == 1.0 else {"value": factor.number}
            return graph.call_function(aten.addcmul_.default, (current, term, factor.node), options)
        if isinstance(factor, fx.Node):
            return graph.call_function(aten.addcmul_.default, (current, term, factor))
        return graph.call_function(aten.add_.Tensor, (current, term), {"alpha": _operand(graph, factor)})
    matmul, turned = product
    batched = matmul.target is aten.bmm.default
    left, right = matmul.args
    number, factor = (factor.number, factor.node) if isinstance(factor, _Column) else (1.0, factor)
    if isinstance(factor, _Number):
        number, factor = factor.node, 1.0
    options = {} if number == 1.0 else {"alpha": number}
    if own != 1.0:
        options["beta"] = _operand(graph, own)
    if factor != 1.0:  # the factor goes on the smaller side
        if _size(left) <= _size(right):
            left = graph.call_function(aten.mul.Tensor, (left, factor))
        else:
            right = graph.call_function(aten.mul.Tensor, (right, factor))
    if turned:

        def turn(x: Any) -> fx.Node:
            arguments = (x, 1, 2) if batched else (x,)
            return graph.call_function(aten.transpose.int if batched else aten.t.default, arguments)

        left, right = turn(right), turn(left)
    target = aten.baddbmm_.default if batched else aten.addmm_.default
    return graph.call_function(target, (current, left, right), options)


def _size(node: Any) -> int:
    return math.prod(shape_of(node) or ())
