"""`atoll methods`, `atoll explain` and `atoll data`: what there is, in tables."""

from __future__ import annotations

import os
import sys
from typing import Any, get_type_hints

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atoll import data as sources
from atoll import methods, models, own
from atoll.adapters import adapters
from atoll.attacks import attacks
from atoll.channel.parse import transforms
from atoll.clock import kinds
from atoll.compress.parse import codecs
from atoll.data.augment import augmentations
from atoll.data.catalogue import TASKS, find_root
from atoll.errors import ConfigError, DataError, suggest
from atoll.experiment import Experiment, run_settings
from atoll.robust import rules as aggregations
from atoll.rounds.adapting import rules
from atoll.rounds.choosing import choices
from atoll.rounds.paces import paces
from atoll.schema import accepted, described
from atoll.topology.mixing import mixings
from atoll.topology.topology import topologies
from atoll.words import bytes_text

__all__ = [
    "describe_data",
    "explain_setting",
    "explain_settings",
    "get_data",
    "new_console",
    "new_table",
    "show_datasets",
    "show_method",
    "show_methods",
    "show_models",
    "show_partitions",
]


def new_console() -> Console:
    """Where tables are shown: 120 columns wide where no terminal says otherwise."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 120
    return Console(width=width, highlight=False)


class Words(Table):
    """A table whose cells are words as they stand: [rank, in] is a shape, and no markup."""

    def add_row(self, *cells: Any, **more: Any) -> None:
        super().add_row(*(Text(each) if isinstance(each, str) else each for each in cells), **more)


def new_table(*columns: str) -> Table:
    """A table with these columns, the first of which names what a line is about."""
    table = Words(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in columns:
        table.add_column(column, style="bold" if column == columns[0] else "", no_wrap=column == columns[0])
    return table


# --- methods ------------------------------------------------------------------------------------------------


def show_methods() -> None:
    """All methods, a line each."""
    table = new_table("method", "what it does", "paper", "traffic of a client")
    for each in methods.describe():
        exact = {None: "", True: "; exact", False: "; not exact"}[each.exact]
        table.add_row(each.name, each.line, each.paper, f"{each.cost}{exact}")
    new_console().print(
        table,
        "atoll methods NAME lists the settings of one; of adapters, exact methods average products of factors",
        sep="",
    )


def show_method(name: str) -> None:
    """One method, also one of the user's own: what it is, and every setting it takes."""
    for code in own.named(name):
        own.admit(code, "method")
    kind = methods.get(name)
    doc = (kind.__doc__ or "").partition("\n\n    Args:")[0]
    hints = get_type_hints(kind)
    console = new_console()
    console.print(doc, markup=False)
    table = new_table(f"settings of {own.short(name)}", "takes", "default", "meaning")
    for each in methods.fields(kind):
        table.add_row(
            each.name, accepted(each.name, hints[each.name]), _shown(each.name, each.default), each.help
        )
    console.print(table)
    table = new_table("settings of every run", "takes", "default", "meaning")
    usual = Experiment().to_dict()
    for key, annotated in run_settings().items():
        table.add_row(key, accepted(key, annotated), _shown(key, usual[key]), described(annotated))
    console.print(table)


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "full" if key == "batch_size" else "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- models -------------------------------------------------------------------------------------------------


def show_models() -> None:
    """The reference networks, a line each, with what their text may set."""
    table = new_table("model", "what it is")
    for usage, line in models.describe():
        table.add_row(usage, line)
    note = "With -bn behind the name, BatchNorm stands between the layers. A module of your own: model=module:Name"
    new_console().print(table, note, sep="", markup=False)


# --- data ---------------------------------------------------------------------------------------------------


def show_datasets(task: str | None = None) -> None:
    """The catalogue, or the part of it with inputs of one sort, and which of it can be read here.

    Raises ConfigError for another sort.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(f"there are no data of the task {task!r}", hint=suggest(task, TASKS))
    table = new_table(
        "data", "task", "what", "train", "test", "shape", "classes", "clients", "license", "here"
    )
    for each in sources.catalogue():
        if task not in (None, each.task):
            continue
        train, test = each.samples
        cells = [
            each.name,
            each.task,
            each.what,
            f"{train:,}",
            f"{test:,}" if test else "–",
            "x".join(map(str, each.shape)),
        ]
        cells += [str(each.classes), f"by {each.natural}" if each.natural else "–", each.license]
        table.add_row(*cells, "yes" if readable(each) else "no")
    note = "Also synthetic:ALPHA,BETA, and your own csv, npz or parquet files and folders. Files are looked for in "
    new_console().print(table, f"{note}{sources.data_root()}", sep="")


def readable(entry: sources.Entry) -> bool:
    """Whether the entry's files are here (they are not read)."""
    try:
        return entry.embedded or find_root(entry) is not None
    except DataError:
        return False


def show_partitions() -> None:
    """The ways to divide, a line each, with what their text may set."""
    table = new_table("partition", "what clients get")
    for usage, line in sources.partitions():
        table.add_row(usage, line)
    note = "A single +permuted:GROUPS may follow. atoll data describe NAME --partition TEXT shows what comes of one"
    new_console().print(table, note, sep="", markup=False)


# --- settings that have kinds ---------------------------------------------------------------------------------


def _strategies() -> list[tuple[str, str]]:
    from atoll.distributed.strategies import describe

    return describe()


def _protocols() -> list[tuple[str, str]]:
    from atoll.vertical.protocols import describe

    return describe()


def _steps() -> list[tuple[str, str]]:
    from atoll.vertical.features.steps import describe

    return describe()


def _said(name: str) -> str:
    """What a setting is, of `atoll run`, `atoll train` or `atoll vertical`."""
    if name == "strategy":
        from atoll.distributed.settings import Training

        return described(Training.kinds()[name])
    if name == "steps":
        return "what each party does to its columns before a protocol: [features] steps = ..."
    if name == "protocol":
        from atoll.vertical.settings import Vertical

        return described(Vertical.kinds()[name])
    if name in ("topology", "mixing"):
        return next(each.help for each in methods.fields(methods.Decentralised) if each.name == name)
    return described(run_settings()[name])


_KINDS = {
    "adapter": adapters,
    "devices": kinds,
    "choose": choices,
    "augment": augmentations,
    "adaptive": rules,
    "pace": paces,
    "channel": transforms,
    "down": codecs,
    "aggregate": aggregations,
    "attack": attacks,
    "strategy": _strategies,
    "protocol": _protocols,
    "steps": _steps,
    "topology": topologies,
    "mixing": mixings,
}
_ROOM = {
    "adapter": "With / in between, several: client k has number k modulo their count, for methods that can",
    "steps": "Several with + in between",
    "attack": "One that acts on data and one that acts on updates may be joined by +",
    "devices": "Several with + in between",
    "adaptive": "Several with + in between; a rule of your own: adaptive=module:Name",
    "channel": "Several with | in between; codecs with + zstd or + feedback behind them, or / between several",
    "down": "With + zstd, the same in fewer bytes; with + feedback, differences",
    "aggregate": "Several with + in between, the rule last",
    "augment": "Several with + in between; a function of your own: augment=module:function",
    "choose": "A choice of your own: choose=module:Name",
}


def explain_setting(name: str) -> None:
    """The kinds that a setting knows, a line each, with what their text may set.  Raises ConfigError."""
    if name not in _KINDS:
        raise ConfigError(f"the setting {name!r} has no kinds to list", hint=suggest(name, _KINDS))
    table = new_table(name, "what it is")
    for usage, line in _KINDS[name]():
        table.add_row(usage, " ".join(line.split()))
    console = new_console()
    console.print(_said(name), markup=False)
    console.print(table)
    if name in _ROOM:
        console.print(_ROOM[name], markup=False)


def explain_settings() -> None:
    """The settings that have kinds, a line each."""
    table = new_table("setting", "what it is")
    for name in _KINDS:
        table.add_row(name, _said(name))
    new_console().print(table, "atoll explain NAME lists the kinds of one", sep="")


def describe_data(name: str, given: dict[str, Any], sets: list[str]) -> None:
    """A dataset's facts, and the report on a division of it."""
    experiment = Experiment.read(None, sets, data=name, **given)
    dataset = experiment.load()
    console = new_console()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    rows = [("data", repr(dataset).partition(" ")[2].removesuffix(">"))]
    about = []
    if isinstance(dataset, sources.Dataset):
        entry = next((each for each in sources.catalogue() if each.name == name), None)
        about = [
            ("about", entry.what if entry else dataset.description),
            ("columns", ", ".join(dataset.columns)),
            ("features", ", ".join(dataset.features or ())),
            ("license", dataset.license),
            ("source", dataset.source),
        ]
    divided = experiment.divide(dataset)
    constants = [f"{name}:{middle:.6g}:{unit:.6g}" for name, (middle, unit) in (divided.scale or {}).items()]
    about.append(("scale", ", ".join(constants)))
    if divided.weights is not None:
        about.append(("weights", f"{divided.weights.min():.3g} to {divided.weights.max():.3g}, 1 on average"))
    for title, text in rows + [row for row in about if row[1]]:
        facts.add_row(title, text)
    console.print(facts, "", str(divided.report()), sep="\n", markup=False, soft_wrap=True)


def get_data(name: str, source: str | None) -> None:
    """Fetch the files of a dataset."""
    if any(each.name == name and each.embedded for each in sources.catalogue()):
        print(f"{name} is part of the package; there is nothing to download")
        return
    console = Console(stderr=True, highlight=False)
    seen: dict[str, int] = {}

    def progress(path: str, done: int, total: int | None) -> None:
        seen[path] = done
        if total is not None and done >= total:
            console.print(f"{path}: {bytes_text(done)}", markup=False)

    place = sources.fetch(name, source, progress=progress)
    print(f"{name} is in {place}" if seen else f"{name}: nothing to download, its files are in {place}")
