"""Partitioners as text: ``dirichlet:0.3``, ``shards:2``, ``by:writer,min_size=20``, ``iid+permuted:3``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from atoll.data.division import Partitioner
from atoll.errors import ConfigError, suggest

from .feature import LabelPermutation, Noise, Rotated
from .label import Dirichlet, DirichletClient, ExtendedDirichlet, Pathological, Shards
from .natural import By, ByTime, Continuous
from .quantity import IID, LogNormal, PowerLaw, QuantityDirichlet, Sizes

if TYPE_CHECKING:
    from atoll.data.dataset import Dataset

__all__ = ["PartitionLike", "parse_partition", "partition_names", "resolve"]

PartitionLike = Partitioner | str

_KNOWN: dict[str, type[Partitioner]] = {
    rule.code: rule
    for rule in (
        IID, Dirichlet, DirichletClient, ExtendedDirichlet, Pathological, Shards, QuantityDirichlet,
        LogNormal, PowerLaw, Sizes, Noise, Rotated, By, ByTime, Continuous,
    )
}  # fmt: skip
_NOT_TEXT = {"sizes", "base"}


def partition_names() -> dict[str, type[Partitioner]]:
    """The names that `parse_partition` knows, with the class each stands for."""
    return {**_KNOWN, "natural": By, LabelPermutation.code: LabelPermutation}


def _fields(rule: type[Partitioner]) -> dict[str, str]:
    return {
        field.name: str(field.type)
        for field in dataclasses.fields(rule)  # type: ignore[arg-type]
        if field.name not in _NOT_TEXT and (field.name != "clients" or rule is Rotated)
    }


def _value(text: str, kind: str, what: str) -> Any:
    base = kind.removesuffix(" | None")
    try:
        if base == "int":
            return int(text)
        if base == "float":
            return float(text)
        if base == "bool":
            return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError):
        raise ConfigError(
            f"partition {what}: {text!r} is not {'true or false' if base == 'bool' else 'a number'}"
        ) from None
    return text


def _arguments(rule: type[Partitioner], text: str, what: str) -> dict[str, Any]:
    kinds = _fields(rule)
    names = list(kinds)
    result: dict[str, Any] = {}
    for position, item in enumerate(part.strip() for part in text.split(",")) if text else ():
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals:
            if position >= len(names):
                raise ConfigError(
                    f"partition {what}: too many values", hint=f"it takes {', '.join(names) or 'none'}"
                )
            name, value = names[position], item
        if name not in kinds:
            raise ConfigError(f"partition {what}: there is no setting {name!r}", hint=suggest(name, names))
        if name in result:
            raise ConfigError(f"partition {what}: {name} is given twice")
        result[name] = _value(value.strip(), kinds[name], what)
    return result


def parse_partition(text: str, clients: int | None = None) -> Partitioner:
    """The partitioner a text stands for: ``name``, ``name:value,value`` or ``name:value,setting=value``.

    Values fill the settings in the order of the class, without `clients`. ``+permuted:groups,fraction``
    behind any of them renames labels for a share of the clients. Raises `ConfigError` for names, settings and
    values that are unknown, and where `clients` is needed and not given.
    """
    head, *rest = [part.strip() for part in text.split("+")]
    name, _, settings = head.partition(":")
    name = name.strip()
    rule = By if name == "natural" else _KNOWN.get(name)
    if rule is None:
        raise ConfigError(f"there is no partition {name!r}", hint=suggest(name, [*_KNOWN, "natural"]))
    if name == "natural":
        settings = f"column=,{settings}" if settings else ""
    arguments = _arguments(rule, settings, repr(head))
    if rule is By and not arguments.get("column"):
        if name == "by":
            raise ConfigError("partition 'by' needs a column", hint='write "by:writer", or "natural"')
        arguments["column"] = None
    needed = {field.name for field in dataclasses.fields(rule)}  # type: ignore[arg-type]
    if "clients" in needed and clients is not None:
        if arguments.get("clients", clients) != clients:
            raise ConfigError(
                f"partition {head!r} has {arguments['clients']} clients, but clients={clients} is given"
            )
        arguments["clients"] = clients
    elif rule is By and clients is not None:
        raise ConfigError(
            f"partition {head!r} finds its clients in the data; clients={clients} has no meaning here",
            hint="leave clients out, or use max_clients",
        )
    missing = [
        field.name
        for field in dataclasses.fields(rule)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in arguments
    ]
    if missing:
        hint = (
            "pass clients=..."
            if missing == ["clients"]
            else f"write {name}:{','.join(m.upper() for m in missing if m != 'clients')}"
        )
        raise ConfigError(f"partition {head!r} needs {' and '.join(missing)}", hint=hint)
    result: Partitioner = rule(**arguments)
    for extra in rest:
        code, _, settings = extra.partition(":")
        if code.strip() != LabelPermutation.code:
            raise ConfigError(f"{code!r} cannot follow a '+'", hint="only permuted:GROUPS,FRACTION can")
        result = LabelPermutation(result, **_arguments(LabelPermutation, settings, repr(extra)))
    return result


def resolve(partitioner: PartitionLike, clients: int | None, data: Dataset) -> Partitioner:
    """The object for an object or a text."""
    if isinstance(partitioner, str):
        return parse_partition(partitioner, clients)
    if not isinstance(partitioner, Partitioner):
        raise ConfigError(
            f"cannot divide {data.name!r} by a {type(partitioner).__name__}",
            hint='pass a partitioner such as Dirichlet(clients=50, alpha=0.3), or "dirichlet:0.3"',
        )
    if clients is not None and clients != getattr(partitioner, "clients", clients):
        raise ConfigError(f"{partitioner} has its own number of clients; clients={clients} contradicts it")
    return partitioner
