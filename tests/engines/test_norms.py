"""Norms of products without the products, in captured steps that clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from atoll.engines.capture import Captured, capture
from atoll.engines.norms import norm_of_product
from atoll.gradient import grad_and_value
from atoll.optimizers import SGD, clip_by_norm
from atoll.tensors import Record, Tensors

WIDE = (40, 56)


def loss(params: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(F.linear(x, params["w"], params["b"])).square().sum(), torch.zeros(())


def clipped(limit: float, solver: SGD) -> Any:
    def step(s: Record, x: Tensor) -> Record:
        gradient, _, _ = grad_and_value(lambda params: loss(params, x), s.params)
        params, memory = solver.update(clip_by_norm(gradient, limit), s.memory, s.params, 0.01)
        return s.replace(params=params, memory=memory)

    return step


def state(solver: SGD, shape: tuple[int, int] = WIDE) -> Record:
    stream = torch.Generator().manual_seed(0)
    params = Tensors(w=torch.randn(*shape, generator=stream) * 0.1, b=torch.randn(shape[0], generator=stream))
    return Record(params=params, memory=solver.init(params))


def products(captured: Captured) -> list[tuple[int, ...]]:
    """The shapes of matrices that are made as products."""
    calls = [node for node in captured.module.graph.nodes if node.target in (torch.mm, torch.bmm)]
    return [node.meta["val"].shape[-2:] for node in calls]


HEAVY = SGD(momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize("many", [False, True], ids=["alone", "batched"])
@pytest.mark.parametrize("limit", [0.5, 1e4], ids=["clipped", "free"])
@pytest.mark.parametrize("solver", [SGD(), HEAVY], ids=["plain", "heavy"])
def test_a_clipped_step_makes_no_gradient_and_is_the_step(solver: SGD, limit: float, many: bool) -> None:
    step, local, stream = clipped(limit, solver), state(solver), torch.Generator().manual_seed(1)
    if many:
        step = vmap(step)
        local = pytree.tree_map(lambda v: torch.stack([v, v * 0.5, v + 0.1]), local)
    batches = [torch.randn(*[3][: int(many)], 5, WIDE[1], generator=stream) for _ in range(4)]
    captured = capture(step, local, batches[0])
    values = captured.own(pytree.tree_leaves(local))
    for x in batches:
        local, values = step(local, x), captured(values, [x])
    for got, want in zip(values, pytree.tree_leaves(local), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert "norm_of_product" in captured.module.code
    assert WIDE not in products(captured)
    if solver.momentum:  # the velocity's factor goes along with the product
        assert "beta = 0.9" in captured.module.code


def test_products_that_are_needed_or_short_are_made_and_their_norms_taken() -> None:
    def twice(s: Record, x: Tensor) -> Record:
        gradient, _, _ = grad_and_value(lambda params: loss(params, x), s.params)
        return s.replace(params=s.params - gradient * 0.1 - clip_by_norm(gradient, 0.5))

    for step, shape in ((twice, WIDE), (clipped(0.5, HEAVY), (30, 56))):
        captured = capture(step, state(HEAVY, shape), torch.ones(5, shape[1]))
        assert "norm_of_product" not in captured.module.code
        assert shape in products(captured)


def test_samples_that_cancel_lose_nothing() -> None:
    left = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
    left = torch.cat([left, -left + 1e-4 * left.flip(0)], 1)
    right = torch.randn(4, 50, generator=torch.Generator().manual_seed(3)).repeat(2, 1)
    exact = torch.linalg.norm(left.double() @ right.double())
    assert float(exact) < 0.1
    assert float(norm_of_product(left, right)) == pytest.approx(float(exact), rel=1e-5)
    both = norm_of_product(torch.stack([left, left * 2]), torch.stack([right, right]))
    assert both.tolist() == pytest.approx([float(exact), 2 * float(exact)], rel=1e-5)
    assert float(norm_of_product(torch.zeros(9, 2), torch.zeros(2, 9))) == 0.0
