"""Optimisers: their steps are torch's, and in few passes what they are in many."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atoll.optimizers import SGD, Adam, Optimizer, Yogi, clip_by_norm
from atoll.tensors import Record, Tensors, leaves


def same(one: Any, two: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(leaves(one), leaves(two), strict=True))


def point(seed: int, dtype: torch.dtype = torch.float32) -> Tensors:
    stream = torch.Generator().manual_seed(seed)
    return Tensors(a=torch.randn(37, 5, generator=stream), b=torch.randn(3, generator=stream)).map(
        lambda value: value.to(dtype)
    )


ADAMS = [Adam(), Adam(weight_decay=0.1), Adam(weight_decay=0.1, decoupled=True), Adam(0.8, 0.99, 1e-3)]


@pytest.mark.parametrize("solver", ADAMS)
def test_adam_is_torchs(solver: Adam) -> None:
    params = point(0, torch.float64)
    module = [value.clone().requires_grad_() for value in params.values()]
    kind = torch.optim.AdamW if solver.decoupled else torch.optim.Adam
    theirs = kind(
        module, lr=0.01, betas=(solver.beta1, solver.beta2), eps=solver.eps, weight_decay=solver.weight_decay
    )
    state = solver.init(params)
    for at in range(1, 8):
        gradient = point(at, torch.float64)
        params, state = solver.update(gradient, state, params, 0.01)
        for value, slope in zip(module, gradient.values(), strict=True):
            value.grad = slope
        theirs.step()
    for value, wanted in zip(params.values(), module, strict=True):
        torch.testing.assert_close(
            value, wanted.detach(), rtol=1e-4, atol=1e-6
        )  # our count of steps is single


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ADAMS)
def test_adam_at_once_is_adam(solver: Adam, dtype: torch.dtype) -> None:
    plain = fast = point(0, dtype)
    state = quick = solver.init(plain)
    for at in range(1, 30):
        gradient = point(at, dtype)
        plain, state = solver.update(gradient, state, plain, 0.01)
        fast, quick = solver.at_once(gradient, quick, fast, 0.01)
    torch.testing.assert_close(fast.flat(), plain.flat(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(quick.second.flat(), state.second.flat())
    assert float(quick.steps) == 29
    assert float((plain.flat() - point(0, dtype).flat()).abs().max()) > 0.05


@pytest.mark.parametrize("solver", [SGD(0.9, weight_decay=0.1), Yogi(), Adam(bias_correction=False)])
def test_what_torch_has_no_kernel_for_is_the_plain_update(solver: Optimizer) -> None:
    params, gradient = point(0), point(1)
    state = solver.init(params)
    one, two = (step(gradient, state, params, 0.1) for step in (solver.update, solver.at_once))
    assert same(one[0], two[0]) and same(one[1], two[1])


def test_only_what_is_ones_own_is_written_over() -> None:
    solver, params, gradient = Adam(), point(0), point(1)
    before, state = params.map(torch.clone), solver.init(params)
    after, memory = solver.at_once(gradient, state, params, 0.1)
    assert same(params, before) and same(state, solver.init(params)) and same(gradient, point(1))
    mine, held = solver.at_once(gradient, state, params, 0.1, own=True)
    assert same(mine, after) and same(
        Record(first=held.first, second=held.second), Record(first=memory.first, second=memory.second)
    )
    assert same(params, after)


def test_a_norm_is_the_joint_one_and_clipping_scales_to_it() -> None:
    stream = torch.Generator().manual_seed(0)
    some = Tensors(
        a=torch.rand(300, 700, generator=stream),
        b=torch.rand(8, 3, 5, 5, generator=stream),
        c=torch.tensor(2.0),
    )
    wanted = float(torch.cat([value.double().flatten() for value in some.values()]).norm())
    assert float(some.norm()) == pytest.approx(wanted, rel=1e-6)
    assert float(clip_by_norm(some, 1.0).norm()) == pytest.approx(1.0, rel=1e-6)
    assert same(clip_by_norm(some, 1e6), some)  # to the bit where nothing is clipped
    assert float(Tensors().norm()) == 0.0
