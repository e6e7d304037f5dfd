"""A model that is over with training, and what has to be known to run it without Atoll."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atoll.adapters import merged, pairs
from atoll.calling import arguments, main
from atoll.parts import Inputs, Parts

__all__ = ["Plain", "Trained"]


class Plain(nn.Module):
    """A module as runtimes call one: tensors in by position, each [b, ...], and the one that predicts out.

    Inputs of several parts come in the order of their names, which are `names`. Factors of adapters are merged into the
    weights that they stand beside.
    """

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.module = merged(module) if pairs(module) else module
        self.parts = list(dict(inputs.items())) if isinstance(inputs, Parts) else None
        self.named = isinstance(inputs, Parts) and inputs.named
        self.eval()

    @property
    def names(self) -> list[str]:
        """What inputs are called."""
        if self.parts is None:
            return ["input"]
        return [str(each) if self.named else f"input_{each}" for each in self.parts]

    def forward(self, *tensors: Tensor) -> Tensor:
        inputs: Inputs = tensors[0]
        if self.parts is not None:
            inputs = Parts(dict(zip(map(str, self.parts), tensors, strict=True)) if self.named else tensors)
        places, named = arguments(self.module, inputs)
        return main(self.module(*places, **named))


@dataclass(frozen=True)
class Trained:
    """A model, samples to try it on, and facts about it.

    Args:
        module: on the CPU; it stays as it is.
        inputs: a few samples [n, ...], in the form in which the model was trained.
        about: what a file says of where its model comes from, as values that JSON has.
    """

    module: nn.Module
    inputs: Inputs
    about: Mapping[str, Any]

    def plain(self) -> Plain:
        """The module as it is exported."""
        return Plain(self.module, self.inputs)

    def tensors(self, rows: int | None = None) -> tuple[Tensor, ...]:
        """The first samples, or all of them, as the arguments of `plain`."""
        chosen = self.inputs if rows is None else self.inputs[:rows]
        return chosen.values() if isinstance(chosen, Parts) else (chosen,)

    def facts(self, outputs: Tensor) -> str:
        """What stands in the file: `about`, and what goes in and comes out, as JSON.  None in a shape is the batch."""
        names = self.plain().names
        forms = {name: _form(each) for name, each in zip(names, self.tensors(), strict=True)}
        return json.dumps({**self.about, "inputs": forms, "output": _form(outputs)}, ensure_ascii=False)


def _form(tensor: Tensor) -> dict[str, Any]:
    return {"shape": [None, *tensor.shape[1:]], "dtype": str(tensor.dtype).removeprefix("torch.")}


def outputs(plain: Plain, tensors: tuple[Tensor, ...]) -> Tensor:
    """What the model gives."""
    with torch.inference_mode():
        found: Tensor = plain(*tensors)
    return found
