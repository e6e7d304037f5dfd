"""Checkpoints: all that a run needs to go on, in one folder that appears as a whole or not at all.

Each of a run's records is a file: `state.safetensors`, say, and `sound.safetensors`, the last state that an evaluation
found finite where that is another one. Clients' memories are in `memories-ROUND-PART.safetensors`: a checkpoint writes
the memories that changed since the one before and links to that one's files for the rest. `checkpoint.json` says what
is where, with lengths and CRC-32 sums. Random streams need no saving: every one of them is a function of (seed,
purpose, round, client), and clients' optimisers live inside a round.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll import spec
from atoll.codec import pieces, read
from atoll.durable import sync
from atoll.errors import ConfigError
from atoll.runs.folder import writing
from atoll.runs.snapshot import Store
from atoll.tensors import Record, leaves, nbytes

__all__ = ["FORMAT", "Checkpoint", "Keep", "list_checkpoints", "load_latest", "prune", "save", "tidy"]

FORMAT = 2
_PART = 128 << 20  # bytes of memories in a file
_PIECE = 1 << 20  # that are read at a time
_FIELD = 512  # and of what describes a field, about
_RECORD = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run goes on from.

    `round` was the last one played, `records` are what was saved by name. `facts` are further plain values: what a
    run must agree in to go on with it, the engine, the seconds spent.
    """

    round: int
    records: Mapping[str, Record]
    facts: Mapping[str, Any]
    memories: Mapping[str, Sequence[int]] = field(default_factory=dict)
    path: Path = Path()

    def restore(self, store: Store) -> None:
        """Put the clients' memories into an empty store."""
        for name, clients in self.memories.items():
            held = read(self.path / name)
            for client in clients:
                store.put(client, held[str(client)])
            store.commit()
        store.changed.clear()


def save(
    folder: Path,
    round: int,
    records: Mapping[str, Record],
    store: Store | None,
    facts: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a round.  Raises RunError where the disk refuses; then nothing has changed."""
    place = folder / "checkpoints"
    final, part = place / name_of(round), place / f".{name_of(round)}.part"
    with writing(final, "the checkpoint"):
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            files = {f"{name}{_RECORD}": record for name, record in records.items()}
            table = {name: _write(part / name, *pieces(record)) for name, record in files.items()}
            where = {} if store is None else _write_memories(place, part, round, store, table)
            head = {"format": FORMAT, "round": round, "facts": dict(facts), "files": table, "memories": where}
            _write(part / "checkpoint.json", json.dumps(head).encode())
            os.rename(part, final)
            sync(place)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    if store is not None:
        store.changed.clear()
    return final


def name_of(round: int) -> str:
    return f"round-{round:05d}"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(round, path) of the checkpoints of a run, oldest first."""
    found = []
    for path in (folder / "checkpoints").glob("round-*"):
        with contextlib.suppress(ValueError):
            found.append((int(path.name.removeprefix("round-")), path))
    return sorted(found)


def load_latest(
    folder: Path, problem: Callable[[str, str], None], upto: int | None = None
) -> Checkpoint | None:
    """The newest checkpoint that is whole; `problem(where, message)` is told of damaged ones.

    Args:
        upto: the last round that it may have; None for any.

    Raises ConfigError for a checkpoint of a later version of Atoll: going back behind it would lose rounds.
    """
    for number, path in reversed(list_checkpoints(folder)):
        if upto is not None and number > upto:
            continue
        try:
            return load(path)
        except (OSError, KeyError, ValueError, TypeError, zlib.error) as error:
            if isinstance(error, ConfigError):
                raise
            problem(str(path.name), f"this checkpoint is damaged ({error}); the one before it is used")
    return None


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.  Raises ConfigError for another version, ValueError or OSError for damage."""
    head = json.loads((path / "checkpoint.json").read_text("utf-8"))
    if head["format"] != FORMAT:
        raise ConfigError(
            f"{path} has format {head['format']}, and this version of Atoll reads format {FORMAT}",
            hint="resume with the version in config.toml ([about] atoll), or start a new run",
        )
    for name, (length, crc, *_) in head["files"].items():
        if _sums(path / name) != [length, crc]:
            raise ValueError(f"{name} is not what was written")
    names = [name for name in head["files"] if name not in head["memories"]]
    records = {name.removesuffix(_RECORD): read(path / name) for name in names}
    return Checkpoint(head["round"], records, head["facts"], head["memories"], path)


# --- clients' memories ----------------------------------------------------------------------------------------------


def _write_memories(
    place: Path, part: Path, round: int, store: Store, table: dict[str, list[int]]
) -> dict[str, list[int]]:
    """Write what changed and link what did not: file -> the clients whose memory is in force there.

    Once most of what the linked files hold is stale, everything is written anew.
    """
    known = set(store.clients())
    older = list_checkpoints(place.parent)
    live: dict[str, list[int]] = {}
    if older and known != store.changed:
        source = older[-1][1]
        head = json.loads((source / "checkpoint.json").read_text("utf-8"))
        for name, clients in head["memories"].items():
            if still := [k for k in clients if k in known and k not in store.changed]:
                live[name] = still
        if 2 * sum(map(len, live.values())) < sum(head["files"][name][2] for name in live):
            live = {}
        for name in live:
            _link(source / name, part / name)
            table[name] = head["files"][name]
    fresh = sorted(known - {k for clients in live.values() for k in clients})
    for number, clients in enumerate(_batches(fresh, store), start=1):
        name = f"memories-{round:05d}-{number}.safetensors"
        record = Record({str(client): store.get(client) for client in clients})
        table[name] = [*_write(part / name, *pieces(record)), len(clients)]
        live[name] = clients
    return live


def _batches(clients: Sequence[int], store: Store) -> Iterator[list[int]]:
    """Clients in runs whose memories fit a file."""
    batch: list[int] = []
    size = 0
    for client in clients:
        batch.append(client)
        memory = store.get(client)
        assert memory is not None
        size += nbytes(memory) + _FIELD * len(leaves(memory))
        if size >= _PART:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- keeping --------------------------------------------------------------------------------------------------------


_WAYS = {
    "last": (spec.whole("count", at_least=1, optional=True),),
    "best": (),
    "all": (),
    "every": (spec.whole("rounds", at_least=1),),
}


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `last` so many, the `best` of those written, and `every` so many rounds (0: none)."""

    best: bool
    every: int
    last: int = 1

    @staticmethod
    def parse(text: str) -> Keep:
        """Read "last", "last:2", "best", "every:50" and lists of them; "all" keeps each. The last always stays.  Raises
        ConfigError."""
        best, every, last = False, 0, 1
        for call in spec.chain(text, "keep", ","):
            given = call.read(_WAYS)
            best = best or call.name == "best"
            every = 1 if call.name == "all" else given.get("rounds", every)
            last = given.get("count") or last
        return Keep(best, every, last)


def prune(folder: Path, keep: Keep) -> None:
    """Delete the checkpoints that the policy does not keep. One that cannot be deleted stays."""
    found = list_checkpoints(folder)
    stay = {round for round, _ in found[-keep.last :]}
    if keep.every:
        stay |= {round for round, _ in found if round and round % keep.every == 0}
    if keep.best:
        scores = {round: score for round, path in found if (score := _score(path)) is not None}
        if scores:
            stay.add(max(scores, key=lambda round: (scores[round], round)))
    for round, path in found:
        if round not in stay:
            shutil.rmtree(path, ignore_errors=True)


def tidy(folder: Path, after: int) -> None:
    """Before going on from round `after`: delete half-written checkpoints, rename later ones, which are damaged."""
    for path in (folder / "checkpoints").glob(".*.part"):
        shutil.rmtree(path, ignore_errors=True)
    for round, path in list_checkpoints(folder):
        if round > after:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            with writing(path, "(rename) the checkpoint"):
                os.rename(path, aside)


def _score(path: Path) -> float | None:
    try:
        score = json.loads((path / "checkpoint.json").read_text("utf-8"))["facts"].get("score")
    except (OSError, ValueError, KeyError):
        return None
    return None if score is None else float(score)


# --- files ----------------------------------------------------------------------------------------------------------


def _write(file: Path, *content: Any) -> list[int]:
    """Write a file through to the disk; its length and CRC-32."""
    length = crc = 0
    with open(file, "wb") as handle:
        for piece in content:
            handle.write(piece)
            length, crc = length + len(piece), zlib.crc32(piece, crc)
        handle.flush()
        os.fsync(handle.fileno())
    return [length, crc]


def _sums(file: Path) -> list[int]:
    """A file's length and CRC-32."""
    length = crc = 0
    with open(file, "rb") as handle:
        while piece := handle.read(_PIECE):
            length, crc = length + len(piece), zlib.crc32(piece, crc)
    return [length, crc]


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
