"""Models that start from numbers in a file: what a run has saved, or weights from elsewhere, as safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from atoll.errors import ConfigError

__all__ = ["begin_from"]

_MANY = 4


def begin_from(module: nn.Module, path: Path) -> None:
    """Give a module the parameters and buffers that a file has, by name.

    The file is mapped: what is only read is never copied, and is in memory once for all who map it. Numbers of another
    floating-point type are converted.

    Args:
        module: its tensors are replaced.
        path: a safetensors file with each of them, and no others, in their shapes; of a folder its
            model.safetensors, as a run leaves it.

    Raises ConfigError where the file cannot be read, or is of another model.
    """
    path = path / "model.safetensors" if path.is_dir() else path
    own = dict([*module.named_parameters(), *module.named_buffers()])
    try:
        with safe_open(path, "pt") as file:
            _fits(own, {name: file.get_slice(name).get_shape() for name in file.keys()}, path)  # noqa: SIM118
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.data = _alike(file.get_tensor(name), tensor, name, path)
    except FileNotFoundError:
        raise ConfigError(
            f"base = {path}: there is no such file",
            hint="name a .safetensors file, or the folder of a run that has ended",
        ) from None
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"base = {path} cannot be read: {error}",
            hint="it must be a safetensors file, as atoll run --save and safetensors.torch.save_file write it",
        ) from None


def _alike(found: Tensor, tensor: Tensor, name: str, path: Path) -> Tensor:
    if found.dtype.is_floating_point != tensor.dtype.is_floating_point:
        raise ConfigError(
            f"base = {path}: {name} is {found.dtype} there and {tensor.dtype} in the model",
            hint="the file is of another model",
        )
    return found.to(tensor.dtype)


def _fits(own: dict[str, Tensor], there: dict[str, list[int]], path: Path) -> None:
    lacking, more = [name for name in own if name not in there], [name for name in there if name not in own]
    if lacking or more:
        said = [f"{what} {_some(names)}" for what, names in (("lacks", lacking), ("has also", more)) if names]
        raise ConfigError(
            f"base = {path} is not of this model: it {' and '.join(said)}",
            hint="set model to the one that was saved, with its sizes",
        )
    for name, tensor in own.items():
        if list(tensor.shape) != there[name]:
            raise ConfigError(
                f"base = {path}: {name} is {there[name]} there and {list(tensor.shape)} in the model",
                hint="set model to the one that was saved, with its sizes",
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MANY]) + (f" and {len(names) - _MANY} more" if len(names) > _MANY else "")
