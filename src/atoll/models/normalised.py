"""BatchNorm for networks that have none."""

from __future__ import annotations

from torch import nn

from atoll.errors import ConfigError

__all__ = ["with_batchnorm"]


def with_batchnorm(model: nn.Module) -> nn.Sequential:
    """The chain of layers with BatchNorm behind every convolution and linear layer but the last.

    Takes an `nn.Sequential` of layers; the layers are the same objects.  Raises ConfigError for anything else.
    """
    if not isinstance(model, nn.Sequential) or not len(model):
        raise ConfigError(
            f"BatchNorm cannot be put into {type(model).__name__}: it is no chain of layers",
            hint="mlp, 2nn, cnn, lenet, vgg and conv1d are",
        )
    layers: list[nn.Module] = []
    for layer in model:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
        elif isinstance(layer, nn.Conv1d):
            layers.append(nn.BatchNorm1d(layer.out_channels))
        elif isinstance(layer, nn.Linear):
            layers.append(nn.BatchNorm1d(layer.out_features))
    return nn.Sequential(*(layers[:-1] if isinstance(model[-1], nn.Linear) else layers))
