"""Sums in a captured graph: the terms that a node is made of, and how they are added to a tensor in place.

Products of matrices are added by `addmm_`, scalars go along as factors. So do columns, one number a client,
[n, 1, ..., 1]: in a product of matrices they scale the smaller of the two.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

from torch import fx

from atoll.engines.graph import aten, is_call, shape_of

__all__ = ["Term", "add_in_place", "operands", "product", "terms_of"]

Term = tuple[fx.Node, list[Any]]
"""A tensor, and the factors that it is multiplied by."""


def terms_of(node: fx.Node, top: bool = True) -> list[Term] | None:
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
            first, second = terms_of(left, False), terms_of(right, False)
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
            inner = terms_of(left, False)
            return None if inner is None else [(n, [*f, right]) for n, f in inner]
    if target is aten.neg.default:
        inner = terms_of(node.args[0], False)  # type: ignore[arg-type]
        return None if inner is None else [(n, [*f, -1.0]) for n, f in inner]
    return [(node, [])]


def _is_factor(node: fx.Node, other: Any) -> bool:
    """Whether a node is a scalar, or a column beside `other`: [n, 1, ..., 1] against [n, ...]."""
    shape, large = shape_of(node), shape_of(other)
    if not shape or large is None:
        return not shape
    return len(shape) == len(large) > 1 and shape[0] == large[0] and set(shape[1:]) == {1} != set(large[1:])


# --- products ---------------------------------------------------------------------------------------------------------

_TRANSPOSES = (aten.transpose.int, aten.t.default)


def product(term: fx.Node) -> tuple[fx.Node, bool] | None:
    """(matrix product node, whether it is transposed) if `term` is one that nothing else uses."""
    inner, turned = term, False
    if is_call(term, *_TRANSPOSES) and len(term.users) == 1:
        inner, turned = term.args[0], True  # type: ignore[assignment]
    if is_call(inner, aten.mm.default, aten.bmm.default) and len(inner.users) == 1:
        if turned and is_call(term, aten.transpose.int) and {a % 3 for a in term.args[1:]} != {1, 2}:  # type: ignore[operator]
            return None
        return inner, turned
    return None


def operands(term: fx.Node) -> list[fx.Node]:
    """What is read where a term is added: itself, or the two matrices that it is a product of."""
    made = product(term)
    return [term] if made is None else list(made[0].args)  # type: ignore[arg-type]


# --- in place ---------------------------------------------------------------------------------------------------------


def add_in_place(graph: fx.Graph, target: fx.Node, terms: list[Term], known: dict[str, Any]) -> fx.Node:
    """Operations that make the sum of `terms` of a tensor that is one of them, and what it is called then.

    `known` keeps factors for further sums of the graph.
    """

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
        made = next((each for each in rest if product(each[0]) is not None), None)
        if made is None or isinstance(total, (fx.Node, _Column)):
            current = graph.call_function(aten.mul_.Tensor, (current, _operand(graph, total)))
        else:  # a number goes along with a product, in the same pass
            rest.remove(made)
            current = _add_term(graph, current, made[0], factor(made[1]), total)
    elif len(own) > 1:  # not as one factor, 1 - small, which single precision would round badly
        own.remove([])
        partner = next(
            (each for each in rest if _opposite(own[0], each[1]) and product(each[0]) is None), None
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
    made = product(term)
    if made is None:
        if isinstance(factor, _Column):
            options = {} if factor.number == 1.0 else {"value": factor.number}
            return graph.call_function(aten.addcmul_.default, (current, term, factor.node), options)
        if isinstance(factor, fx.Node):
            return graph.call_function(aten.addcmul_.default, (current, term, factor))
        return graph.call_function(aten.add_.Tensor, (current, term), {"alpha": _operand(graph, factor)})
    matmul, turned = made
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
