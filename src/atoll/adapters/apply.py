"""Putting an adapter into a module."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from atoll.adapters.adapter import MARK, Adapter, is_adapted, shared
from atoll.adapters.parse import parse
from atoll.errors import ConfigError

__all__ = ["apply", "check"]


def apply(module: nn.Module, adapter: Adapter | str, seed: int = 0) -> nn.Module:
    """A module of which only this adapter is trained. With "lora" and "bottleneck" it computes at first what it did.

    The module given stays as it is. What it has is shared with the new one, not copied: a large base is there once,
    whatever number of adapters is made over it. What the adapter draws follows from `seed`.

    Args:
        module: any module; for "prompt" and "prefix" one of `atoll.models`.
        adapter: how it is written, such as "lora:8,16" (see `atoll.adapters.parse`), or an `Adapter`.
        seed: of what is drawn.

    Raises ConfigError where the adapter does not fit the module, or where there is one in it already.
    """
    found = parse(adapter) if isinstance(adapter, str) else adapter
    if is_adapted(module):
        raise ConfigError(
            f"adapter = {found.text!r}: {type(module).__name__} has an adapter already",
            hint="start from the module without it, or from atoll.adapters.merged(module)",
        )
    made = shared(module)
    for each in made.parameters():
        each.requires_grad_(False)
    found.put(made, seed)
    made.__dict__[MARK] = found.text
    return made


def check(module: nn.Module, used: Collection[str]) -> None:
    """Raises ConfigError where a forward pass, which used tensors of these names, has not used what is trained.

    Layers whose weight others read, without calling them, are such: nothing would ever be learned there.
    """
    idle = [name for name, p in module.named_parameters() if p.requires_grad and name not in used]
    if is_adapted(module) and idle:
        where = idle[0].rpartition(".lora.")[0] or idle[0]
        raise ConfigError(
            f"adapter = {module.__dict__[MARK]!r}: the model does not call its layer {where}, so that nothing is added",
            hint="name other layers: lora:RANK,ALPHA,TARGETS",
        )
