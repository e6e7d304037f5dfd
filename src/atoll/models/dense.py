"""Networks of fully connected layers. Inputs of any shape are flattened."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from atoll.errors import ConfigError

__all__ = ["logistic", "mlp", "two_nn"]


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them: ``mlp(64, 128, 10)`` has one hidden layer.

    Inputs [b, ...] with sizes[0] numbers a sample, outputs [b, sizes[-1]].
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ConfigError(
            f"mlp{sizes} is no network", hint="give at least inputs and outputs: mlp(64, 128, 10)"
        )
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def two_nn() -> nn.Sequential:
    """The 2NN of McMahan et al. (2017): 784-200-200-10, 199,210 parameters."""
    return mlp(784, 200, 200, 10)


def logistic(inputs: int, classes: int) -> nn.Sequential:
    """Multinomial logistic regression: one linear layer."""
    return mlp(inputs, classes)
