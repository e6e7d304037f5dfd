"""Folders of recordings and of pictures: a folder for each class, or for each client and in it for each class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from atoll.errors import ConfigError, DataError, MissingExtraError

from .arrays import from_arrays
from .dataset import Dataset
from .files import TABLES
from .options import call
from .sound import GAIN, log_mel, resampled
from .table import is_number
from .wav import read_wav
from .wishes import Classes, read_classes

__all__ = ["FORM", "from_audio_folder", "from_image_folder", "from_media", "media_of"]

Kind = Literal["audio", "image"]
Found = TypeVar("Found")

FORM = "a folder for each class with its .wav or image files, or a folder for each client with such folders"

_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aif", ".aiff"),
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
}
_CALLED: dict[Kind, str] = {"audio": "recording", "image": "picture"}


class _Item(NamedTuple):
    """A file, and what its folders say of it."""

    file: Path
    client: str | None
    label: str


def media_of(path: Path) -> Kind | None:
    """What a folder holds, by the names of its files; None for tables, and for whatever else.

    Raises DataError where it holds recordings and pictures.
    """
    if not path.is_dir() or any(
        _is(file, (*TABLES, ".npz")) for file in (*path.iterdir(), *path.glob("train/*"))
    ):
        return None
    found: dict[Kind, Path] = {}
    for file in _files(path):
        for kind, suffixes in _SUFFIXES.items():
            if _is(file, suffixes):
                found.setdefault(kind, file)
    if len(found) == 2:
        raise DataError(
            f"{path} holds recordings and pictures: {found['audio']} and {found['image']}",
            hint="a folder of data holds one sort of them",
        )
    return next(iter(found), None)


def from_media(path: Path, **options: Any) -> Dataset:
    """What `media_of` found in a folder; `options` are those of `from_audio_folder` or `from_image_folder`."""
    read: dict[Kind | None, Callable[..., Dataset]] = {"audio": from_audio_folder, "image": from_image_folder}
    kind = media_of(path)
    return call(read[kind], f"a folder of {_CALLED[kind or 'audio']}s", options, path)


def from_audio_folder(
    path: str | Path,
    *,
    rate: int | None = None,
    seconds: float | None = None,
    waves: bool = False,
    classes: Classes = None,
    name: str | None = None,
) -> Dataset:
    """A dataset from a folder of WAV files, as log mel spectrograms [32, frames] (see `atoll.data.sound.log_mel`).

    Args:
        path: a folder for each class; or for each client, with one for each class. Clients are then the natural ones.
            Folders train and test, and no others beside them, are the splits.
        rate: in Hz; recordings of another one are resampled (polyphase, windowed sinc). Without it all have one.
        seconds: how long a sample is: longer recordings end there, shorter ones end with silence. Without it all are
            equally long.
        waves: waveforms [1, samples] times 8 instead, which is a deviation about 1 for speech at a usual level.
        classes: their names in order, where others may have classes that are not in this folder.
        name: what reports call the data.

    Channels are averaged. What was resampled, cut and filled up is in the dataset's `description`. Raises DataError,
    naming the file, for what cannot be read, and for rates or lengths that differ.
    """
    if (rate is not None and rate < 1) or (seconds is not None and not seconds > 0):
        raise ConfigError(
            f"rate = {rate}, seconds = {seconds}: both are above 0", hint="rate=16000, seconds=1"
        )
    splits = _listed(Path(path), "audio", classes)
    sounds = {item.file: read_wav(item.file) for items in splits for item in items}
    rates = _one(
        ((file, hertz) for file, (_, hertz) in sounds.items()), rate, "{:,} Hz", "rate=16000 resamples all"
    )
    turned = [file for file, (_, hertz) in sounds.items() if hertz != rates]
    even = {}
    for file, (sound, hertz) in sounds.items():
        try:
            even[file] = resampled(sound, hertz, rates)
        except ConfigError as error:
            raise DataError(f"{file}: {error.message}", hint=error.hint) from None
    length = _one(
        ((file, len(sound)) for file, sound in even.items()),
        None if seconds is None else round(seconds * rates),
        f"{{:,}} samples at {rates:,} Hz",
        "seconds=1 cuts longer ones there, and fills shorter ones up with silence",
    )
    cut = sum(len(sound) > length for sound in even.values())
    filled = sum(len(sound) < length for sound in even.values())

    def form(items: Sequence[_Item]) -> Tensor:
        made = torch.zeros(len(items), length)
        for row, item in zip(made, items, strict=True):
            sound = even[item.file][:length]
            row[: len(sound)] = sound
        return GAIN * made.unsqueeze(1) if waves else log_mel(made, rates)

    data = _dataset(Path(path), splits, form, classes, name)
    data.description = f"recordings of {length / rates:g} s at {rates:,} Hz" + "".join(
        f", {count:,} {what}"
        for count, what in (
            (len(turned), "resampled by windowed sincs"), (cut, "cut"), (filled, "filled up with silence"),
        )
        if count
    )  # fmt: skip
    return data


def from_image_folder(
    path: str | Path,
    *,
    pixels: int | str | tuple[int, int] | None = None,
    classes: Classes = None,
    name: str | None = None,
) -> Dataset:
    """A dataset from a folder of pictures, (channels, height, width) in [0, 1]; one channel where none has colours.

    Args:
        path, classes, name: as for `from_audio_folder`.
        pixels: (height, width), or one number for both, as text "28" or "28x32". Pictures of other sizes are
            resized (bilinear, over all pixels that count), also where that changes their proportions. Without it
            all have one size.

    Needs Pillow (extra `images`). Transparency is left out. Raises DataError, naming the file, for what cannot be read,
    and for sizes that differ.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "images", "reading pictures") from None
    wanted = _pixels(pixels)
    splits = _listed(Path(path), "image", classes)
    pictures: dict[Path, Any] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    for item in (item for items in splits for item in items):
        try:
            picture = _picture(item.file)
        except (
            Exception
        ) as error:  # readers of twenty formats, which say in as many ways that a file is damaged
            raise DataError(
                f"{item.file}: this is no picture that can be read ({str(error) or type(error).__name__})",
                hint="leave it out, or save it anew, in 8 bits a colour and with fewer pixels",
            ) from None
        sizes[item.file] = (picture.height, picture.width)
        if wanted is not None:  # at once: as they are all of them may be more than there is memory
            picture = picture.resize(wanted[::-1], Image.Resampling.BILINEAR)
        pictures[item.file] = picture
    high, wide = _one(
        sizes.items(),
        wanted,
        "{0[0]} x {0[1]} pixels",
        "pixels=32 or pixels=28x32 (height x width) resizes all",
    )
    mode = "L" if all(one.mode == "L" for one in pictures.values()) else "RGB"
    resized = sum(size != (high, wide) for size in sizes.values())

    def form(items: Sequence[_Item]) -> list[Any]:
        return [pictures[item.file].convert(mode) for item in items]

    data = _dataset(Path(path), splits, form, classes, name)
    data.description = f"pictures of {high} x {wide} pixels" + (f", {resized:,} resized" if resized else "")
    return data


def _picture(file: Path) -> Any:
    """A picture in one channel or in three.  Raises ValueError, or whatever its reader does."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as opened:
            if opened.mode[0] in "IF":  # Pillow would cut off what is above 255
                raise ValueError("it has more than 8 bits a pixel")
            return opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")


def _pixels(size: int | str | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    parts = size if isinstance(size, tuple) else str(size).lower().split("x")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ConfigError(
            f"pixels = {size!r} is no size of pictures", hint="pixels=28, or pixels=28x32 (height x width)"
        )
    return numbers[0], numbers[-1]


def _one(found: Iterable[tuple[Path, Found]], wanted: Found | None, text: str, hint: str) -> Found:
    """What all files have in common, or what is wanted.  Raises DataError naming two that differ."""
    first: tuple[Path, Found] | None = None
    for file, value in found:
        if wanted is not None:
            return wanted
        first = first or (file, value)
        if value != first[1]:
            raise DataError(
                f"files differ: {first[0]} has {text.format(first[1])}, {file} {text.format(value)}",
                hint=hint,
            )
    assert first is not None
    return first[1]


# --- folders ----------------------------------------------------------------------------------------------------------


def _is(file: Path, suffixes: Sequence[str]) -> bool:
    return file.suffix.lower() in suffixes


def _files(path: Path) -> list[Path]:
    """All files below, in the order of their names, but hidden ones; links to nowhere are files that cannot be read."""
    return [each for each in _below(path) if each.is_file() or (each.is_symlink() and not each.exists())]


def _below(path: Path) -> list[Path]:
    return sorted(
        each for each in path.rglob("*") if not any(part[0] == "." for part in each.relative_to(path).parts)
    )


def _listed(path: Path, kind: Kind, classes: Classes) -> list[list[_Item]]:
    """The items of the training split, and of the test split where there is one.  Raises DataError.

    Where classes are stated the folder may be a part of the data, and have few of any.
    """
    if not path.is_dir():
        raise DataError(f"there is no folder {path}", hint="paths start where atoll is started")
    inner = sorted(each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    roots = [path / "train", path / "test"] if inner == ["test", "train"] else [path]
    splits = [_items(root, kind) for root in roots]
    depths = {item.client is None for items in splits for item in items}
    if len(depths) > 1:
        one, other = (
            next(item.file for items in splits for item in items if (item.client is None) is alone)
            for alone in (True, False)
        )
        raise DataError(
            f"{path}: {one} lies in a folder of a class, and {other} in one of a client", hint=FORM
        )
    if classes is not None:
        return splits
    counts = {item.label: 0 for items in splits for item in items}
    for item in splits[0]:
        counts[item.label] += 1
    what = _CALLED[kind]
    if len(counts) < 2:
        raise DataError(
            f"{path}: there is one class, {next(iter(counts))!r}, and nothing to tell apart",
            hint=f"data are {FORM}",
        )
    for label, count in counts.items():
        if count < 2:
            there = f"is one {what}" if count else f"are no {what}s"
            raise DataError(
                f"{path}: of the class {label!r} there {there} to train on",
                hint="two at least, one of which can be kept for the test; add some, or leave the class out",
            )
    return splits


def _items(root: Path, kind: Kind) -> list[_Item]:
    what, found = _CALLED[kind], []
    for file in _files(root):
        if not _is(file, _SUFFIXES[kind]):
            continue
        if kind == "audio" and not _is(file, (".wav",)):
            raise DataError(
                f"{file}: recordings are read from .wav files",
                hint=f"ffmpeg -i {file.name} {file.stem}.wav writes one",
            )
        folders = file.relative_to(root).parts[:-1]
        if len(folders) not in (1, 2):
            where = "deeper than that" if folders else "in no folder of a class"
            raise DataError(f"{file} lies {where}", hint=f"data are {FORM}")
        found.append(_Item(file, folders[0] if len(folders) == 2 else None, folders[-1]))
    full = {parent for item in found for parent in item.file.parents}
    for folder in _below(root):
        if folder.is_dir() and folder not in full:
            raise DataError(f"{folder}: there is no {what} in it", hint="add some, or remove the folder")
    if not found:
        raise DataError(f"{root}: there is no {what} in it", hint=f"data are {FORM}")
    return found


def _dataset(
    path: Path,
    splits: list[list[_Item]],
    form: Callable[[Sequence[_Item]], Any],
    classes: Classes,
    name: str | None,
) -> Dataset:
    """The items as samples. Classes are in the order of their names, numbers by value, unless it is given."""
    names = read_classes(classes)
    found = sorted({item.label for items in splits for item in items}, key=_order)
    if names is None:
        names = found
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise ConfigError(
            f"classes = {classes!r}, and the classes of {path} have names: {', '.join(found[:8])}",
            hint=f'leave classes out, or list them in order: classes="{",".join(found[:8])}"',
        )
    names = [str(each) for each in names]
    pairs = [(form(items), np.array([item.label for item in items])) for items in splits]
    title = name if name is not None else path.resolve().name
    clients = [np.array([item.client for item in items]) for items in splits]
    natural = None if splits[0][0].client is None else "client"
    data = from_arrays(
        *pairs[0],
        pairs[1] if len(pairs) == 2 else None,
        names,
        {} if natural is None else {natural: clients[0]},
        natural=natural,
        name=title,
    )
    if natural is not None and len(splits) == 2 and set(clients[0]) <= set(clients[1]):
        data.test_columns = {natural: clients[1]}
    return data


def _order(name: str) -> tuple[int, float, str]:
    return (0, float(name), name) if is_number(name) else (1, 0.0, name)
