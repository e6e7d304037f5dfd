"""Forms of operations that a processor does faster, against the operations as they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad
from torch.utils import _pytree as pytree

import atoll
from atoll.engines.capture import Captured, capture
from atoll.engines.loop import Loop
from atoll.engines.sequential import Sequential
from atoll.purity import _narrow
from atoll.tensors import Record, Tensors

Loss = Callable[[Tensors, Tensor], Tensor]


def last(x: Tensor) -> Tensor:
    """Images with channels last, as single clients on a CPU have them."""
    _, c, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    return x.as_strided(x.shape, (h * w, 1, w, 1)) if c == 1 else x


def both(loss: Loss, params: Tensors, x: Tensor, steps: int = 2) -> tuple[Captured, list[Any], list[Any]]:
    """The captured step, and the state after some steps of it and of what it was captured from."""

    def step(state: Record, x: Tensor) -> Record:
        return state.replace(params=state.params - grad(loss)(state.params, x) * state.lr)

    state = Record(params=params, lr=torch.tensor(0.1))
    captured = capture(step, state, x)
    values = captured.own(pytree.tree_leaves(state))
    for _ in range(steps):
        values, state = captured(values, [x]), step(state, x)
    return captured, captured.plain(values), pytree.tree_leaves(state)


def close(got: list[Any], want: list[Any]) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def called(captured: Captured, name: str) -> int:
    return sum(name in str(node.target) for node in captured.module.graph.nodes if node.op == "call_function")


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_first_convolution_is_a_product_with_patches(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups = data.draw(st.sampled_from([1, 1, 1, 2]))
    c, o, n = groups * draw(1, 4), groups * draw(1, 6), draw(1, 5)
    kernel, stride, dilation = [(draw(1, 4), draw(1, 4)), (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))]
    padding = (draw(0, 2), draw(0, 2))
    size = [(k - 1) * d + draw(1, 6) for k, d in zip(kernel, dilation, strict=True)]
    bias = data.draw(st.booleans())
    params = Tensors(
        w=weights(o, c // groups, *kernel, seed=1), **({"b": weights(o, seed=2)} if bias else {})
    )
    x = torch.randn(n, c, *size, generator=torch.Generator().manual_seed(3))
    narrow = _narrow(size[1], params["w"], stride, padding, dilation)
    layout = torch.Tensor.contiguous if narrow else last

    def loss(p: Tensors, x: Tensor) -> Tensor:
        y = F.conv2d(layout(x), p["w"], p["b"] if bias else None, stride, padding, dilation, groups)
        return torch.tanh(y).square().mean()

    captured, got, want = both(loss, params, x)
    close(got, want)
    assert called(captured, "_columns") <= (groups == 1)
    out = F.conv2d(layout(x), params["w"], None, stride, padding, dilation, groups)
    if groups == 1 and out[0, 0].numel() > 1 and out.stride() == last(torch.empty_like(out)).stride():
        assert called(captured, "_columns") == 1
        assert called(captured, "convolution") == 0


@pytest.mark.parametrize(
    ("kind", "loss", "shape", "size"),
    [
        ("input", lambda p, x: F.conv2d(last(x) * p["s"], p["w"]).square().mean(), (4, 3, 3, 3), (2, 3, 9, 9)),
        ("many", lambda p, x: F.conv2d(last(x), p["w"], padding=2).square().mean(), (8, 16, 5, 5), (10, 16, 16, 16)),
        ("transposed", lambda p, x: F.conv_transpose2d(last(x), p["w"]).square().mean(), (3, 4, 3, 3), (2, 3, 9, 9)),
        ("one", lambda p, x: F.conv1d(x.flatten(2), p["w"].flatten(2)).square().mean(), (4, 3, 1, 3), (2, 3, 3, 9)),
        ("first", lambda p, x: F.conv2d(x, p["w"]).square().mean(), (4, 3, 3, 3), (2, 3, 9, 9)),
        ("doubles", lambda p, x: F.conv2d(last(x).double(), p["w"].double()).sum(), (4, 3, 3, 3), (2, 3, 9, 9)),
    ],
)  # fmt: skip
def test_other_convolutions_stay(kind: str, loss: Loss, shape: Any, size: Any) -> None:
    params = Tensors(w=weights(*shape), s=torch.ones(()))
    captured, got, want = both(loss, params, weights(*size, seed=1))
    close(got, want)
    assert called(captured, "_columns") == 0, kind
    assert called(captured, "convolution") >= 1


def test_steps_within_a_step_share_their_patches() -> None:
    def step(state: Record, x: Tensor) -> Record:
        def loss(p: Tensors, x: Tensor) -> Tensor:
            return F.conv2d(last(x), p["w"], p["b"]).relu().square().mean()

        for _ in range(3):
            state = state.replace(params=state.params - grad(loss)(state.params, x) * 0.1)
        return state

    state = Record(params=Tensors(w=weights(4, 2, 3, 3), b=weights(4)))
    x = weights(5, 2, 8, 8, seed=1)
    captured = capture(step, state, x)
    assert called(captured, "_columns") == 1
    assert called(captured, "_convolve") == called(captured, "_of_weights") == 3
    close(captured(captured.own(pytree.tree_leaves(state)), [x]), pytree.tree_leaves(step(state, x)))


def test_two_models_share_the_patches_of_their_images() -> None:
    def loss(p: Tensors, x: Tensor) -> Tensor:
        one, two = F.conv2d(last(x), p["v"]).tanh(), F.conv2d(last(x), p["w"], p["b"]).tanh()
        return (one * two).square().mean()

    params = Tensors(v=weights(4, 1, 3, 3), w=weights(4, 1, 3, 3, seed=1), b=weights(4))
    captured, got, want = both(loss, params, weights(5, 1, 8, 8, seed=2))
    assert called(captured, "_columns") == 1
    assert called(captured, "_convolve") == 2
    close(got, want)


@pytest.mark.parametrize(
    "pool",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 1},
        {"kernel_size": 2, "stride": 3, "ceil_mode": True},
        {"kernel_size": 2, "dilation": 2},
    ],
)
@pytest.mark.parametrize("damaged", [False, True])
def test_pooling_before_relu_keeps_every_bit(
    pool: dict[str, Any], damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randint(
        -3, 3, (4, 3, 9, 9), generator=torch.Generator().manual_seed(0)
    ).float()  # many are equal
    if damaged:
        x[0, 0, 2, 2] = torch.nan

    def loss(p: Tensors, x: Tensor) -> Tensor:
        return (F.max_pool2d((last(x) * p["w"]).relu(), **pool) * p["s"]).sum()

    params = Tensors(w=weights(4, 3, 9, 9).abs(), s=torch.tensor(0.7))
    captured, got, _ = both(loss, params, x)
    monkeypatch.setattr("atoll.engines.capture.quicken", lambda graph: None)
    _, want, _ = both(loss, params, x)
    names = [str(node.target) for node in captured.module.graph.nodes]
    first = next(i for i, name in enumerate(names) if "max_pool2d" in name)
    assert next(i for i, name in enumerate(names) if "relu" in name) > first
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.nan_to_num(9.0), other.nan_to_num(9.0))


def test_relu_that_others_read_stays_before_pooling() -> None:
    def loss(p: Tensors, x: Tensor) -> Tensor:
        y = (last(x) * p["w"]).relu()
        return F.max_pool2d(y, 2).sum() + y.square().sum()

    captured, got, want = both(loss, Tensors(w=weights(3, 8, 8)), weights(4, 3, 8, 8, seed=1))
    names = [str(node.target) for node in captured.module.graph.nodes]
    assert next(i for i, n in enumerate(names) if "relu" in n) < next(
        i for i, n in enumerate(names) if "max_pool2d" in n
    )
    close(got, want)


def test_relu_overwrites_nothing_that_is_read_again() -> None:
    def loss(p: Tensors, x: Tensor) -> Tensor:
        y = x @ p["w"]
        return (y.relu() + y.square() + (x @ p["v"]).relu() + p["v"].relu().sum()).sum()

    params = Tensors(w=weights(5, 4), v=weights(5, 4, seed=1))
    captured, got, want = both(loss, params, weights(6, 5, seed=2))
    assert called(captured, "relu_") == 1
    close(got, want)


@pytest.mark.parametrize(
    ("rows", "inside", "out", "rewritten"),
    [(10, 2048, 300, 1), (64, 2048, 300, 1), (7, 2048, 300, 0), (65, 2048, 300, 0), (10, 784, 200, 0)],
)  # fmt: skip
def test_few_rows_are_read_along_a_wide_matrix(rows: int, inside: int, out: int, rewritten: int) -> None:
    def loss(p: Tensors, x: Tensor) -> Tensor:
        return F.linear(x, p["w"], p["b"]).relu().square().mean()

    params = Tensors(w=weights(out, inside) * 0.1, b=weights(out))
    captured, got, want = both(loss, params, weights(rows, inside, seed=1))
    assert called(captured, "_read_along") == rewritten
    close(got, want)


def simulated(sequential: bool, padded: bool = True) -> atoll.Federation:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 36, 10),
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    clients = {
        f"{k}": (torch.rand(n, 1, 28, 28, generator=g), torch.randint(0, 10, (n,), generator=g))
        for k, n in enumerate((25, 10, 7))
    }
    found = atoll.Federation(
        net, atoll.data.from_clients(clients, test=None, classes=10), atoll.FedAvg(lr=0.1, batch_size=10, epochs=2),
        rounds=2, cohort=3, engine="loop", eval_every=0,
    )  # fmt: skip
    if sequential:
        engine = found.engine
        assert isinstance(engine, Loop)
        engine.client = Sequential(engine.task, engine.data, engine.device)
        engine.client.padded = padded
    return found


@pytest.mark.parametrize("padded", [True, False])
def test_weights_with_channels_last_leave_the_step_as_they_came(padded: bool) -> None:
    captured, plain = simulated(True, padded), simulated(False)
    captured.fit()
    plain.fit()
    steps = captured.engine.client.steps.known.values()  # type: ignore[attr-defined]
    assert all(step.last for step in steps)
    for one, other in zip(captured.state["params"].values(), plain.state["params"].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.is_contiguous()
