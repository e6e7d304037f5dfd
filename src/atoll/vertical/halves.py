"""What a party keeps of a model: its own half, and all that it needs to bring further rows into the form of those it
has learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from atoll import codec
from atoll.errors import CodecError, ConfigError
from atoll.tensors import Record
from atoll.vertical.alignment import normal
from atoll.vertical.features.transform import named
from atoll.vertical.party import Party
from atoll.vertical.settings import Vertical

__all__ = ["half_of", "labels_of", "load", "save", "session"]

_FIELDS = ("session", "columns", "labels", "features", "model")
_NAME = "{}.half.safetensors"


def half_of(session: str, party: Party, features: Record, model: Record) -> Record:
    """A party's half.

    Args:
        session: which model it is a half of, the same at all parties.
        features: what the steps before the protocol have learned.
        model: the protocol's half.
    """
    labels = named(party.labels)
    return Record(
        session=session, columns=named(party.columns), labels=labels, features=features, model=model
    )


def session(plan: Vertical, ids: Iterable[str]) -> str:
    """A name of a model that all its parties can make: of the settings, and the ids that they have in common."""
    told = sha256(plan.fingerprint().encode())
    for each in sorted(map(normal, ids)):
        told.update(len(each.encode()).to_bytes(4, "little") + each.encode())
    return told.hexdigest()


def labels_of(half: Record) -> tuple[str, ...]:
    """What the classes are called, at the guest."""
    return tuple(half.labels.values())


def save(half: Record) -> bytes:
    """As it stands in a run's folder."""
    return codec.encode(half)


def file(folder: Path, name: str) -> Path:
    """Where a party's half is, in a run's folder."""
    return folder / _NAME.format(name)


def load(folders: Iterable[Path], plan: Vertical) -> Mapping[str, Record]:
    """The halves that lie in some runs' folders, by party.

    Raises ConfigError for one that cannot be read, and where two are of different models.
    """
    found: dict[str, Record] = {}
    for folder in folders:
        for name in plan.names:
            path = file(folder, name)
            if not path.is_file():
                continue
            try:
                half = codec.decode(path.read_bytes())
            except CodecError as error:
                raise ConfigError(f"{path} cannot be read: {error.message}") from None
            if tuple(half.keys()) != _FIELDS:
                raise ConfigError(f"{path} is no half of a model", hint="runs of this version have it")
            found[name] = half
    if len({half.session for half in found.values()}) > 1:
        raise ConfigError(
            f"the halves of {' and '.join(found)} are of different models",
            hint="name the folders that the parties have of one run",
        )
    return found
