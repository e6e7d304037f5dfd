"""All that the roles of a generalised linear model say to each other."""

from __future__ import annotations

from atoll.parties import Field, Kind

__all__ = [
    "HIDDEN", "KEY", "KINDS", "MASKED", "OPENED", "PARTIAL", "PLAN", "PRODUCT", "RESIDUAL", "SCORE", "SEED", "SHARE",
    "STILL", "STOP", "VECTOR",
]  # fmt: skip

_CIPHER = Field("uint8", (None, None))

KEY = Kind("glm.key", {"public": Field("uint8", (None,))}, "a public key")
PLAN = Kind(
    "glm.plan",
    {"rows": Field("int"), "scores": Field("int"), "done": Field("int"), "settings": Field("str")},
    "how many rows there are and how many classes, and where the run goes on",
)
SCORE = Kind(
    "glm.score", {"cipher": _CIPHER}, "nothing: a part of the residuals, under the key of the arbiter"
)
RESIDUAL = Kind("glm.residual", {"cipher": _CIPHER}, "nothing: the residuals, under the key of the arbiter")
MASKED = Kind(
    "glm.masked",
    {"cipher": _CIPHER, "columns": Field("int")},
    "how many columns the sender has; the sums that the arbiter decrypts are masked",
)
OPENED = Kind(
    "glm.opened",
    {"sums": Field("float64", (None, None))},
    "the receiver's own gradient, once it takes its mask away",
)
STILL = Kind("glm.still", {"still": Field("bool")}, "whether the sender's weights have come to rest")
STOP = Kind("glm.stop", {"stop": Field("bool")}, "whether everybody's weights have come to rest")
SHARE = Kind(
    "glm.share",
    {"share": Field("int64", (None, None))},
    "nothing of a share alone; at the end the receiver's own weights",
)
VECTOR = Kind("glm.vector", {"cipher": _CIPHER}, "nothing: a share, under the key of its sender")
PRODUCT = Kind(
    "glm.product", {"cipher": _CIPHER}, "a share of a product: uniform numbers, under the key of the receiver"
)
PARTIAL = Kind(
    "glm.partial",
    {"score": Field("float64", (None, None))},
    "the host's linear score of each row",
)
SEED = Kind("glm.seed", {"seed": Field("uint8", (32,))}, "a mask that two hosts share")
HIDDEN = Kind(
    "glm.hidden",
    {"score": Field("int64", (None, None))},
    "nothing alone; with those of all hosts the sum of their linear scores of each row",
)

KINDS = (
    KEY, PLAN, SCORE, RESIDUAL, MASKED, OPENED, STILL, STOP, SHARE, VECTOR, PRODUCT, PARTIAL, SEED, HIDDEN,
)  # fmt: skip
