"""Partitioners as text: ``dirichlet:0.3``, ``shards:2``, ``by:writer,min_size=20``, ``iid+permuted:3``."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING

from atoll import spec
from atoll.data.division import Partitioner
from atoll.errors import ConfigError

from .feature import LabelPermutation, Noise, Rotated
from .label import Dirichlet, DirichletClient, ExtendedDirichlet, Pathological, Shards
from .natural import By, ByTime, Continuous
from .quantity import IID, LogNormal, PowerLaw, QuantityDirichlet, Sizes

if TYPE_CHECKING:
    from atoll.data.dataset import Dataset

__all__ = ["PartitionLike", "parse_partition", "partition_names", "partitions", "resolve"]

PartitionLike = Partitioner | str

_KNOWN: dict[str, type[Partitioner]] = {
    rule.code: rule
    for rule in (
        IID, Dirichlet, DirichletClient, ExtendedDirichlet, Pathological, Shards, QuantityDirichlet,
        LogNormal, PowerLaw, Sizes, Noise, Rotated, By, ByTime, Continuous,
    )
}  # fmt: skip
_KINDS = {"int": spec.whole, "float": spec.number, "bool": spec.flag}


def partition_names() -> dict[str, type[Partitioner]]:
    """The names that `parse_partition` knows, with the class each stands for."""
    return {**_KNOWN, "natural": By, LabelPermutation.code: LabelPermutation}


def _parameters(rule: type[Partitioner]) -> tuple[spec.Parameter, ...]:
    """What a text says of a rule: its fields but those that only objects have, and the number of clients."""
    absent = {"sizes", "base", *(() if rule is Rotated else ("clients",))}
    return tuple(
        _KINDS.get(str(each.type).removesuffix(" | None"), spec.word)(
            each.name, optional=each.default is not dataclasses.MISSING
        )
        for each in dataclasses.fields(rule)  # type: ignore[arg-type]
        if each.name not in absent
    )


_FOLLOWS = {LabelPermutation.code: _parameters(LabelPermutation)}
_HEADS = {
    **{name: _parameters(rule) for name, rule in _KNOWN.items()},
    By.code: (spec.word("column"), *_parameters(By)[1:]),
    "natural": _parameters(By)[1:],
}


def partitions() -> list[tuple[str, str]]:
    """How each partition is written, and the first line of what its class says of itself."""
    return [
        (spec.usage(name, _HEADS[name]), (inspect.getdoc(rule) or "").split("\n")[0])
        for name, rule in partition_names().items()
        if name in _HEADS
    ]


def parse_partition(text: str, clients: int | None = None) -> Partitioner:
    """The partitioner a text stands for: ``name``, ``name:value,value`` or ``name:value,setting=value``.

    Values fill the settings in the order of the class, without `clients`. ``+permuted:groups,fraction``
    behind any of them renames labels for a share of the clients. Raises `ConfigError` for names, settings and
    values that are unknown, and where `clients` is needed and not given.
    """
    # A colon with nothing behind it may stand for a name alone.
    head, *others = [
        dataclasses.replace(call, given=call.given or None) for call in spec.chain(text, "partition", "+")
    ]
    arguments = head.read(_HEADS)
    rule = _KNOWN.get(head.name, By)
    defaults = {field.name: field.default for field in dataclasses.fields(rule)}  # type: ignore[arg-type]
    if "clients" not in defaults and clients is not None:
        raise ConfigError(
            f"partition {text!r} finds its clients in the data; clients={clients} has no meaning here",
            hint="leave clients out, or use max_clients",
        )
    if clients is not None and arguments.setdefault("clients", clients) != clients:
        raise ConfigError(
            f"partition {text!r} has {arguments['clients']} clients, but clients={clients} is given"
        )
    if defaults.get("clients") is dataclasses.MISSING and "clients" not in arguments:
        raise ConfigError(f"partition {text!r} needs clients", hint="pass clients=...")
    result: Partitioner = rule(**arguments)
    for extra in others:
        if extra.name not in _FOLLOWS:
            raise ConfigError(
                f"partition {text!r}: {extra.name!r} cannot follow a '+'",
                hint="only permuted:GROUPS,FRACTION can",
            )
        result = LabelPermutation(result, **extra.read(_FOLLOWS))
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
