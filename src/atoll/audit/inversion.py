"""Gradient inversion: a client's sample out of what the server sees of one step on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from atoll import seeds
from atoll.audit.skipped import Skipped
from atoll.audit.view import Seen, seen
from atoll.federation import Federation
from atoll.task import Batch, Task
from atoll.tensors import Tensors

__all__ = ["MARGIN", "Inversion", "invert", "linear_leak", "matched", "psnr", "reading_layer"]

MARGIN = 3.0
"""Decibels above a blind guess from which samples count as read: half its squared error."""

_MOST = 120.0  # decibels: more is rounding


@dataclass(frozen=True)
class Inversion:
    """How near reconstructed samples came.

    `psnr` is the mean peak signal-to-noise ratio over the attacked samples, in decibels; `chance` that of a guess by
    somebody who has seen no update: the average of other samples, than which no blind guess is better in squared error.
    `attack` is "linear layer" or "gradient matching"; `hidden` tells whether the server saw masks. `originals` and
    `guesses` are the samples [n, ...].
    """

    attack: str
    psnr: float
    chance: float
    hidden: bool
    originals: Tensor = field(repr=False, compare=False)
    guesses: Tensor = field(repr=False, compare=False)

    @property
    def succeeded(self) -> bool:
        """Whether samples were read."""
        return self.psnr > self.chance + MARGIN

    def to_dict(self) -> dict[str, object]:
        """As plain values."""
        return {"psnr": round(self.psnr, 2), "chance": round(self.chance, 2), "attack": self.attack}


def invert(federation: Federation, *, samples: int = 4, steps: int = 300) -> Inversion:
    """Attack one sample each of so many clients, in their first round, where gradients say most.

    Where the first layer is linear, with a bias, and reads the flat input, its update is the sample (`linear_leak`);
    elsewhere a sample is sought whose gradient points as the update does (`matched`).

    Args:
        steps: of the search.

    Raises Skipped where there is nothing to attack.
    """
    data = federation.data
    example = data.example().inputs
    if not isinstance(example, Tensor) or not example.is_floating_point():
        raise Skipped("inputs are tokens or have several parts: these attacks seek one tensor of numbers")
    count = min(samples, len(data))
    clients = [k * len(data) // count for k in range(count)]
    originals, guesses, hidden = [], [], False
    blind, low, high = _known(federation, clients)
    layer, sign = reading_layer(federation.task, example), 0.0
    for client in clients:
        view = seen(federation, client)
        if view.change is None or not view.change.keys() <= view.start[0].keys():
            raise Skipped("clients send no model and no gradient")
        whole = data.samples(client)
        assert whole is not None and isinstance(whole.inputs, Tensor)
        device = next(iter(view.change.values())).device
        inputs, targets = whole.inputs[:1].to(device), whole.targets[:1].to(device)
        hidden = view.hidden
        if layer is not None and {f"{layer}.weight", f"{layer}.bias"} <= view.change.keys():
            guess = linear_leak(view.change[f"{layer}.weight"], view.change[f"{layer}.bias"])
        else:
            layer = None
            sign = sign or _sign(seen(federation, client, protected=False), inputs, targets)
            key = torch.tensor(seeds.address(federation.seed, "audit inversion", 0, client))
            guess = matched(view, sign, targets, inputs.shape, (low, high), steps, key)
        originals.append(inputs[0].cpu())
        guesses.append(guess.reshape(inputs.shape[1:]).clamp(low, high).cpu())
    span = high - low
    found = [psnr(a, b, span) for a, b in zip(originals, guesses, strict=True)]
    chance = [psnr(a, blind, span) for a in originals]
    return Inversion(
        "gradient matching" if layer is None else "linear layer",
        sum(found) / count,
        sum(chance) / count,
        hidden,
        torch.stack(originals),
        torch.stack(guesses),
    )


def psnr(original: Tensor, guess: Tensor, span: float) -> float:
    """Peak signal-to-noise ratio in decibels, of values that lie `span` apart at most; 120 where they agree."""
    error = float((original.double() - guess.double()).square().mean())
    return _MOST if error == 0 else min(_MOST, 10 * math.log10(span**2 / error))


# --- a linear layer ---------------------------------------------------------------------------------------------------


def reading_layer(task: Task, example: Tensor) -> str | None:
    """The name of a linear layer with a bias that reads the input as it is, but for its shape; None: there is none."""
    found: list[str] = []

    def look(name: str) -> object:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            flat = given[0].reshape(-1)
            if flat.shape == example.reshape(-1).shape and torch.equal(flat, example.reshape(-1)):
                found.append(name)

        return hook

    linear = [
        (n, m) for n, m in task.module.named_modules() if isinstance(m, nn.Linear) and m.bias is not None
    ]
    hooks = [module.register_forward_pre_hook(look(name)) for name, module in linear]  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            task.module.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def linear_leak(weight: Tensor, bias: Tensor) -> Tensor:
    """The input [i] of a linear layer, from the changes of its weight [o, i] and bias [o] in one step on one sample.

    Both are sums over the layer's outputs' gradients g: dW = g x^T, db = g, so that x = dW_k / db_k for every k. All k
    together, by least squares: x = (db^T dW) / (db^T db).   Phong et al., IEEE TIFS 2018; Geiping et al., NeurIPS 2020,
    Proposition 3.1
    """
    w, b = weight.double(), bias.double()
    return (b @ w / b.square().sum().clamp(min=1e-300)).float()


# --- gradient matching ------------------------------------------------------------------------------------------------


def matched(
    view: Seen,
    sign: float,
    targets: Tensor,
    shape: Sequence[int],
    box: tuple[float, float],
    steps: int,
    key: Tensor,
    smooth: float = 0.01,
) -> Tensor:
    """The sample [1, ...] whose gradient points as what was sent does.   Geiping et al., NeurIPS 2020, equation 4

    argmin over x in the box of  1 - cos(grad F(w; x, y), sent) + smooth * TV(x),  by Adam on the sign of the slope,
    from random numbers. The label y is taken as known: it can be told from the last layer's bias (Zhao et al. 2020).

    Args:
        sign: 1 where what is sent points as the gradient does, -1 where it points the other way.
    """
    assert view.change is not None
    low, high = box
    wanted = view.change.map(lambda v: (sign * v.double()).float())
    x = (low + (high - low) * seeds.uniform(key, tuple(shape))).to(targets.device).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.1 * (high - low))
    falls = torch.optim.lr_scheduler.MultiStepLR(optimiser, [steps * k // 8 for k in (3, 5, 7)], 0.1)
    for _ in range(steps):
        cosine = _cosine(_gradient(view, x, targets, list(wanted)), wanted)
        loss = 1 - cosine + smooth * _variation(x) / (high - low)
        (slope,) = torch.autograd.grad(loss, [x])
        x.grad = slope.sign()
        optimiser.step()
        falls.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return x.detach()


def _gradient(view: Seen, inputs: Tensor, targets: Tensor, names: Sequence[str]) -> Tensors:
    """The gradient of the first step on these samples, which can be differentiated by them."""
    start, buffers = view.start
    params = start.map(lambda v: v.detach().requires_grad_())
    batch = Batch(inputs, targets, torch.ones(len(targets), device=targets.device), torch.tensor(0))
    loss, _ = view.task.loss(params, buffers, batch)
    found = torch.autograd.grad(loss, [params[name] for name in names], create_graph=True)
    return Tensors(zip(names, found, strict=True))


def _cosine(one: Tensors, other: Tensors) -> Tensor:
    return one.dot(other) / (one.norm() * other.norm()).clamp(min=1e-20)


def _variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbours along the axes behind the channels; of flat inputs 0."""
    axes = range(2, x.ndim)
    return torch.stack([x.diff(dim=axis).abs().mean() for axis in axes]).sum() if axes else x.sum() * 0


def _sign(bare: Seen, inputs: Tensor, targets: Tensor) -> float:
    """Whether the method sends what points as the gradient does, or the other way: no secret of any client."""
    assert bare.change is not None
    with torch.enable_grad():
        gradient = _gradient(bare, inputs, targets, list(bare.change))
    return 1.0 if float(gradient.map(torch.detach).dot(bare.change)) > 0 else -1.0


def _known(federation: Federation, attacked: Sequence[int]) -> tuple[Tensor, float, float]:
    """The average of samples of others than these clients, their least and their largest value: anybody may know."""
    data = federation.data
    test = data.test_set
    if test is None:
        others = [k for k in range(min(len(data), 100)) if k not in attacked] or list(attacked)
        found = [samples.inputs for k in others if (samples := data.samples(k)) is not None]
        inputs = torch.cat([each for each in found if isinstance(each, Tensor)])
    else:
        assert isinstance(test.inputs, Tensor)
        inputs = test.inputs[:2000]
    inputs = inputs.cpu()
    return inputs.mean(0), float(inputs.min()), float(inputs.max())
