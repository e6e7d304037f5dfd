"""Convolutional networks on a processor: the same operations of a captured graph in the forms that take least time.

On one thread a convolution is at the processor's peak once it has work enough, and what can be spared is around it:

* **A first convolution with few channels is a product with the patches of its input**, laid side by side once for
  forward and backward. It does too little arithmetic a number for the convolution's own kernel, above all in the
  gradient of the weights. A row of ones among the patches carries the bias and its gradient.
* **ReLU is taken after max pooling**, which commutes with it: of a quarter of the values, and so is its gradient. Where
  a window has no positive value the place of its maximum may be another one, and no gradient passes there.
* **A few rows times a wide matrix** are a product along the matrix: ``(W @ x.T).T``, not ``x @ W.T``.
* **ReLU overwrites** what nothing else reads.

Which form is taken follows from shapes alone, never from timing, so that every worker and every resumed run takes the
same one. ReLU's changes keep every bit, the two products round differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from atoll.engines.graph import aten, device_of, form_of, is_call, is_view, shape_of

__all__ = ["call", "quicken"]

CHANNELS = 16
"""Channels of the input up to which a convolution is a product with patches."""

PATCHES = 1 << 20
"""Bytes of patches up to which a product with them wins: half of the cache that a core has to itself today."""

WIDE = 2 << 20
"""Bytes of a matrix from which on it is read from beyond that cache."""

ROWS = range(8, 65)
"""Rows of a batch for which reading along a wide matrix wins."""


def quicken(graph: fx.Graph) -> None:
    """Rewrite what runs on the CPU. Nodes need ``meta["val"]``, and those that are new have it."""
    columns: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if not is_call(node, *_REWRITES) or node.meta["val"] is None or device_of(node) != "cpu":
            continue
        with graph.inserting_before(node):
            if node.target is aten.convolution_backward.default:
                _as_products(graph, node, columns)
            elif node.target is aten.max_pool2d_with_indices.default:
                _pool_first(graph, node)
            else:
                _along(graph, node)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    for node in graph.nodes:
        if (
            is_call(node, aten.relu.default)
            and device_of(node) == "cpu"
            and _only_read_by(node.args[0], node)
        ):
            node.target = aten.relu_.default


_REWRITES = (
    aten.convolution_backward.default,
    aten.max_pool2d_with_indices.default,
    aten.addmm.default,
)


def call(graph: fx.Graph, target: Callable[..., Any], *args: Any) -> fx.Node:
    """A new call, whose value is that of its arguments' values."""
    node = graph.call_function(target, args)
    value = target(*fx.map_arg(args, lambda each: each.meta["val"].blank()))
    node.meta["val"] = form_of(value)._replace(device=torch.device("cpu"))
    return node


def _args(node: fx.Node) -> Any:
    return node.args


def _only_read_by(source: Any, reader: fx.Node) -> bool:
    """Whether a tensor that nothing else shares or reads."""
    if not isinstance(source, fx.Node) or source.op != "call_function" or list(source.users) != [reader]:
        return False
    return not is_view(source) or is_call(source.args[0], aten.max_pool2d_with_indices.default)


# --- convolutions as products -----------------------------------------------------------------------------------------


class _Window(NamedTuple):
    """What a two-dimensional convolution looks at: [height, width] of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def places(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the output for an input of this height and width."""
        high, wide = (
            (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for length, kernel, stride, pad, dilation in zip(
                size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return high, wide


def _columns(x: Tensor, window: _Window) -> Tensor:
    """The patches of images [n, c, h, w] as columns, [c * kernel + 1, n * places]; the last row is one."""
    (n, c, h, w), (top, left) = x.shape, window.padding
    high, wide = window.places((h, w))
    if top or left:
        x = F.pad(x, (left, left, top, top))
    of_image, of_channel, down, right = x.stride()
    steps = (window.dilation[0] * down, window.dilation[1] * right)
    moves = (window.stride[0] * down, window.stride[1] * right)
    shape = (c, *window.kernel, n, high, wide)
    found = x.new_empty(c * window.kernel[0] * window.kernel[1] + 1, n * high * wide)
    found[:-1].view(shape).copy_(x.as_strided(shape, (of_channel, *steps, of_image, *moves)))
    found[-1].fill_(1)
    return found


def _convolve(columns: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """The convolution of images whose patches these are, [n, c, h, w] with channels last."""
    n, c, h, w = shape
    flat = weight.reshape(c, -1)
    flat = torch.cat([flat, flat.new_zeros(c, 1) if bias is None else bias.unsqueeze(1)], 1)
    return (columns.t() @ flat.t()).view(n, h, w, c).permute(0, 3, 1, 2)


def _of_weights(columns: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the weights, and in the last row of the bias, from that of the output: [c * kernel + 1, out]."""
    flat = gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1])
    return columns @ flat


def _as_products(graph: fx.Graph, backward: fx.Node, columns: dict[Any, fx.Node]) -> None:
    """A convolution with its gradient, where that of the input is not asked for and its patches fit the cache."""
    gradient, x, weight, _, *how, wanted = _args(backward)
    forward = next(
        (
            node
            for node in x.users
            if is_call(node, aten.convolution.default) and _matches(node, x, weight, how)
        ),
        None,
    )
    if forward is None or wanted[0] or not wanted[1] or (found := _window(forward)) is None:
        return
    bias, shape = forward.args[2], shape_of(forward)
    assert shape is not None
    key = (x, found)
    if key not in columns:
        place = x.next  # before whatever reads the images
        while place.op == "placeholder":
            place = place.next
        with graph.inserting_before(place):
            columns[key] = call(graph, _columns, _unmoved(x), found)
    patches = columns[key]
    with graph.inserting_before(forward):
        new = call(graph, _convolve, patches, weight, bias, shape)
    forward.replace_all_uses_with(new)
    product = call(graph, _of_weights, patches, gradient)
    for part in list(backward.users):
        if part.args[1] == 1:
            rows = call(graph, aten.t.default, call(graph, aten.slice.Tensor, product, 0, 0, -1))
            part.replace_all_uses_with(call(graph, aten.view.default, rows, shape_of(weight)))
        elif part.args[1] == 2:
            part.replace_all_uses_with(call(graph, aten.select.int, product, 0, -1))


def _matches(forward: fx.Node, x: Any, weight: Any, how: list[Any]) -> bool:
    return forward.args[0] is x and forward.args[1] is weight and list(forward.args[3:]) == how


def _window(forward: fx.Node) -> _Window | None:
    """What a convolution looks at, or None where it is not for a product to do."""
    x, weight, _, stride, padding, dilation, transposed, _, groups = _args(forward)
    value, size, kernel = forward.meta["val"], shape_of(x), shape_of(weight)
    if transposed or groups != 1 or size is None or kernel is None or len(size) != 4 or len(kernel) != 4:
        return None
    n, c, h, w = value.shape
    if kernel[1] > CHANNELS:
        return None
    if value.stride != (h * w * c, 1, w * c, c) or value.nbytes == 0 or value.dtype != torch.float32:
        return None
    if kernel[1] * kernel[2] * kernel[3] * n * h * w * value.dtype.itemsize > PATCHES:
        return None
    pairs = (tuple(each) * (2 // len(each)) for each in (stride, padding, dilation))
    return _Window(kernel[2:], *pairs)


def _unmoved(x: Any) -> Any:
    """Images before they were given channels last: patches are copied faster out of whole rows."""
    while is_call(x, aten.clone.default, aten.as_strided.default) and shape_of(x.args[0]) == shape_of(x):
        inner, outer = x.args[0].meta["val"], x.meta["val"]
        if x.target is aten.as_strided.default and (
            len(x.args) > 3
            or any(a != b for a, b, n in zip(inner.stride, outer.stride, inner.shape, strict=True) if n > 1)
        ):
            return x
        x = x.args[0]
    return x


# --- ReLU and max pooling ---------------------------------------------------------------------------------------------


def _pool_first(graph: fx.Graph, pool: fx.Node) -> None:
    """``pool(relu(x))`` becomes ``relu(pool(x))``, and so on backwards."""
    relu: Any = pool.args[0]
    if not is_call(relu, aten.relu.default):
        return
    back = [user for user in relu.users if is_call(user, aten.max_pool2d_with_indices_backward.default)]
    masks = [user for user in relu.users if is_call(user, aten.threshold_backward.default)]
    if len(relu.users) != 1 + len(back) + len(masks) or len(back) != len(masks):
        return
    for mask in masks:
        inner: Any = mask.args[0]
        if mask.args[2] != 0 or inner not in back or len(inner.users) != 1 or inner.args[1] is not relu:
            return
        if inner.args[-1].args != (pool, 1):
            return
    x = relu.args[0]
    values = [part for part in pool.users if part.args[1] == 0]
    pool.args = (x, *pool.args[1:])
    with graph.inserting_after(values[0]):
        after = call(graph, aten.relu.default, values[0])
    for value in values:
        value.replace_all_uses_with(after, lambda user: user is not after)
    for mask in masks:
        inner = mask.args[0]
        with graph.inserting_before(inner):
            gradient = call(graph, aten.threshold_backward.default, inner.args[0], after, 0)
        inner.args = (gradient, x, *inner.args[2:])
        mask.replace_all_uses_with(inner)


# --- few rows times a wide matrix -------------------------------------------------------------------------------------


def _along(graph: fx.Graph, product: fx.Node) -> None:
    bias, x, turned = _args(product)
    if product.kwargs or not is_call(turned, aten.t.default):
        return
    matrix = turned.args[0]
    value, rows = matrix.meta["val"], shape_of(x)
    assert rows is not None
    wide = value.nbytes >= WIDE and value.stride == (value.shape[1], 1)
    if wide and rows[0] in ROWS:
        product.replace_all_uses_with(call(graph, _read_along, bias, x, matrix))


def _read_along(bias: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """``bias + x @ matrix.T``."""
    return torch.addmm(bias.unsqueeze(-1), matrix, x.t()).t().contiguous()
