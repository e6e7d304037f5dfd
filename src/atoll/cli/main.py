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
from atoll.cli.export import export
from atoll.cli.given import File, Json, Quiet, Resume, Runs, Save, Sets, WithSettings, check_file
from atoll.cli.machines import join, peer, predict, serve
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


app.command()(serve)
app.command(cls=WithSettings)(peer)
app.command()(join)
app.command()(predict)


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
for _command in (plan, ls, show, log, rm, compare, report, export, dash, status, stop):
    app.command()(_command)
app.command(cls=WithSettings)(sweep)
app.command(cls=WithSettings)(audit)
