"""How data become samples, as the coordinator's file says; and what it must say, since a node cannot know it.

A simulation reads all clients together, and some of what it does with a table follows from all of them: which columns
there are and in which order, the values of a category, the labels, which columns have gaps. A node is alone, and what
it saw in its own rows would fit nobody else's model. So these are stated, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from atoll.data import Dataset
from atoll.data.corpus import WINDOW, from_texts
from atoll.data.files import TABLES, read_table
from atoll.data.media import media_of
from atoll.data.table import Table, is_frame
from atoll.data.tokens import tokenizer as read_by
from atoll.data.whole import is_pair, is_split
from atoll.data.wishes import read_names, read_scale
from atoll.errors import ConfigError, suggest
from atoll.network.wire import Plan

__all__ = ["Reading", "asked", "check_stated", "read_texts"]

_Words = str | tuple[str, ...] | None
_OF_TEXTS = ("texts", "window", "packed", "tokenizer")
_OF_MEDIA: dict[str, tuple[tuple[str, str, str], ...]] = {
    "audio": (
        ("rate", "at which rate recordings are read (they differ from site to site)", "rate = 16000"),
        ("seconds", "how long a recording is", "seconds = 1"),
    ),
    "image": (("pixels", "which size pictures have", 'pixels = 64, or "48x64" (height x width)'),),
}
"""What a plan must say of a folder: the key, what is open without it, and a line that says it."""


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a file becomes samples: the keys of a data file, as the coordinator's file has them."""

    label: str | None = None
    features: _Words = None
    categorical: _Words = None
    classes: int | str | tuple[int | str, ...] | None = None
    missing: Literal["drop", "zero", "mark"] | None = None
    scale: str | tuple[str, ...] | dict[str, float | tuple[float, ...]] | None = None
    ignore: int | None = None
    texts: Literal["text", "instructions", "pairs"] | None = None
    """What kind of texts a file or folder has, where it has any; the rest is how these become tokens and samples."""
    window: int | None = None
    packed: bool | None = None
    tokenizer: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    """The SHA-256 of the tokenizer that all have; None: texts are read as bytes."""
    rate: Annotated[int, Meta(ge=1)] | None = None
    """Of recordings, as `seconds` and `waves`; `pixels` is of pictures."""
    seconds: Annotated[float, Meta(gt=0)] | None = None
    waves: bool | None = None
    pixels: int | str | None = None

    @staticmethod
    def of(plan: Plan) -> Reading:
        """What a plan says about data.  Raises ConfigError for keys and values that are not to be had."""
        given = {key: value for key, value in plan.data.items() if value is not None}
        strange = [key for key in given if key not in Reading.__struct_fields__]
        if strange:
            raise ConfigError(
                f"the coordinator's file has {strange[0]} for the data of nodes, and there is no such key",
                hint=suggest(strange[0], Reading.__struct_fields__),
            )
        try:
            return msgspec.convert(given, Reading)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"the coordinator's file says what cannot be about data: {error}",
                hint="all nodes read their data by its keys; they are those of `atoll run`",
            ) from None

    def options(self) -> dict[str, Any]:
        """What is given of tables, arrays, recordings and pictures, as `from_clients` takes it."""
        keys = [key for key in self.__struct_fields__ if key not in _OF_TEXTS]
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    @property
    def columns(self) -> list[str]:
        """The columns that are learned from and predicted, as far as they are named."""
        named = [] if self.features is None else read_names(self.features, "features")
        return [*named, *([] if self.label is None else [self.label])]


def asked(source: str, plan: Plan) -> list[str]:
    """The columns that a plan has read at a node, the arrays of its .npz file, or "text", "audio", "image".

    Known before anything is read.
    """
    reading = Reading.of(plan)
    if reading.texts is not None:
        return ["text"]
    if (media := media_of(Path(source))) is not None:
        return [media]
    if Path(source).suffix.lower() == ".npz":
        return ["x", "y" if reading.label is None else reading.label]
    return reading.columns


def read_texts(reading: Reading, source: str, tokenizer: str | None) -> Dataset | None:
    """The texts of a node, read as the plan says, by the tokenizer in a folder of the node's; None: it reads none.

    Raises DataError for texts that cannot be read, ConfigError where the tokenizer is not the run's.
    """
    if reading.texts is None:
        if tokenizer is not None:
            raise ConfigError(
                f"--tokenizer {tokenizer}: the run reads no texts", hint="leave --tokenizer out"
            )
        return None
    if reading.tokenizer is None and tokenizer is not None:
        raise ConfigError(
            f"--tokenizer {tokenizer}: the run reads texts as bytes", hint="leave --tokenizer out"
        )
    if reading.tokenizer is not None:
        if tokenizer is None:
            raise ConfigError(
                "the run reads texts by a tokenizer, which this node has not named",
                hint="atoll join ... --tokenizer DIR, the folder with its tokenizer.json",
            )
        if (found := read_by(tokenizer).sha256) != reading.tokenizer:
            raise ConfigError(
                f"--tokenizer {tokenizer} has the hash {str(found)[:8]}..., and the run's {reading.tokenizer[:8]}...",
                hint="take the files that the run was made with",
            )
    return from_texts(
        reading.texts, source, tokens=tokenizer, window=reading.window or WINDOW, packed=bool(reading.packed)
    )


# --- what must be stated --------------------------------------------------------------------------------------------


def check_stated(reading: Reading, value: Any, source: str) -> None:
    """Refuse a plan that leaves to each node what all of them must do alike; says all of it at once."""
    table = _table_of(value)
    reasons: list[str] = []
    lines: list[str] = []
    if reading.classes is None:
        reasons.append("which classes there are (a site may lack some)")
        lines.append('classes = "no,yes" (the labels in order), 10 (0 to 9) or "regression"')
    if table is not None:
        names = _columns(table)
        if reading.label is None:
            reasons.append("which column is to be predicted")
            lines.append(f"label = one of {', '.join(names)}")
        if reading.features is None:
            reasons.append("which columns there are, in which order (they differ from site to site)")
            rest = ",".join(each for each in names if each != reading.label)
            lines.append(f'features = "{rest}"')
        for column in _open_categories(reading):
            reasons.append(f"which values {column} has (categories differ from site to site)")
            lines.append(f'categorical = "{column}:no|yes", every value')
        if reading.missing == "mark":
            reasons.append("which columns have gaps (they differ from site to site)")
            lines.append('missing = "zero" or "drop"')
        if reading.scale is not None and _federated(reading.scale):
            reasons.append("mean and deviation of the columns (sums over nodes are not to be had yet)")
            lines.append('scale = "age:50:15", for (age - 50) / 15')
    elif is_pair(value) and is_frame(value[0]):
        raise ConfigError(
            f"{source} returns a frame and its targets apart, and nothing says in which order columns stand",
            hint="return one frame with the label in it, or an array of numbers: frame.to_numpy()",
        )
    elif isinstance(value, Dataset):
        _check_dataset(reading, value, source)
    elif isinstance(value, str | Path) and (media := media_of(Path(value))) is not None:
        for key, why, line in _OF_MEDIA[media]:
            if getattr(reading, key) is None:
                reasons.append(why)
                lines.append(line)
    if reasons:
        raise ConfigError(
            f"{source} cannot be read alone: the coordinator's file does not say {'; '.join(reasons)}",
            hint=f"write into the coordinator's file: {'; '.join(lines)}",
        )


def _columns(table: Any) -> list[str]:
    """The columns of a table, for errors."""
    read = read_table(Path(table)) if isinstance(table, str | Path) else Table.of(table, "frame")
    return read.names


def _check_dataset(reading: Reading, made: Dataset, source: str) -> None:
    """A dataset is taken as it is; it must have been made as the plan has tables read."""
    if made.unscaled is not None:
        raise ConfigError(
            f"{source} returns a dataset that is to be scaled by sums over the clients, and a node is alone",
            hint='give constants: scale={"age": (50, 15)}',
        )
    if made.features is None:
        return
    stated = _inputs(reading)
    if list(made.features) != stated:
        says = ", ".join(stated) or "none"
        raise ConfigError(
            f"{source} returns inputs called {', '.join(made.features)}, and the coordinator's file says {says}",
            hint="make them as its keys features and categorical say, which all nodes do alike",
        )


def _inputs(reading: Reading) -> list[str]:
    """What inputs are called, as far as the plan says; see `atoll.data.encoding`."""
    levels: dict[str, list[str]] = {}
    for entry in read_names(reading.categorical or (), "categorical"):
        column, colon, values = entry.rpartition(":")
        levels[column.strip()] = [each.strip() for each in values.split("|")] if colon else []
    features = read_names(reading.features or (), "features")
    named = [[f"{each}={level}" for level in levels[each]] if each in levels else [each] for each in features]
    return [name for names in named for name in names]


def _open_categories(reading: Reading) -> list[str]:
    """Columns to encode whose values are not stated; a name with a colon is a column's if it is a feature."""
    if reading.categorical is None:
        return []
    features = set() if reading.features is None else {*read_names(reading.features, "features")}
    entries = read_names(reading.categorical, "categorical")
    if entries == ["text"]:
        return ["each column of text"]
    return [each for each in entries if ":" not in each or each in features]


def _federated(scale: Any) -> bool:
    return read_scale(scale) == "federated"


def _table_of(value: Any) -> Any:
    """The table among what a client has: a frame or the path of one; None where there is none."""
    if isinstance(value, Mapping):
        return _table_of(value["train"]) if is_split(value) else None
    if is_frame(value):
        return value
    suffixes = {each.lower() for each in Path(value).suffixes} if isinstance(value, str | Path) else set()
    return value if suffixes & set(TABLES) else None
