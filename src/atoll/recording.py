"""What a federation writes down about itself, and what it must agree in to go on with a run."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll.engines import Outcome
from atoll.engines.probe import drift
from atoll.measures import shortened
from atoll.membership import schedule_text
from atoll.runs.events.kinds import Partition, Report, Start
from atoll.runs.provenance import command, commit, versions

if TYPE_CHECKING:
    from atoll.federation import Federation

__all__ = ["affinity", "columns", "config", "fingerprint", "partition", "score", "start"]

_LISTED = 10_000  # clients whose names and sizes are listed
_COMPARED = 64  # clients in an affinity matrix


def config(federation: Federation) -> dict[str, Any]:
    """Every setting that can be written as a value, the method's among them."""
    target = federation.target
    own = {
        "method": federation.labels["method"],
        "rounds": federation.rounds,
        "cohort": federation.cohort,
        "seed": federation.seed,
        "stragglers": federation.stragglers,
        "target": None if target is None else f"{target.measure}:{target.value:g}",
        "eval_every": federation.eval_every,
        "eval_clients": federation.judge.limit,
        "newcomers": len(federation.membership.newcomers),
        "adapt": federation.adapt,
        "joins": schedule_text(federation.membership.joins),
        "leaves": schedule_text(federation.membership.leaves),
        "checkpoint": federation.checkpoint,
        "keep": federation.keep,
    }
    return {**own, **_settings(federation), **federation.config}


def start(federation: Federation) -> Start:
    """The event "start"."""
    task, data = federation.task, federation.data
    known = config(federation)
    return Start(
        run=federation.folder.name if federation.folder else "",
        method=federation.labels["method"],
        data=federation.labels["data"],
        partition=federation.labels["partition"],
        model=federation.labels["model"],
        seed=federation.seed,
        rounds=federation.rounds,
        cohort=federation.cohort,
        clients=len(data),
        parameters=sum(p.numel() for p in task.module.parameters()),
        classes=data.classes,
        measure="accuracy" if "accuracy" in task.metrics else "loss",
        personalised=federation.method.personalised,
        target=known["target"],
        device=str(federation.device),
        engine=federation.engine_name,
        config=known,
        versions=versions(),
        command=command(),
        commit=commit() if federation.folder else None,
    )


def partition(federation: Federation) -> Partition:
    """The event "partition"."""
    data = federation.data
    listed = len(data) <= _LISTED
    sized = listed and data.pool() is not None
    report = data.report()
    figures = {
        name: None if (value := getattr(report, name)) is None else shortened(value)
        for name in ("emd", "js", "effective")
    }
    return Partition(
        names=list(map(str, data.names)) if listed else None,
        sizes=[data.size(k) for k in range(len(data))] if sized else None,
        judged=federation.judge.clients,
        joins={str(client): at for client, at in sorted(federation.membership.joins.items())},
        leaves={str(client): at for client, at in sorted(federation.membership.leaves.items())},
        report=Report(**{**report.to_dict(), **figures}),
    )


# --- about a round --------------------------------------------------------------------------------------------------


def columns(cohort: Sequence[int], outcomes: Sequence[Outcome], since: float) -> dict[str, list[float]]:
    """What is known of each client of a round, column by column; `since` is when the round began."""
    by_client = {outcome.client: outcome for outcome in outcomes}
    rows = [by_client.get(client) for client in cohort]
    nan = float("nan")
    found = {
        "loss": [nan if o is None or o.refused else o.metrics.get("loss", nan) for o in rows],
        "samples": [nan if o is None else o.metrics.get("count", nan) for o in rows],
        "start": [nan if o is None else o.begun - since for o in rows],
        "end": [nan if o is None else o.ended - since for o in rows],
    }
    found["loss"] = [
        loss / n if n > 0 else nan for loss, n in zip(found["loss"], found["samples"], strict=True)
    ]
    seen = _probed([o for o in rows if o is not None])
    if seen:
        norms, cosines, _ = drift([o.probe for o in seen if o.probe is not None], [o.weight for o in seen])
        norm = dict(zip((o.client for o in seen), norms.tolist(), strict=True))
        cosine = dict(zip((o.client for o in seen), cosines.tolist(), strict=True))
        found["norm"] = [norm.get(client, nan) for client in cohort]
        found["cosine"] = [cosine.get(client, nan) for client in cohort]
    return {name: column for name, column in found.items() if any(v == v for v in column)}


def affinity(federation: Federation, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """The fields of the event "affinity" but its round: what the method knows of how clients are related, or else
    how alike their last updates point."""
    method = federation.method
    known = method.affinity(federation.state)
    if known is not None:
        clients, matrix = known
        rows = np.round(matrix[:_COMPARED, :_COMPARED].double().cpu().numpy(), 3).tolist()
        return {"of": method.relation or "affinity", "clients": clients[:_COMPARED], "matrix": rows}
    seen = _probed(outcomes)[:_COMPARED]
    if len(seen) < 2:
        return None
    _, _, matrix = drift([o.probe for o in seen if o.probe is not None], [o.weight for o in seen])
    rows = np.round(matrix.numpy(), 3).tolist()
    return {"of": "update cosine", "clients": [o.client for o in seen], "matrix": rows}


def _probed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those whose update was probed; none if updates differ in form, for then they have no coordinates in common."""
    seen = [o for o in outcomes if o.probe is not None]
    return seen if len({o.probe.numel() for o in seen if o.probe is not None}) == 1 else []


def score(federation: Federation) -> float | None:
    """How good the last evaluation was, the more the better, to tell the best checkpoint."""
    last = federation.history[-1].evaluation if federation.history else None
    return None if last is None else last.score


# --- going on -------------------------------------------------------------------------------------------------------


def fingerprint(federation: Federation) -> dict[str, Any]:
    """What decides the bits of a round, as plain values."""
    data, task = federation.data, federation.task
    parts = [part for each in federation.tasks for part in each.initial()]
    form = [[name, list(t.shape), str(t.dtype)] for part in parts for name, t in part.items()]
    params = sum(part.size() for part in parts[::2])
    sizes = np.array([data.size(k) for k in range(len(data))] if data.pool() is not None else [])
    found = {
        "method": type(federation.method).__name__,
        **_settings(federation),
        "seed": federation.seed,
        "cohort": federation.cohort,
        "stragglers": federation.stragglers,
        "loss": task.loss_name,
        "device": str(federation.device.type),
        "number of clients": len(data),
        "model": f"{params:,} parameters, form {zlib.crc32(json.dumps(form).encode()):08x}",
        "clients' sizes": zlib.crc32(sizes.astype(np.int64).tobytes()),
    }
    here = federation.membership
    if here.newcomers:
        found["newcomers"] = zlib.crc32(np.array(here.newcomers, np.int64).tobytes())
    for name, schedule in (("joins", here.joins), ("leaves", here.leaves)):
        if schedule:
            found[name] = zlib.crc32(json.dumps(sorted(schedule.items())).encode())
    if data.public is not None:
        found["public data"] = zlib.crc32(data.public.inputs.cpu().numpy().tobytes())
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _settings(federation: Federation) -> dict[str, Any]:
    method = federation.method
    return {each.name: getattr(method, each.name) for each in dataclasses.fields(method)}  # type: ignore[arg-type]
