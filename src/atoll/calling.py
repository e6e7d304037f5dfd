"""How modules are called: with inputs of several parts, and by those that give more than a tensor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from atoll.errors import ConfigError
from atoll.parts import Inputs, Parts

__all__ = ["alike", "arguments", "main"]


def arguments(module: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a module's forward for inputs: (by position, by name).

    Parts that have names are arguments by name where the forward has them all, as Hugging Face's models do; else it
    gets one mapping. Parts by position are as many arguments where the forward takes so many; else it gets one tuple.
    """
    if not isinstance(inputs, Parts):
        return (inputs,), {}
    takes = inspect.signature(module.forward).parameters.values()
    if inputs.named:
        parts = {str(name): part for name, part in inputs.items()}
        known = {each.name for each in takes if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
        by_name = any(each.kind is each.VAR_KEYWORD for each in takes) or known >= parts.keys()
        return ((), parts) if by_name else ((parts,), {})
    some = inputs.values()
    places = sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in takes)
    spread = any(each.kind is each.VAR_POSITIONAL for each in takes) or places >= len(some)
    return (some if spread else (some,)), {}


def main(outputs: Any) -> Tensor:
    """Of what a model gives, the outputs that predict: a tensor, the `logits` of an object or mapping, or what comes
    first in a tuple.  Raises ConfigError where there is none."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif isinstance(outputs, (tuple, list)) and not hasattr(outputs, "logits"):
        found = outputs[0] if outputs else None
    else:
        found = getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"the model gives a {type(outputs).__name__}, in which nothing is called logits",
            hint="return a tensor, something with a field logits, or a tuple that begins with the outputs",
        )
    return found


def alike(outputs: Any) -> Callable[[Tensor], Any]:
    """What puts a tensor where `main` finds it, in something of the kind of these outputs."""
    if isinstance(outputs, Tensor):
        return lambda tensor: tensor
    if isinstance(outputs, (tuple, list)) and not hasattr(outputs, "logits"):
        return lambda tensor: (tensor,)
    return lambda tensor: _Outputs(logits=tensor)


class _Outputs(dict[str, Tensor]):
    """Outputs that are read as a mapping or as an object."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]
