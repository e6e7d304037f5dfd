"""A division in one ``.npz`` file that NumPy reads: pools of samples, and the clients' rows."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import DataError
from atoll.parts import Inputs, Parts

from .mixture import Mixture
from .names import Rows
from .samples import Samples
from .weights import FloatArray

__all__ = ["SPLITS", "Stored", "read", "write"]

SPLITS = ("train", "validation", "test")
_FORMAT = "atoll-partition-1"
_Arrays = Mapping[str, NDArray[np.generic]]


class Stored(NamedTuple):
    """What a file holds: the samples of splits, and those that are "official", "public" or the server's "root"."""

    pools: Mapping[str, Samples]
    rows: Mapping[str, Rows]
    names: Sequence[str]
    classes: int | None
    dataset: str
    partition: str
    weights: FloatArray | None
    mixture: Mixture | None


def write(target: Path, known: Stored) -> Path:
    """Write it beside the file, which a rename then puts in place."""
    arrays: dict[str, NDArray[np.generic]] = {
        "format": np.array(_FORMAT),
        "about": np.array([known.dataset, known.partition]),
        "names": np.array(list(known.names)),
        "classes": np.array(-1 if known.classes is None else known.classes),
    }
    if known.weights is not None:
        arrays["weights"] = known.weights
    if known.mixture is not None:
        shares = known.mixture.shares
        arrays["mix"] = np.array(known.mixture.text)
        arrays["mix.sources"] = np.concatenate(known.mixture.sources)
        arrays["mix.shares"] = np.concatenate(shares)
        arrays["mix.ends"] = np.cumsum([len(each) for each in shares])
    stored: dict[int, str] = {}
    for split, pool in known.pools.items():
        # Splits that share a pool store it once: the second holds the name of the first.
        owner = stored.setdefault(id(pool), split)
        if owner == split:
            for end, part in _ends(pool.inputs).items():
                arrays[f"{split}.inputs{end}"] = part.cpu().numpy()
            arrays[f"{split}.targets"] = pool.targets.cpu().numpy()
        arrays[f"{split}.pool"] = np.array(owner)
    for split, rows in known.rows.items():
        arrays[f"{split}.rows"], arrays[f"{split}.ends"] = rows.flat, rows.ends
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def read(path: Path) -> Stored:
    """What `write` wrote; `DataError` for a file that is absent, damaged or of another kind."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return _unpacked({key: stored[key] for key in stored.files})
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path}: not a saved partition ({error})", hint="write it with FederatedData.save"
        ) from None


def _unpacked(arrays: _Arrays) -> Stored:
    if str(arrays["format"]) != _FORMAT:
        raise ValueError(f"format {arrays['format']}")
    pools = {
        split: Samples(_stored_inputs(arrays, f"{split}.inputs"), torch.from_numpy(value))
        for split, value in (
            (key.removesuffix(".targets"), value) for key, value in arrays.items() if key.endswith(".targets")
        )
    }
    rows = {
        split: Rows(arrays[f"{split}.rows"].astype(np.int64), arrays[f"{split}.ends"].astype(np.int64))
        for split in SPLITS
        if f"{split}.rows" in arrays
    }
    classes = int(arrays["classes"])
    return Stored(
        {key[: -len(".pool")]: pools[str(value)] for key, value in arrays.items() if key.endswith(".pool")},
        rows,
        [str(name) for name in arrays["names"]],
        None if classes < 0 else classes,
        str(arrays["about"][0]),
        str(arrays["about"][1]),
        arrays["weights"].astype(np.float64) if "weights" in arrays else None,
        _mixture(arrays, rows["train"]) if "mix" in arrays else None,
    )


def _mixture(arrays: _Arrays, train: Rows) -> Mixture:
    sources = np.split(arrays["mix.sources"].astype(np.int64), train.ends[:-1])
    shares = np.split(arrays["mix.shares"].astype(np.float64), arrays["mix.ends"][:-1])
    if len(shares) != len(sources) or len(arrays["mix.sources"]) != train.ends[-1]:
        raise ValueError("a mixture of other clients")
    return Mixture(str(arrays["mix"]), sources, shares)


def _ends(inputs: Inputs) -> dict[str, torch.Tensor]:
    """Inputs by the end of their keys in a file: one tensor has none, parts have ":name" or "#position"."""
    if not isinstance(inputs, Parts):
        return {"": inputs}
    return {f":{name}" if inputs.named else f"#{name}": part for name, part in inputs.items()}


def _stored_inputs(arrays: _Arrays, key: str) -> Inputs:
    """The inverse of `_ends`."""
    found = {end[len(key) :]: torch.from_numpy(value) for end, value in arrays.items() if end.startswith(key)}
    if "" in found:
        return found[""]
    named = next(iter(found)).startswith(":")
    return Parts({end[1:]: part for end, part in found.items()} if named else list(found.values()))
