"""`Samples`, inputs with their targets, and the checks that stand at the door for every kind of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from atoll.errors import DataError
from atoll.modalities import HERE, declared
from atoll.parts import Inputs, Parts, joined

from .adjacent import in_a_row
from .question import REGRESSION, UNASKED
from .table import collected, is_frame, key

__all__ = ["IntArray", "Pad", "Samples", "as_samples", "concatenate", "labels_of", "levelled", "read_inputs"]

IntArray = NDArray[np.int64]

_FEW = 12  # labels that an error lists


class Samples(NamedTuple):
    """Inputs and targets; the first dimension of both counts the samples. Inputs may have parts (`atoll.parts`)."""

    inputs: Inputs
    targets: Tensor

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many samples there are (a tuple's own `count` is of no use here)."""
        return len(self.targets)

    def take(self, rows: IntArray | slice) -> Samples:
        """The samples at `rows`. A gap-free run of rows, or a slice, gives views and not copies."""
        if not isinstance(rows, slice):
            if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
                rows = slice(int(rows[0]), int(rows[-1]) + 1)
            else:
                index = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)).to(self.inputs.device)
                return Samples(self.inputs[index], self.targets[index])
        return Samples(self.inputs[rows], self.targets[rows])


def concatenate(parts: Sequence[Samples]) -> Samples:
    """All samples of `parts`, in order. Inputs that lie in memory one after the other stay where they are."""
    if len(parts) == 1:
        return parts[0]
    several = [part.inputs for part in parts]
    plain = [each for each in several if isinstance(each, Tensor)]
    inputs = in_a_row(plain) if len(plain) == len(several) else None
    return Samples(joined(several) if inputs is None else inputs, torch.cat([part.targets for part in parts]))


def labels_of(samples: Samples, classes: int | None) -> IntArray | None:
    """One class per sample as int64, or None where there is none (regression, sequences of targets)."""
    if classes is None or samples.targets.dim() != 1:
        return None
    labels: IntArray = samples.targets.cpu().numpy()
    return labels


def _image(value: Any) -> Tensor:
    """A picture object as (channels, height, width) in [0, 1], in the way of torchvision's `ToTensor`."""
    pixels = np.array(value)
    scale = 255.0 if pixels.dtype == np.uint8 else 1.0
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(torch.float32) / scale


Pad = float | Mapping[str, float] | None
"""What shorter samples are filled up with, for all inputs or by the name of a part; None where there are none."""


def read_inputs(value: Any, where: str, count: int | None = None, pad: Pad = None) -> Inputs:
    """Inputs as tensors: of a mapping its parts by name, of a tuple of as many arrays as parts by position.

    Args:
        count: how many samples there are: a tuple of arrays of this length holds parts, another one samples.
    """
    if isinstance(value, Parts):
        value = {str(name): part for name, part in value.items()} if value.named else value.values()
    if isinstance(value, Mapping) and not is_frame(value):
        if not value:
            raise DataError(f"{where}: the inputs are a mapping without anything in it")
        filled_up, missing = _gaps(value, where)
        parts = {
            name: _part(part, f"inputs {name!r}", where, pad.get(name) if isinstance(pad, Mapping) else pad)
            for name, part in filled_up.items()
        }
        return declared(parts, missing, where)
    if isinstance(pad, Mapping):
        raise DataError(
            f"{where}: pad names parts of the inputs ({', '.join(map(str, pad))}), and these have none",
            hint="pad=0 is for inputs that are one array",
        )
    if isinstance(value, tuple) and len(value) > 1 and all(_holds(part, count) for part in value):
        return Parts([_part(part, f"inputs {k}", where, pad) for k, part in enumerate(value)])
    return _tensor(value, "inputs", where, pad)


def _gaps(value: Mapping[Any, Any], where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parts whose lists have something for every sample, and of those with a None which samples lack them."""
    parts: dict[str, Any] = {}
    missing: dict[str, Tensor] = {}
    for name, part in value.items():
        parts[str(name)] = part
        if not isinstance(part, list | tuple) or all(each is not None for each in part):
            continue
        known = next((each for each in part if each is not None), None)
        if known is None:
            raise DataError(
                f"{where}: no sample has the part {name!r}, whose shape nobody can tell then",
                hint=f"give zeros of its shape, and which parts are there as the part {HERE!r} (docs/modalities.md)",
            )
        blank = torch.zeros_like(torch.as_tensor(known))
        parts[str(name)] = [blank if each is None else torch.as_tensor(each) for each in part]
        missing[str(name)] = torch.tensor([each is None for each in part])
    return parts, missing


def _holds(part: Any, count: int | None) -> bool:
    """Whether something is an array, or a list of arrays, with an entry for each of so many samples."""
    if isinstance(part, list):
        return len(part) == count and all(isinstance(each, (Tensor, np.ndarray)) for each in part)
    return isinstance(part, (Tensor, np.ndarray)) and part.ndim > 0 and len(part) == count


def _part(value: Any, what: str, where: str, pad: float | None) -> Tensor:
    """A part as a tensor; truth values stay what they are, since masks are."""
    found = _tensor(value, what, where, pad)
    return found if found.dtype == torch.bool else _number(found)


def _number(found: Tensor) -> Tensor:
    """Numbers of the kinds that models get: float32, or int64 for what may be tokens."""
    whole = found.dtype in (torch.int32, torch.int64)
    return found.to(torch.int64 if whole else torch.float32)


def filled(parts: Sequence[Tensor], pad: float, skip: int = 0) -> list[Tensor]:
    """Tensors filled up at the ends of their axes to one shape; the first `skip` axes stay as they are."""
    shape = torch.tensor([part.shape[skip:] for part in parts]).amax(0).tolist()
    made = []
    for part in parts:
        if list(part.shape[skip:]) == shape:
            made.append(part)
            continue
        whole = torch.full((*part.shape[:skip], *shape), pad).to(part.dtype)
        whole[tuple(slice(size) for size in part.shape)] = part
        made.append(whole)
    return made


def levelled(several: Sequence[Samples], pad: Pad) -> list[Samples]:
    """Samples of several places filled up to one shape; as they are where there is nothing to fill up with."""
    models = [each.inputs for each in several]
    if pad is None or len({str(pytree.tree_structure(x)) for x in models}) > 1:
        return list(several)

    def level(name: str | int, parts: Sequence[Tensor]) -> list[Tensor]:
        with_what = pad.get(str(name)) if isinstance(pad, Mapping) else pad
        alike = with_what is None or len({part.dim() for part in parts}) > 1
        return list(parts) if alike else filled(parts, float(with_what or 0), 1)

    if not isinstance(models[0], Parts):
        made: list[Inputs] = list(level("", models))  # type: ignore[arg-type]
    else:
        names = [name for name, _ in models[0].items()]
        columns = zip(*(x.values() for x in models if isinstance(x, Parts)), strict=True)
        rows = zip(*(level(name, parts) for name, parts in zip(names, columns, strict=True)), strict=True)
        made = [Parts(dict(zip(names, row, strict=True)) if models[0].named else row) for row in rows]  # type: ignore[arg-type]
    return [Samples(x, each.targets) for x, each in zip(made, several, strict=True)]


def _tensor(value: Any, what: str, where: str, pad: float | None = None) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if hasattr(value, "toarray"):  # a scipy sparse matrix
        value = value.toarray()
    if is_frame(value):  # the values, whatever the columns are called
        value = collected(value).to_numpy()
        value = value.astype(np.float32) if value.dtype.kind in "biu" and what == "inputs" else value
    elif hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if not isinstance(value, np.ndarray):
        if not hasattr(value, "__iter__"):
            raise DataError(f"{where}: the {what} are a single {type(value).__name__}, not one per sample")
        items = list(value)
        if items and hasattr(items[0], "getbands"):
            parts = [_image(item) for item in items]
        elif items and isinstance(items[0], (Tensor, np.ndarray)):
            parts = [torch.as_tensor(item) for item in items]
        elif items and all(isinstance(item, list) for item in items) and len({*map(len, items)}) > 1:
            parts = [
                _tensor(item, what, where) if item else torch.zeros(0, dtype=torch.int64) for item in items
            ]
        else:
            parts = []
        if parts:
            forms = {tuple(part.shape) for part in parts}
            if len(forms) > 1 and (pad is None or len({*map(len, forms)}) > 1):
                shown = ", ".join(map(str, sorted(forms)[:3]))
                raise DataError(
                    f"{where}: the {what} of different samples differ in shape ({shown})",
                    hint="resize or pad the samples to one shape; from_arrays, from_torch and from_clients fill them "
                    "up with pad=0, or another number that means nothing",
                )
            return torch.stack(parts if pad is None else filled(parts, pad))
        try:
            value = np.array(items)
        except ValueError as error:
            raise DataError(f"{where}: the {what} do not form an array ({error})") from None
    if value.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: the {what} are {value.dtype} values, not numbers",
            hint='encode them as numbers; text labels are encoded by classes="first,second,..."',
        )
    if value.dtype in (np.uint16, np.uint32, np.uint64):
        value = value.astype(np.int64)
    if not value.flags.writeable or any(stride < 0 for stride in value.strides):
        value = value.copy()
    return torch.from_numpy(np.ascontiguousarray(value))


def _encode(targets: Any, names: Sequence[Any], where: str) -> IntArray:
    values = targets.tolist() if hasattr(targets, "tolist") else list(targets)
    try:
        shape = np.shape(values)
    except ValueError:
        raise DataError(
            f"{where}: the targets of different samples differ in shape", hint="pad them to one shape"
        ) from None
    for _ in shape[1:]:
        values = [each for row in values for each in row]
    position = {key(name): index for index, name in enumerate(names)}
    position |= {name: index for index, name in enumerate(names)}
    values = [value if value in position else key(value) for value in values]
    strange = sorted({str(value) for value in values if value not in position})
    if strange:
        raise DataError(
            f"{where}: labels that are not in classes: {', '.join(strange[:5])}",
            hint=f"classes lists {', '.join(map(str, names[:8]))}",
        )
    return np.array([position[value] for value in values], dtype=np.int64).reshape(shape)


def _rows(bad: Tensor) -> str:
    rows = torch.nonzero(bad).reshape(-1).tolist()
    shown = ", ".join(map(str, rows[:5]))
    return (
        f"row {shown}" if len(rows) == 1 else f"{len(rows)} rows ({shown}{', ...' if len(rows) > 5 else ''})"
    )


def as_samples(
    inputs: Any,
    targets: Any,
    classes: int | str | Sequence[Any] | None = None,
    where: str = "data",
    pad: Pad = None,
) -> tuple[Samples, int | None]:
    """Check inputs and targets and bring them into the form that everything else relies on.

    Inputs (arrays, tensors, sparse matrices or lists of them) become float32; integers of 32 bits or more
    stay integers (int64), since those are tokens, unless they come in a data frame. A mapping of these, or a tuple of
    arrays, holds the parts of inputs (`atoll.parts`); truth values in them stay so. `pad` fills up samples of different
    shapes. Nothing is rescaled, except picture objects, which come out as (channels, height, width) in [0, 1]. Integer
    targets are classes, int64; floating targets are a regression (float32) unless `classes` is given. `classes` is a
    number, or the labels in order, and text labels need it; "regression" makes numbers of whole numbers too.

    Returns the samples and the number of classes (None for a regression). Raises `DataError` that names
    `where` and the rows for lengths that differ, no samples at all, NaN or infinite values, and labels out of
    range.
    """
    length = len(targets) if hasattr(targets, "__len__") and getattr(targets, "ndim", True) else None
    x = read_inputs(inputs, where, length, pad)
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        y: Tensor = torch.from_numpy(_encode(targets, classes, where))
        known: int | None = len(classes)
    else:
        y = _tensor(targets, "targets", where)
        numbers = isinstance(classes, str) and classes == REGRESSION
        y = y.to(torch.float32) if numbers and not y.is_floating_point() else y
        known = None if numbers or classes is None or classes is UNASKED else int(classes)
    x = x if isinstance(x, Parts) else _number(x)
    named = (
        [(f"inputs {name!r}", part) for name, part in x.items()] if isinstance(x, Parts) else [("inputs", x)]
    )
    for what, part in named:
        if part.dim() == 0 or y.dim() == 0:
            raise DataError(f"{where}: {what} and targets are single values, not one per sample")
        if len(part) != len(y):
            raise DataError(
                f"{where}: {len(part)} {what} but {len(y)} targets", hint="each sample needs one of both"
            )
        if len(part) == 0:
            raise DataError(f"{where}: there are no samples", hint="leave an empty client out")
        if part.is_floating_point() and not bool(part.sum().isfinite()):
            finite = part.reshape(len(part), -1).isfinite().all(dim=1)
            if not bool(finite.all()):
                raise DataError(
                    f"{where}: the {what} hold NaN or infinite values in {_rows(~finite)}",
                    hint="fill or drop missing values before training",
                )
    return Samples(x, _check_targets(y, known, where)), (
        known if known is not None or y.is_floating_point() else int(y.max()) + 1
    )


def _check_targets(y: Tensor, classes: int | None, where: str) -> Tensor:
    if y.is_floating_point():
        finite = y.reshape(len(y), -1).isfinite().all(dim=1)
        if not bool(finite.all()):
            raise DataError(
                f"{where}: the targets hold NaN or infinite values in {_rows(~finite)}",
                hint="drop samples without a label",
            )
        if classes is None:
            return y.to(torch.float32)
        fractional = (y != y.round()).reshape(len(y), -1).any(dim=1)
        if bool(fractional.any()):
            raise DataError(
                f"{where}: labels that are not whole numbers in {_rows(fractional)}",
                hint="leave classes out for a regression, or round the labels",
            )
    y = y.to(torch.int64)
    outside = y < 0 if classes is None else (y < 0) | (y >= classes)
    outside = outside.reshape(len(y), -1).any(dim=1)
    if bool(outside.any()):
        limit = "be at least 0" if classes is None else f"lie in 0..{classes - 1}"
        values = sorted({int(value) for value in y[outside].reshape(-1)[:1000]})[:5]
        found = torch.unique(y).tolist()
        labels = ",".join(map(str, found)) if len(found) <= _FEW else "A,B,..."
        strange = [label for label in found if label < 0 or (classes is not None and label >= classes)]
        hint = f'classes="{labels}" numbers the labels from 0 on'
        if len(strange) == 1:
            hint += f"; if {strange[0]} marks what has no label, from_arrays(x, y, ignore={strange[0]}) leaves it out"
        raise DataError(
            f"{where}: labels must {limit}, but {_rows(outside)} hold others, such as {values}", hint=hint
        )
    return y
