"""LoRA: what a weight changes by is a product of two thin matrices."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atoll import seeds
from atoll.adapters import targets
from atoll.adapters.adapter import MARK, Adapter, is_adapted, precise
from atoll.errors import ConfigError
from atoll.tensors import Tensors

__all__ = ["LoRA", "LowRank", "Pair", "initial", "merged", "pairs", "product"]

_NAME = "lora"


@dataclass(frozen=True)
class LoRA(Adapter):
    """W + (alpha / rank) B A at linear layers, A [rank, in] and B [out, rank].   Hu et al., ICLR 2022

    W stays; only A and B are trained. A starts at random, B at zero, so that at first nothing is added.

    Args:
        rank: of the change.
        alpha: what it is scaled by, over the rank; twice the rank by default.
        targets: patterns of layers (see `layers`); by default all linear layers but the last.
    """

    rank: int
    alpha: float | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or int(self.rank) != self.rank:
            raise ConfigError(
                f"adapter: rank = {self.rank} is not a whole number at least 1", hint="write lora:8"
            )
        if self.alpha is not None and not self.alpha > 0:
            raise ConfigError(f"adapter: alpha = {self.alpha} is not above 0", hint="write lora:8,16")

    @property
    def text(self) -> str:
        return f"lora:{','.join([str(self.rank), f'{self.scale * self.rank:g}', *self.targets])}"

    @property
    def scale(self) -> float:
        """What the product is multiplied by: alpha / rank."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank

    def put(self, module: nn.Module, seed: int) -> None:
        for path, layer in targets.layers(module, self.targets, f"adapter = {self.text!r}").items():
            sizes = targets.shape(layer)
            if self.rank > min(sizes):
                raise ConfigError(
                    f"adapter = {self.text!r}: rank {self.rank} is above what {path} has, a weight of "
                    f"{sizes[0]} inputs and {sizes[1]} outputs",
                    hint=f"take a rank of at most {min(sizes)}, or name larger layers: lora:RANK,ALPHA,TARGETS",
                )
            setattr(layer, _NAME, LowRank(layer, path, self.rank, self.scale, seed))
            layer.register_forward_hook(_added, with_kwargs=True)


class LowRank(nn.Module):
    """The factors at one layer, and what they add to its outputs: scale B (A x)."""

    def __init__(self, layer: nn.Module, path: str, rank: int, scale: float, seed: int) -> None:
        super().__init__()
        kind = targets.kind(layer)
        assert kind is not None
        self.kind, self.scale, self.rank = kind, scale, rank
        inputs, outputs = targets.shape(layer)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        place, dtype = weight.device, precise(weight.dtype)
        self.A = nn.Parameter(initial(kind, inputs, rank, seed, path).to(place, dtype))
        self.B = nn.Parameter(torch.zeros(outputs, rank, device=place, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """What is added for these inputs: [..., in], or tokens [...] of an embedding, to [..., out]."""
        if self.kind == "embedding":
            inner = F.embedding(x, self.A.t())
        else:
            inner = F.linear(x.to(self.A.dtype), self.A)
        return F.linear(inner, self.B) * self.scale

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}"


def _added(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    x = args[0] if args else next(iter(kwargs.values()))
    more: Tensor = layer.lora(x)  # type: ignore[operator]
    return output + more.to(output.dtype)


def initial(kind: str, inputs: int, rank: int, seed: int, path: str) -> Tensor:
    """A [rank, inputs] as it starts: uniform in +-1/sqrt(inputs), as torch draws the weight of a linear layer.

    An embedding reads one number of a row of A, and not a sum of all: there they are standard normal. Rows have
    addresses, so that a smaller rank has the first rows of a larger one.
    """
    rows = []
    for row in range(rank):
        generator = torch.Generator().manual_seed(seeds.address(seed, f"adapter {path}", 0, row))
        if kind == "embedding":
            rows.append(torch.randn(inputs, generator=generator))
        else:
            rows.append((torch.rand(inputs, generator=generator) * 2 - 1) / math.sqrt(inputs))
    return torch.stack(rows)


# --- which tensors are factors of which weight ----------------------------------------------------------------------


class Pair(NamedTuple):
    """The factors of a weight: its name, theirs, what their product is scaled by, and how the weight lies.

    W + scale B A, or its transpose where `transposed` (weights [in, out] of embeddings and of GPT-2's Conv1D).
    """

    weight: str
    A: str
    B: str
    rank: int
    scale: float
    transposed: bool
    kind: str

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        """What these factors add to the weight, in its shape."""
        found = b @ a * self.scale
        return found.t() if self.transposed else found


def pairs(module: nn.Module) -> list[Pair]:
    """The factors that a module has, in the order in which its layers are defined; [] where it has none."""
    return [
        Pair(
            f"{path}.weight",
            f"{path}.{_NAME}.A",
            f"{path}.{_NAME}.B",
            each.rank,
            each.scale,
            each.kind != "linear",
            each.kind,
        )
        for path, _, each in _layers(module)
    ]


def product(module: nn.Module, params: Tensors) -> Tensors:
    """What factors with these values add to the base: weight -> scale B A in its shape."""
    return Tensors({each.weight: each.delta(params[each.A], params[each.B]) for each in pairs(module)})


def merged(module: nn.Module) -> nn.Module:
    """A plain module, without factors, that computes the same: W + scale B A in the place of W.

    Raises ConfigError for an adapter of another kind.
    """
    if is_adapted(module) and not pairs(module):
        raise ConfigError(
            f"adapter {module.__dict__[MARK]!r} cannot be merged into the model's own weights",
            hint="keep the module as it is; factors of low rank (lora) can be",
        )
    module = copy.deepcopy(module)
    with torch.no_grad():
        for path, layer, each in list(_layers(module)):
            pair = Pair(path, "", "", each.rank, each.scale, each.kind != "linear", each.kind)
            weight = layer.weight
            assert isinstance(weight, Tensor)
            weight.add_(pair.delta(each.A, each.B).to(weight.dtype))
            delattr(layer, _NAME)
            for key, hook in list(layer._forward_hooks.items()):
                if hook is _added:
                    del layer._forward_hooks[key]
                    layer._forward_hooks_with_kwargs.pop(key, None)
    module.__dict__.pop(MARK, None)
    for own in module.parameters():
        own.requires_grad_(True)
    return module


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module, LowRank]]:
    for path, layer in module.named_modules():
        found = layer._modules.get(_NAME)
        if isinstance(found, LowRank):
            yield path, layer, found
