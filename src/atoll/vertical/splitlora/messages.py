"""What is said: activations to the server, their gradients back, and now and then the clients' adapters."""

from __future__ import annotations

from atoll.parties import Field, Kind
from atoll.vertical.splitnn.messages import CODECS, kind

__all__ = ["BEGIN", "CUT", "KINDS", "MEAN", "OWN", "TARGETS"]

BEGIN = Kind(
    "splitlora.begin",
    {"train": Field("int"), "test": Field("int"), "terms": Field("str")},
    "how many windows of text the client has, and the settings and base that all must have",
    limit=1 << 16,
)
TARGETS = Kind(
    "splitlora.targets",
    {"tokens": Field("uint8", (None, None))},
    "the tokens that are to be predicted, which are the text itself but for the first of each window",
)
OWN = Kind(
    "splitlora.own",
    {"adapters": Field("float32", (None,))},
    "the client's adapters, which have learned from its text",
)
MEAN = Kind(
    "splitlora.mean",
    {"adapters": Field("float32", (None,))},
    "the mean of all clients' adapters, weighed by their windows",
)

_TELLS = {
    "activation": "for each token what the first blocks make of it and of those before it, from which the text can be"
    " read by whoever has the base; with clip and noise as much as epsilon says",
    "asked": "the same of windows that are judged on",
    "gradient": "for each token the slope of the client's loss in its activation",
}
CUT = {
    (what, codec): kind(f"splitlora.{what}", codec, tells)
    for what, tells in _TELLS.items()
    for codec in (None, *CODECS)
}
"""Kinds of what crosses the cut, by what it is and its codec: numbers [tokens, width]."""

KINDS = (BEGIN, TARGETS, OWN, MEAN, *CUT.values())
