"""Capture: trace a pure step once into a flat graph of tensor operations, simplify it, and run it without autograd.

The traced graph already contains the backward pass, so that running it costs one call an operation and nothing else:
no dispatch through function transforms, no autograd tape, no Python per parameter. Three rewrites follow. Views and
multiplications that do nothing go; what does not depend on the inputs is computed once; and an output that replaces
an input it was made from, as new parameters replace old ones, is written into that input, matrix products and all
(``w - lr * (d.T @ x)`` becomes one ``addmm_``). No compiler is needed and a capture takes a fraction of a second.

The readable twin of a captured step is the step itself; `tests/engines` holds them equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from atoll.draws import STREAMS, untouched
from atoll.engines.cpu import quicken
from atoll.engines.graph import aten, dtype_of, is_call, shape_of
from atoll.engines.graph import root as storage
from atoll.engines.inplace import write_in_place
from atoll.engines.norms import norms_of_products
from atoll.engines.placing import channels_last
from atoll.engines.trace import trace
from atoll.errors import AtollError, EngineError
from atoll.parts import tensors

__all__ = ["Captured", "capture"]


class Captured:
    """A captured function of flat inputs: the leaves of `state`, then those of `arguments`.

    Calling it returns the new leaves of the state. Those in `changed` are new values, which may be written into the
    tensors passed in; the caller must own them. All other leaves come back as they are.
    """

    def __init__(
        self, module: fx.GraphModule, changed: set[int], spec: Any, last: Set[int] = frozenset()
    ) -> None:
        self.module = module
        self.changed = changed
        self.spec = spec
        self.last = last
        """Which of `changed` are best given with channels last."""
        self._forward = module.forward

    def __call__(self, state: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        return self._forward(*state, *tensors(arguments))  # type: ignore[no-any-return]

    def own(self, state: Sequence[Any], owned: Set[int] = frozenset()) -> list[Any]:
        """The state as it is best given: with copies of what will change and is not in `owned`."""
        found = list(state)
        for i in self.changed:
            if i in self.last:
                found[i] = found[i].clone(memory_format=torch.channels_last)
            elif i not in owned:
                found[i] = found[i].clone()
        return found

    def plain(self, state: Sequence[Any]) -> list[Any]:
        """The state as everybody else expects it."""
        return [v.contiguous() if i in self.last else v for i, v in enumerate(state)]


def capture(function: Callable[..., Any], state: Any, arguments: Any) -> Captured:
    """Capture `function(state, arguments) -> state`.

    `state` and `arguments` are pytrees of tensors that give the shapes; numbers inside them become constants. Raises
    EngineError if the function cannot be traced (it branches on the value of a tensor, say).
    """
    leaves, spec = pytree.tree_flatten(
        pytree.tree_map_only(Tensor, torch.clone, state)
    )  # it may be written over
    extra, extra_spec = pytree.tree_flatten(arguments)
    count = len(leaves)

    def flat(*values: Any) -> list[Any]:
        given = pytree.tree_unflatten(values[:count], spec), pytree.tree_unflatten(values[count:], extra_spec)
        new = untouched(lambda: function(*given), lambda: "tracing it", again=False)  # once, then never again
        out, out_spec = pytree.tree_flatten(new)
        if out_spec != spec:
            raise EngineError("step returned a working state of another form than it was given")
        return out

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph, root = trace(flat, [*leaves, *extra])
    except (AtollError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        if "random operation" in str(error):  # what vmap says of a draw that nothing has intercepted
            raise EngineError("a call in it draws from the global random state", hint=STREAMS) from error
        raise EngineError(
            f"the client program cannot be captured: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint='a model that branches on the values of tensors runs with engine="loop"',
        ) from error
    drawn = {str(node.target) for node in graph.nodes if _draws(node)}
    if drawn:
        raise EngineError(
            f"the client program calls {', '.join(sorted(drawn))}, which draws from the global random state",
            hint=STREAMS,
        )
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    _simplify(graph)
    _hoist(graph, root)
    _drop_ones(graph, root)
    norms_of_products(graph)
    quicken(graph)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    outputs = list(output.args[0])
    changed = {i for i in range(count) if outputs[i] is not inputs[i]}
    write_in_place(graph, inputs, changed)
    _fuse_bias(graph)
    _sweep(graph)
    last = channels_last(graph, inputs, changed)
    _quick_calls(graph)
    graph.lint()
    return Captured(fx.GraphModule(root, graph, "Captured"), changed, spec, last)


# --- rewrites -------------------------------------------------------------------------------------------------------

_RESHAPES = (aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_ALIASES = (aten.detach.default, aten.alias.default, aten.lift_fresh.default)


def _same(node: fx.Node) -> Any:
    """A node or argument equal to `node`, where the operation does nothing."""
    source = node.args[0] if node.args else None
    if is_call(node, *_ALIASES):
        return source
    if is_call(node, *_RESHAPES) and shape_of(node) == shape_of(source):
        return source
    if is_call(node, aten.mul.Scalar) and node.args[1] == 1 and dtype_of(node) == dtype_of(source):
        return source
    if is_call(node, aten.transpose.int, aten.t.default) and is_call(source, node.target):
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


def _draws(node: fx.Node) -> bool:
    """Whether an operation draws random numbers; attention without dropout only could."""
    if _RANDOM not in getattr(node.target, "tags", ()):
        return False
    takes = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]
    if "dropout_p" not in takes:
        return True
    at = takes.index("dropout_p")
    return bool(node.args[at] if at < len(node.args) else node.kwargs.get("dropout_p"))


def _hoist(graph: fx.Graph, root: nn.Module) -> None:
    """Compute what depends on no input once, and keep it with the module."""
    constant: set[fx.Node] = set()
    env: dict[fx.Node, Any] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            constant.add(node)
            env[node] = getattr(root, str(node.target))
        elif node.op == "call_function":
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
        root.register_buffer(name, env[node], persistent=False) if isinstance(env[node], Tensor) else setattr(
            root, name, env[node]
        )
        with graph.inserting_before(node):
            held = graph.get_attr(name)
        held.meta = dict(node.meta)
        node.replace_all_uses_with(held)
    _sweep(graph)


def _drop_ones(graph: fx.Graph, root: nn.Module) -> None:
    """Drop multiplications by constants that are one everywhere, such as the mask of a full batch."""
    for node in list(graph.nodes):
        if not is_call(node, aten.mul.Tensor):
            continue
        for value, other in (node.args, node.args[::-1]):
            if isinstance(value, fx.Node) and value.op == "get_attr" and isinstance(other, fx.Node):
                held = getattr(root, str(value.target))
                if (
                    shape_of(other) == shape_of(node)
                    and dtype_of(other) == dtype_of(node)
                    and bool((held == 1).all())
                ):
                    node.replace_all_uses_with(other)
                    break
    _simplify(graph)


def _fuse_bias(graph: fx.Graph) -> None:
    """bias + batched product -> baddbmm, where nothing writes into what is multiplied between the two."""
    place = {node: at for at, node in enumerate(graph.nodes)}
    writes = [
        (at, storage(node)) for node, at in place.items() if node.op == "call_function" and _mutates(node)
    ]
    for node in list(graph.nodes):
        if not is_call(node, aten.add.Tensor) or node.kwargs or len(node.args) != 2:
            continue
        for bias, product in (node.args, node.args[::-1]):
            if (
                is_call(product, aten.bmm.default)
                and len(product.users) == 1
                and shape_of(product) == shape_of(node)
                and len(shape_of(bias) or ()) == 3
                and dtype_of(bias) == dtype_of(node)
                and not any(
                    place[product] < at < place[node] and into in map(storage, product.args)
                    for at, into in writes
                )
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
    aten.lerp_.Scalar: Tensor.lerp_,
    aten.lerp_.Tensor: Tensor.lerp_,
}


def _quick_calls(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _QUICK.get(node.target, node.target)
