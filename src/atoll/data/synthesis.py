"""Synthetic(alpha, beta): the generator of FedProx's experiments, thirty unequal linear tasks."""

from __future__ import annotations

import numpy as np
import torch

from atoll import spec

from .dataset import Dataset
from .division import require
from .federated import FederatedData
from .samples import Samples

__all__ = ["from_text", "generate", "synthetic"]

_FEATURES, _CLASSES = 60, 10


def generate(alpha: float, beta: float, clients: int = 30, seed: int = 0, iid: bool = False) -> Dataset:
    """The samples of `synthetic` in one dataset with the column ``device``."""
    require(
        clients >= 1, f"synthetic: clients must be at least 1, not {clients}", "30 is the original number"
    )
    require(alpha >= 0 and beta >= 0, f"synthetic: alpha and beta must not be negative: {alpha}, {beta}",
            "they are standard deviations")  # fmt: skip
    # The legacy stream, one device after another, so that the devices are the same under every version of NumPy.
    generator = np.random.RandomState(seed)
    sizes = generator.lognormal(4.0, 2.0, clients).astype(np.int64) + 50
    deviation = np.arange(1, _FEATURES + 1) ** -0.6  # the square root of diag(j ** -1.2)
    common = None
    inputs, targets = [], []
    for size in sizes:
        u, centre = generator.normal(0.0, alpha), generator.normal(0.0, beta)
        v = generator.normal(centre, 1.0, _FEATURES)
        w, b = generator.normal(u, 1.0, (_FEATURES, _CLASSES)), generator.normal(u, 1.0, _CLASSES)
        if iid:
            common = common or (w - u, b - u)
            (w, b), v = common, np.zeros(_FEATURES)
        x = v + deviation * generator.standard_normal((size, _FEATURES))
        inputs.append(x.astype(np.float32))
        targets.append((x @ w + b).argmax(1))
    return Dataset(
        "synthetic-iid" if iid else f"synthetic:{alpha:g},{beta:g}",
        Samples(
            torch.from_numpy(np.concatenate(inputs)),
            torch.from_numpy(np.concatenate(targets)).to(torch.int64),
        ),
        classes=_CLASSES,
        columns={"device": np.repeat(np.arange(clients), sizes)},
        natural="device",
        in_client_test=0.1,
        description="linear tasks that differ by alpha in their models and by beta in their inputs",
        license="generated",
        source="T. Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020",
    )


def synthetic(
    alpha: float, beta: float, clients: int = 30, seed: int = 0, iid: bool = False
) -> FederatedData:
    """Synthetic(alpha, beta): 60 features, 10 classes, 50 + int(LogNormal(4, 2)) samples a device, 10 % test.

    Device k has the model W ~ N(u, 1) of shape (60, 10) and b ~ N(u, 1) with u ~ N(0, alpha), and inputs
    x ~ N(v, diag(j ** -1.2)) with v ~ N(B, 1) and B ~ N(0, beta); y = argmax(x W + b). The second argument of
    N is the standard deviation, as in the published code (the paper writes a variance). With `iid` all
    devices share one model W, b ~ N(0, 1) and v = 0.   Li et al., MLSys 2020.
    """
    return generate(alpha, beta, clients, seed, iid).partition("natural", seed=seed)


def from_text(name: str, clients: int = 30, seed: int = 0, iid: bool = False) -> Dataset:
    """The dataset of ``synthetic:ALPHA,BETA``."""
    given = spec.parse(name, "dataset").read({"synthetic": (spec.number("alpha"), spec.number("beta"))})
    return generate(given["alpha"], given["beta"], clients, seed, iid)
