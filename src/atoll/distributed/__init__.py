"""One model, many workers: distributed training (`docs/distributed.md`)."""

from __future__ import annotations

from atoll.distributed.settings import Training
from atoll.distributed.strategies import STRATEGIES, parse
from atoll.distributed.strategy import Strategy
from atoll.distributed.training import Trained, train

__all__ = ["STRATEGIES", "Strategy", "Trained", "Training", "parse", "train"]
