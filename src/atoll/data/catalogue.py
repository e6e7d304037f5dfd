"""The datasets that `load` knows by name: what they are, where they come from, which files they need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from atoll import spec
from atoll.errors import DataError

from .dataset import Dataset
from .options import call

__all__ = ["TASKS", "Entry", "catalogue", "data_root", "entry", "find_root", "load"]

Task = Literal["image", "text", "audio", "sensor", "table", "several"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Entry:
    """A dataset of the catalogue.

    Attributes:
        name, what: the name to load it by, and what it is.
        task: what its inputs are, one of `TASKS`.
        samples: (train, test); test is 0 where there is no split of its own.
        shape: of one input; of those with several parts, of the first.
        classes: how many; all entries are classifications.
        natural: what the natural clients are, or None.
        license, source: under which terms, and where it originally comes from.
        embedded: True where it is part of the package and needs no files.
        files: path below the data root -> SHA-256.
        form: what is in the files, so that a file made elsewhere can take their place.
        package: the Debian package that holds the files, and the folder, laid out like a data root, where it puts them.
    """

    name: str
    what: str
    task: Task
    samples: tuple[int, int]
    shape: tuple[int, ...]
    classes: int
    natural: str | None
    license: str
    source: str
    embedded: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    form: str = ""
    package: tuple[str, str] | None = None

    def origin(self) -> str:
        """Where the files come from, and what is read from them."""
        text = f"Original source: {self.source} ({self.license}). Files expected: {', '.join(self.files)}"
        return f"{text}; {self.form}" if self.form else text


def _files(*starts: str) -> dict[str, str]:
    """Path -> SHA-256 of the recorded files whose path starts in one of these ways."""
    text = resources.files(__package__).joinpath("embedded", "SHA256SUMS").read_text(encoding="ascii")
    pairs = [line.split() for line in text.splitlines()]
    return {path: digest for digest, path in pairs if path.startswith(starts)}


_CC = "CC BY 4.0"
_UCI = "UCI Machine Learning Repository"
_DIGITS = (
    "mnist.npz is NumPy's archive of x_train (60000, 28, 28), y_train (60000,), x_test (10000, 28, 28) and y_test"
    " (10000,) as bytes, as Keras distributes it (keras.datasets.mnist), in any compression"
)
_ENTRIES = (
    Entry(
        "digits", "handwritten digits, 8x8 pixels", "image", (1442, 355), (1, 8, 8), 10, None,
        _CC, f"E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, {_UCI}", embedded=True,
    ),
    Entry(
        "heart", "heart disease in four hospitals, 15 features", "table", (740, 0), (15,), 2, "hospital",
        _CC, f"A. Janosi, W. Steinbrunn, M. Pfisterer, R. Detrano, Heart Disease, {_UCI}", embedded=True,
    ),
    Entry(
        "mnist", "handwritten digits, 28x28 pixels", "image", (60000, 10000), (1, 28, 28), 10, None,
        "CC BY-SA 3.0",
        "Y. LeCun, C. Cortes, C. Burges, The MNIST Database of Handwritten Digits, yann.lecun.com/exdb/mnist",
        files=_files("mnist/mnist.npz"), form=_DIGITS,
    ),
    Entry(
        "fashion-mnist", "pictures of clothes, 28x28 pixels", "image", (60000, 10000), (1, 28, 28), 10, None,
        "MIT", "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, github.com/zalandoresearch/fashion-mnist",
        files=_files("fashion-mnist/"), form="gzipped IDX files, however packed (the checksums are Debian's)",
        package=("dataset-fashion-mnist", "/usr/share/datasets"),
    ),
    Entry(
        "mnist-by-writer", "the MNIST digits with known writers", "image", (17435, 10000), (1, 28, 28), 10, "writer",
        "CC BY-SA 3.0", "MNIST, with writers from the QMNIST project's recovery of its origin",
        files=_files("mnist/"),
        form=f"{_DIGITS}; mnist_writers.npz has train_first_17435 (17435, 8), the writer in its third column",
    ),
    Entry(
        "har", "activities from smartphone motion, 128 steps", "sensor", (10299, 0), (9, 128), 6, "subject",
        _CC, f"J. Reyes-Ortiz et al., Human Activity Recognition Using Smartphones, {_UCI}",
        files=_files("har/"),
        form="har_inertial.npz has planes (9, 4, 64 H): the four bytes of 64 little-endian floats of nine signals, for"
        " H half windows; window (10299, 2), the two halves of each; y (10299,) from 0; subject (10299,)",
    ),
    Entry(
        "spoken-digits", "digits by 36 voices of synthetic speech", "audio", (1800, 360), (32, 39), 10, "voice",
        "not stated", "synthetic speech, made with espeak-ng 1.51: no person speaks", files=_files("spoken-digits/"),
        form="spoken_digits.npz has audio (2160, 5120), bytes of mu-law at 8 kHz; digit (2160,); voice (2160,), its"
        " number in voices (36,), the names",
    ),
    Entry(
        "av-mnist", "digits seen and heard, both noisy: MNIST and spoken-digits, by voice", "several", (1800, 1080),
        (1, 28, 28), 10, "voice", "CC BY-SA 3.0", "MNIST's images beside synthetic speech, made with espeak-ng 1.51",
        files=_files("mnist/mnist.npz", "spoken-digits/"), form="as for mnist and spoken-digits",
    ),
    Entry(
        "cifar10", "30,000 of the CIFAR-10 pictures, split anew", "image", (25000, 5000), (3, 32, 32), 10, None,
        "research use", "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        files=_files("cifar10/"),
        form="each .webp has 50 rows of 50 pictures without loss, labels.npy has the classes (30000,) in their order",
    ),
    Entry(
        "shakespeare", "next character in plays, 80 symbols at a time", "text", (12132, 0), (80,), 65, "role",
        "public domain", "the works of W. Shakespeare as collected for A. Karpathy's char-rnn",
        files=_files("tinyshakespeare/"), form="char-rnn's input.txt, packed by xz",
    ),
    Entry(
        "credit-default", "default of credit card clients", "table", (30000, 0), (33,), 2, None,
        _CC, f"I-C. Yeh, Default of Credit Card Clients, {_UCI}", files=_files("credit-default/"),
        form="its table as CSV with a line of names, ID first and the default last (25 columns), packed by xz",
    ),
    Entry(
        "adult", "income above 50,000 from a census, 123 binary features", "table", (32561, 16281), (123,), 2, None,
        _CC, f"B. Becker and R. Kohavi, Adult, {_UCI}; encoded as a9a by J. Platt",
        files=_files("adult-a9a/"),
        form="a9a as LIBSVM has it, packed by xz: the training rows in two parts, and the test rows",
    ),
)  # fmt: skip
_SETTINGS: Mapping[str, tuple[spec.Parameter, ...]] = {
    "shakespeare": (
        spec.word("symbols", optional=True),
        spec.whole("window", optional=True, at_least=2),
        spec.whole("roles", optional=True, at_least=1),
    ),
    "spoken-digits": (spec.word("form", optional=True),),
    "av-mnist": (spec.word("part", optional=True),),
}
"""What may follow a name and a colon."""

_BY_NAME = {each.name: each for each in _ENTRIES}


def catalogue() -> list[Entry]:
    """All datasets that `load` knows, the generator ``synthetic`` apart."""
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The catalogue's entry of this name. Raises `ConfigError` with the nearest names."""
    if name not in _BY_NAME:
        raise spec.unknown("dataset", name, [*_BY_NAME, "synthetic:1,1"])
    return _BY_NAME[name]


def data_root() -> Path:
    """Where data files are: ``ATOLL_DATA``, else ``data`` below ``ATOLL_HOME`` (~/.cache/atoll)."""
    if os.environ.get("ATOLL_DATA"):
        return Path(os.environ["ATOLL_DATA"]).expanduser()
    return _cache()


def _cache() -> Path:
    home = os.environ.get("ATOLL_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "atoll") / "data"


def find_root(item: Entry, root: str | Path | None = None) -> Path:
    """The first place that has all files of an entry: `root` alone, or ``ATOLL_DATA``, the cache, a Debian package."""
    places = [Path(root).expanduser()] if root is not None else list(dict.fromkeys([data_root(), _cache()]))
    package = [] if root is not None or item.package is None else [Path(item.package[1])]
    for place in places + package:
        if all((place / path).is_file() for path in item.files):
            return place
    absent = [path for path in item.files if not (places[0] / path).is_file()]
    apt = f"apt install {item.package[0]}, or " if package and item.package is not None else ""
    raise DataError(
        f"{item.name}: {absent[0]} is not in {' or '.join(map(str, places))}"
        + (f" ({len(absent)} files are missing)" if len(absent) > 1 else "")
        + f". {item.origin()}",
        hint=f"{apt}put the files there, or set ATOLL_DATA to a folder that has them; from a mirror of yours:"
        f" atoll data get {item.name} --from URL",
    )


def load(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """A dataset of the catalogue by name, such as ``load("mnist")`` or ``load("synthetic:1,1")``.

    Args:
        name: see `catalogue`. ``synthetic:ALPHA,BETA`` generates the data of `synthetic`;
            ``shakespeare:bytes,WINDOW,ROLES`` are bytes, of so many roles, with unseen text of each;
            ``spoken-digits:waves`` are waveforms and no spectrograms; ``av-mnist:audio`` is one of its parts alone.
        root: the folder with the data files; by default ``ATOLL_DATA``, then the cache.
        options: of the reader; see the functions in `atoll.data.sources`.

    Raises `ConfigError` for an unknown name or option, and `DataError` where files are absent or damaged.
    """
    from . import sources, synthesis

    asked = spec.parse(name, "dataset")
    if asked.name == "synthetic":
        return call(synthesis.from_text, f"dataset {name!r}", options, name)
    item = entry(asked.name)
    given = {} if asked.given is None else asked.read({item.name: _SETTINGS.get(item.name, ())})
    return sources.read(item, root, {**given, **options})
