"""Captured steps against the functions they were made from, above all where writing in place could go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils import _pytree as pytree

from atoll.engines.capture import capture
from atoll.errors import EngineError
from atoll.tensors import Record, Tensors

Step = Callable[[Record, Tensor], Record]


def loss(params: Tensors, x: Tensor) -> Tensor:
    return torch.tanh(x @ params["a"] @ params["b"]).square().mean()


def state() -> Record:
    g = torch.Generator().manual_seed(0)
    params = Tensors(a=torch.randn(5, 4, generator=g), b=torch.randn(4, 3, generator=g))
    return Record(
        params=params,
        velocity=params * 0.5,
        anchor=params * 0.9,
        lr=torch.tensor(0.3),
        steps=torch.tensor(0.0),
    )


def plain(s: Record, x: Tensor) -> Record:
    return s.replace(params=s.params - grad(loss)(s.params, x) * s.lr, steps=s.steps + 1)


def proximal(s: Record, x: Tensor) -> Record:
    return s.replace(params=s.params - (grad(loss)(s.params, x) + (s.params - s.anchor) * 0.7) * s.lr)


def nesterov(s: Record, x: Tensor) -> Record:
    g = grad(loss)(s.params, x) + s.params * 0.01
    velocity = s.velocity * 0.9 + g
    return s.replace(params=s.params - (g + velocity * 0.9) * s.lr, velocity=velocity)


def swapped(s: Record, x: Tensor) -> Record:
    """Each new value needs the other's old one."""
    return s.replace(params=s.params - s.velocity * 0.1, velocity=s.velocity + s.params * 0.2)


def chained(s: Record, x: Tensor) -> Record:
    params = s.params - s.velocity * s.lr
    return s.replace(params=params, velocity=s.velocity * 0.5 + params * 0.1, anchor=s.anchor - s.velocity)


def factors(s: Record, x: Tensor) -> Record:
    """The gradient of a product reads the other factor, as in low-rank adapters."""
    g = grad(lambda p: (x @ (p["a"] @ p["b"])).square().mean())(s.params)
    return s.replace(params=s.params - g * s.lr)


def repeated(s: Record, x: Tensor) -> Record:
    """Two outputs that are one value, and an output that is another input."""
    new = s.params - grad(loss)(s.params, x) * s.lr
    return s.replace(params=new, velocity=new, anchor=s.params)


def views(s: Record, x: Tensor) -> Record:
    moved = Tensors(a=s.params["a"] - s.params["a"].flip(0) * 0.1, b=s.params["b"] + s.params["b"][:1] * 0.2)
    return s.replace(params=moved)


def remembered(s: Record, x: Tensor) -> Record:
    """What a parameter was before the step is part of the new state."""
    new = s.params - grad(loss)(s.params, x) * s.lr
    return s.replace(params=new, velocity=s.params, anchor=s.anchor - s.velocity * 0.1)


def decayed(s: Record, x: Tensor) -> Record:
    return s.replace(params=s.params - (grad(loss)(s.params, x) + s.params * 0.02) * s.lr)


def heavy(s: Record, x: Tensor) -> Record:
    """No term is the input as it is."""
    return s.replace(velocity=s.velocity * 0.9 + (s.velocity - s.params) * s.lr - s.anchor)


def pulled_twice(s: Record, x: Tensor) -> Record:
    """Towards two places, away from a third, and shrunk: the input is a term four times."""
    pull = (s.params - s.anchor) * 0.7 + (s.params - s.velocity) * 0.1 + s.params * 0.01
    return s.replace(params=s.params - (grad(loss)(s.params, x) - s.velocity * 0.3 + pull) * s.lr)


def inner(s: Record, x: Tensor) -> Record:
    """Several steps in one, as pFedMe takes them."""
    theta = s.velocity
    for _ in range(3):
        theta = theta - (grad(loss)(theta, x) + (theta - s.params) * 0.7) * 0.2
    return s.replace(velocity=theta, params=s.params - (s.params - theta) * s.lr)


def inner_seen(s: Record, x: Tensor) -> Record:
    """What lies between is an output, read later, or seen through a view."""
    one = s.params - grad(loss)(s.params, x) * s.lr
    two = one - grad(loss)(one, x) * s.lr
    three = two - two * 0.1 - one * 0.2
    turned = Tensors(a=one["a"].flip(0), b=two["b"][:1].expand(4, 3))
    return s.replace(params=three, velocity=one, anchor=three * 0.5 + turned)


def inner_kept(s: Record, x: Tensor) -> Record:
    """What lies between is an output, and nothing else reads it late."""
    one = s.params - grad(loss)(s.params, x) * s.lr
    return s.replace(params=one - grad(loss)(one, x) * s.lr, velocity=one)


@pytest.mark.parametrize(
    "step",
    [
        plain, proximal, decayed, heavy, pulled_twice, nesterov, swapped, chained, factors, repeated, views, inner,
        inner_seen, inner_kept, remembered,
    ],
)  # fmt: skip
def test_a_captured_step_repeats_the_function(step: Step) -> None:
    g = torch.Generator().manual_seed(1)
    local = state()
    batches = [torch.randn(6, 5, generator=g) for _ in range(4)]
    captured = capture(step, local, batches[0])
    values = [v.clone() for v in pytree.tree_leaves(local)]
    for x in batches:
        local = step(local, x)
        values = captured(values, [x])
    for got, want in zip(values, pytree.tree_leaves(local), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_what_changes_is_known_and_the_rest_is_untouched() -> None:
    local = state()
    captured = capture(plain, local, torch.ones(6, 5))
    values = [v.clone() for v in pytree.tree_leaves(local)]
    before = [v.clone() for v in values]
    new = captured(list(values), [torch.ones(6, 5)])
    for at, value in enumerate(values):
        if at not in captured.changed:
            assert new[at] is value
            assert torch.equal(value, before[at])
    assert sorted(captured.changed) == [0, 1, 7]


def test_gradients_of_matrix_products_are_added_in_place() -> None:
    local = state()
    captured = capture(plain, local, torch.ones(6, 5))
    values = [v.clone() for v in pytree.tree_leaves(local)]
    new = captured(list(values), [torch.ones(6, 5)])
    assert new[0] is values[0]
    assert "addmm_" in captured.module.code


@pytest.mark.parametrize(
    ("step", "words"), [(proximal, "lerp_"), (decayed, "addmm_"), (pulled_twice, "add_")]
)
def test_pulls_are_written_in_place(step: Step, words: str) -> None:
    local = state()
    captured = capture(step, local, torch.ones(6, 5))
    values = [v.clone() for v in pytree.tree_leaves(local)]
    new = captured(list(values), [torch.ones(6, 5)])
    assert new[0] is values[0]
    assert words in captured.module.code
    assert "sub" not in captured.module.code  # no difference to the anchor is ever stored


def test_steps_within_a_step_are_written_in_place() -> None:
    local = state()
    captured = capture(inner, local, torch.ones(6, 5))
    values = [v.clone() for v in pytree.tree_leaves(local)]
    new = captured(list(values), [torch.ones(6, 5)])
    assert all(new[at] is values[at] for at in range(4))  # params and velocity
    assert captured.module.code.count("addmm_(") == 6
    assert "sub" not in captured.module.code


def stepped(s: Record, x: Tensor) -> Record:
    """A rate of each client's own, and a pull of its own strength."""
    g = grad(loss)(s.params, x)
    return s.replace(params=s.params - g * (s.rate * s.lr), anchor=s.anchor - (s.anchor - s.params) * s.rate)


def blended(s: Record, x: Tensor) -> Record:
    """Own factors of every term, twice of one; two outputs need each other; the column itself changes."""
    mixed = (
        s.params * s.rate + s.anchor * (1 - s.rate) * 0.5 - grad(loss)(s.params, x) * s.rate * s.lr * s.rate
    )
    return s.replace(params=mixed, anchor=s.anchor + s.params * s.rate + s.anchor * s.rate, rate=s.rate * 0.9)


@pytest.mark.parametrize(("step", "written"), [(stepped, (0, 1, 4, 5)), (blended, (4, 5))])
def test_factors_of_each_client_go_along(step: Step, written: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(2)
    local = state().replace(rate=torch.tensor(0.0))
    stacked = pytree.tree_map(lambda v: v + torch.randn(3, *v.shape, generator=g), local).replace(lr=local.lr)
    dims = pytree.tree_map(lambda _: 0, local).replace(lr=None)
    together = vmap(step, in_dims=(dims, 0), out_dims=dims)
    batches = [torch.randn(3, 6, 5, generator=g) for _ in range(4)]
    captured = capture(together, stacked, batches[0])
    first = [v.clone() for v in pytree.tree_leaves(stacked)]
    values = list(first)
    for x in batches:
        stacked = together(stacked, x)
        values = captured(values, [x])
    for got, want in zip(values, pytree.tree_leaves(stacked), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert all(values[at] is first[at] for at in written)
    assert ("baddbmm_" in captured.module.code) == (
        0 in written
    )  # the gradient goes into the parameters, or is stored


def test_a_small_decay_is_not_rounded_away() -> None:
    """1 - 2.5e-7 is no number of single precision: as one factor, the decay would be 5 % too weak."""

    def decay(s: Record, x: Tensor) -> Record:
        return s.replace(params=s.params - (s.velocity * 0.0 + s.params * 5e-5) * 5e-3)

    local = Record(params=Tensors(a=torch.rand(100, 100) + 1), velocity=Tensors(a=torch.zeros(100, 100)))
    captured = capture(decay, local, torch.ones(1))
    values = [v.clone() for v in pytree.tree_leaves(local)]
    for _ in range(100):
        values = captured(values, [torch.ones(1)])
    lost = (local.params["a"].double() - values[0].double()).mean() / local.params["a"].double().mean()
    assert float(lost) == pytest.approx(100 * 2.5e-7, rel=0.02)


def test_one_tensor_in_two_places_is_two_inputs() -> None:
    local = state()
    local = local.replace(anchor=local.params)
    captured = capture(proximal, local, torch.ones(6, 5))
    other = state()
    values = [v.clone() for v in pytree.tree_leaves(other)]
    want = proximal(other, torch.ones(6, 5))
    got = captured(values, [torch.ones(6, 5)])
    torch.testing.assert_close(got[0], want.params["a"])


def test_a_step_that_changes_the_form_of_its_state_is_refused() -> None:
    def grows(s: Record, x: Tensor) -> Record:
        return s.replace(more=x)

    def branches(s: Record, x: Tensor) -> Any:
        return s if x.sum() > 0 else s.replace(steps=s.steps + 1)

    with pytest.raises(EngineError, match="another form"):
        capture(grows, state(), torch.ones(6, 5))
    with pytest.raises(EngineError, match="cannot be captured"):
        capture(branches, state(), torch.ones(6, 5))


def test_a_draw_from_a_generator_is_seen_in_the_graph() -> None:
    generator = torch.Generator()

    def draws(s: Record, x: Tensor) -> Record:
        return s.replace(params=s.params + torch.rand((), generator=generator))

    with pytest.raises(EngineError, match=r"calls aten\.rand\.generator, which draws from the global"):
        capture(draws, state(), torch.ones(6, 5))
