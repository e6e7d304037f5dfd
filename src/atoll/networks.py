"""The models of a run, made of what was said: by name, begun from a file, adapted, and tried on the data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from atoll import adapters, own, seeds, spec
from atoll.adapters import Adapter
from atoll.contract import Method
from atoll.data import FederatedData
from atoll.errors import ConfigError
from atoll.losses import Loss
from atoll.machine import threads
from atoll.methods import METHODS
from atoll.metrics import Metrics
from atoll.modalities import HERE
from atoll.models import begin_from, build
from atoll.modules import ready
from atoll.parts import Parts, shapes, tensors
from atoll.task import Task

__all__ = ["Model", "architectures", "networks"]

Model = nn.Module | Callable[[], nn.Module]


def networks(text: str, data: FederatedData) -> list[Callable[[], nn.Module]]:
    """What makes the networks that a text names ("cnn + mlp:64"), to fit this data.  Raises ConfigError."""
    example = data.example()
    outputs = data.classes or (math.prod(example.targets.shape[1:]) or 1)
    inputs = example.inputs
    if isinstance(inputs, Parts):
        several, named = by_name(inputs), spec.chain(text, "model", "+")
        if several and {each.name for each in named} <= {"auto", "fused"}:
            return [partial(build, each, several, outputs) for each in named]
        if not (own.named(text) or text.startswith("hf:")):
            raise ConfigError(
                f"model = {text!r} reads one tensor, and the inputs of {data.dataset} have the parts {shapes(inputs)}",
                hint=('take model = "fused", or ' if several else "")
                + 'name a module of your own: model = "package.module:Name"',
            )
    first = tensors([inputs])[0]
    shape = tuple(first.shape[1:])
    tokens = text == "auto" and not first.is_floating_point()
    names = spec.chain("lstm" if tokens else text, "model", "+")
    return [partial(build, each, shape, outputs) for each in names]


def by_name(inputs: Parts) -> dict[str, tuple[int, ...]]:
    """The shapes of parts that an encoder can be made for each of; {} where they have no names, or are tokens."""
    found = {str(name): part for name, part in inputs.items() if name != HERE} if inputs.named else {}
    plain = all(part.is_floating_point() for part in found.values())
    return {name: tuple(part.shape[1:]) for name, part in found.items()} if plain else {}


def architectures(
    model: Model | Sequence[Model],
    data: FederatedData,
    method: Method,
    seed: int,
    loss: str | Loss | None,
    metrics: Metrics | None,
    adapter: str | Adapter | None = None,
    start: str | Path | None = None,
) -> tuple[Task, ...]:
    """A task for each architecture, tried on the data; with several adapters, one for each of them.

    They begin with the numbers of the file `start`, or as they are made.
    """
    several = isinstance(model, Sequence) and not isinstance(model, str)
    models: list[Any] = list(model) if several else [model]  # type: ignore[arg-type]
    for each in models:
        if not (isinstance(each, nn.Module) or callable(each)):
            raise ConfigError(
                f"model is {each!r}, and neither an nn.Module nor a function that makes one",
                hint="atoll.models.build(NAME, shape, classes) makes one of a name, and atoll.run(model=NAME) too",
            )
    if len(models) > 1 and not method.mixed:
        able = ", ".join(name for name, kind in METHODS.items() if kind.mixed)
        raise ConfigError(
            f"{type(method).__name__} gives all clients one architecture, and there are {len(models)} models",
            hint=f"methods for different architectures: {able}",
        )
    if not models:
        raise ConfigError("model is an empty list", hint="give at least one")
    if start is not None and len(models) > 1:
        raise ConfigError(
            f"base = {start} has the numbers of one model, and there are {len(models)}",
            hint="leave base out",
        )
    example, tasks = data.example(), []
    stated = loss or ("cross_entropy" if data.classes else "mse")
    for each in models:
        with seeds.scoped(seed):
            made = ready(each if isinstance(each, nn.Module) else each(), example.inputs[:1])
            if made is each and not (adapter is None and start is None):
                made = copy.deepcopy(
                    made
                )  # it is changed, or shared by adapters: the caller's stays as it is
            if start is not None:
                begin_from(made, Path(start))
            for module in [made] if adapter is None else adapted(made, adapter, method, len(models), seed):
                task = Task(module, stated, metrics, data.augmentation, shares=adapter is not None)
                with threads(1):  # one sample
                    task.check(example.inputs[:1], example.targets[:1], data.classes)
                adapters.check(task.module, task.used)
                tasks.append(task)
            del made, module  # nothing here holds a module beside its task: it may be large
    return tuple(tasks)


def adapted(
    module: nn.Module, adapter: str | Adapter, method: Method, models: int, seed: int
) -> Iterator[nn.Module]:
    """The module with each adapter of a setting, over one base.  Raises ConfigError where they do not fit."""
    found = adapters.chain(adapter) if isinstance(adapter, str) else [adapter]
    if len(found) > 1 and models > 1:
        raise ConfigError(
            f"adapter = {adapter!r} names {len(found)} adapters, and there are {models} models",
            hint="give one adapter for all models, or several for one",
        )
    if len(found) > 1 and not method.mixed:
        able = ", ".join(name for name, kind in METHODS.items() if kind.mixed)
        raise ConfigError(
            f"{type(method).__name__} gives all clients one adapter, and adapter = {adapter!r} names {len(found)}",
            hint=f"methods for unequal adapters: {able}",
        )
    return (adapters.apply(module, each, seed) for each in found)
