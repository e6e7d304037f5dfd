"""Capture: trace a pure step once into a flat graph of tensor operations, simplify it, and run it without autograd.

The traced graph already contains the backward pass, so that running it costs one call an operation and nothing else:
no dispatch through function transforms, no autograd tape, no Python per parameter. Three rewrites follow. Views and
multiplications that do nothing go; what does not depend on the inputs is computed once; and an output that replaces
an input it was made from, as new parameters replace old ones, is written into that input, matrix products and all
(``w - lr * (d.T @ x)`` becomes one ``addmm_``). No compiler is needed and a capture takes a fraction of a second.

The readable twin of a captured step is the step itself; `tests/engines` holds them equal.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from atoll.errors import AtollError, EngineError

__all__ = ["Captured", "capture"]

aten = torch.ops.aten


class Captured:
    """A captured function of flat inputs: the leaves of `state`, then those of `arguments`.

    Calling it returns the new leaves of the state. Those in `changed` are new values, which may be written into the
    tensors passed in; the caller must own them. All other leaves come back as they are.
    """

    def __init__(self, module: fx.GraphModule, changed: set[int], spec: Any) -> None:
        self.module = module
        self.changed = changed
        self.spec = spec
        self._forward = module.forward

    def __call__(self, state: Sequence[Any], arguments: Sequence[Tensor]) -> list[Any]:
        return self._forward(*state, *arguments)  # type: ignore[no-any-return]


def capture(function: Callable[..., Any], state: Any, arguments: Any) -> Captured:
    """Capture `function(state, arguments) -> state`.

    `state` and `arguments` are pytrees of tensors that give the shapes; numbers inside them become constants. Raises
    EngineError if the function cannot be traced (it branches on the value of a tensor, say).
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    # A tensor that stands in two places is two inputs: tracing must not take them for one.
    leaves, spec = pytree.tree_flatten(pytree.tree_map_only(Tensor, torch.clone, state))
    extra, extra_spec = pytree.tree_flatten(arguments)
    count = len(leaves)

    def flat(*values: Any) -> list[Any]:
        new = function(
            pytree.tree_unflatten(values[:count], spec), pytree.tree_unflatten(values[count:], extra_spec)
        )
        out, out_spec = pytree.tree_flatten(new)
        if out_spec != spec:
            raise EngineError("step returned a working state of another form than it was given")
        return out

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = make_fx(torch.func.functionalize(flat, remove="mutations"))(*leaves, *extra)
    except AtollError:
        raise
    except Exception as error:
        raise EngineError(
            f"the client program cannot be captured: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint='a model that branches on the values of tensors runs with engine="loop"',
        ) from error
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    _simplify(graph)
    _hoist(module)
    _drop_ones(module)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    outputs = list(output.args[0])
    changed = {i for i in range(count) if outputs[i] is not inputs[i]}
    _write_in_place(graph, inputs, changed)
    _fuse_bias(graph)
    _sweep(graph)
    _quick_calls(graph)
    graph.lint()
    module.recompile()
    return Captured(module, changed, spec)


# --- reading the graph ----------------------------------------------------------------------------------------------


def _is(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def _shape(node: Any) -> tuple[int, ...] | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _dtype(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, Tensor) else None


def _is_view(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function":
        return False
    if target is operator.getitem:
        return True
    schema = getattr(target, "_schema", None)
    return schema is not None and any(argument.alias_info is not None for argument in schema.arguments)


def _root(node: fx.Node) -> fx.Node:
    """The node whose storage this one may share."""
    while _is_view(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


# --- rewrites -------------------------------------------------------------------------------------------------------

_RESHAPES = (aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_ALIASES = (aten.detach.default, aten.alias.default, aten.lift_fresh.default)


def _same(node: fx.Node) -> Any:
    """A node or argument equal to `node`, where the operation does nothing."""
    source = node.args[0] if node.args else None
    if _is(node, *_ALIASES):
        return source
    if _is(node, *_RESHAPES) and _shape(node) == _shape(source):
        return source
    if _is(node, aten.mul.Scalar) and node.args[1] == 1 and _dtype(node) == _dtype(source):
        return source
    if _is(node, aten.transpose.int, aten.t.default) and _is(source, node.target):
        inner: fx.Node = source  # type: ignore[assignment]
        if set(inner.args[1:]) == set(node.args[1:]):
            return inner.args[0]
    return None


def _simplify(graph: fx.Graph) -> None:
    """Drop what does nothing and compute equal things once, to a fixed point."""
    changed = True
    while changed:
        _sweep(graph)
        changed = False
        seen: dict[Any, fx.Node] = {}
        for node in list(graph.nodes):
            if node.op != "call_function":
                continue
            same = _same(node)
            if same is None:
                key = (node.target, repr(node.args), repr(node.kwargs))
                same = seen.setdefault(key, node)
            if same is not node:
                node.replace_all_uses_with(same)
                graph.erase_node(node)
                changed = True


def _sweep(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and not _mutates(node):
            graph.erase_node(node)


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


_SHAPE_ONLY = {
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
}  # fmt: skip
_RANDOM = torch.Tag.nondeterministic_seeded


def _hoist(module: fx.GraphModule) -> None:
    """Compute what depends on no input once, and keep it with the module."""
    graph = module.graph
    constant: set[fx.Node] = set()
    env: dict[fx.Node, Any] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            constant.add(node)
            env[node] = getattr(module, str(node.target))
        elif node.op == "call_function" and _RANDOM not in getattr(node.target, "tags", ()):
            if node.target in _SHAPE_ONLY:
                value = node.meta["val"]
                fake = torch.empty(value.shape, dtype=value.dtype, device=value.device)
                args: Any = (fake, *node.args[1:])
            elif all(source in constant for source in node.all_input_nodes):
                args = fx.map_arg(node.args, lambda n: env[n])
            else:
                continue
            constant.add(node)
            env[node] = node.target(*args, **fx.map_arg(node.kwargs, lambda n: env[n]))
    for node in constant:
        if node.op == "get_attr" or all(user in constant for user in node.users):
            continue
        name = f"_constant_{node.name}"
        module.register_buffer(name, env[node], persistent=False) if isinstance(
            env[node], Tensor
        ) else setattr(module, name, env[node])
        with graph.inserting_before(node):
            held = graph.get_attr(name)
        held.meta = dict(node.meta)
        node.replace_all_uses_with(held)
    _sweep(graph)


def _drop_ones(module: fx.GraphModule) -> None:
    """Drop multiplications by constants that are one everywhere, such as the mask of a full batch."""
    graph = module.graph
    for node in list(graph.nodes):
        if not _is(node, aten.mul.Tensor):
            continue
        for value, other in (node.args, node.args[::-1]):
            if isinstance(value, fx.Node) and value.op == "get_attr" and isinstance(other, fx.Node):
                held = getattr(module, str(value.target))
                if (
                    _shape(other) == _shape(node)
                    and _dtype(other) == _dtype(node)
                    and bool((held == 1).all())
                ):
                    node.replace_all_uses_with(other)
                    break
    _simplify(graph)


Term = tuple[fx.Node, list[Any]]


def _terms(node: fx.Node, top: bool = True) -> list[Term] | None:
    """`node` as a sum of terms, each a tensor times scalar factors; None where a factor is not scalar.

    A factor is a number or a 0-dimensional node. A node with several users is a term.
    """
    if not top and len(node.users) > 1:
        return [(node, [])]
    target = node.target if node.op == "call_function" else None
    if target in (aten.add.Tensor, aten.sub.Tensor) and not node.kwargs and len(node.args) == 2:
        left, right = node.args
        if (
            isinstance(left, fx.Node)
            and isinstance(right, fx.Node)
            and len(_shape(left) or ()) > 0
            and len(_shape(right) or ()) > 0
        ):
            first, second = _terms(left, False), _terms(right, False)
            if first is None or second is None:
                return None
            if target is aten.sub.Tensor:
                second = [(n, [*f, -1.0]) for n, f in second]
            return first + second
    if target in (aten.mul.Tensor, aten.mul.Scalar) and len(node.args) == 2:
        left, right = node.args
        if isinstance(left, fx.Node) and len(_shape(left) or ()) == 0:
            left, right = right, left
        if isinstance(left, fx.Node) and (not isinstance(right, fx.Node) or len(_shape(right) or ()) == 0):
            inner = _terms(left, False)
            return None if inner is None else [(n, [*f, right]) for n, f in inner]
    if target is aten.neg.default:
        inner = _terms(node.args[0], False)  # type: ignore[arg-type]
        return None if inner is None else [(n, [*f, -1.0]) for n, f in inner]
    return [(node, [])]


def _write_in_place(graph: fx.Graph, inputs: list[fx.Node], changed: set[int]) -> None:
    """Rewrite ``output_i = a * input_i + sum of terms`` as operations in place on ``input_i``.

    Everything else that reads the input, or a view of it, is moved before the writing; where that cannot be, because
    two outputs need each other's old values, the output stays a new tensor.
    """
    (output,) = [node for node in graph.nodes if node.op == "output"]
    outputs = list(output.args[0])
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    chosen: dict[fx.Node, tuple[fx.Node, list[Term]]] = {}
    owner: dict[fx.Node, fx.Node] = {}  # a node that a rewrite absorbs -> the output it becomes part of
    order = nodes
    for i in sorted(changed):
        node, target = outputs[i], inputs[i]
        terms = _rewritable(node, target) if outputs.count(node) == 1 else None
        if terms is None:
            continue
        inside = dict.fromkeys(_absorbed(node, terms), node)
        attempt = _order(nodes, {**chosen, node: (target, terms)}, {**owner, **inside})
        if attempt is not None:
            chosen[node] = (target, terms)
            owner.update(inside)
            order = attempt
    factors: dict[str, Any] = {}
    written: dict[fx.Node, fx.Node] = {}
    for node in order:
        if node not in chosen:
            output.prepend(node)
            continue
        target, terms = chosen[node]
        with graph.inserting_before(output):
            new = _emit(graph, target, [(written.get(term, term), scale) for term, scale in terms], factors)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        written[node] = new
        output.prepend(node)  # nothing uses it any more


def _rewritable(node: Any, target: fx.Node) -> list[Term] | None:
    if not isinstance(node, fx.Node) or node.op != "call_function" or not _shape(target):
        return None
    if _dtype(target) != _dtype(node) or _shape(target) != _shape(node):
        return None
    terms = _terms(node)
    if terms is None or len(terms) < 2 or sum(term is target for term, _ in terms) != 1:
        return None
    reads = [source for term, _ in terms if term is not target for source in _operands(term)]
    if any(_root(source) is target for source in reads):
        return None
    return terms if all(_shape(t) == _shape(node) or _broadcasts(t, node) for t, _ in terms) else None


def _absorbed(node: fx.Node, terms: list[Term]) -> set[fx.Node]:
    """The nodes between an output and the terms (and the operands of products) that it is made of."""
    ends = {source for term, _ in terms for source in _operands(term)}
    inside: set[fx.Node] = set()
    waiting = [source for source in node.all_input_nodes if source not in ends]
    while waiting:
        inner = waiting.pop()
        if inner.op == "call_function" and inner not in inside and len(_shape(inner) or ()) > 0:
            inside.add(inner)
            waiting += [source for source in inner.all_input_nodes if source not in ends]
    return inside


def _order(
    nodes: list[fx.Node], chosen: dict[fx.Node, tuple[fx.Node, list[Term]]], owner: dict[fx.Node, fx.Node]
) -> list[fx.Node] | None:
    """An order in which every input is read before it is overwritten, or None if there is none."""
    index = {node: at for at, node in enumerate(nodes)}
    before: dict[fx.Node, set[fx.Node]] = {
        node: {owner.get(source, source) for source in node.all_input_nodes if source in index}
        for node in nodes
    }
    for inner, node in owner.items():
        before[node] |= before.pop(inner, set())
    for node, (target, _) in chosen.items():
        readers, waiting = set(), [target]
        while waiting:
            for user in waiting.pop().users:
                if user.op != "output":
                    readers.add(owner.get(user, user))
                    if _is_view(user):
                        waiting.append(user)
        before[node] |= readers
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
    return result


def _emit(graph: fx.Graph, target: fx.Node, terms: list[Term], known: dict[str, Any]) -> fx.Node:
    def factor(factors: list[Any]) -> Any:
        key = repr(factors)
        if key not in known:
            known[key] = _factor(graph, factors)
        return known[key]

    current = target
    scale = next(factors for term, factors in terms if term is target)
    rest = [(term, factors) for term, factors in terms if term is not target]
    if scale:
        by = factor(scale)
        current = graph.call_function(aten.mul_.Tensor, (current, by.node if isinstance(by, _Number) else by))
    for term, factors in rest:
        current = _add_term(graph, current, term, factor(factors))
    return current


def _broadcasts(term: fx.Node, node: fx.Node) -> bool:
    small, large = _shape(term), _shape(node)
    return (
        small is not None and large is not None and torch.broadcast_shapes(small, large) == torch.Size(large)  # type: ignore[no-untyped-call]
    )


_TRANSPOSES = (aten.transpose.int, aten.t.default)


def _product(term: fx.Node) -> tuple[fx.Node, bool] | None:
    """(matrix product node, whether it is transposed) if `term` is one that nothing else uses."""
    inner, turned = term, False
    if _is(term, *_TRANSPOSES) and len(term.users) == 1:
        inner, turned = term.args[0], True  # type: ignore[assignment]
    if _is(inner, aten.mm.default, aten.bmm.default) and len(inner.users) == 1:
        if turned and _is(term, aten.transpose.int) and {a % 3 for a in term.args[1:]} != {1, 2}:  # type: ignore[operator]
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
    if not nodes:
        return number
    result: Any = number
    for node in nodes:
        result = node if result == 1.0 else graph.call_function(aten.mul.Tensor, (node, result))
    if (
        nodes[0].meta["val"].device.type == "cpu"
    ):  # a number costs nothing in a matrix product; on a GPU it would wait
        return _Number(graph.call_method("item", (result,)))
    return result


class _Number(NamedTuple):
    """A factor that will be a Python number when the graph runs."""

    node: fx.Node


def _add_term(graph: fx.Graph, current: fx.Node, term: fx.Node, factor: Any) -> fx.Node:
    product = _product(term)
    if product is None:
        if isinstance(factor, fx.Node):
            return graph.call_function(aten.addcmul_.default, (current, term, factor))
        number = factor.node if isinstance(factor, _Number) else factor
        return graph.call_function(aten.add_.Tensor, (current, term), {"alpha": number})
    matmul, turned = product
    batched = matmul.target is aten.bmm.default
    left, right = matmul.args
    options: dict[str, Any] = {}
    if isinstance(factor, _Number):
        options = {"alpha": factor.node}
    elif factor != 1.0:  # the factor goes on the smaller side
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
    size = 1
    for length in _shape(node) or ():
        size *= length
    return size


def _fuse_bias(graph: fx.Graph) -> None:
    """bias + batched product -> baddbmm."""
    for node in list(graph.nodes):
        if not _is(node, aten.add.Tensor) or node.kwargs or len(node.args) != 2:
            continue
        for bias, product in (node.args, node.args[::-1]):
            if (
                _is(product, aten.bmm.default)
                and len(product.users) == 1
                and _shape(product) == _shape(node)
                and len(_shape(bias) or ()) == 3
                and _dtype(bias) == _dtype(node)
            ):
                with graph.inserting_before(node):
                    fused = graph.call_function(aten.baddbmm.default, (bias, *product.args))
                fused.meta = dict(node.meta)
                node.replace_all_uses_with(fused)
                break


# torch's own Python bindings take their arguments faster than the operator objects of a traced graph.
_QUICK: dict[Any, Callable[..., Any]] = {
    aten.bmm.default: torch.bmm,
    aten.mm.default: torch.mm,
    aten.addmm.default: torch.addmm,
    aten.baddbmm.default: torch.baddbmm,
    aten.relu.default: torch.relu,
    aten.neg.default: torch.neg,
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.transpose.int: torch.transpose,
    aten.t.default: torch.t,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.view.default: Tensor.view,
    aten.expand.default: Tensor.expand,
    aten.addmm_.default: Tensor.addmm_,
    aten.baddbmm_.default: Tensor.baddbmm_,
    aten.mul_.Tensor: Tensor.mul_,
    aten.addcmul_.default: Tensor.addcmul_,
    aten.add_.Tensor: Tensor.add_,
}


def _quick_calls(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _QUICK.get(node.target, node.target)
