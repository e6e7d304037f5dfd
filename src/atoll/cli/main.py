"""The commands, their options, and how a failure ends: one screen of text and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated

import typer

from atoll.cli.audit import audit
from atoll.cli.audit_log import audit_log
from atoll.cli.ca import ca
from atoll.cli.compare import compare, report
from atoll.cli.dash import dash
from atoll.cli.data import data
from atoll.cli.explain import explain
from atoll.cli.given import File, Json, Quiet, Resume, Runs, Save, Sets, WithSettings, check_file
from atoll.cli.notice import Notice
from atoll.cli.runs import log, ls, rm, show
from atoll.cli.status import status, stop
from atoll.cli.sweep import sweep
from atoll.cli.vertical import vertical
from atoll.cli.workers import plan, train

__all__ = ["app", "main"]

app = typer.Typer(
    name="atoll",
    help="Federated learning for PyTorch. Start with: atoll run",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")
app.add_typer(ca, name="ca")
app.add_typer(audit_log, name="audit-log")
app.add_typer(vertical, name="vertical")


def main(arguments: list[str] | None = None) -> None:
    """The console script. Ends the process with the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without block characters gets question marks
    level = os.environ.get("ATOLL_LOG_LEVEL", "warning").upper()
    logging.basicConfig(
        level=getattr(logging, level, logging.WARNING), format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        app(arguments, prog_name="atoll")
    except Exception as error:
        message, hint, code = explain(error)
        print(f"error: {message}" + (f"\n hint: {hint}" if hint else ""), file=sys.stderr)
        if level == "DEBUG":
            traceback.print_exception(error)
        sys.exit(code)


def _version(asked: bool) -> None:
    if asked:
        from atoll import __version__

        typer.echo(f"atoll {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
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


@app.command(cls=WithSettings)
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


@app.command()
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
        )
    )


@app.command()
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


@app.command(cls=WithSettings)
def run(
    file: File = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    save: Save = None,
    resume: Resume = None,
    runs: Runs = None,
    dash: Annotated[bool, typer.Option("--dash", help="Show the run on a page in the browser.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Size, traffic and time, and all settings as TOML; nothing is kept."),
    ] = False,
) -> None:
    """Run a federation in simulation and show what came of it.

    Without arguments: federated averaging on handwritten digits, a few seconds. The keys to set are listed by
    `atoll methods NAME`. Ctrl-C stops after writing a checkpoint; --resume goes on from it.
    """
    check_file(file)
    notice = Notice(quiet)
    notice.say("loading PyTorch")
    try:
        from atoll.cli.dry import rehearse
        from atoll.cli.run import Wish, command

        wish = Wish(file, sets or [], resume, runs, save, json, quiet, dash)
        (rehearse if dry_run else command)(wish, notice)
    except KeyboardInterrupt:  # while torch was loaded
        notice.clear()
        print("interrupted before the first round was over", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        notice.clear()


@app.command(cls=WithSettings)
def init(
    file: Annotated[str, typer.Argument(metavar="FILE.toml", help="What to write.")] = "experiment.toml",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as method=ditto. Repeatable."),
    ] = None,
) -> None:
    """Write a file of settings, with every key explained.

    atoll run FILE.toml runs it as it is.
    """
    check_file(file)
    from atoll.cli.init import init as write

    write(file, sets or [])


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(help="A method, or your own as module:Name, to see all of its settings.")
    ] = None,
) -> None:
    """List the federated methods, or the settings of one."""
    from atoll.cli.show import show_method, show_methods

    show_methods() if name is None else show_method(name)


@app.command()
def models() -> None:
    """List the networks that go by a name."""
    from atoll.cli.show import show_models

    show_models()


@app.command()
def partitions() -> None:
    """List the ways to divide data among clients."""
    from atoll.cli.show import show_partitions

    show_partitions()


@app.command()
def topologies(
    name: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Only this one, such as ring or base:2.")
    ] = None,
    peers: Annotated[int, typer.Option("--peers", min=1, help="How many there are.")] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Draws what is random.")] = 0,
) -> None:
    """Tell how graphs of peers mix, before anything is run."""
    from atoll.cli.topologies import show

    show(name, peers, seed)


@app.command("explain")
def explain_kinds(
    name: Annotated[
        str | None,
        typer.Argument(
            help="devices, choose, adaptive, pace, channel, down, strategy, protocol, steps, topology or mixing."
        ),
    ] = None,
) -> None:
    """List the kinds of a setting, and what each takes."""
    from atoll.cli.show import explain_setting, explain_settings

    explain_settings() if name is None else explain_setting(name)


@app.command()
def doctor(
    network: Annotated[
        str | None,
        typer.Option("--network", metavar="HOST:PORT", help="Say why this coordinator cannot be reached."),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(
            "--identity", metavar="DIR", envvar="ATOLL_IDENTITY", help="Your keys, or a node's directory."
        ),
    ] = None,
) -> None:
    """Describe this installation, or its way to a coordinator."""
    if network is not None:
        from atoll.cli.connection import examine

        examine(network, identity)
        return
    from atoll.cli.doctor import report

    report()


@app.command()
def privacy(
    population: Annotated[int, typer.Option(metavar="N", help="How many clients there are.")],
    cohort: Annotated[int, typer.Option(metavar="C", help="How many take part in a round, on average.")],
    rounds: Annotated[int, typer.Option(metavar="T", help="How many rounds are played.")],
    delta: Annotated[float, typer.Option(metavar="D", help="The delta, below 1 / population.")],
    noise: Annotated[
        float | None,
        typer.Option(
            metavar="Z", help="Deviation of the noise on a round's sum over the clip: tells epsilon."
        ),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="The epsilon to keep to: tells the noise.")
    ] = None,
    sampling: Annotated[
        str, typer.Option(metavar="poisson|fixed", help="How a cohort is drawn.")
    ] = "poisson",
    json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """What differential privacy noise gives, or needs.

    For clipped updates, summed with normal noise: each client is protected with all of its data. Needs atoll[dp].
    """
    from atoll.cli.privacy import Question, answer

    answer(Question(population, cohort, rounds, delta, noise, epsilon, sampling), json)


app.command(cls=WithSettings)(train)
for _command in (plan, ls, show, log, rm, compare, report, dash, status, stop):
    app.command()(_command)
app.command(cls=WithSettings)(sweep)
app.command(cls=WithSettings)(audit)
