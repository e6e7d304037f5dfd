"""Adapters: a model whose own parameters stay as they are, and the few that are trained in their place.

`apply` puts them into a module, `pairs` says which tensors are factors of which weight, `merged` gives a plain module
that computes the same. Methods ask `pairs`; nobody guesses at names.
"""

from __future__ import annotations

from atoll.adapters.adapter import Adapter, is_adapted
from atoll.adapters.apply import apply, check
from atoll.adapters.bottleneck import Bottleneck
from atoll.adapters.lora import LoRA, LowRank, Pair, merged, pairs, product
from atoll.adapters.parse import ADAPTERS, adapters, chain, parse
from atoll.adapters.peft import from_peft, to_peft
from atoll.adapters.prefix import Prefix
from atoll.adapters.prompt import Prompt
from atoll.adapters.targets import layers

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Bottleneck",
    "LoRA",
    "LowRank",
    "Pair",
    "Prefix",
    "Prompt",
    "adapters",
    "apply",
    "chain",
    "check",
    "from_peft",
    "is_adapted",
    "layers",
    "merged",
    "pairs",
    "parse",
    "product",
    "to_peft",
]
