"""The parts of a model: what a client has of it, and what the server has; the base of a part, and its adapters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from atoll import adapters, models, seeds
from atoll.errors import CodecError, ConfigError
from atoll.tensors import Record, Tensors
from atoll.vertical.splitlora.texts import VOCABULARY
from atoll.vertical.splitnn.nets import Net

__all__ = ["Cut", "Part", "base_of", "cut", "joined", "layers", "whole"]


def whole(model: str, window: int, seed: int, device: str = "cpu") -> nn.Sequential:
    """The model that a text names, for windows of bytes, with weights that are drawn from the seed.

    Args:
        device: "meta" for one without any memory.

    Raises ConfigError where it is no chain of an embedding, blocks and two layers more.
    """
    with seeds.scoped(seed, "splitlora.base"), torch.device(device):
        module = models.build(model, (window,), VOCABULARY)
    chain = module if isinstance(module, nn.Sequential) and len(module) > 3 else None
    if (
        chain is None
        or not isinstance(chain[-1], nn.Linear)
        or not any(isinstance(each, nn.Embedding) for each in chain[0].modules())
    ):
        raise ConfigError(
            f"model = {model!r} cannot be cut: it is no chain of an embedding, blocks and an output layer",
            hint="gpt:4,128 is one",
        )
    return chain


def layers(module: nn.Sequential) -> int:
    """How many blocks a chain has."""
    return len(module) - 3


def base_of(base: str | None, seed: int) -> str:
    """What tells one base from another: a hash of its file, or the seed that it is drawn from.  Raises ConfigError."""
    if base is None:
        return f"seed {seed}"
    digest = sha256()
    with _file(base).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class Cut(NamedTuple):
    """A part of a model: the `module`; the `width` of what crosses the cut; how many numbers are trained `below` it."""

    module: nn.Sequential
    width: int
    below: int


def _file(base: str) -> Path:
    path = Path(base)
    if not path.is_file():
        raise ConfigError(
            f"base = {base!r}: there is no such file",
            hint="atoll run --save FILE.safetensors writes a model that can be one",
        )
    return path


def cut(model: str, window: int, adapter: str, base: str | None, seed: int, below: int, client: bool) -> Cut:
    """A client's part of the adapted model, or the server's; layers keep the names that they have in the whole.

    Of a base in a file only the own part is read, and the other takes no memory.

    Args:
        base: a .safetensors file; None draws from the seed.
        below: blocks that clients have, after the embedding.
        client: whose part.

    Raises ConfigError for a model that cannot be cut there, an adapter or a file that does not fit it.
    """
    module = whole(model, window, seed, "cpu" if base is None else "meta")
    if not 0 < below <= layers(module):
        raise ConfigError(
            f"cut = {below}, and {model} has {layers(module)} blocks",
            hint="clients have the embedding and at least one block, and at most all of them",
        )
    at = 1 + below
    if base is not None:
        _read(module, _file(base), range(at) if client else range(at, len(module)))
    adapted = adapters.apply(module, adapter, seed)
    named = list(adapted.named_children())
    lower, upper = (nn.Sequential(OrderedDict(each)) for each in (named[:at], named[at:]))
    trained = sum(p.numel() for p in lower.parameters() if p.requires_grad)
    return Cut(lower if client else upper, int(upper[-1].in_features), trained)  # type: ignore[arg-type]


def joined(
    model: str, window: int, adapter: str, base: str | None, seed: int, parts: Sequence[Tensors]
) -> nn.Module:
    """The whole adapted model again, with the adapters of a client's part and of the server's."""
    module = whole(model, window, seed, "cpu" if base is None else "meta")
    if base is not None:
        _read(module, _file(base), range(len(module)))
    adapted = adapters.apply(module, adapter, seed)
    with torch.no_grad():
        for part in parts:
            for name, value in part.items():
                adapted.get_parameter(name).copy_(value)
    return adapted


def _read(module: nn.Sequential, path: Path, own: range) -> None:
    """The weights of these layers from a file."""
    due = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            odd = sorted(name for name in due.keys() | there.keys() if due.get(name) != there.get(name))
            if odd:
                raise ConfigError(
                    f"base = {str(path)!r} is not of this model: {odd[0]} is {there.get(odd[0], 'missing')}"
                    f" there, {due.get(odd[0], 'missing')} here",
                    hint="model and window must be those that it was trained with, on bytes",
                )
            for at in own:
                module[at].to_empty(device="cpu")
                for name, value in module[at].state_dict(prefix=f"{at}.").items():
                    value.copy_(file.get_tensor(name))
    except SafetensorError as error:
        raise ConfigError(f"base = {str(path)!r} is no .safetensors file: {error}") from None


class Part(Net):
    """A part with the optimiser of its adapters. What is kept of it are these: the base is where it was."""

    def record(self) -> Record:
        state = {
            name: value.map(torch.clone) if isinstance(value, Tensors) else value.clone()
            for name, value in self.state.items()
        }
        return Record(params=self.params.map(torch.clone), optimizer=Record(state))

    def load(self, held: Record) -> None:
        """Go on from a record.  Raises CodecError where it is of other adapters, or of another optimiser."""
        forms = [{name: v.shape for name, v in each.items()} for each in (held.params, self.params)]
        if forms[0] != forms[1] or held.optimizer.keys() != self.state.keys():
            raise CodecError("the half has other adapters", hint="keep model, cut, adapter and optimizer")
        self.place(held.params.flat())
        self.state = Record(
            {
                name: value.map(torch.clone) if isinstance(value, Tensors) else value.clone()
                for name, value in held.optimizer.items()
            }
        )

    def place(self, flat: torch.Tensor) -> None:
        """Take over adapters, all numbers in one vector."""
        with torch.no_grad():
            for name, value in self.params.unflat(flat).items():
                self.params[name].copy_(value)
