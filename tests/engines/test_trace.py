"""What is traced is what was done, and what would come out otherwise another time is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from atoll.engines.capture import capture
from atoll.engines.graph import form_of
from atoll.engines.trace import trace
from atoll.errors import EngineError
from atoll.gradient import grad_and_value
from atoll.tensors import Record

OUTSIDE = torch.arange(12.0).reshape(4, 3)


def constants(w: Tensor, x: Tensor) -> Any:
    """Made inside, from numbers and by factories; one of them asked for its value; and one from outside."""
    made = torch.tensor([1.0, 2.0, 3.0]) + torch.arange(3) * 2
    return w * made * made.sum().item() + OUTSIDE, x


def views(w: Tensor, x: Tensor) -> Any:
    return w.t().reshape(-1)[3:9].view(2, 3).sum(0) + w[1] + w.expand(2, 4, 3)[1, 2], x


def written(w: Tensor, x: Tensor) -> Any:
    """In place: into a copy, through views of it, with a mask, into an input."""
    y = w.clone()
    y[0] += 1
    y.view(-1)[1:3] = x.sum()
    y[y > 1] = 0.5
    x.mul_(2)
    return y, x


def several(w: Tensor, x: Tensor) -> Any:
    top, at = w.topk(2, 0)
    first, *_ = torch.split(x, 2)
    return w[:2] * top + at + first[:, :3], torch.var_mean(x)[1]


def trained(w: Tensor, x: Tensor) -> Any:
    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh(x @ w), x[:, 0].long() % 3)

    return w - 0.1 * grad(loss)(w), x


def twice(w: Tensor, x: Tensor) -> Any:
    def inner(w: Tensor) -> tuple[Tensor, Tensor]:
        return (x @ w).sigmoid().square().mean(), w

    def outer(w: Tensor) -> tuple[Tensor, Tensor]:
        return inner(w - 0.1 * grad_and_value(inner, w)[0])

    return grad_and_value(outer, w)[0], x


def images(w: Tensor, x: Tensor) -> Any:
    def loss(w: Tensor) -> Tensor:
        y = F.conv2d(x.reshape(1, 1, 6, 4), w.reshape(3, 1, 2, 2))
        return F.max_pool2d(F.relu(y), 2).square().sum()

    return grad(loss)(w), x


def indexed(w: Tensor, x: Tensor) -> Any:
    """By what is known before: a mask, too."""
    known = x[torch.tensor([True, False, True, True, False, True])]
    return w[torch.tensor([2, 0])], known[:, known[0].argsort()]


def untouched_inputs(w: Tensor, x: Tensor) -> Any:
    return w, x, 3.0, OUTSIDE


WORK = [constants, views, written, several, trained, twice, images, indexed, untouched_inputs]


def given(seed: int, *lead: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, 4, 3, generator=g), torch.randn(*lead, 6, 4, generator=g).abs()


BATCHED = [each for each in WORK if each not in (written, constants)]
"""`vmap` cannot write with a mask that differs between clients, nor give a value to Python."""


@pytest.mark.parametrize(
    ("function", "clients"), [*((each, ()) for each in WORK), *((each, (2,)) for each in BATCHED)]
)
def test_a_trace_repeats_the_function(function: Callable[..., Any], clients: tuple[int, ...]) -> None:
    work = vmap(function, out_dims=tuple(0 for _ in function(*given(0)))) if clients else function
    if clients and function is untouched_inputs:
        work = vmap(lambda w, x: (w, x))
    graph, root = trace(work, [value.clone() for value in given(1, *clients)])
    graph.lint()
    module = fx.GraphModule(root, graph)
    for seed in (1, 2):
        want = work(*(value.clone() for value in given(seed, *clients)))
        got = module(*given(seed, *clients))
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b) if isinstance(b, Tensor) else a == b
    interpreted = fx.Interpreter(module)
    interpreted.run(*given(2, *clients))
    for node, value in interpreted.env.items():
        if isinstance(value, Tensor):
            assert node.meta["val"] == form_of(value)


@pytest.mark.parametrize("function", [trained, twice, images, several])
def test_a_trace_has_the_operations_that_torch_finds(function: Callable[..., Any]) -> None:
    def counted(graph: fx.Graph) -> list[str]:
        graph.eliminate_dead_code()
        aliases = ("detach", "alias", "lift_fresh", "lift_fresh_copy")
        names = [str(node.target).split(".")[1] for node in graph.nodes if "aten" in str(node.target)]
        return [name for name in names if name not in aliases]

    both = torch.func.functionalize(function, remove="mutations")
    assert counted(trace(function, given(1))[0]) == counted(make_fx(both)(*given(1)).graph)


def test_nothing_of_a_trace_stays_with_what_it_was_given() -> None:
    w, x = given(1)
    trace(trained, [w, x])
    trace(constants, [w, x])
    assert not any(value.__dict__ for value in (w, x, OUTSIDE))


def test_an_input_that_is_given_twice_is_two() -> None:
    (w, _) = given(1)
    graph, root = trace(lambda a, b: (a - b,), [w, w])
    assert torch.equal(fx.GraphModule(root, graph)(w, w * 2)[0], -w)


def test_operations_taken_apart_in_inference_mode() -> None:
    with torch.inference_mode():
        graph, _ = trace(lambda w, x: (F.linear(x, w.t()),), given(1))
    assert not any("linear" in str(node.target) for node in graph.nodes)


VALUES: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "a branch": lambda x: 2 if x.sum() > 0 else 3,
    "any": lambda x: 2 if (x > 0).any() else 3,
    "float": lambda x: float(x[0, 0]),
    "range": lambda x: sum(range(int(x.max()))),
    "in": lambda x: 3.0 in x,
    "max": lambda x: max(x[0, 0], x[0, 1]),
    "equal": lambda x: torch.equal(x, x * 2),
    "allclose": lambda x: torch.allclose(x, x * 2),
    "tolist": lambda x: x.tolist()[0][0],
    "numpy": lambda x: float(x.numpy()[0, 0]),
    "an array": lambda x: float(np.asarray(x)[0, 0]),
    "of a gradient": lambda x: grad(lambda y: y.sum())(x).sum().item(),
    "nonzero": lambda x: len(torch.nonzero(x > 0.5)),
    "where": lambda x: torch.where(x > 0.5)[0].sum(),
    "a mask": lambda x: x[x > 0.5].mean(),
    "masked_select": lambda x: x.masked_select(x > 0.5).mean(),
    "unique": lambda x: torch.unique(x.round()).sum(),
    "repeat_interleave": lambda x: torch.repeat_interleave((x[0] > 0.5).long()).sum(),
    "bincount": lambda x: torch.bincount((x[0] > 0.5).long()).sum(),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("inference", [False, True])
def test_what_depends_on_a_value_is_refused(name: str, inference: bool) -> None:
    def step(local: Record, x: Tensor) -> Record:
        return local.replace(w=local.w * VALUES[name](x))

    with (
        torch.inference_mode() if inference else torch.no_grad(),
        pytest.raises(EngineError, match="cannot be captured: RuntimeError: it depends on the value"),
    ):
        capture(step, Record(w=given(1)[0]), given(1)[1])
