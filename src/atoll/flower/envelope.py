"""What passes between a ServerApp and a ClientApp, in a RecordDict of Flower's: small facts, and bodies as bytes.

Facts are messages of `atoll.network.wire` and texts, in a ConfigRecord; bodies are records (`atoll.codec`), each an
Array of bytes, so that Flower sends them in chunks, and one that goes to several nodes once. Nothing of it is ever
imported, evaluated or unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.errors import CodecError

__all__ = ["Bodies", "Facts", "body", "opened", "sealed"]

Facts = dict[str, str | bytes]
Bodies = dict[str, bytes]

_FACTS, _BODIES = "atoll", "atoll.bodies"
_KIND = "atoll.record"
"""How the bytes of an Array were made: not NumPy's way, so that nobody takes them for numbers."""


def body(blob: bytes) -> Any:
    """Bytes as an Array; several messages may share it."""
    from flwr.app import Array

    return Array("uint8", (len(blob),), _KIND, blob)


def sealed(facts: Mapping[str, str | bytes], bodies: Mapping[str, Any] | None = None) -> Any:
    """A RecordDict of facts and Arrays."""
    from flwr.app import ArrayRecord, ConfigRecord, RecordDict

    found = RecordDict({_FACTS: ConfigRecord(dict(facts))})
    if bodies:
        found[_BODIES] = ArrayRecord(dict(bodies))
    return found


def opened(content: Any) -> tuple[Facts, Bodies]:
    """What is in a RecordDict.  Raises CodecError for one that nobody here has sealed."""
    if _FACTS not in content.config_records:
        raise CodecError(
            f"this is no message of Atoll's: there is no {_FACTS!r} in it",
            hint="both apps of the Flower project must be Atoll's",
        )
    facts = dict(content.config_records[_FACTS])
    bodies = dict(content.array_records.get(_BODIES, {}))
    if not all(isinstance(each, str | bytes) for each in facts.values()):
        raise CodecError("the facts of this message are no texts")
    if strange := [name for name, each in bodies.items() if each.stype != _KIND]:
        raise CodecError(f"{strange[0]} in this message is {bodies[strange[0]].stype!r}, and no record")
    return facts, {name: each.data for name, each in bodies.items()}
