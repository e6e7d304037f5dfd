"""What a model gets on samples that lie here: measures of each, their totals, and figures of sets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from atoll.data import Samples
from atoll.task import Task
from atoll.tensors import Tensors

__all__ = ["ROWS", "Measures", "figures", "measures", "totals"]

Measures = dict[str, np.ndarray[Any, np.dtype[np.float64]]]
"""Name -> values of the samples, [n], or rows (see `Metric.taken`)."""

ROWS = 2048
"""Samples in a batch."""


def measures(
    task: Task, device: torch.device, params: Tensors, buffers: Tensors, samples: Samples
) -> Measures:
    """Per-sample measures of a model; {} without samples."""
    params = params.map(lambda t: t.to(device))
    buffers = buffers.map(lambda t: t.to(device))
    parts: dict[str, list[Any]] = {}
    with torch.inference_mode():
        for start in range(0, samples.count, ROWS):
            inputs = samples.inputs[start : start + ROWS].to(device)
            targets = samples.targets[start : start + ROWS].to(device)
            for name, values in task.measure(params, buffers, inputs, targets).items():
                parts.setdefault(name, []).append(values.double())
        if not parts:
            return {}
        joined = {name: torch.cat(values) for name, values in parts.items()}
        means = [name for name, values in joined.items() if values.ndim == 1]
        copied = torch.stack([joined[name] for name in means]).cpu().numpy()  # one copy back
        rows = {name: joined[name].cpu().numpy() for name in joined if name not in means}
    return {**dict(zip(means, copied, strict=True)), **rows}


def totals(task: Task, measured: Measures) -> dict[str, Any]:
    """The totals of per-sample measures, which may be pooled."""
    found: dict[str, Any] = {"loss": float(measured["loss"].sum())}
    for name, metric in task.metrics.items():
        found |= metric.total(name, measured[name])
    if (confusion := task.confusion) is not None:
        found[confusion.name] = confusion.total(measured[confusion.name])
    return found


def figures(task: Task, sums: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, float]:
    """The loss and the metrics of sets of samples, (count, totals), taken together; NaN where one is not defined."""
    found, count = [each for _, each in sums], sum(n for n, _ in sums)
    loss = sum(each["loss"] for each in found) / count
    return {"loss": loss, **{name: metric.value(found, name) for name, metric in task.metrics.items()}}
