"""Small convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from atoll.errors import ConfigError

__all__ = ["cnn", "conv1d", "lenet", "m5", "vgg"]


def cnn(shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """The CNN of McMahan et al. (2017): 5x5 convolutions of 32 and 64 channels, pooled, and 512 units.

    Inputs [b, channels, height, width]; 1,663,370 parameters for MNIST.
    """
    channels, height, width = _image("cnn", shape, smallest=4)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, classes),
    )


def lenet(shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """A LeNet-style CNN: unpadded 5x5 convolutions of 16 and 32 channels, pooled, then 120 and 84 units.

    Inputs [b, channels, height, width], at least 16 x 16.
    """
    channels, height, width = _image("lenet", shape, smallest=16)
    rows, columns = (((size - 4) // 2 - 4) // 2 for size in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * rows * columns, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def vgg(shape: Sequence[int] = (3, 32, 32), classes: int = 10, width: int = 32) -> nn.Sequential:
    """VGG-9 as Wang et al. (FedMA, 2020) have it, without its dropout: 3x3 convolutions in three pooled pairs.

    Inputs [b, channels, height, width], at least 8 x 8. The convolutions have `width` x (1, 2 | 4, 4 | 8, 8) channels
    and two hidden layers follow, of 16 `width` units each: 32, 64 | 128, 128 | 256, 256 and 512, 512 at `width` 32,
    which is 3,491,530 parameters for CIFAR-10. Weights are drawn after He et al. (2015), as VGG's are, which is what
    lets nine layers without normalisation learn from the first step.
    """
    channels, rows, columns = _image("vgg", shape, smallest=8)
    if width < 1:
        raise ConfigError(f"vgg has a width of at least 1, not {width}")
    layers: list[nn.Module] = []
    for pair in ((1, 2), (4, 4), (8, 8)):
        for times in pair:
            layers += [nn.Conv2d(channels, times * width, 3, padding=1), nn.ReLU()]
            channels = times * width
        layers.append(nn.MaxPool2d(2))
    units = 16 * width
    module = nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * (rows // 8) * (columns // 8), units),
        nn.ReLU(),
        nn.Linear(units, units),
        nn.ReLU(),
        nn.Linear(units, classes),
    )
    for name, parameter in module[:-1].named_parameters():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        else:
            nn.init.zeros_(parameter)
    return module


def conv1d(shape: Sequence[int] = (9, 128), classes: int = 6) -> nn.Sequential:
    """A CNN for short recordings of several sensors, activity recognition for example, and for spectrograms.

    Inputs [b, channels, time] or [b, bands, time]: convolutions over time of 32 and 64 channels, each pooled, and
    128 units.
    """
    if len(shape) != 2 or shape[1] < 4:
        raise ConfigError(
            f"conv1d reads [channels, time], not {tuple(shape)}",
            hint="at least 4 time steps; mlp reads any shape",
        )
    channels, time = shape
    return nn.Sequential(
        nn.Conv1d(channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(64 * (time // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def m5(shape: Sequence[int] = (1, 8000), classes: int = 10) -> nn.Sequential:
    """A CNN for waveforms after M5 of Dai et al. (2017), narrower, and as large for long ones as for short ones.

    Inputs [b, channels, time], from 256 steps on: a convolution over 80 steps, every 16th, then three over 3, each
    pooled, the last over all of the time that is left. 84,074 parameters for one channel and ten classes.
    """
    if len(shape) != 2 or shape[1] < 256:
        raise ConfigError(
            f"m5 reads waveforms [channels, time], not {tuple(shape)}",
            hint="at least 256 time steps; conv1d reads shorter recordings, mlp any shape",
        )
    return nn.Sequential(
        nn.Conv1d(shape[0], 32, 80, stride=16, padding=32),
        nn.ReLU(),
        nn.MaxPool1d(4),
        nn.Conv1d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(128, 128, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def _image(name: str, shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise ConfigError(
            f"{name} reads [channels, height, width], not {tuple(shape)}",
            hint=f"height and width at least {smallest}; mlp reads any shape",
        )
    channels, height, width = shape
    return channels, height, width
