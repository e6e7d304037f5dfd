"""Which parts of a sample are there: samples of several modalities of which some may lack one.

A part named `here`, numbers 0 and 1 of the shape [n, parts], says of each sample which of its other parts are there,
in the order in which they stand. What is not there is 0, and models leave it out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from atoll.errors import DataError
from atoll.parts import Inputs, Parts

__all__ = ["HERE", "declared", "kept", "modalities", "owners", "present", "said", "told", "wanting"]

HERE = "here"
"""The part that says which of the others are there."""


def modalities(inputs: Inputs) -> tuple[str, ...]:
    """The parts of which it is said whether they are there, in the order of the columns; () where nothing is said."""
    names = [str(name) for name, _ in inputs.items()] if isinstance(inputs, Parts) and inputs.named else []
    return tuple(name for name in names if name != HERE) if HERE in names else ()


def present(inputs: Inputs) -> Tensor:
    """Which parts are there [n, parts], 1 or 0, of inputs that say it."""
    assert isinstance(inputs, Parts)
    return dict(inputs.items())[HERE]


def told(parts: Mapping[str, Tensor], missing: Mapping[str, Tensor] | None = None) -> Parts:
    """Parts with `here` behind them; a part is not there in the rows of `missing` (bool [n]), and 0 in them."""
    missing = missing or {}
    count = len(next(iter(parts.values())))
    here = torch.ones(count, len(parts))
    for at, name in enumerate(parts):
        if name in missing:
            here[missing[name], at] = 0
    return wanting(Parts({**parts, HERE: here}), here)


def declared(parts: Mapping[str, Tensor], missing: Mapping[str, Tensor], where: str) -> Parts:
    """Parts as a person gives them: with `here` among them, or with samples that lack some (`told`), or neither.

    Raises DataError for a `here` that does not fit.
    """
    if HERE not in parts:
        return told(parts, missing) if missing else Parts(parts)
    rest = {name: part for name, part in parts.items() if name != HERE}
    here = parts[HERE].to(torch.float32)
    count = len(next(iter(rest.values()))) if rest else 0
    if missing or here.shape != (count, len(rest)) or not bool(((here == 0) | (here == 1)).all()):
        raise DataError(
            f"{where}: the part {HERE!r} says of each sample which of {', '.join(rest) or 'no others'} are there,"
            f" in {len(rest)} numbers 0 or 1, and not in one None as well; it has the shape {tuple(here.shape)}",
            hint=f"call the part otherwise, or give it the shape ({count}, {len(rest)})",
        )
    return wanting(Parts({**rest, HERE: torch.ones_like(here)}), here)


def said(inputs: Inputs) -> Inputs:
    """The same samples, of which all parts are there where nothing was said; as they are where parts have no names."""
    if not isinstance(inputs, Parts) or not inputs.named or modalities(inputs):
        return inputs
    return told({str(name): part for name, part in inputs.items()})


def wanting(inputs: Inputs, here: Tensor) -> Parts:
    """The same samples with fewer parts: those that are there, and that `here` [n, parts] lets stay."""
    assert isinstance(inputs, Parts)
    here = here * present(inputs)
    found: dict[str, Tensor] = {}
    for at, name in enumerate(modalities(inputs)):
        part = dict(inputs.items())[name]
        there = here[:, at].reshape(-1, *(1,) * (part.ndim - 1)) > 0
        found[name] = torch.where(there, part, torch.zeros_like(part))
    return Parts({**found, HERE: here})


def kept(inputs: Inputs, names: Collection[str]) -> Parts:
    """The same samples with no other parts than these."""
    known = modalities(inputs)
    return wanting(inputs, present(inputs).new_tensor([float(name in names) for name in known]))


def owners(tensors: Sequence[str], parts: Sequence[str]) -> dict[str, int]:
    """Tensors of a model that are for one part alone, and for which: those with its name in their path.

    >>> owners(["encoders.image.0.weight", "head.bias"], ["image", "audio"])
    {'encoders.image.0.weight': 0}
    """
    found = {}
    for name in tensors:
        path = name.split(".")
        of = [at for at, part in enumerate(parts) if part in path]
        if len(of) == 1:
            found[name] = of[0]
    return found
