"""The parts of this package's transformers that adapters stand at (`atoll.models.GPT`, `Llama`), and draws for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atoll import seeds
from atoll.adapters.adapter import precise
from atoll.errors import ConfigError

__all__ = ["attentions", "drawn", "embedding", "sublayers"]


def attentions(module: nn.Module, what: str) -> dict[str, nn.Module]:
    """The attention of each block, by its path.  Raises ConfigError where there is none."""
    found = {
        f"{path}.attention" if path else "attention": block.attention
        for path, block in module.named_modules()
        if isinstance(getattr(block, "attention", None), nn.Module)
        and all(hasattr(block.attention, part) for part in ("query", "key", "value", "out"))
    }
    if not found:
        raise ConfigError(
            f"{what}: {type(module).__name__} has no attention as this package's transformers have it",
            hint='choose model="gpt" or "llama", or adapter="lora:8,16", which stands at any linear layer',
        )
    return found


def sublayers(module: nn.Module, what: str) -> dict[str, tuple[nn.Module, str, int]]:
    """What each block adds to what came in: (block, name of the part, width) by the part's path.

    Raises ConfigError where there is none.
    """
    found = {}
    for path, attention in attentions(module, what).items():
        place = path.rpartition("attention")[0]
        block = module.get_submodule(place.rstrip("."))
        width = int(attention.out.out_features)  # type: ignore[union-attr, arg-type]
        wide = next((name for name in ("wide", "gated") if name in block._modules), None)
        for name in ("attention", *([wide] if wide else ())):
            found[f"{place}{name}"] = block, name, width
    return found


def embedding(module: nn.Module, what: str) -> tuple[nn.Module, Tensor]:
    """The first layer of a chain that reads tokens, and its vectors [vocabulary, width].

    Raises ConfigError where the module is no such chain.
    """
    first = module[0] if isinstance(module, nn.Sequential) and len(module) else None
    token = getattr(first, "token", first)
    if first is None or not isinstance(token, nn.Embedding):
        raise ConfigError(
            f"{what}: {type(module).__name__} is no chain that begins with an embedding of tokens",
            hint='choose model="gpt" or "llama", or adapter="lora:8,16", which stands at any linear layer',
        )
    return first, token.weight


def drawn(shape: Sequence[int], deviation: float, seed: int, path: str, like: Tensor) -> nn.Parameter:
    """Normal numbers with this deviation, at an address; on the device of `like`, `precise`."""
    generator = torch.Generator().manual_seed(seeds.address(seed, f"adapter {path}"))
    values = torch.randn(tuple(shape), generator=generator) * deviation
    return nn.Parameter(values.to(like.device, precise(like.dtype)))
