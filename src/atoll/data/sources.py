"""Readers of the catalogue's datasets. Scaling uses fixed constants only, no statistic of the data."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import ConfigError, DataError, MissingExtraError

from .avmnist import av_mnist
from .catalogue import Entry, find_root
from .dataset import Dataset
from .options import call
from .samples import Samples
from .spoken import spoken_digits
from .text import shakespeare

__all__ = ["read"]

Array = NDArray[Any]
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)


def read(item: Entry, root: str | Path | None, options: Mapping[str, Any]) -> Dataset:
    """The dataset of a catalogue entry; `DataError` with a remedy for files that cannot be read."""
    place = find_root(item, root) if item.files else Path()
    try:
        data = call(_READERS[item.name], f"dataset {item.name!r}", options, place)
    except (OSError, EOFError, KeyError, ValueError, IndexError, zipfile.BadZipFile, lzma.LZMAError) as error:
        if isinstance(error, (ConfigError, DataError, MissingExtraError)):
            raise
        raise DataError(
            f"{item.name}: the files in {place} cannot be read ({type(error).__name__}: {error})",
            hint=f"they may be damaged, or others than expected. {item.origin()}",
        ) from error
    data.name, data.description, data.license, data.source = item.name, item.what, item.license, item.source
    return data


def _npz(path: Path) -> dict[str, Array]:
    with path.open("rb") as stream:
        return _arrays(stream)


def _arrays(stream: IO[bytes]) -> dict[str, Array]:
    with np.load(stream, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def _embedded(name: str) -> dict[str, Array]:
    return _arrays(io.BytesIO(resources.files(__package__).joinpath("embedded", name).read_bytes()))


def _labels(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values).astype(np.int64))


def _images(pixels: Array, scale: float) -> torch.Tensor:
    """(n, h, w) bytes as (n, 1, h, w) float32 in [0, 1], with one copy."""
    return torch.from_numpy(pixels).to(torch.float32).div_(scale).unsqueeze_(1)


def _digits(_: Path) -> Dataset:
    stored = _embedded("digits.npz")
    x, y = _images(stored["images"], 16.0), _labels(stored["labels"])
    test = np.zeros(len(y), dtype=bool)
    for label in range(10):  # every fifth sample of a class: fixed, so that all partitions share one test set
        test[np.flatnonzero(stored["labels"] == label)[4::5]] = True
    rows, held = np.flatnonzero(~test), np.flatnonzero(test)
    return Dataset("digits", Samples(x, y).take(rows), Samples(x, y).take(held), classes=10)


def _one_hot(values: Array, categories: list[int]) -> Array:
    hot: Array = (values[:, None] == np.array(categories)).astype(np.float32)
    return hot


def _heart(_: Path) -> Dataset:
    """Age / 100, sex, chest pain one-hot (4), blood pressure / 200, cholesterol / 600, fasting sugar,
    rest ECG one-hot (3), heart rate / 200, exercise angina, ST depression / 5.

    A cholesterol of 0 stands for "not measured" in the source.
    """
    stored = _embedded("heart.npz")
    v = stored["values"]
    x = np.concatenate(
        [
            v[:, 0:1] / 100, v[:, 1:2], _one_hot(v[:, 2], [1, 2, 3, 4]), v[:, 3:4] / 200, v[:, 4:5] / 600,
            v[:, 5:6], _one_hot(v[:, 6], [0, 1, 2]), v[:, 7:8] / 200, v[:, 8:9], v[:, 9:10] / 5,
        ],
        axis=1,
    )  # fmt: skip
    hospital = np.array(["cleveland", "hungarian", "switzerland", "va"])[stored["hospital"]]
    return Dataset(
        "heart",
        Samples(torch.from_numpy(x.astype(np.float32)), _labels(stored["severity"] > 0)),
        classes=2,
        columns={"hospital": hospital, "severity": stored["severity"], "age": v[:, 0]},
        natural="hospital",
    )


def _mnist(root: Path) -> Dataset:
    stored = _npz(root / "mnist" / "mnist.npz")
    return Dataset(
        "mnist",
        Samples(_images(stored["x_train"], 255.0), _labels(stored["y_train"])),
        Samples(_images(stored["x_test"], 255.0), _labels(stored["y_test"])),
        classes=10,
    )


def _idx(path: Path) -> Array:
    """A gzipped IDX file of bytes: two zeros, the type, the number of dimensions, the dimensions, the values."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is no IDX file of bytes")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape).copy()


def _fashion(root: Path) -> Dataset:
    train, test = (
        Samples(
            _images(_idx(root / "fashion-mnist" / f"{part}-images-idx3-ubyte.gz"), 255.0),
            _labels(_idx(root / "fashion-mnist" / f"{part}-labels-idx1-ubyte.gz")),
        )
        for part in ("train", "t10k")
    )
    return Dataset("fashion-mnist", train, test, classes=10)


def _mnist_by_writer(root: Path) -> Dataset:
    stored = _npz(root / "mnist" / "mnist.npz")
    writers = _npz(root / "mnist" / "mnist_writers.npz")["train_first_17435"][:, 2]
    n = len(writers)
    return Dataset(
        "mnist-by-writer",
        Samples(_images(stored["x_train"][:n], 255.0), _labels(stored["y_train"][:n])),
        Samples(_images(stored["x_test"], 255.0), _labels(stored["y_test"])),
        classes=10,
        columns={"writer": writers},
        natural="writer",
    )


def _har(root: Path) -> Dataset:
    """Acceleration in g and angular velocity in rad/s as measured, without any scaling."""
    stored = _npz(root / "har" / "har_inertial.npz")
    planes, window = stored["planes"], stored["window"]
    halves = planes.shape[2] // 64
    # Byte planes back to floats: byte b of value i is planes[:, b, i]; a window is two halves of 64 steps.
    half = planes.transpose(0, 2, 1).copy().view("<f4").reshape(9, halves, 64).transpose(1, 0, 2)
    x = np.concatenate([half[window[:, 0]], half[window[:, 1]]], axis=-1).astype(np.float32, copy=False)
    return Dataset(
        "har",
        Samples(torch.from_numpy(x), _labels(stored["y"])),
        classes=6,
        columns={"subject": stored["subject"]},
        natural="subject",
    )


def _cifar10(root: Path, normalise: bool = True) -> Dataset:
    """Pictures in [0, 1], or with `normalise` minus the published channel means, over the deviations."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "images", "reading cifar10") from None
    labels = _labels(np.load(root / "cifar10" / "labels.npy", allow_pickle=False))
    x = torch.empty(30000, 3, 32, 32)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CIFAR10_MEAN, CIFAR10_STD))
    for index in range(12):
        with Image.open(root / "cifar10" / f"{index:02d}.webp") as mosaic:
            pixels = torch.from_numpy(np.array(mosaic.convert("RGB")))
        tiles = pixels.view(50, 32, 50, 32, 3).permute(0, 2, 4, 1, 3).reshape(2500, 3, 32, 32)
        part = x[index * 2500 : (index + 1) * 2500].copy_(tiles).div_(255.0)
        if normalise:
            part.sub_(mean).div_(std)
    return Dataset(
        "cifar10", Samples(x[:25000], labels[:25000]), Samples(x[25000:], labels[25000:]), classes=10
    )


def _credit(root: Path) -> Dataset:
    """Limit / 1,000,000, sex one-hot (2), education one-hot (0-6), marriage one-hot (0-3), age / 100,
    six states of payment / 10, six bills / 1,000,000, six payments / 1,000,000 (new Taiwan dollars)."""
    with lzma.open(root / "credit-default" / "UCI_Credit_Card.csv.xz", "rt", newline="") as stream:
        reader = csv.reader(stream)
        next(reader)
        v = np.array(list(reader), dtype=np.float64).astype(np.float32)
    x = np.concatenate(
        [
            v[:, 1:2] / 1e6, _one_hot(v[:, 2], [1, 2]), _one_hot(v[:, 3], list(range(7))),
            _one_hot(v[:, 4], list(range(4))), v[:, 5:6] / 100, v[:, 6:12] / 10, v[:, 12:24] / 1e6,
        ],
        axis=1,
    )  # fmt: skip
    return Dataset(
        "credit-default",
        Samples(torch.from_numpy(x.astype(np.float32)), _labels(v[:, 24])),
        classes=2,
        columns={"education": v[:, 3].astype(np.int64), "age": v[:, 5].astype(np.int64)},
    )


def _libsvm(path: Path, features: int) -> tuple[Array, Array]:
    """Dense rows of a sparse text file whose features count from 1; a label is positive where it says +1."""
    with lzma.open(path, "rt") as stream:
        lines = [line.split() for line in stream]
    x = np.zeros((len(lines), features), dtype=np.float32)
    for row, line in enumerate(lines):
        for item in line[1:]:
            column, _, value = item.partition(":")
            x[row, int(column) - 1] = float(value)
    return x, np.array([int(float(line[0])) > 0 for line in lines])


def _adult(root: Path) -> Dataset:
    parts = [_libsvm(root / "adult-a9a" / f"a9a_horizontal_{part}.xz", 123) for part in ("p0", "p1", "test")]
    train_x, train_y = (np.concatenate([parts[0][side], parts[1][side]]) for side in (0, 1))
    return Dataset(
        "adult",
        Samples(torch.from_numpy(train_x), _labels(train_y)),
        Samples(torch.from_numpy(parts[2][0]), _labels(parts[2][1])),
        classes=2,
    )


_READERS: dict[str, Callable[..., Dataset]] = {
    "digits": _digits,
    "heart": _heart,
    "mnist": _mnist,
    "fashion-mnist": _fashion,
    "mnist-by-writer": _mnist_by_writer,
    "har": _har,
    "spoken-digits": spoken_digits,
    "av-mnist": av_mnist,
    "cifar10": _cifar10,
    "shakespeare": shakespeare,
    "credit-default": _credit,
    "adult": _adult,
}
