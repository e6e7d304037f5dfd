"""What a model makes of each part of a sample by itself: embeddings, as a pure function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atoll.errors import ConfigError
from atoll.modalities import HERE, modalities, present
from atoll.parts import Inputs, Parts, shapes
from atoll.task import Task
from atoll.tensors import Tensors

__all__ = ["embedded", "embeddings", "has", "named"]


def named(inputs: Inputs, method: str) -> tuple[str, ...]:
    """The parts that samples have by name.  Raises ConfigError, naming the method, unless there are several."""
    names = [str(name) for name, _ in inputs.items()] if isinstance(inputs, Parts) and inputs.named else []
    names = [name for name in names if name != HERE]
    if len(names) < 2:
        raise ConfigError(
            f"{method} aligns the parts of samples, and the inputs are {shapes(inputs)}",
            hint='take data with several parts by name: data = "av-mnist", or a mapping in Python'
            " (docs/modalities.md); for one tensor there are moon and fedproto",
        )
    return tuple(names)


def has(inputs: Inputs, like: Tensor) -> Tensor:
    """Which parts each sample has [b, parts], 1 or 0, of embeddings [b, parts, d]; all where nothing is said."""
    return present(inputs).to(like.dtype) if modalities(inputs) else torch.ones_like(like[:, :, 0])


def embeddings(task: Task, params: Tensors, buffers: Tensors, inputs: Inputs, names: Sequence[str]) -> Tensor:
    """What the encoders of the parts with these names give in evaluation mode, flat: [b, parts, d]."""
    with embedded(task, len(inputs), names) as seen:
        task.predict(params, buffers, inputs)
    return seen()


@contextmanager
def embedded(task: Task, rows: int, names: Sequence[str]) -> Iterator[Callable[[], Tensor]]:
    """Inside, encoders are watched; the function tells what they gave latest, for so many rows: [b, parts, d].

    The encoder of a part is the submodule that is called as the part is: `encoders.image` in `Fused`. Rows of samples
    that lack the part are there and mean nothing.

    Raises ConfigError where a part has no such encoder, or several, or they differ in width.
    """
    latest: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, given, outputs: latest.update({name: outputs})

    def seen() -> Tensor:
        for name in names:
            value = latest.get(name)
            if not isinstance(value, Tensor) or value.shape[:1] != (rows,):
                raise ConfigError(
                    f"the submodule {name} of {type(task.module).__name__} gives no tensor with a row a sample",
                    hint=f"let the model call it, as in self.{name}({name}), and let it end in embeddings [batch, d]",
                )
        found = [latest[name].reshape(rows, -1) for name in names]
        if len({each.shape[1] for each in found}) > 1:
            widths = ", ".join(f"{name} {each.shape[1]}" for name, each in zip(names, found, strict=True))
            raise ConfigError(
                f"embeddings of different parts are compared, and they differ in width: {widths}",
                hint="let the submodules of all parts end in as many numbers",
            )
        return torch.stack(found, 1)

    hooks = [_encoder(task.module, name).register_forward_hook(note(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _encoder(module: nn.Module, part: str) -> nn.Module:
    found: dict[str, nn.Module] = {
        path: each for path, each in module.named_modules() if path.rpartition(".")[2] == part
    }
    if len(found) != 1:
        what = f"are called {part}: {', '.join(found)}" if found else f"is called {part}"
        raise ConfigError(
            f"embeddings of {part} are what its submodule gives, and of {type(module).__name__}"
            f" {'several' if found else 'none'} {what}",
            hint=f'call one submodule {part}, as in self.{part} = nn.Sequential(...), or take model = "fused"',
        )
    return next(iter(found.values()))
