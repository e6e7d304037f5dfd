"""Gradients of our own against torch.func's, to the bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functionalize, vmap
from torch.utils import _pytree as pytree

from atoll import gradient
from atoll.gradient import _needed, grad_and_value, needs_notes
from atoll.tensors import Tensors

Gradient = Callable[..., tuple[Any, Tensor, Any]]


def twin(objective: Callable[..., Any], params: Any) -> tuple[Any, Tensor, Any]:
    found, (value, aux) = torch.func.grad_and_value(objective, has_aux=True)(params)
    return found, value, aux


def of_network(gradient: Gradient, params: Tensors, x: Tensor) -> Any:
    """With an input that is not used, and something that comes along."""

    def objective(p: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = torch.tanh(x @ p["a"])
        return F.cross_entropy(hidden @ p["b"], x[:, 0].long() % 3), {"hidden": hidden, "x": x}

    return gradient(objective, params)


def of_gradient(gradient: Gradient, params: Tensors, x: Tensor) -> Any:
    """Through a step, as Per-FedAvg takes it; the inner gradient also reads what the outer one differentiates."""

    def inner(p: Tensors) -> tuple[Tensor, Tensor]:
        return ((x @ p["a"]).sin() @ p["b"]).square().mean(), p["b"]

    def outer(p: Tensors) -> tuple[Tensor, Tensor]:
        g, value, _ = gradient(inner, p)
        moved = p - g * 0.1
        return inner(moved)[0] + value, value

    return gradient(outer, params)


def of_constant(gradient: Gradient, params: Tensors, x: Tensor) -> Any:
    return gradient(lambda p: (x.sum(), p["a"]), params)


def in_place(gradient: Gradient, params: Tensors, x: Tensor) -> Any:
    def objective(p: Tensors) -> tuple[Tensor, Tensor]:
        y = x @ p["a"]
        y.mul_(2).add_(1)
        y[0] = 1.0
        return y.square().sum(), y

    return gradient(objective, params)


def without_grad(gradient: Gradient, params: Tensors, x: Tensor) -> Any:
    def objective(p: Tensors) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            still = p["a"].exp()
        return (p["a"] * still).sum(), still

    with torch.no_grad():
        return gradient(objective, params)


WORK = [of_network, of_gradient, of_constant, in_place, without_grad]


def given(*lead: int) -> tuple[Tensors, Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = {"a": (5, 4), "b": (4, 3), "unused": (2,)}
    params = Tensors({name: torch.randn(*lead, *shape, generator=g) for name, shape in shapes.items()})
    return params, torch.randn(*lead, 6, 5, generator=g).abs() * 3


def equal(one: Any, other: Any) -> None:
    (left, spec), (right, other_spec) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    assert spec == other_spec
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad


@pytest.mark.parametrize("work", WORK)
def test_gradients_are_those_of_torch(work: Callable[..., Any]) -> None:
    params, x = given()
    equal(work(grad_and_value, params, x), work(twin, params, x))
    equal(functionalize(lambda p: work(grad_and_value, p, x))(params), work(twin, params, x))
    with torch.inference_mode():
        equal(work(grad_and_value, params, x), work(twin, params, x))
    assert not any(value.requires_grad for value in params.values())


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("shared", [False, True])
def test_of_many_clients_too(work: Callable[..., Any], shared: bool) -> None:
    params, x = given(3)
    dims = (None if shared else 0, 0)
    if shared:
        params = params.map(lambda value: value[0])
    ours, theirs = (
        vmap(lambda p, x, g=g: work(g, p, x), in_dims=dims)(params, x) for g in (grad_and_value, twin)
    )
    equal(ours, theirs)


def test_errors_leave_no_level_behind() -> None:
    params, x = given()

    def breaks(p: Tensors) -> tuple[Tensor, Tensor]:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        grad_and_value(breaks, params)
    with pytest.raises(RuntimeError, match="scalar"):
        grad_and_value(lambda p: (p["a"], p["b"]), params)
    equal(of_network(grad_and_value, params, x), of_network(twin, params, x))


def test_this_torch_has_what_lean_gradients_are_made_of() -> None:
    assert gradient.LEAN, (
        "torch._functorch.eager_transforms no longer has grad_increment_nesting, _wrap_all_tensors, "
        "_create_differentiable and _undo_create_differentiable: atoll.gradient falls back to torch.func, "
        "to the same results, and every first gradient imports torch._dynamo"
    )


def test_without_it_torch_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    params, x = given()
    lean = of_gradient(grad_and_value, params, x)
    monkeypatch.setattr(gradient, "LEAN", False)
    equal(of_gradient(grad_and_value, params, x), lean)


FIRST_ROUNDS = """
import sys
from torch import nn
import atoll
data = atoll.data.load("digits").partition(atoll.data.IID(clients=4), seed=0)
pooled = nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)
)
for engine in ("loop", "batched", "processes", "auto"):
    for model in (atoll.models.mlp(64, 10), pooled):
        for method in (atoll.FedAvg(lr=0.1), atoll.FedAdam(lr=0.1)):
            atoll.Federation(model, data, method, rounds=2, cohort=2, engine=engine, device="cpu").fit()
            assert "torch._dynamo" not in sys.modules, f"{engine}, {model}, {type(method).__name__}"
"""


def test_rounds_do_without_the_compiler() -> None:
    """In a process of its own: nothing that rounds need imports `torch._dynamo`, a second and a hundred megabytes."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_ROUNDS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_gradient_that_nobody_differentiates_notes_no_backward_pass() -> None:
    """The graph of a backward pass holds as much memory as that of the forward pass."""
    params = Tensors({"w": torch.randn(3, 3)})

    def objective(p: Tensors) -> tuple[Tensor, Tensor]:
        return (p["w"] @ p["w"]).square().sum(), p["w"]

    def asked(kept: list[bool]) -> Callable[..., Any]:
        def grad(*args: Any, create_graph: bool, **kwargs: Any) -> Any:
            kept.append(create_graph)
            return original(*args, create_graph=create_graph, **kwargs)

        return grad

    original, kept = torch.autograd.grad, []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.autograd, "grad", asked(kept))
        alone = grad_and_value(objective, params)[0]
        vmap(lambda w: grad_and_value(objective, Tensors({"w": w}))[0])(torch.randn(2, 3, 3))
        grad_and_value(lambda p: (grad_and_value(objective, p)[0]["w"].sum(), p["w"]), params)
    assert kept == [False, False, True, False]
    with torch.no_grad():
        assert torch.equal(alone["w"], twin(objective, params)[0]["w"])
    torch.func.grad(lambda p: grad_and_value(objective, p)[0]["w"].sum())(params)


def test_what_one_gradient_needs_is_not_asked_of_the_next() -> None:
    def objective(params: Any) -> Any:
        needs_notes()
        return params["w"].square().sum(), params["w"]

    before = _needed.set(False)  # a model that was called outside of any gradient may have left it
    with torch.no_grad():
        grad_and_value(objective, {"w": torch.ones(2)})
        assert not _needed.get()
    _needed.reset(before)
