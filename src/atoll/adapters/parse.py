"""Adapters as text: ``lora:8,16``, several with slashes in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll import spec
from atoll.adapters.adapter import Adapter
from atoll.adapters.bottleneck import Bottleneck
from atoll.adapters.lora import LoRA
from atoll.adapters.prefix import Prefix
from atoll.adapters.prompt import Prompt
from atoll.spec import Parameter, many, number, whole, word

__all__ = ["ADAPTERS", "adapters", "chain", "parse"]

_TARGETS = many(word("targets", optional=True))

_MADE: Mapping[str, tuple[type[Adapter], tuple[Parameter, ...]]] = {
    "lora": (LoRA, (whole("rank", at_least=1), number("alpha", above=0, optional=True), _TARGETS)),
    "bottleneck": (Bottleneck, (whole("size", at_least=1),)),
    "prompt": (Prompt, (whole("length", at_least=1),)),
    "prefix": (Prefix, (whole("length", at_least=1),)),
}

ADAPTERS: Mapping[str, tuple[Parameter, ...]] = {name: takes for name, (_, takes) in _MADE.items()}
"""The adapters by name, and what may follow it."""


def adapters() -> list[tuple[str, str]]:
    """How each adapter is written, and the first line of what its class says of itself."""
    return [
        (spec.usage(name, takes), (kind.__doc__ or "").split("\n")[0].split("   ")[0])
        for name, (kind, takes) in _MADE.items()
    ]


def parse(text: str) -> Adapter:
    """The adapter of a text.  Raises ConfigError.

    >>> parse("lora:8").text
    'lora:8,16'
    """
    call = spec.parse(text, "adapter")
    given: dict[str, Any] = call.read(ADAPTERS)
    return _MADE[call.name][0](**given)


def chain(text: str) -> list[Adapter]:
    """Several: "lora:4,8 / lora:16,32".  Raises ConfigError."""
    return [parse(each.strip()) for each in text.split("/")]
