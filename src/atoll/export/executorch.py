"""ExecuTorch: a program for phones and boards, run by a small interpreter in C++.   https://executorch.ai

Of the portable kernels alone, which every build of the runtime has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from atoll.errors import MissingExtraError
from atoll.export.trained import Plain

__all__ = ["BATCH", "FACTS", "runner", "write"]

BATCH = 256
"""Samples at most that the file can be run on at once: the runtime plans its memory ahead."""
FACTS = "atoll"
"""The constant method that returns facts about the model."""


def write(plain: Plain, tensors: tuple[Tensor, ...], names: Sequence[str], facts: str, path: Path) -> None:
    """Export the module through `torch.export`, for up to `BATCH` samples.  Raises MissingExtraError."""
    try:
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise MissingExtraError(error.name or "executorch", "executorch", "an export to executorch") from None
    batch = torch.export.Dim("batch", min=1, max=BATCH)
    program = torch.export.export(plain, tensors, dynamic_shapes=(tuple({0: batch} for _ in tensors),))
    lowered = to_edge_transform_and_lower(program, constant_methods={FACTS: facts})
    path.write_bytes(lowered.to_executorch().buffer)


def runner(path: Path) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """What computes outputs by the file, in ExecuTorch's own runtime."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")

    def run(tensors: tuple[Tensor, ...]) -> Tensor:
        found: Tensor = method.execute(list(tensors))[
            0
        ].clone()  # it is in memory that the runtime uses again
        return found

    return run
