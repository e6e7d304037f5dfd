"""Where random numbers come from: the addresses that are drawn from, and the global states that must not be touched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from atoll import seeds
from atoll.draws import states, touched

__all__ = ["Draw", "recorded", "states", "touched"]

Draw = tuple[Any, ...]
"""Where a number came from: which stream, and its address."""


@contextmanager
def recorded() -> Iterator[set[Draw]]:
    """Inside, collect the address of every draw: of Atoll's streams, of generators given to torch, of NumPy's."""
    found: set[Draw] = set()
    streams = {seeds.uniform.__code__: _key, seeds.rng.__code__: _address}
    usual = np.random.default_rng

    def called(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in streams:
            draw = streams[frame.f_code](frame.f_locals)
            if draw is not None:
                found.add(draw)

    def generator(*given: Any, **named: Any) -> np.random.Generator:
        found.add(("numpy.random.default_rng", repr(given), repr(named)))
        return usual(*given, **named)

    before = sys.getprofile()
    with _Generators(found), mock.patch.object(np.random, "default_rng", generator):
        sys.setprofile(called)
        try:
            yield found
        finally:
            sys.setprofile(before)


def _key(given: Mapping[str, Any]) -> Draw | None:
    key = given["key"]
    try:
        return "seeds.uniform", int(key)
    except (RuntimeError, ValueError):  # one of many, inside vmap
        return None


def _address(given: Mapping[str, Any]) -> Draw:
    return "seeds.rng", given["seed"], given["purpose"], given["round"], given["client"]


class _Generators(TorchFunctionMode):
    """Sees the generators that torch's random functions are given."""

    def __init__(self, found: set[Draw]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = (kwargs or {}).get("generator")
        if isinstance(given, torch.Generator):
            self.found.add(("torch.Generator", given.initial_seed()))
        return function(*args, **(kwargs or {}))
