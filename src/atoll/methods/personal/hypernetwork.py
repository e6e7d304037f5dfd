"""A network that writes the parameters of another one, as functions of named tensors.

It has a trunk, a perceptron that reads an embedding, and one linear head for every tensor it is to write. The names of
its tensors are "trunk.0.weight", ... and "heads.<name of the target>.weight"; depth and widths are read from them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atoll import seeds
from atoll.rooms import blank
from atoll.tensors import Tensors

__all__ = ["create", "features", "generate", "pull_back"]


def create(
    targets: Tensors,
    clients: int,
    embedding: int,
    hidden: int,
    depth: int,
    start: Literal["scaled", "default"],
    seed: int,
) -> tuple[Tensors, Tensor]:
    """(hypernetwork, embeddings [clients, embedding]) before the first round, for a target that starts as `targets`.

    Both follow from the run's `seed`. "default" leaves every
    layer as `nn.Linear` draws it. "scaled" draws the heads so that every tensor they write has, over its elements, the
    mean and the standard deviation of that tensor in `targets`: constants, such as the ones of a BatchNorm, start as
    constants for every client.
    """
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in targets.values()) else torch.float32
    with seeds.scoped(seed, "hypernetwork"):
        embeddings = torch.randn(clients, embedding, dtype=dtype)
        widths = [embedding] + [hidden] * (depth + 1)
        net = Tensors()
        for at, (width, following) in enumerate(pairwise(widths)):
            _enter(net, f"trunk.{at}", nn.Linear(width, following, dtype=dtype))
        size = float(features(net, embeddings).square().sum(1).mean().sqrt())
        for name, target in targets.items():
            head = nn.Linear(hidden, target.numel(), dtype=dtype)
            if start == "scaled":
                nn.init.normal_(head.weight, std=float(target.double().std(unbiased=False)) / size)
                nn.init.constant_(head.bias, float(target.double().mean()))
            _enter(net, f"heads.{name}", head)
    return net, embeddings


def _enter(net: Tensors, name: str, layer: nn.Linear) -> None:
    net[f"{name}.weight"], net[f"{name}.bias"] = layer.weight.detach(), layer.bias.detach()


def features(net: Tensors, embeddings: Tensor) -> Tensor:
    """What the heads read, [m, hidden], for embeddings [m, embedding]."""
    depth = sum(name.startswith("trunk.") for name in net) // 2
    x = F.linear(embeddings, net["trunk.0.weight"], net["trunk.0.bias"])
    for at in range(1, depth):
        x = F.linear(torch.relu(x), net[f"trunk.{at}.weight"], net[f"trunk.{at}.bias"])
    return x


def generate(net: Tensors, embeddings: Tensor, like: Tensors) -> Tensors:
    """The parameters for embeddings [m, embedding]: tensors of the names and types of `like`, each [m, *shape]."""
    x = features(net, embeddings)
    return Tensors(
        {
            name: F.linear(x, net[f"heads.{name}.weight"], net[f"heads.{name}.bias"])
            .reshape(len(embeddings), *target.shape)
            .to(target.dtype)
            for name, target in like.items()
        }
    )


def pull_back(net: Tensors, embeddings: Tensor, like: Tensors, cotangents: Tensors) -> tuple[Tensors, Tensor]:
    """The exact vector-Jacobian product of `generate`, (d theta/d net)^T c and (d theta/d embeddings)^T c.

    `cotangents` are as `generate` gives parameters, [m, *shape] each; the first product sums over the m of them.
    Written out, since heads are nearly all of a net, and their outputs need not be made once more.
    """
    depth = sum(name.startswith("trunk.") for name in net) // 2
    read = [embeddings]  # what each layer of the trunk reads
    for at in range(1, depth):
        below = net[f"trunk.{at - 1}.weight"], net[f"trunk.{at - 1}.bias"]
        read.append(torch.relu(F.linear(read[-1], *below)))
    x = F.linear(read[-1], net[f"trunk.{depth - 1}.weight"], net[f"trunk.{depth - 1}.bias"])

    found: dict[str, Tensor] = {}

    def layer(name: str, given: Tensor, made: Tensor) -> Tensor:
        """Enter a layer's gradients; what comes back to its inputs."""
        weight = net[f"{name}.weight"]
        found[f"{name}.weight"] = torch.mm(made.T, given, out=blank(weight))
        found[f"{name}.bias"] = made.sum(0)
        return made @ weight

    back = torch.zeros_like(x)
    for name in like:
        back += layer(f"heads.{name}", x, cotangents[name].flatten(1).to(x.dtype))
    for at in reversed(range(depth)):
        back = layer(f"trunk.{at}", read[at], back)
        if at:
            back = back * (read[at] > 0)
    return Tensors({name: found[name] for name in net}), back
