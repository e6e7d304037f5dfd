"""What an adapter is."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import nn

__all__ = ["MARK", "Adapter", "is_adapted", "precise", "shared"]

MARK = "atoll_adapter"
"""Where a module says which adapter is in it."""


class Adapter(ABC):
    """What is trained in the place of a model's own parameters. Concrete adapters are frozen dataclasses."""

    @property
    @abstractmethod
    def text(self) -> str:
        """How it is written."""

    @abstractmethod
    def put(self, module: nn.Module, seed: int) -> None:
        """Put its parameters into a module of which nothing is trained.  Raises ConfigError where it does not fit."""


def is_adapted(module: nn.Module) -> bool:
    """Whether there is an adapter in this module (see `apply`)."""
    return MARK in module.__dict__


def precise(kind: torch.dtype) -> torch.dtype:
    """Of what is trained over halves and quantised weights: float32, in less small steps would vanish."""
    return kind if kind in (torch.float32, torch.float64) else torch.float32


def shared(module: nn.Module) -> nn.Module:
    """A module like this one whose parameters are others, over the same memory; buffers are copied."""
    own = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, own)
