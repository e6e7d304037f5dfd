"""What is said: embeddings to the guest, their gradients back, and once who comes with how many rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import compress
from atoll.errors import CodecError, ConfigError
from atoll.parties import Field, Kind, Link
from atoll.tensors import Record

__all__ = ["BEGIN", "CODECS", "KINDS", "Wire", "kind"]

CODECS = ("int8", "int4", "bf16", "fp16", "topk")
"""Codecs that messages can have, by name."""

BEGIN = Kind(
    "split.begin",
    {"rows": Field("int"), "width": Field("int"), "terms": Field("str")},
    "how many rows the host has, how wide its embeddings are, and the settings that both must have",
    limit=1 << 16,
)

_TELLS = {
    "embedding": "for each row what the host's network makes of its columns, from which much of them may be guessed;"
    " with clip and noise as much as epsilon says",
    "gradient": "for each row the slope of the loss in its embedding, from which labels can be guessed unless they are"
    " protected",
}


def kind(name: str, codec: str | None, tells: str) -> Kind:
    """Messages of so many rows of numbers: float32 [b, width], or what the codec makes of them."""
    fields = {"x": Field("float32", (None, None))}
    if codec is not None:
        form = compress.parse(f"{codec}:0.5" if codec == "topk" else codec).form((4, 4))
        fields = {
            name: Field(str(dtype).removeprefix("torch."), (None,) * len(shape))
            for name, (dtype, shape) in form.items()
        }
    return Kind(name + ("" if codec is None else f".{codec}"), fields, tells)


_KINDS = {
    (what, codec): kind(f"split.{what}", codec, tells)
    for what, tells in _TELLS.items()
    for codec in (None, *CODECS)
}
KINDS = (BEGIN, *_KINDS.values())
_NO_KEY = torch.zeros((), dtype=torch.int64)


@dataclass(frozen=True)
class Wire:
    """How tensors [b, width] travel.

    Args:
        codec: "int8", "topk:0.1" ...; None for float32 as it is.
        kinds: the kinds of messages, by what is in them and the codec's name.
    """

    codec: compress.Codec | None
    kinds: Mapping[tuple[str, str | None], Kind]

    @classmethod
    def of(cls, text: str | None, kinds: Mapping[tuple[str, str | None], Kind] = _KINDS) -> Wire:
        """Raises ConfigError for a codec that is none, or that needs a key at both ends."""
        codec = None if text is None else compress.parse(text)
        if codec is not None and codec.name not in CODECS:
            raise ConfigError(
                f"codec = {text!r} is nothing for split networks", hint=f"known: {', '.join(CODECS)}"
            )
        return cls(codec, kinds)

    def kind(self, what: str) -> Kind:
        return self.kinds[what, None if self.codec is None else self.codec.name]

    async def send(self, link: Link, to: str, what: str, x: Tensor) -> None:
        """Send what one of the kinds says, [b, width]."""
        x = x.detach().contiguous()
        record = Record(x=x) if self.codec is None else self.codec.encode(x, _NO_KEY)
        await link.send(to, self.kind(what), record)

    async def receive(self, link: Link, sender: str, what: str, shape: Sequence[int]) -> Tensor:
        """The same at its receiver, float32 of that shape.  Raises CodecError for any other."""
        got = await link.receive(sender, self.kind(what))
        if self.codec is None:
            x: Tensor = got.x
            if tuple(x.shape) != tuple(shape):
                raise CodecError(
                    f"{sender} sent {self.kind(what).name} of {list(x.shape)}, and {list(shape)} is due",
                    hint="all parties must have the same rows in the same order",
                )
            return x
        self.codec.check(got, shape)
        return self.codec.decode(got, shape)
