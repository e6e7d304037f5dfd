"""Norms of products of matrices without the products: of a gradient that is clipped, and added in place afterwards.

The gradient of a linear layer's weights is ``d.T @ x``, of a few rows each. Its norm follows from products of rows,
``|d.T @ x|^2 = sum((d @ d.T) * (x @ x.T))``, so that clipping need not write down the gradient: it goes into the
velocity, or the parameters, as it is made. The products of rows are taken in double precision, where nothing is lost
when samples' gradients cancel.

Which norms are taken so follows from shapes alone, as in `atoll.engines.cpu`. They round differently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from atoll.engines.cpu import call
from atoll.engines.graph import aten, device_of, dtype_of, is_call, shape_of

__all__ = ["norms_of_products"]

NARROW = 8
"""How many times as long as the sum that a product takes its sides must be."""


def norms_of_products(graph: fx.Graph) -> None:
    """Rewrite `Tensors.norm` of products that are used, besides, in one place, where they are scaled."""
    for norm in list(graph.nodes):
        product = _normed(norm)
        if product is None or not _spared(product):
            continue
        with graph.inserting_before(norm):
            norm.replace_all_uses_with(call(graph, norm_of_product, *product.args))


def _normed(norm: fx.Node) -> fx.Node | None:
    """The product, [m, p] or one of each client, whose norm this is: of its rows, and of these."""
    rows = norm.args[0] if is_call(norm, aten.linalg_vector_norm.default) else None
    if not isinstance(rows, fx.Node) or not is_call(rows, aten.linalg_vector_norm.default):
        return None
    product: Any = rows.args[0]
    if not is_call(product, aten.mm.default, aten.bmm.default) or len(rows.users) != 1:
        return None
    shape = shape_of(product) or ()
    each = len(shape) == 3
    plain = _dims(rows) in ([len(shape) - 1], [-1]) and _dims(norm) in (
        [[1], [-1]] if each else [[0], [-1], None]
    )
    known = shape_of(norm) == shape[: int(each)] and dtype_of(norm) == dtype_of(product) == torch.float32
    return product if plain and known and device_of(product) == "cpu" else None


def _dims(norm: fx.Node) -> Any:
    """The axes that a plain Euclidean norm goes over: None for all, False if it is another norm."""
    order, axes, *more = [*norm.args[1:], None, None][:3] if len(norm.args) > 1 else [2, None, None]
    return False if order != 2 or any(more) or norm.kwargs else axes


def _spared(product: fx.Node) -> bool:
    """Whether the product need not be made: it is scaled once, and its sides are long."""
    left: Any = product.args[0]
    *_, rows, inner = shape_of(left) or (0, 0)
    columns = (shape_of(product) or (0,))[-1]
    others = [user for user in product.users if not is_call(user, aten.linalg_vector_norm.default)]
    scaled = len(others) == 1 and len(product.users) == 2 and is_call(others[0], aten.mul.Tensor)
    return scaled and NARROW * inner <= min(rows, columns)


def norm_of_product(left: Tensor, right: Tensor) -> Tensor:
    """The Frobenius norm of left @ right, of matrices or of stacks of them."""
    one, other = left.double(), right.double()
    squares = (one.mT @ one) * (other @ other.mT)
    return squares.sum((-2, -1)).clamp(min=0).sqrt().to(left.dtype)
