"""Models of `peft` as Atoll's, and back: the same base over the same memory, the same factors, under other names."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from atoll.adapters.adapter import shared
from atoll.adapters.apply import apply
from atoll.adapters.lora import LoRA, pairs
from atoll.errors import ConfigError

__all__ = ["from_peft", "to_peft"]


def from_peft(model: nn.Module) -> nn.Module:
    """A model with LoRA of `peft` as `apply` makes one, so that every method of adapters knows its factors.

    What is wrapped stays as it is and is shared, not copied; the factors are copied. `peft` itself is not needed.

    Raises ConfigError for what is no such model, and for what Atoll's LoRA does not do: several adapters, ranks that
    differ between layers, dropout, DoRA, biases, factors that are merged, further layers that are trained.
    """
    base = _base(model)
    found = _factors(base)
    _alike(base, found)
    (rank, scale), *_ = {(int(a.shape[0]), scale) for a, _, scale in found.values()}
    plain = shared(base)
    for path in found:
        parent, _, name = path.rpartition(".")
        setattr(plain.get_submodule(parent), name, plain.get_submodule(path).base_layer)
    made = apply(plain, LoRA(rank, scale * rank, tuple(found)))
    with torch.no_grad():
        for path, (a, b, _) in found.items():
            own: Any = made.get_submodule(f"{path}.lora")
            own.A.copy_(a)
            own.B.copy_(b)
    return made


def to_peft(module: nn.Module, model: nn.Module) -> None:
    """Write the factors of a module that came from this model of `peft` back into it, which can then be saved there.

    Raises ConfigError where the two do not have factors at the same layers, of the same ranks and scales.
    """
    found = _factors(_base(model))
    ours = {each.weight.removesuffix(".weight"): each for each in pairs(module)}
    if ours.keys() != found.keys():
        raise ConfigError(
            f"the module has factors at {len(ours)} layers and the model of peft at {len(found)}, and not the same",
            hint="take the module that from_peft(model) gave",
        )
    for path, (a, _, scale) in found.items():
        own = ours[path]
        if own.rank != len(a) or not math.isclose(own.scale, scale):
            raise ConfigError(
                f"{path} has factors of rank {own.rank} and scale {own.scale:g}, and in the model of peft "
                f"{len(a)} and {scale:g}",
                hint="take the module that from_peft(model) gave",
            )
    with torch.no_grad():
        for path, (a, b, _) in found.items():
            a.copy_(module.get_parameter(ours[path].A))
            b.copy_(module.get_parameter(ours[path].B))


def _base(model: nn.Module) -> nn.Module:
    given = getattr(model, "get_base_model", None)
    found: nn.Module = given() if callable(given) else model
    return found


def _factors(base: nn.Module) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A [rank, in], B [out, rank] and what their product is scaled by, of each layer that has them."""
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    for path, layer in base.named_modules():
        each: Any = layer
        if not (hasattr(each, "base_layer") and hasattr(each, "lora_A") and hasattr(each, "scaling")):
            continue
        names = list(each.scaling)
        if len(names) != 1:
            raise _cannot(f"{path} has {len(names)} adapters ({', '.join(names)})")
        (name,) = names
        a, b = (
            (each.lora_A[name].weight, each.lora_B[name].weight)
            if name in each.lora_A
            else (each.lora_embedding_A[name], each.lora_embedding_B[name])
        )
        if getattr(each, "merged", False):
            raise _cannot(f"{path} has its factors in its weight already (unmerge_adapter takes them out)")
        if name in each.lora_dropout and float(getattr(each.lora_dropout[name], "p", 0)):
            raise _cannot(f"{path} has dropout before its factors")
        if each.use_dora.get(name) or getattr(each, "lora_bias", {}).get(name):
            raise _cannot(f"{path} has more than two factors (DoRA, or a bias)")
        found[path] = a, b, float(each.scaling[name])
    if not found:
        raise ConfigError(
            f"{type(base).__name__} has no LoRA of peft in it",
            hint='peft.get_peft_model(model, LoraConfig(...)) puts it there; adapter = "lora:8,16" is Atoll\'s own',
        )
    return found


def _alike(base: nn.Module, found: dict[str, tuple[Tensor, Tensor, float]]) -> None:
    """Raise ConfigError where factors differ in more than their numbers, or something else is trained."""
    kinds = {(int(a.shape[0]), scale) for a, _, scale in found.values()}
    if len(kinds) > 1:
        raise _cannot(
            f"layers have different ranks or scales: {', '.join(f'{r} and {s:g}' for r, s in sorted(kinds))}"
        )
    known = {id(each) for a, b, _ in found.values() for each in (a, b)}
    other = [name for name, each in base.named_parameters() if each.requires_grad and id(each) not in known]
    if other:
        raise _cannot(f"{other[0]} is trained, too")


def _cannot(what: str) -> ConfigError:
    return ConfigError(
        f"this model of peft cannot be Atoll's LoRA: {what}",
        hint="give it to Federation as it is: its trained parameters are then averaged as any others, name by name",
    )
