"""Split fine-tuning of language models: first blocks where the text is, the rest at a server (`docs/vertical.md`)."""

from __future__ import annotations

from atoll.vertical.splitlora.protocol import SplitLoRA
from atoll.vertical.splitlora.texts import Text

__all__ = ["SplitLoRA", "Text"]
