"""Trained models in the forms in which others run them: ONNX, TorchScript, ExecuTorch.

`write` makes a file of a `Trained` and runs it before it is in place. A format is a short file with two functions.
"""

from __future__ import annotations

from atoll.export.trained import Trained
from atoll.export.written import FORMATS, check, write

__all__ = ["FORMATS", "Trained", "check", "write"]
