"""What a federation hands over to be written down: plain facts about it, its rounds and its end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from msgspec import UNSET

from atoll.contract import Method
from atoll.data import FederatedData
from atoll.digits import shortened
from atoll.parts import tensors
from atoll.rounds.clocked import Clocked
from atoll.rounds.cohort import Cohorts
from atoll.rounds.history import Round
from atoll.rounds.judge import Judge
from atoll.rounds.outcomes import alike
from atoll.rounds.play import Played
from atoll.rounds.spent import Spent
from atoll.runs import about
from atoll.runs.events import kinds
from atoll.settings import Settings
from atoll.task import Task

__all__ = ["affinity", "defaults", "fields", "identity", "opening", "round_event"]

_TELLING = (
    "channel", "aggregate", "sampling", "choose", "devices", "pace", "concurrency", "deadline", "over_select", "quorum",
    "late", "retry", "exclude", "adaptive", "dp_sgd", "ray_gpus", "attack", "precision",
    "accumulate", "recompute",
)  # fmt: skip
"""Settings that decide the bits of a run where they are not their defaults."""

_DIGITS = {"began": 9, "done": 9}
"""Moments since the run began, which may be long ago; of other columns five digits are written."""


def fields(method: Method) -> dict[str, Any]:
    """A method's settings."""
    return {each.name: getattr(method, each.name) for each in dataclasses.fields(method)}  # type: ignore[arg-type]


def defaults(method: Method) -> dict[str, Any]:
    """What a run's and a method's settings are unless said otherwise."""
    parts = (*dataclasses.fields(Settings), *dataclasses.fields(method))  # type: ignore[arg-type]
    return {each.name: each.default for each in parts}


def opening(
    labels: Mapping[str, str],
    config: Mapping[str, Any],
    method: Method,
    task: Task,
    data: FederatedData,
    cohorts: Cohorts,
    judge: Judge,
    changed: Sequence[str],
    attackers: Sequence[int] = (),
) -> tuple[kinds.Start, kinds.Partition]:
    """The events that a run begins with (`docs/runs.md`); `config` are all its settings as plain values, of
    which those `changed` are not their defaults.
    """
    here = cohorts.membership
    start = kinds.Start(
        method=labels["method"],
        data=labels["data"],
        partition=labels["partition"],
        model=labels["model"],
        seed=cohorts.seed,
        rounds=config["rounds"],
        cohort=cohorts.size,
        clients=len(data),
        parameters=sum(p.numel() for p in task.module.parameters()),
        classes=data.classes,
        measure="accuracy" if "accuracy" in task.metrics else "loss",
        metrics=judge.better,
        personalised=method.personalised,
        target=config["target"],
        device=str(judge.device),
        engine=config["engine"],
        config=config,
        changed=changed,
    )
    return start, about.partition(
        names=data.names,
        sizes=(data.size(k) for k in range(len(data))) if data.listed else None,
        weights=data.weights,
        judged=judge.tested,
        joins=here.joins,
        leaves=here.leaves,
        newcomers=here.newcomers,
        attackers=attackers,
        report=data.report().to_dict(),
    )


def identity(
    method: Method,
    tasks: Sequence[Task],
    data: FederatedData,
    cohorts: Cohorts,
    device: str,
    settings: Settings,
    attackers: Sequence[int] = (),
) -> dict[str, Any]:
    """What decides the bits of a round, as plain values."""
    usual = Settings()
    timed = {name: value for name in _TELLING if (value := getattr(settings, name)) != getattr(usual, name)}
    here = cohorts.membership
    parts = [part for each in tasks for part in each.initial()]
    form = [[name, list(t.shape), str(t.dtype)] for part in parts for name, t in part.items()]
    params = sum(part.size() for part in parts[::2])
    sizes = np.array([data.size(k) for k in range(len(data))] if data.pool() is not None else [])
    found = {
        "method": type(method).__name__,
        **fields(method),
        "seed": cohorts.seed,
        "cohort": cohorts.size,
        "stragglers": cohorts.stragglers,
        **timed,
        "loss": tasks[0].loss_text,
        "device": device,
        "number of clients": len(data),
        "model": f"{params:,} parameters, form {about.checksum(form):08x}",
        "clients' sizes": about.checksum(sizes.astype(np.int64).tobytes()),
    }
    frozen = (
        value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for each in tasks
        for value in each.frozen.values()
    )
    if any(each.frozen for each in tasks):
        found["frozen parameters"] = about.checksum(frozen)
    if here.newcomers:
        found["newcomers"] = about.checksum(np.array(here.newcomers, np.int64).tobytes())
    for name, schedule in (("joins", here.joins), ("leaves", here.leaves)):
        if schedule:
            found[name] = about.checksum(sorted(schedule.items()))
    found |= {name: about.checksum(said) for name, said in here.stated.items()}
    if attackers:
        found["attackers"] = about.checksum(np.array(attackers, np.int64).tobytes())
    if data.augmentation is not None:
        found["augment"] = data.augmentation.text
    if data.mixture is not None:
        found["mix"] = data.mixture.text
    if data.weights is not None:
        found["clients' weights"] = about.checksum(np.ascontiguousarray(data.weights).tobytes())
    if data.public is not None:
        found["public data"] = about.checksum(
            b"".join(part.cpu().numpy().tobytes() for part in tensors([data.public.inputs]))
        )
    if data.root is not None:
        held = [*tensors([data.root.inputs]), data.root.targets]
        found["root data"] = about.checksum(b"".join(part.cpu().numpy().tobytes() for part in held))
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _spent(spent: Spent) -> kinds.Spent:
    """What a round spent of privacy; only where single samples are hidden beside does it say anything of them."""
    found = dataclasses.asdict(spent)
    beside = spent.samples_delta is not None
    return kinds.Spent(**{k: v for k, v in found.items() if beside or not k.startswith("samples_")})


def _shortened(columns: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    """Columns of a round with the digits that they are written with, all of them at once for each number of digits."""
    found: dict[str, list[float | None]] = {}
    for digits in {_DIGITS.get(name, 5) for name in columns}:
        names = [name for name in columns if _DIGITS.get(name, 5) == digits]
        flat = shortened([value for name in names for value in columns[name]], digits)
        each = len(flat) // len(names)
        found |= {name: flat[at * each : (at + 1) * each] for at, name in enumerate(names)}
    return {name: found[name] for name in columns}


def _clock(clocked: Clocked) -> kinds.Clock:
    """A round's clock; who came and left is told where somebody did."""
    found = {name: value for name, value in vars(clocked).items() if value or name not in ("came", "left")}
    return kinds.Clock(**found)


def affinity(method: Method, played: Played) -> list[kinds.Affinity]:
    """What the method knows of how clients are related, or else how alike their last updates point."""
    known = method.affinity(played.state)
    of = "update cosine" if known is None else method.relation or "affinity"
    found = alike(played.outcomes, about.COMPARED) if known is None else known
    if found is None:
        return []
    clients, matrix = found
    return [about.affinity(played.record.number, of, clients, matrix.double().cpu().numpy())]


def round_event(record: Round, judged: Sequence[int]) -> kinds.Round:
    """A round as it is written down (`docs/runs.md`); clients' measures come in the order of `judged`."""
    found = record.evaluation
    return kinds.Round(
        round=record.number,
        cohort=record.cohort,
        dropped=record.dropped,
        refused={str(client): reason for client, reason in record.refused.items()},
        loss=record.loss,
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
        seconds=round(record.seconds, 6),
        clients=kinds.Columns(**_shortened(record.clients)),
        evaluation=None if found is None else kinds.Evaluation(**found.to_event(judged)),
        spent=UNSET if record.spent is None else _spent(record.spent),
        tokens=UNSET if record.tokens is None else record.tokens,
        clock=UNSET if record.clock is None else _clock(record.clock),
    )
