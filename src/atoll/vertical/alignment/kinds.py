"""What parties say to each other to find the rows that they have in common."""

from __future__ import annotations

from atoll.parties import Field, Kind

__all__ = ["BLINDED", "COMMON", "COUNT", "HELLO", "KINDS", "PLACES", "REPEATS", "SIFTED"]


HELLO = Kind(
    "psi.hello",
    {
        "salt": Field("uint8", (32,)),
        "kept": Field("bool"),
        "ids": Field("int"),
        "repeated": Field("bool"),
        "options": Field("str"),
    },
    "how many distinct ids the sender has, whether several of its rows may have one id, and the options; a random salt",
    limit=1 << 13,
)
BLINDED = Kind(
    "psi.blinded",
    {"points": Field("uint8", (None, 32))},
    "nothing but their number: points of the curve under secrets that the receiver does not know, shuffled",
)
SIFTED = Kind(
    "psi.sifted",
    {"points": Field("uint8", (None, 16))},
    "how many of the receiver's are among them: keys of points under all secrets. Of two parties, which ones",
)
COMMON = Kind(
    "psi.common",
    {"points": Field("uint8", (None, 16))},
    "keys under all secrets of the points that all parties have, in the common order",
)
COUNT = Kind("psi.count", {"count": Field("int")}, "how many ids all parties have in common")
PLACES = Kind(
    "psi.places",
    {"places": Field("int32", (None,))},
    "which points of a blinded set all parties have, in the common order; its owner learns which of its ids they are",
)
REPEATS = Kind(
    "psi.repeats",
    {"counts": Field("int32", (None,))},
    "how many rows the sender has of each common id",
)
KINDS = (HELLO, BLINDED, SIFTED, COMMON, COUNT, PLACES, REPEATS)
