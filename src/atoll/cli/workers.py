"""`atoll train` and `atoll plan`: their options."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from atoll.cli.given import File, Json, Quiet, Resume, Runs, Save, Sets, check_file
from atoll.cli.notice import Notice

__all__ = ["plan", "train"]


def train(
    file: File = None,
    sets: Sets = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; by default one a core, or a GPU.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    save: Save = None,
    resume: Resume = None,
    runs: Runs = None,
    restarts: Annotated[
        int | None,
        typer.Option("--max-restarts", min=0, help="Start again so often after a worker has died."),
    ] = None,
) -> None:
    """Train one model by several workers.

    The keys to set are in docs/distributed.md. Under torchrun (`torchrun --nproc-per-node 2 -m atoll train`) this
    is one of the workers.
    """
    check_file(file)
    notice = Notice(quiet)
    notice.say("loading PyTorch")
    try:
        from atoll.cli.train import Wish, command

        command(Wish(file, sets or [], workers, resume, runs, save, restarts, json, quiet), notice)
    except KeyboardInterrupt:  # while torch was loaded
        notice.clear()
        print("interrupted before the first report was over", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        notice.clear()


def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help='A name ("mlp:128,64", "cnn"), or your own, module:Name.')
    ],
    workers: Annotated[int, typer.Option("--workers", min=1, help="How many.")],
    memory: Annotated[str, typer.Option("--memory", help="Of a worker: 16GB, 512MB.")],
    bandwidth: Annotated[str, typer.Option("--bandwidth", help="What a worker sends a second: 1Gbit, 10GB.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME|FILE", help="What it learns from.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="N,N,...", help="Of a sample, in the place of data.")
    ] = None,
    classes: Annotated[
        int, typer.Option("--classes", min=0, help="With --shape; 0 where a number is predicted.")
    ] = 10,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples in a step, of all workers.")] = 64,
    optimizer: Annotated[str, typer.Option("--optimizer", help='"sgd", "sgd:0.9", "adam" ...')] = "sgd",
    latency: Annotated[
        float, typer.Option("--latency", min=0.0, help="Milliseconds that a message takes at least.")
    ] = 0.1,
    flops: Annotated[
        str | None,
        typer.Option("--flops", metavar="N", help="A worker's operations a second; else measured here."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    code: Annotated[
        list[str] | None,
        typer.Option("--code", metavar="KEY=MODULE:NAME", help="Code of this machine that the model names."),
    ] = None,
) -> None:
    """Say what memory and time each way of training takes."""
    from atoll.cli.plan import Wish, command

    command(
        Wish(
            model,
            workers,
            memory,
            bandwidth,
            batch,
            optimizer,
            data,
            shape,
            classes,
            latency,
            flops,
            json,
            code or [],
        )
    )
