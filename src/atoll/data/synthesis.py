"""Synthetic(alpha, beta): the generator of FedProx's experiments, thirty unequal linear tasks."""

from __future__ import annotations

import numpy as np
import torch

from atoll.errors import ConfigError

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
    # The published generator draws from NumPy's legacy stream in this order; so the devices are the published ones.
    generator = np.random.RandomState(seed)
    sizes = generator.lognormal(4.0, 2.0, clients).astype(np.int64) + 50
    means = generator.normal(0.0, alpha, clients)
    centres = [generator.normal(b, 1.0, _FEATURES) for b in generator.normal(0.0, beta, clients)]
    covariance = np.diag(np.arange(1, _FEATURES + 1) ** -1.2)
    if iid:
        common = generator.normal(0.0, 1.0, (_FEATURES, _CLASSES)), generator.normal(0.0, 1.0, _CLASSES)
        centres = [np.zeros(_FEATURES)] * clients
    inputs, targets = [], []
    for size, u, centre in zip(sizes, means, centres, strict=True):
        w, b = (
            common
            if iid
            else (generator.normal(u, 1.0, (_FEATURES, _CLASSES)), generator.normal(u, 1.0, _CLASSES))
        )
        x = generator.multivariate_normal(centre, covariance, size)
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


def from_text(text: str, clients: int = 30, seed: int = 0, iid: bool = False) -> Dataset:
    """The dataset of ``synthetic:ALPHA,BETA``."""
    try:
        alpha, beta = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"synthetic: {text!r} is not a pair of numbers", hint="write synthetic:1,1"
        ) from None
    return generate(alpha, beta, clients, seed, iid)
