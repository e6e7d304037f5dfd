"""What is done to an `nn.Module` before anything is learned: lazy layers get their shapes, shared tensors are found."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from atoll.calling import arguments
from atoll.errors import ConfigError
from atoll.parts import Inputs, shapes

__all__ = ["ready", "tied", "unreadable"]


def ready(module: nn.Module, inputs: Inputs) -> nn.Module:
    """The module; where layers are lazy, a copy whose parameters have the shapes that these inputs give them.

    Raises ConfigError where the module cannot read them.
    """
    if not any(is_lazy(part) for part in [*module.parameters(), *module.buffers()]):
        return module
    blank = {  # buffers without a shape cannot be copied
        id(part): UninitializedBuffer(device=part.device, dtype=part.dtype)  # type: ignore[call-arg]
        for part in module.buffers()
        if is_lazy(part)
    }
    training = module.training
    module = copy.deepcopy(module, blank).eval()
    try:
        places, names = arguments(module, inputs)
        with torch.no_grad():
            module(*places, **names)
    except Exception as error:
        raise unreadable(inputs, error) from error
    return module.train(training)


def tied(module: nn.Module) -> list[tuple[str, str]]:
    """The further names of tensors that several layers share, each with the first; a layer's own further names not."""
    firsts: dict[int, str] = {}
    places: set[tuple[int, str]] = set()
    found = []
    for path, layer in module.named_modules(remove_duplicate=False):
        for own, value in [*layer._parameters.items(), *layer._buffers.items()]:
            if value is None or (id(layer), own) in places:
                continue
            places.add((id(layer), own))
            name = f"{path}.{own}" if path else own
            first = firsts.setdefault(id(value), name)
            if first != name:
                found.append((name, first))
    return found


def unreadable(inputs: Inputs, error: Exception) -> ConfigError:
    if isinstance(inputs, Tensor):
        what = f"inputs of shape {tuple(inputs.shape[1:])} a sample"
        hint = "choose a model for this shape (for example mlp flattens, cnn wants [channels, height, width])"
    else:
        what = f"inputs of the parts {shapes(inputs)}"
        hint = "let its forward take these parts by name or in this order, or all of them as one mapping or tuple"
    return ConfigError(
        f"the model cannot read the data: {what} gave {type(error).__name__}: {error}", hint=hint
    )
