"""`atoll data`: the datasets that go by a name, and how they would be divided."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["data"]

data = typer.Typer(help="Datasets: what there is, how it would be divided.", no_args_is_help=True)


@data.command("list")
def data_list(
    task: Annotated[
        str | None, typer.Option(help="Only those whose inputs are image, text, audio, sensor or table.")
    ] = None,
) -> None:
    """The datasets that go by a name, and which are here."""
    from atoll.cli.show import show_datasets

    show_datasets(task)


@data.command("describe")
def data_describe(
    name: Annotated[str, typer.Argument(help="A dataset's name, a data file, or a folder.")],
    partition: Annotated[str, typer.Option(help="How to divide it, as in `atoll run`.")] = "auto",
    clients: Annotated[int | None, typer.Option(min=1, help="Among how many clients.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the division.")] = 0,
    label: Annotated[str | None, typer.Option(help="Of a data file: the column to predict.")] = None,
    client: Annotated[
        str | None, typer.Option(help="Of a data file: the column that names the client.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting of the data. Repeatable."),
    ] = None,
) -> None:
    """What a dataset holds, and how uneven a division of it would be."""
    from atoll.cli.show import describe_data

    named: dict[str, Any] = {"clients": clients, "label": label, "client": client}
    named |= {"partition": None if partition == "auto" else partition, "seed": seed or None}
    describe_data(name, {key: value for key, value in named.items() if value is not None}, sets or [])


@data.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="A dataset's name.")],
    source: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="A mirror; else ATOLL_DATA_URL.")
    ] = None,
) -> None:
    """Download a dataset's files and check them."""
    from atoll.cli.show import get_data

    get_data(name, source)
