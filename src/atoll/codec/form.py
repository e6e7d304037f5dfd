"""What a receiver expects of a record: its form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atoll.codec.header import DTYPES, LEVELS, SAID, kind_of, where
from atoll.errors import CodecError
from atoll.tensors import Record, Tensors

__all__ = ["Form"]


@dataclass(frozen=True)
class Form:
    """The form of a record: names in their order, nesting, kinds, dtypes and shapes. Values do not count.

    The order of names counts because tensors are strung together in it (`Tensors.flat`).
    """

    kind: str
    shape: tuple[int, ...] = ()
    fields: Mapping[str, Form] = field(default_factory=dict)

    @staticmethod
    def of(record: Record | Form) -> Form:
        """The form of a record. Where a field holds a `Form`, that is what is expected of it.

        Raises CodecError for what a record cannot hold.
        """
        if type(record) is Form:
            return record
        if type(record) is not Record:
            raise CodecError(f"a {type(record).__qualname__} is no Record", hint="only records have a form")
        return Form("record", fields=_fields(record, ()))

    @staticmethod
    def any() -> Form:
        """The form of whatever a field may hold, a level included, where names are not known beforehand.

        ``Form.of(state.replace(models=Form.any()))`` expects a state with any models.
        """
        return Form("any")

    def check(self, record: Record) -> None:
        """Nothing if a record has this form.  Raises CodecError that names the first field that differs."""
        problem = _misfit(self, Form.of(record), ())
        if problem:
            raise CodecError(problem, hint="both sides must have the same model, method and settings")


def _form(value: Any, name: str, path: tuple[str, ...], within: type) -> Form:
    if type(value) is Form:
        return value
    kind = kind_of(value, name, path, within)
    if kind in DTYPES:
        return Form(kind, tuple(value.shape))
    return Form(kind, fields=_fields(value, (*path, name))) if kind in LEVELS else Form(kind)


def _fields(level: Record | Tensors, path: tuple[str, ...]) -> dict[str, Form]:
    return {name: _form(value, name, path, type(level)) for name, value in level.items()}


def _misfit(due: Form, found: Form, path: tuple[str, ...]) -> str | None:
    if due.kind == "any":
        return None
    if due.kind != found.kind:
        if due.kind in DTYPES and found.kind in DTYPES:
            return f"{where(path)} has dtype {_dtype(found)}, not {_dtype(due)}"
        return f"{where(path)} is {SAID[found.kind]}, not {SAID[due.kind]}"
    if due.shape != found.shape:
        return f"{where(path)} has shape {found.shape}, not {due.shape}"
    for name in due.fields:
        if name not in found.fields:
            return f"{where((*path, name))} is missing"
    for name in found.fields:
        if name not in due.fields:
            return f"{where((*path, name))} is not expected"
    if list(due.fields) != list(found.fields):
        return f"the fields of {where(path)} are in another order than expected"
    parts = (_misfit(each, found.fields[name], (*path, name)) for name, each in due.fields.items())
    return next((problem for problem in parts if problem), None)


def _dtype(form: Form) -> str:
    return str(DTYPES[form.kind]).removeprefix("torch.")
