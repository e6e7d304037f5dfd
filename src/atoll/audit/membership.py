"""Membership inference: whether a model's losses tell the samples it was trained on from others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from atoll import seeds
from atoll.audit.skipped import Skipped
from atoll.data import Samples
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.task import architecture
from atoll.tensors import Tensors

__all__ = ["LIMIT", "Membership", "area", "infer"]

LIMIT = 0.55
"""The area under the ROC curve from which, at 95 % confidence, members count as told apart."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Membership:
    """How well losses tell members from others.

    `auc` is the area under the ROC curve (0.5: not at all), `low` its lower 95 % confidence bound. `advantage` is the
    true positive rate less the false positive rate of a threshold on the loss, chosen on one half of the samples and
    judged on the other. `members` and `others` are how many there were, `model` whose losses they are ("global" or
    "personal"). `curve` is the ROC curve, (false, true) positive rates.
    """

    auc: float
    low: float
    advantage: float
    members: int
    others: int
    model: str
    curve: tuple[Floats, Floats] = field(repr=False, compare=False)

    @property
    def succeeded(self) -> bool:
        """Whether members were told apart."""
        return self.low > LIMIT

    def to_dict(self) -> dict[str, object]:
        """As plain values."""
        return {
            "auc": round(self.auc, 4),
            "auc_lower": round(self.low, 4),
            "advantage": round(self.advantage, 4),
            "model": self.model,
        }


def infer(federation: Federation, *, samples: int = 2000) -> Membership:
    """Guess that samples of small loss are members.   Yeom et al., CSF 2018, Adversary 2

    Members are training samples of clients that took part, others test samples; at most so many of either. The model is
    the global one, or where clients have their own each client's, on its own samples.

    Raises Skipped where no round was played, there are no test samples, or a client's model is a narrower one.
    """
    data = federation.data
    lost = [{*each.refused, *each.dropped} for each in federation.history]
    took_part = {
        k for each, gone in zip(federation.history, lost, strict=True) for k in each.cohort if k not in gone
    }
    clients = sorted(took_part)
    if not clients:
        raise Skipped("nobody has taken part in a round yet")
    personal = federation.method.personalised
    rng = seeds.rng(federation.seed, "audit membership")
    if personal:
        # each model on as many of its own samples; a model costs more than its samples
        some = sorted(rng.choice(clients, min(len(clients), 50), replace=False).tolist())
        found = [_own(federation, k, max(1, samples // len(some)), rng) for k in some]
        inside, outside = (np.concatenate([pair[at] for pair in found]) for at in (0, 1))
    else:
        test = data.test_set
        parts = [part for k in clients if (part := data.samples(k)) is not None]
        few = max(1, math.ceil(samples / max(1, len(parts))))
        inside = np.concatenate([_losses(federation, _some(part, few, rng)) for part in parts])
        outside = np.zeros(0) if test is None else _losses(federation, _some(test, samples, rng))
    if not len(inside) or not len(outside):
        raise Skipped("there are no test samples to compare with")
    curve = _roc(inside, outside)
    auc = area(inside, outside)
    return Membership(
        auc, auc - 1.645 * _deviation(auc, len(inside), len(outside)), _advantage(inside, outside, rng),
        len(inside), len(outside), "personal" if personal else "global", curve,
    )  # fmt: skip


def area(inside: Floats, outside: Floats) -> float:
    """The chance that a member's loss is below another sample's, ties by half: the area under the ROC curve."""
    order = np.sort(outside)
    above = len(order) - np.searchsorted(order, inside, "right")
    ties = np.searchsorted(order, inside, "right") - np.searchsorted(order, inside, "left")
    return float((above + ties / 2).mean() / len(order))


def _deviation(auc: float, members: int, others: int) -> float:
    """The standard error of an area.   Hanley and McNeil, Radiology 1982, equation 2"""
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    total = auc * (1 - auc) + (members - 1) * (one - auc**2) + (others - 1) * (two - auc**2)
    return math.sqrt(max(total, 0.0) / (members * others))


def _roc(inside: Floats, outside: Floats) -> tuple[Floats, Floats]:
    """(false, true) positive rates of thresholds from the smallest loss to the largest."""
    cuts = np.unique(np.concatenate([inside, outside]))
    true = np.searchsorted(np.sort(inside), cuts, "right") / len(inside)
    false = np.searchsorted(np.sort(outside), cuts, "right") / len(outside)
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def _advantage(inside: Floats, outside: Floats, rng: np.random.Generator) -> float:
    """True less false positive rate of the threshold that is best on the other half, the mean of both ways."""
    inside, outside = rng.permutation(inside), rng.permutation(outside)
    halves = [(inside[at::2], outside[at::2]) for at in (0, 1)]
    found = []
    for (a, b), (c, d) in (halves, halves[::-1]):
        if len(a) and len(b) and len(c) and len(d):
            cuts = np.unique(np.concatenate([a, b]))
            gain = np.searchsorted(np.sort(a), cuts, "right") / len(a)
            gain = gain - np.searchsorted(np.sort(b), cuts, "right") / len(b)
            cut = cuts[int(gain.argmax())]
            found.append(float((c <= cut).mean() - (d <= cut).mean()))
    return sum(found) / len(found) if found else 0.0


def _some(samples: Samples, most: int, rng: np.random.Generator) -> Samples:
    if samples.count <= most:
        return samples
    return samples.take(np.sort(rng.choice(samples.count, most, replace=False)))


def _losses(federation: Federation, samples: Samples) -> Floats:
    """The global model's loss of each sample."""
    simulation = federation.simulation
    measured = simulation.judge.measures(*federation.method.model(simulation.state), samples)
    return np.asarray(measured["loss"])


def _own(federation: Federation, client: int, most: int, rng: np.random.Generator) -> Sequence[Floats]:
    """The losses of a client's own model on some of its training and on some of its test samples."""
    try:
        module = federation.personal(client)
    except ConfigError as error:
        raise Skipped(error.message) from None
    task = federation.tasks[architecture(client, len(federation.tasks))]
    found: list[Floats] = []
    main = torch.device("cpu")
    for split in ("train", "test"):
        samples = federation.data.samples(client, split)
        if samples is None:
            found.append(np.zeros(0))
            continue
        some = _some(samples, most, rng)
        state = module.state_dict()
        params, buffers = (Tensors({name: state[name] for name in part}) for part in task.initial())
        with torch.inference_mode():
            measured = task.measure(params, buffers, some.inputs.to(main), some.targets.to(main))
        found.append(measured.loss.double().numpy())
    return found
