"""What the two parties say to each other, and what that tells."""

from __future__ import annotations

from atoll.parties import Field, Kind

__all__ = [
    "GUEST_OPEN", "GUEST_SEALED", "HOST_OPEN", "HOST_SEALED", "KEY", "KINDS", "MASKED", "PHI", "PHI_SEALED",
    "PRODUCTS", "SCORES", "SUMS",
]  # fmt: skip

_OPEN = {"square": Field("float64", (None, None)), "rows": Field("float64", (None, None))}
_SEALED = {"square": Field("uint8", (None, None)), "rows": Field("uint8", (None, None))}

KEY = Kind("ftl.key", {"context": Field("uint8", (None,))}, "nothing: a public key", limit=1 << 21)
GUEST_OPEN = Kind(
    "ftl.guest",
    _OPEN,
    "the labels and hidden numbers of all rows in common, unless noise is on them: for simulation, or with noise",
)
HOST_OPEN = Kind(
    "ftl.host",
    _OPEN,
    "the hidden numbers of all rows in common, up to the noise on them: for simulation, or with noise",
)
GUEST_SEALED = Kind(
    "ftl.guest.sealed", _SEALED, "how many rows are in common; the rest is the guest's cipher"
)
HOST_SEALED = Kind("ftl.host.sealed", _SEALED, "how many rows are in common; the rest is the host's cipher")
MASKED = Kind(
    "ftl.masked",
    {"rows": Field("uint8", (None, None))},
    "how many columns the other has; every number that is decrypted is covered by a random one of 2^24 and more",
)
SUMS = Kind(
    "ftl.sums",
    {"sums": Field("float64", (None, None))},
    "the gradient of its own weights, and at the guest the loss: sums over all rows in common",
)
PHI = Kind(
    "ftl.phi",
    {"phi": Field("float64", (None,))},
    "the mean of hidden numbers times labels over all rows of the guest",
)
PHI_SEALED = Kind("ftl.phi.sealed", {"phi": Field("uint8", (1, None))}, "nothing: the guest's cipher")
SCORES = Kind("ftl.scores", {"scores": Field("float64", (None,))}, "a score for each row of the host")
PRODUCTS = Kind(
    "ftl.products",
    {"count": Field("int"), "products": Field("uint8", (None, None))},
    "a score for each row of the host: what is decrypted is covered by random numbers that cancel within a row",
)

KINDS = (
    KEY, GUEST_OPEN, HOST_OPEN, GUEST_SEALED, HOST_SEALED, MASKED, SUMS, PHI, PHI_SEALED, SCORES, PRODUCTS,
)  # fmt: skip
