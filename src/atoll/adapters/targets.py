"""Which layers of a module an adapter stands at."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from atoll.errors import ConfigError, suggest

__all__ = ["Kind", "kind", "layers", "shape"]

Kind = Literal["linear", "conv1d", "embedding"]


def kind(layer: nn.Module) -> Kind | None:
    """What a layer is to an adapter: "linear" (weight [out, in]), "conv1d" (GPT-2's, weight [in, out]), "embedding"."""
    if isinstance(layer, nn.Linear):
        return "linear"
    if isinstance(layer, nn.Embedding):
        return "embedding"
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2:
        return "conv1d"
    return None


def shape(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a layer's weight."""
    rows, columns = (int(size) for size in layer.weight.shape)  # type: ignore[union-attr]
    return (columns, rows) if kind(layer) == "linear" else (rows, columns)


def layers(module: nn.Module, targets: Sequence[str] = (), what: str = "targets") -> dict[str, nn.Module]:
    """The layers that these patterns name, by their path, in the order in which they are defined.

    A pattern is a path, or the end of one ("query", "attention.query"), with * and ? as in names of files. Without any
    these are all linear layers inside a model: not its last one, which makes the outputs, nor embeddings.

    Raises ConfigError for a pattern that no layer has.
    """
    fit = {path: layer for path, layer in _places(module).items() if kind(layer) is not None}
    if not targets:
        linear = {path: layer for path, layer in fit.items() if kind(layer) != "embedding"}
        inside = dict(list(linear.items())[:-1]) or linear
        if inside:
            return inside
        raise ConfigError(
            f"{what}: {type(module).__name__} has no linear layer that an adapter could stand at",
            hint="choose a model with linear layers, such as gpt, lstm or mlp",
        )
    found = {path for pattern in targets for path in _named(module, fit, pattern, what)}
    return {path: layer for path, layer in fit.items() if path in found}


def _named(module: nn.Module, fit: dict[str, nn.Module], pattern: str, what: str) -> list[str]:
    found = [path for path in fit if _has(path, pattern)]
    if found:
        return found
    ends = sorted({path.rpartition(".")[2] for path in fit})
    other = [path for path, _ in module.named_modules() if _has(path, pattern)]
    if other:
        layer = type(module.get_submodule(other[0])).__name__
        raise ConfigError(
            f"{what}: {pattern!r} names {other[0]}, a {layer}, and LoRA stands at linear layers and embeddings",
            hint=f"there are: {', '.join(ends[:12])}",
        )
    named = [end for end in ends if not end.isdigit()] or list(fit)
    raise ConfigError(
        f"{what}: no layer of {type(module).__name__} is called {pattern!r}",
        hint=suggest(pattern, named) if named else "the model has no linear layer",
    )


def _has(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def _places(module: nn.Module) -> dict[str, nn.Module]:
    """Layers whose own forward is called. Attention of torch reads the weight of its output layer itself."""
    skipped = {id(each.out_proj) for each in module.modules() if isinstance(each, nn.MultiheadAttention)}
    return {path: layer for path, layer in module.named_modules() if path and id(layer) not in skipped}
