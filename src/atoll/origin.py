"""Where data come from, in words: a name of the catalogue, or files and what their columns mean."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from atoll import data as sources
from atoll.data import Dataset, FederatedData
from atoll.data.corpus import KINDS, WINDOW, from_texts, kind_of
from atoll.data.federate import read_folder
from atoll.data.ratings import KINDS as LISTS
from atoll.data.ratings import from_ratings
from atoll.data.wishes import read_classes, read_names
from atoll.errors import ConfigError, DataError

__all__ = ["SUFFIXES", "Names", "Origin"]

SUFFIXES = {".csv", ".tsv", ".npz", ".parquet", ".pq"}
"""Of files of data."""

_OF_FILES = ("label", "client", "features", "categorical", "classes", "missing", "scale", "ignore")
_OF_TEXTS = ("tokenizer", "window", "packed")
_OF_LISTS = ("item", "liked")
_OF_MEDIA = ("rate", "seconds", "waves", "pixels")

Kind = Literal["file", "texts", "lists", "name"]
_SAID: dict[Kind, str] = {
    "file": "a file or a folder", "texts": "text", "lists": "a list of ratings", "name": "a name",
}  # fmt: skip


class _Group(NamedTuple):
    """Keys of some data: what they are for, the kinds of data that have them, and what else one may have meant."""

    keys: tuple[str, ...]
    what: str
    kinds: tuple[Kind, ...]
    instead: str = ""


_GROUPS = (
    _Group(("client",), "data files", ("file", "texts", "lists")),
    _Group(("label",), "data files", ("file", "lists")),
    _Group(_OF_FILES[2:], "data files", ("file",)),
    _Group(
        _OF_TEXTS, "texts", ("texts",), f"name texts: data = {' or '.join(f'{each}:PATH' for each in KINDS)}"
    ),
    _Group(
        _OF_LISTS, "ratings", ("lists",), f"name them: data = {' or '.join(f'{each}:PATH' for each in LISTS)}"
    ),
    _Group(("waves",), "a folder of recordings", ("file",), "data = spoken-digits:waves"),
    _Group(("rate", "seconds"), "a folder of recordings", ("file",)),
    _Group(("pixels",), "a folder of pictures", ("file",)),
)
Names = str | tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where data come from. What each field takes is in its annotation."""

    data: Annotated[
        str,
        Meta(
            description="a dataset's name (`atoll data list`), a csv, npz or parquet file, or a folder: a file for each"
            " client, train.csv and test.csv, LEAF's json, or a folder of recordings or pictures for each class (and"
            " client); texts: text:PATH, instructions:PATH, pairs:PATH; a csv of who rated what, ratings:PATH, or had"
            " what, likes:PATH"
        ),
    ] = "digits"
    label: Annotated[str | None, Meta(description="of a data file: the column to predict")] = None
    client: Annotated[str | None, Meta(description="of a data file: the column that names the client")] = None
    features: Annotated[
        Names, Meta(description="of a data file: the columns to learn from; by default all others")
    ] = None
    categorical: Annotated[
        Names,
        Meta(
            description='of a data file: columns to encode one-hot, "sex, smoker:no|yes"; text: all columns of text'
        ),
    ] = None
    classes: Annotated[
        int | str | tuple[int | str, ...] | None,
        Meta(description="of a data file: how many classes, or their labels in order; regression"),
    ] = None
    missing: Annotated[
        Literal["drop", "zero", "mark"] | None,
        Meta(description="of a data file: gaps drop their rows, become 0 (after scaling), or 0 and a mark"),
    ] = None
    scale: Annotated[
        Names,
        Meta(
            description='of a data file: "age:50:15, weight:100" is (age - 50) / 15 and weight / 100; federated: mean'
            " and deviation, by sums over the clients"
        ),
    ] = None
    ignore: Annotated[
        int | None, Meta(description="of a data file: the label, a number, of targets that do not count")
    ] = None

    tokenizer: Annotated[
        str | None, Meta(description='of texts: "bytes", or a folder with a tokenizer.json; by default bytes')
    ] = None
    window: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        Meta(description=f"of texts: tokens in a sample; by default {WINDOW}"),
    ] = None
    packed: Annotated[
        bool, Meta(description="of instructions: several follow each other in a sample, none is filled up")
    ] = False

    rate: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="of recordings: samples a second, to which others are resampled; by default as they are"
        ),
    ] = None
    seconds: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="of recordings: how long a sample is, cut or filled up with silence; by default as they are"
        ),
    ] = None
    waves: Annotated[bool, Meta(description="of recordings: waveforms, and no log mel spectrograms")] = False
    pixels: Annotated[
        int | str | None,
        Meta(description='of pictures: "28x32", height and width, or one number; by default as they are'),
    ] = None

    item: Annotated[
        str | None, Meta(description="of ratings: the column that names the item; by default item")
    ] = None
    liked: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="of likes: the rating from which on an item is liked; by default every row is a like"
        ),
    ] = None

    def check_data(self) -> None:
        """Read the texts of the fields.  Raises ConfigError where one is for other data than these."""
        for keys, what, kinds, instead in _GROUPS:
            for key in keys:
                if getattr(self, key) not in (None, False) and self.kind not in kinds:
                    raise ConfigError(
                        f"{key} is for {what}, and data = {self.data!r} is {_SAID[self.kind]}",
                        hint=f"leave {key} out" + (f", or {instead}" if instead else ""),
                    )
        self._check_lists()
        for key in ("features", "categorical", "scale"):
            if (given := getattr(self, key)) is not None:
                object.__setattr__(self, key, tuple(read_names(given, key)))
        classes = read_classes(self.classes)
        object.__setattr__(self, "classes", tuple(classes) if isinstance(classes, list) else classes)

    def _check_lists(self) -> None:
        """Raise ConfigError where it is not said, or said twice, what a row of ratings counts for."""
        kind, path = kind_of(self.data, LISTS) or ("", "")
        if kind == "ratings" and self.liked is not None:
            raise ConfigError(
                f"liked = {self.liked:g} makes likes of ratings, and data = {self.data!r} are to be ratings",
                hint=f'data = "likes:{path}", or metrics = "ndcg@10>={self.liked:g}"',
            )
        if kind == "likes" and self.liked is None and self.label is not None:
            raise ConfigError(
                f"label = {self.label!r} names the ratings, and nothing says which of them are likes",
                hint=f"liked = 4, or leave label out: then every row is a like; or data = ratings:{path}",
            )

    @property
    def kind(self) -> Kind:
        """What `data` is: a file (or a folder), texts, lists (of ratings), or a name of the catalogue."""
        if kind_of(self.data) is not None:
            return "texts"
        if kind_of(self.data, LISTS) is not None:
            return "lists"
        suffixes = {suffix.lower() for suffix in Path(self.data).suffixes}
        if SUFFIXES & suffixes or os.sep in self.data:
            return "file"
        known = {each.name for each in sources.catalogue()}
        return "file" if Path(self.data).is_dir() and self.data not in known else "name"

    def usual(self) -> dict[str, str]:
        """What such data are learned with where nothing is said, and it is not what follows from their shapes."""
        lists = kind_of(self.data, LISTS)
        if lists is None:
            return {}
        if lists[0] == "likes":
            return {"model": "factors", "loss": "listwise", "metrics": "ndcg@10, recall@10"}
        return {"model": "factors", "loss": "rated", "metrics": "rmse"}

    def of_clients(self) -> dict[str, Any]:
        """How a folder of clients is read, beside its columns: `test`, `validation`, `seed`."""
        return {}

    def load(self) -> Dataset | FederatedData:
        """The data: in one place, to be divided, or clients that are there already (a folder of them).

        Raises ConfigError for an unknown name, DataError where it cannot be read.
        """
        if (texts := kind_of(self.data)) is not None:
            return from_texts(
                *texts,
                client=self.client,
                tokens=self.tokenizer,
                window=self.window or WINDOW,
                packed=self.packed,
            )
        if (lists := kind_of(self.data, LISTS)) is not None:
            return self._listed(*lists)
        if self.kind == "name":
            return sources.load(self.data)
        given = {key: value for key in _OF_FILES if (value := getattr(self, key)) is not None}
        media = {key: value for key in _OF_MEDIA if (value := getattr(self, key)) not in (None, False)}
        if Path(self.data).is_dir():
            return read_folder(Path(self.data), **self.of_clients(), **given, **media)
        if not Path(self.data).is_file():
            raise DataError(f"there is no file {self.data}", hint="paths start where atoll is started")
        if media:
            key = next(iter(media))
            raise ConfigError(
                f"{key} is for a folder of recordings or pictures, and {self.data} is a file",
                hint=f"leave {key} out",
            )
        return sources.from_file(self.data, **given)

    def _listed(self, kind: str, path: str) -> FederatedData:
        """Users with a list each."""
        implicit = kind == "likes" and self.liked is None
        found = from_ratings(
            path,
            user=self.client or "user",
            item=self.item or "item",
            rating=None if implicit else self.label or "rating",
        )
        wishes = self.of_clients()
        test = wishes.pop("test", "auto")
        return found.lists(liked=self.liked, test=0.25 if test == "auto" else test, **wishes)
