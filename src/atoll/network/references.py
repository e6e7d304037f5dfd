"""Models that come as differences: what a node keeps of one, for the next to be told from (`atoll.channel.Down`)."""

from __future__ import annotations

from pathlib import Path

from atoll.channel.down import Down, name_of
from atoll.codec import pieces, read
from atoll.contract import Method
from atoll.durable import replaced
from atoll.errors import CodecError
from atoll.tensors import Record

__all__ = ["keep", "opened"]


def opened(down: Down | None, received: Record, held: Path | None, followed: bool = False) -> Record:
    """What all clients receive, of what came.  Raises CodecError.

    Args:
        held: the file of a model that is here: what differences are told from, or, where they were `followed`, come to.
    """
    if down is None:
        return received
    model = None if held is None else read(held)
    if followed and model is not None:
        return Record({name: part for name, part in received.items() if name != "down"}).replace(**model)
    return down.opened(received, model)


def keep(method: Method, received: Record, path: Path, since: Path | None) -> None:
    """Keep the model that was received, under its hash.

    Raises CodecError where that is not the coordinator's, which the file is named after. What it was told from is then
    forgotten, so that it comes whole when it is asked again.
    """
    if path.is_file():
        return
    model = Record({name: received[name] for name in method.broadcasts if name in received})
    if (found := name_of(model)) != path.name:
        if since is not None:
            since.unlink(missing_ok=True)
        raise CodecError(
            f"the model that came has the hash {found[:8]}..., and the coordinator's has {path.name[:8]}..."
        )
    replaced(path, *pieces(model))
