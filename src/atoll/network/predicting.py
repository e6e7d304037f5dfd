"""Predictions with a model that came of a run: at a node with its own, elsewhere with the global one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from atoll import own, seeds
from atoll.assembly import build_method
from atoll.calling import main
from atoll.codec.header import DTYPES
from atoll.data.encoding import encode
from atoll.data.files import TABLES, read_table
from atoll.data.question import REGRESSION
from atoll.data.table import Table
from atoll.data.wishes import read_classes, read_names
from atoll.errors import ConfigError, DataError, suggest
from atoll.network.elsewhere import Elsewhere
from atoll.network.policy import method_of
from atoll.network.reading import Reading
from atoll.network.rows import arrays
from atoll.network.shelf import Kept, Shelf
from atoll.network.wire import DataForm, Field, Plan
from atoll.network.worker import Begin, _Work
from atoll.networks import architectures, networks

__all__ = ["Prediction", "Predictor", "at_node", "inputs_of", "saved"]

_ROWS = 2048
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Prediction:
    """Of one row: a class and the share of each, or a number."""

    row: int
    value: str | float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Predictor:
    """A model, and what its outputs mean.

    Args:
        module: in `eval` mode, on the CPU.
        classes: their names, None where a number is predicted.
        loss: its task's.
        about: which model it is, for a person.
    """

    module: nn.Module
    classes: tuple[str, ...] | None
    loss: str
    about: str

    def __call__(self, inputs: Tensor) -> Iterator[Prediction]:
        """Predictions for inputs [n, ...], in their order.  Raises ConfigError for outputs that are several a row."""
        outputs = self.outputs(inputs).double()
        if self.classes is None:
            if outputs[0].numel() != 1:
                raise _several(outputs)
            for row, value in enumerate(outputs.flatten().tolist(), 1):
                yield Prediction(row, value, {})
            return
        for row, shares in enumerate(self._shares(outputs).tolist(), 1):
            best = self.classes[int(np.argmax(shares))]
            yield Prediction(row, best, dict(zip(self.classes, shares, strict=True)))

    def outputs(self, inputs: Tensor) -> Tensor:
        """What the module gives for inputs [n, ...]: [n, ...]."""
        with torch.inference_mode():
            return torch.cat([main(self.module(part)) for part in torch.split(inputs, _ROWS)])

    def _shares(self, outputs: Tensor) -> Tensor:
        assert self.classes is not None
        if self.loss == "bce" and len(self.classes) == 2 and outputs[0].numel() == 1:
            share = torch.sigmoid(outputs.reshape(-1, 1))
            return torch.cat([1 - share, share], 1)
        if outputs.shape[1:] != (len(self.classes),) or self.loss == "bce":
            raise _several(outputs)
        return torch.softmax(outputs, 1)


def _several(outputs: Tensor) -> ConfigError:
    return ConfigError(
        f"the model gives {tuple(outputs.shape[1:])} numbers a row, and neither one number nor a share of each class",
        hint="predict in Python: Federation(...).personal(client)(inputs)",
    )


# --- models -----------------------------------------------------------------------------------------------------------


def at_node(place: Path, admitted: Mapping[str, str]) -> tuple[Predictor, Kept, Tensor]:
    """This node's model, of its last run in this directory; what it was made of, and one input [1, ...].

    Args:
        place: the node's directory.
        admitted: code of its own that the run names, or its data: name -> key.

    Raises ConfigError where nothing has been kept, for code that was not named, and for a method that predicts by more
    than a model; DataError where the node's data cannot be read any more.
    """
    shelf, kept = _last(place)
    plan, task = kept.plan, kept.task
    if own.named(kept.source) and kept.source not in admitted and not Path(kept.source).exists():
        raise ConfigError(
            f"this node's data are code, {kept.source}, and code is imported only where you name it yourself",
            hint=f"--code data={kept.source}",
        )
    public = str(shelf.public) if plan.public is not None else None
    begin = Begin(plan, kept.source, kept.number, kept.name, str(place), public, None, dict(admitted))
    how = {key: getattr(kept, key) for key in ("start", "tokenizer", "precision", "accumulate", "recompute")}
    work = _Work(msgspec.structs.replace(begin, **how))
    program = kept.program
    if program == "train":  # nothing was judged here: there are no test data, or the policy does not have it
        program = "personal" if work.method.personalised else "evaluate"
    if program == "personal" and work.method.beside:
        raise ConfigError(
            f"clients of {plan.method} predict by {work.method.beside}, which is no model",
            hint="predict with the global model: --model FILE.safetensors --plan RUN.toml",
        )
    body = None if task.own is None else shelf.body(task.own.sha256)
    memory = None if kept.memory is None else shelf.memory(kept.memory)
    reference = None if task.keep is None else shelf.reference(task.keep)
    needed = (shelf.body(task.shared.sha256), body, memory, reference)
    missing = [each for each in needed if each and not each.is_file()]
    if missing:
        raise ConfigError(f"{missing[0]} is gone", hint="it comes back with the node's next task: atoll join")
    module = work.model(task, program, shelf.body(task.shared.sha256), body, memory, reference)
    what = "the model of this client" if program == "personal" else "the global model"
    about = f"{what}, {kept.name}, after round {task.round} of {plan.method} ({shelf.place.name})"
    example = work.data.example().inputs
    if not isinstance(example, Tensor):
        raise ConfigError("inputs of several parts are not read from files", hint="predict in Python")
    return Predictor(module, _names(Reading.of(plan)), work.task.loss_name, about), kept, example


def _last(place: Path) -> tuple[Shelf, Kept]:
    """What was kept of the last run in a node's directory.  Raises ConfigError."""
    if not place.is_dir():
        raise ConfigError(f"there is no directory {place}", hint="--place is that of `atoll join`")
    found = sorted(place.glob("*/kept.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(
            f"nothing has been kept in {place} yet",
            hint="a node keeps its model once it has answered a task; --place is that of `atoll join`",
        )
    shelf = Shelf(found[-1].parent)
    kept = shelf.kept()
    assert kept is not None
    return shelf, kept


def saved(path: Path, plan: Plan, inputs: Tensor) -> Predictor:
    """The global model that a coordinator has saved, of a plan, for inputs like these [n, ...].

    Raises ConfigError where the file cannot be read, or its model is another one than the plan's.
    """
    names = _names(Reading.of(plan))
    form = DataForm(
        inputs=(Field(name="", dtype=_CODES[inputs.dtype], shape=tuple(inputs.shape[1:])),),
        targets=Field(name="", dtype="F32" if names is None else "I64", shape=()),
        classes=None if names is None else len(names),
        train=1,
    )
    data, method = Elsewhere(1, form, "the rows"), build_method(method_of(plan), {})
    loss: Any = own.found(plan.loss, "loss") if plan.loss and own.named(plan.loss) else plan.loss
    with seeds.scoped(plan.seed, "predict"):
        task = architectures(
            networks(plan.model, data)[:1], data, method, plan.seed, loss, None, plan.adapter
        )[0]
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", hint="give what `atoll serve --save` wrote"
        ) from None
    module = task.module
    due = dict([*module.named_parameters(), *module.named_buffers()])
    strange = [name for name in {**due, **found} if name not in due or name not in found]
    strange += [name for name in due if name in found and due[name].shape != found[name].shape]
    if strange:
        raise ConfigError(
            f"{path} is not a {plan.model} model for rows of {tuple(inputs.shape[1:])} numbers: {strange[0]} differs",
            hint="give the file that the run had as --plan, and rows with its columns",
        )
    with torch.no_grad():
        for name, tensor in due.items():
            tensor.copy_(found[name])
    about = f"the global model of {plan.method}, {path.name}"
    return Predictor(module.eval(), names, task.loss_name, about)


def _names(reading: Reading) -> tuple[str, ...] | None:
    """What classes are called; None where a number is predicted.  Raises ConfigError where the plan does not say."""
    stated = read_classes(reading.classes)
    if reading.texts is not None:
        raise ConfigError(
            "the run learned from texts, which are no rows",
            hint="predict in Python, with the model that the coordinator saved",
        )
    if stated is None:
        raise ConfigError(
            "the run's file does not say which classes there are", hint='classes = "no,yes", or 10'
        )
    if stated == REGRESSION:
        return None
    return tuple(map(str, range(stated) if isinstance(stated, int) else stated))


# --- rows -------------------------------------------------------------------------------------------------------------


def inputs_of(path: Path, plan: Plan) -> Tensor:
    """The rows of a file as inputs [n, ...], read as the plan says; a label in it is not looked at.

    Raises DataError for what cannot be read, lacks a column or has a gap that the run did not fill, ConfigError for
    a table where the run reads arrays.
    """
    suffixes = {each.lower() for each in path.suffixes}
    if not suffixes & set(TABLES):
        return arrays(path)
    reading = Reading.of(plan)
    if reading.features is None or reading.label is None:
        raise ConfigError(
            f"{path} is a table, and the run reads arrays", hint="numpy.savez('rows.npz', x=inputs)"
        )
    table, features = read_table(path), read_names(reading.features, "features")
    for column in features:
        if column not in table:
            raise DataError(
                f"{path}: there is no column {column!r}, which the run learns from",
                hint=suggest(column, table.names),
            )
    if not table.rows:
        raise DataError(f"{path}: there are no rows")
    if reading.missing in (None, "drop"):
        for column in features:
            if (absent := table.gaps(column)).any():
                raise DataError(
                    f"{path}: row {int(np.argmax(absent)) + 1} has no {column}, and the run left such rows out",
                    hint="fill the gap, or leave the row out",
                )
    columns: dict[str, Any] = {column: table.values(column) for column in features}
    columns[reading.label] = np.zeros(table.rows)  # nobody looks at it
    options = {**reading.options(), "classes": "regression", "missing": reading.missing and "zero"}
    del options["label"]
    options.pop("ignore", None)
    made = encode({path.name: (Table(columns, path.name), None)}, reading.label, **options)[
        path.name
    ].train.inputs
    assert isinstance(made, Tensor)
    return made
