"""A run as JSON lines: one event a line on stdout."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from atoll.experiment import Experiment
from atoll.federation import Callback, Federation
from atoll.results import Round

__all__ = ["Events", "emit", "plain"]


class Events(Callback):
    """Writes "start" and "round" events; the command writes how the run ended."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def on_start(self, federation: Federation) -> None:
        data, module = federation.data, federation.task.module
        found = {
            "partition": data.partition,
            "clients": len(data),
            "cohort": federation.cohort,
            "device": str(federation.device),
            "parameters": sum(p.numel() for p in module.parameters()),
            "classes": data.classes,
        }
        emit("start", {"config": self.experiment.to_dict(), **found})

    def on_round_end(self, federation: Federation, record: Round) -> None:
        emit("round", round_event(record))


def round_event(record: Round) -> dict[str, Any]:
    """A round as plain values; measures are there if the round was evaluated."""
    event: dict[str, Any] = {
        "round": record.number,
        "cohort": record.cohort,
        "dropped": record.dropped,
        "refused": {str(client): reason for client, reason in record.refused.items()},
        "loss": record.loss,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "seconds": round(record.seconds, 6),
    }
    last = record.evaluation
    if last is not None:
        event["accuracy"] = last.overall.get("accuracy")
        event["test"] = dict(last.overall)
        event["clients"] = asdict(last.clients[last.measure]) if last.measure in last.clients else None
        if last.measure in last.personal:
            event["personal"] = asdict(last.personal[last.measure])
    return event


def emit(kind: str, fields: Mapping[str, Any]) -> None:
    """Print one event."""
    sys.stdout.write(msgspec.json.encode(plain({"event": kind, **fields})).decode() + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """The value with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value
