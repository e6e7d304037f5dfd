"""What a personalised method is measured by: Local, FedAvg and FedAvg with fine-tuning, in the settings of others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any

from atoll import methods
from atoll.contract import Method
from atoll.errors import ConfigError
from atoll.experiment import Experiment, run_settings
from atoll.federation import Federation
from atoll.runs.events import plain
from atoll.runs.story import Story

__all__ = ["BASELINES", "beside", "fits", "identity", "known"]

BASELINES = ("local", "fedavg", "fedavg-ft")
"""Every client alone, one model for all, and that one adapted to each client."""

_OF_START = ("data", "partition", "model", "clients", "parameters", "rounds", "cohort", "target")
_OF_CONFIG = frozenset({"stragglers", "newcomers", "adapt", "joins", "leaves"})


def known(method: str) -> frozenset[str]:
    """The settings that a method has; none if there is no such method."""
    try:
        return frozenset(setting.name for setting in methods.fields(methods.get(method)))
    except ConfigError:
        return frozenset()


def beside(item: Federation | Experiment | Mapping[str, Any], method: str) -> Federation | Experiment | None:
    """The same with a baseline as its method, which takes the settings that it knows; None where it cannot be that.

    There is no average of models that differ in their architecture.
    """
    own = known(method)
    if isinstance(item, Federation):
        if len(item.tasks) > 1 and not methods.get(method).mixed:
            return None
        fields = methods.fields(methods.get(method))
        stated = (
            {each.name: each.default for each in fields} if item.keeper.config else {}
        )  # by an experiment: all of them
        return item.replace(method=method, **{**stated, **_chosen(item.method, own)})
    if isinstance(item, Experiment):
        settings = _chosen(methods.get(item.method)(**item.settings), own)
        made = dataclasses.replace(item, method=method, settings=settings)
    else:
        kept = {key: value for key, value in item.items() if key in own or key in run_settings()}
        made = Experiment.read(**{**kept, "method": method})
    return made if fits(method, made.model) else None


def fits(method: str, model: str) -> bool:
    """Whether a method can train this model, or these models ("cnn + mlp:64")."""
    return "+" not in model or methods.get(method).mixed


def identity(run: Federation | Story, seed: int | None = None) -> str | None:
    """A name for what a run of a baseline computes, with a seed of its own or another; None for other methods."""
    label = type(run.method).__name__ if isinstance(run, Federation) else run.method
    method = {methods.get(name).__name__: name for name in BASELINES}.get(label, label)
    if method not in BASELINES:
        return None
    if isinstance(run, Federation):
        opening, partition = run.keeper.opening()
        start, clients = plain(opening), plain(partition)
        sizes, weights = clients["sizes"], clients.get("weights")
    else:
        start, sizes, weights = run.start, run.sizes, run.weights
    config = start.get("config") or {}
    facts = {key: start.get(key) for key in _OF_START} | {
        key: config.get(key) for key in _OF_CONFIG | known(method)
    }
    facts |= {"method": method, "sizes": sizes, "weights": weights}
    facts["seed"] = start.get("seed") if seed is None else seed
    return json.dumps(facts, sort_keys=True, default=str)


def _chosen(method: Method, settings: Collection[str]) -> dict[str, Any]:
    """The values of these settings that somebody chose: those that are not the method's defaults.

    A default that a method changes (FedProx keeps stragglers' partial work) belongs to the method, not to the
    experiment.
    """
    fields: Any = dataclasses.fields(method)  # type: ignore[arg-type]
    values = {
        each.name: (getattr(method, each.name), each.default) for each in fields if each.name in settings
    }
    return {name: value for name, (value, default) in values.items() if value != default}
