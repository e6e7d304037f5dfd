"""`atoll serve`, `peer`, `join` and `predict`: the options of what plays between machines."""

from __future__ import annotations

from typing import Annotated

import typer

from atoll.cli.given import Json, Quiet, Sets, check_file

__all__ = ["join", "peer", "predict", "serve"]


def serve(
    file: Annotated[
        str, typer.Argument(metavar="FILE.toml", help="Settings, and where to listen: [network].")
    ],
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; wins over the file.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = None,
    min_clients: Annotated[
        int | None, typer.Option("--min-clients", help="Nodes without which no round begins.")
    ] = None,
    place: Annotated[
        str | None, typer.Option("--place", metavar="DIR", help="Where the coordinator keeps everything.")
    ] = None,
    ca: Annotated[
        str | None, typer.Option("--ca", metavar="DIR", help="The directory of `atoll ca`.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without TLS; on this machine only.")] = False,
    save: Annotated[
        str | None, typer.Option("--save", metavar="FILE.safetensors", help="Write the final model there.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the summary at the end.")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="A JSON object a line: time, event, facts.")
    ] = False,
) -> None:
    """Coordinate a federation between machines.

    Nodes join with `atoll join`. Whatever happens, the same command goes on where it stopped.
    """
    check_file(file)
    from atoll.cli.serve import Wish, command

    command(Wish(file, sets or [], host, port, min_clients, place, ca, plain, save, quiet, log_json))


def peer(
    file: Annotated[str, typer.Argument(metavar="FILE.toml", help="Settings, the same at all peers.")],
    name: Annotated[str, typer.Option("--name", help="Which of the peers this is.")],
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where it listens.")
    ] = None,
    neighbours: Annotated[
        str | None,
        typer.Option("--neighbours", metavar="HOST:PORT,...", help="Any others; those know the rest."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="By which others call it, if not as it listens."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE|MODULE:FUNCTION", help="Its data; they stay here.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option("--keys", metavar="DIR", help="Keys and certificate, from `atoll ca enrol`.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without TLS; on this machine only.")] = False,
    place: Annotated[
        str | None, typer.Option("--place", metavar="DIR", help="Where it keeps its run (peers/NAME).")
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", help="Seconds of silence after which another one is given up.")
    ] = 60.0,
    deadline: Annotated[
        float | None, typer.Option("--deadline", help="Seconds a round may wait for a slow one.")
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds for all neighbours to come at the beginning.")
    ] = 600.0,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn with neighbours, without a server. Whatever happens, the same command goes on where it stopped."""
    check_file(file)
    from atoll.cli.peer import Wish, command

    command(
        Wish(
            file, name, sets or [], listen, address, neighbours, data, keys, plain, place, patience, deadline, wait,
            json, quiet,
        )
    )  # fmt: skip


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the coordinator is.")],
    data: Annotated[
        str, typer.Option("--data", metavar="FILE|MODULE:FUNCTION", help="This node's data; they stay here.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="What this node is called.")] = None,
    invitation: Annotated[
        str | None, typer.Option("--invitation", metavar="TOKEN", help="From `atoll ca invite`; once.")
    ] = None,
    place: Annotated[
        str | None, typer.Option("--place", metavar="DIR", help="Where the node keeps what it remembers.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="FILE.toml", help="What this node allows.")
    ] = None,
    approve: Annotated[bool, typer.Option("--approve", help="Take part without being asked.")] = False,
    code: Annotated[
        list[str] | None,
        typer.Option("--code", metavar="KEY=MODULE:NAME", help="Code of this machine that a run may name."),
    ] = None,
    limit: Annotated[float | None, typer.Option("--limit", help="Seconds that a task may take.")] = None,
    memory: Annotated[int, typer.Option("--memory", help="MiB that the worker may use; 0 is any.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Without TLS; on this machine only.")] = False,
    repeatable_noise: Annotated[
        bool,
        typer.Option(
            "--repeatable-noise",
            help="Noise may follow from the run's seed, if its file says so: never private.",
        ),
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="A JSON object a line: time, event, facts.")
    ] = False,
    silo: Annotated[
        str | None,
        typer.Option("--silo", metavar="ddp:N", help="Train by N processes, which divide each batch."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda:N", help="What this node computes on.")
    ] = "auto",
    start: Annotated[
        str | None,
        typer.Option("--base", metavar="FILE", help="The weights that this run's adapters stand over."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="DIR", help="Of texts: the tokenizer that this run reads by."),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision", metavar="float32|bfloat16", help="Of the operations that can be so computed."
        ),
    ] = "float32",
    accumulate: Annotated[
        int,
        typer.Option("--accumulate", metavar="N", help="Goes in which a batch's gradient is taken.", min=1),
    ] = 1,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute blocks of transformers again, to save memory.")
    ] = False,
) -> None:
    """Take part in a federation with data that stay here."""
    from atoll.cli.join import Wish, command

    command(
        Wish(
            address,
            data,
            name,
            place,
            plain,
            approve,
            invitation,
            policy,
            code or [],
            limit,
            memory,
            repeatable_noise,
            log_json,
            silo,
            device,
            start,
            tokenizer,
            precision,
            accumulate,
            recompute,
        )
    )


def predict(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Rows: .csv, .tsv, .parquet, or .npz with x.")],
    place: Annotated[
        str | None,
        typer.Option("--place", metavar="DIR", help="At a node: its directory, for its own model."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="FILE.safetensors", help="Elsewhere: what `atoll serve --save` wrote."
        ),
    ] = None,
    plan: Annotated[
        str | None, typer.Option("--plan", metavar="RUN.toml", help="Elsewhere: the coordinator's file.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write there; else to the terminal.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a row, in the place of CSV.")] = False,
    code: Annotated[
        list[str] | None,
        typer.Option(
            "--code", metavar="KEY=MODULE:NAME", help="At a node: code of its own that the run names."
        ),
    ] = None,
) -> None:
    """Predict with a model that came of a run between machines.

    At a node with the client's own model, where the method has one; it never leaves the node.
    """
    from atoll.cli.predict import Wish, command

    command(Wish(data, place, model, plan, out, json, code or []))
