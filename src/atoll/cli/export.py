"""`atoll export`: the model of a run, for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import given
from atoll.cli.notice import Notice

__all__ = ["export"]


def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder, its name (or how it begins or ends), or last.", autocompletion=given.runs
        ),
    ] = "last",
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="onnx, torchscript or executorch.")
    ] = "onnx",
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="By default model.onnx (.pt, .pte) in the run's folder."),
    ] = None,
    client: Annotated[
        str | None,
        typer.Option("--client", metavar="NAME", help="The model that this client predicts with."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Names code of your own again, as in model=nets:Small."
        ),
    ] = None,
    runs: Annotated[str | None, typer.Option("--runs", metavar="DIR", help="Where to look for runs.")] = None,
) -> None:
    """Write the model of a run for other runtimes.

    The global model, or a client's. The file is run before it is in place, and computes what the model does. The run's
    data must be there.
    """
    notice = Notice()
    notice.say("loading PyTorch")
    try:
        from atoll.cli.taken import taken
        from atoll.export import FORMATS, check
        from atoll.runs.folder import RunFolder
        from atoll.words import bytes_text

        check(to)
        folder = RunFolder.find(run, runs)
        federation = taken(folder, sets or [], notice.say)
        name = "model" if client is None else f"client-{federation.data.position(client)}"
        place = Path(out) if out is not None else folder.path / f"{name}{FORMATS[to].ending}"
        notice.say(f"exporting to {to}")
        path = federation.run().export(to, place, client=client)
    finally:
        notice.clear()
    whose = "the global model" if client is None else f"the model of client {client}"
    print(f"{whose} after round {federation.number}, {bytes_text(path.stat().st_size)}: {path}")
