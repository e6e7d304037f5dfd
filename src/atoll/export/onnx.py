"""ONNX: a graph of operations that most runtimes and accelerators know.   https://onnx.ai"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from atoll.errors import MissingExtraError
from atoll.export.trained import Plain

__all__ = ["FACTS", "runner", "write"]

FACTS = "atoll"
"""The key among the model's properties under which facts about it are."""


def write(plain: Plain, tensors: tuple[Tensor, ...], names: Sequence[str], facts: str, path: Path) -> None:
    """Export the module through `torch.export`; what it is stands under `FACTS` among the file's properties.

    Above 2 GB weights are in a second file beside it. Raises MissingExtraError.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "onnx", "an export to onnx") from None
    batch = torch.export.Dim("batch")
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells of every package that is not installed
    try:
        program = torch.onnx.export(
            plain, tensors, dynamo=True, verbose=False, input_names=list(names), output_names=["output"],
            dynamic_shapes=(tuple({0: batch} for _ in tensors),),
        )  # fmt: skip
    finally:
        log.setLevel(level)
    assert program is not None
    program.model.metadata_props[FACTS] = facts
    program.save(str(path))


def runner(path: Path) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """What computes outputs by the file, in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(tensors: tuple[Tensor, ...]) -> Tensor:
        given = zip(session.get_inputs(), tensors, strict=True)
        return torch.from_numpy(session.run(None, {each.name: tensor.numpy() for each, tensor in given})[0])

    return run
