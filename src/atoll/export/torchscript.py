"""TorchScript: a module as C++ and Android run it, without Python.

The trace of a forward pass. PyTorch keeps the format and no longer develops it; a program that is new takes ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from atoll.export.trained import Plain

__all__ = ["FACTS", "runner", "write"]

FACTS = "atoll.json"
"""The further file in which facts about the model are."""


def write(plain: Plain, tensors: tuple[Tensor, ...], names: Sequence[str], facts: str, path: Path) -> None:
    """Trace the module and save it; what it is stands in a further file (`FACTS`)."""
    with torch.no_grad():
        traced = torch.jit.trace(plain, tensors, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.freeze(traced), str(path), _extra_files={FACTS: facts})


def runner(path: Path) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """What computes outputs by the file."""
    loaded = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]

    def run(tensors: tuple[Tensor, ...]) -> Tensor:
        with torch.inference_mode():
            found: Tensor = loaded(*tensors)
        return found

    return run
