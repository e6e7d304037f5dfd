"""Feature skew and concept shift: clients whose inputs, or whose labels, mean something else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from atoll.data.division import Division, Partitioner, Place, cut, require, required_labels
from atoll.data.names import Names
from atoll.data.samples import IntArray, Samples
from atoll.parts import alone
from atoll.seeds import address, rng

from .quantity import IID

if TYPE_CHECKING:
    from atoll.data.dataset import Dataset

__all__ = ["LabelPermutation", "Noise", "Rotated", "rotate"]


@dataclass(frozen=True)
class Noise(Partitioner):
    """IID, then Gaussian noise of deviation sigma * (k + 1) / clients on the inputs of client k.

    NIID-Bench's "noise-based feature imbalance". Training and test data of a client get noise of the same
    strength.
    """

    clients: int
    sigma: float
    code: ClassVar[str] = "noise"
    transforms: ClassVar[bool] = True

    def divide(self, data: Dataset, seed: int) -> Division:
        require(self.sigma >= 0, f"noise: sigma must not be negative: {self.sigma}", "0.1 is mild")
        require(
            alone(data.train.inputs, "noise").is_floating_point(),
            f"noise: the inputs of {data.name!r} are whole numbers",
            "noise needs inputs that are measurements",
        )
        return IID(self.clients).divide(data, seed)

    def transform(self, samples: Samples, place: Place) -> Samples:
        generator = torch.Generator().manual_seed(
            address(place.seed, f"data.noise.{place.split}", 0, place.client)
        )
        inputs = alone(samples.inputs, "noise")
        noise = torch.randn(inputs.shape, generator=generator)
        return Samples(inputs + noise * (self.sigma * (place.client + 1) / place.clients), samples.targets)


def rotate(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate images (..., height, width) counter-clockwise about the centre: nearest pixel, zeros outside.

    Agrees to the pixel with Pillow's ``Image.rotate`` and with torchvision's ``rotate`` of pictures, which
    fall back on it: 16-bit fixed-point coordinates, and exact turns for right angles of square images.
    """
    height, width = images.shape[-2:]
    angle = degrees % 360.0
    if angle == 0 or angle == 180 or (angle in (90, 270) and height == width):
        return torch.rot90(images, int(angle // 90), dims=(-2, -1))
    radians = -math.radians(angle)
    cos, sin = round(math.cos(radians), 15), round(math.sin(radians), 15)
    middle_x, middle_y = width / 2, height / 2
    origin_x = -cos * middle_x - sin * middle_y + middle_x
    origin_y = sin * middle_x - cos * middle_y + middle_y

    def fixed(value: float) -> int:
        return math.floor(value * 65536 + 0.5)

    y, x = np.mgrid[0:height, 0:width]
    from_x = (fixed(origin_x + 0.5 * cos + 0.5 * sin) + x * fixed(cos) + y * fixed(sin)) >> 16
    from_y = (fixed(origin_y - 0.5 * sin + 0.5 * cos) - x * fixed(sin) + y * fixed(cos)) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    source = torch.from_numpy(np.where(inside, from_y * width + from_x, 0).reshape(-1))
    turned = images.flatten(-2)[..., source] * torch.from_numpy(inside.reshape(-1)).to(images.dtype)
    return turned.reshape(images.shape)


@dataclass(frozen=True)
class Rotated(Partitioner):
    """Client k sees its images turned by k * 360 / clients degrees: related tasks on a circle.

    The setting of FEDORA (Wu et al., KDD 2023) for MNIST: every client has `train` and `validation` images of
    its own from one random permutation of the training split (validation images from its end), and `test`
    images of its own from the official test split. Images that no client needs stay unused.
    """

    clients: int = 36
    train: int = 128
    validation: int = 64
    test: int = 277
    code: ClassVar[str] = "rotated"
    transforms: ClassVar[bool] = True

    def __str__(self) -> str:
        default = (self.train, self.validation, self.test) == (128, 64, 277)
        text = f"rotated:{self.clients}"
        return text if default else f"{text},{self.train},{self.validation},{self.test}"

    def divide(self, data: Dataset, seed: int) -> Division:
        k, total = self.clients, data.train.count
        require(
            k >= 1 and self.train >= 1 and min(self.validation, self.test) >= 0,
            f"{self}: sizes out of range",
            "clients and train are positive; validation and test may be 0",
        )
        require(
            alone(data.train.inputs, "rotated").dim() >= 3,
            f"rotated: the inputs of {data.name!r} are not images",
            "inputs need a height and a width as their last dimensions",
        )
        need = k * (self.train + self.validation)
        require(
            need <= total,
            f"rotated: needs {need} training images; there are {total}",
            "take fewer clients or fewer images per client",
        )
        available = 0 if data.test is None else data.test.count
        require(
            k * self.test <= available,
            f"rotated: needs {k * self.test} official test images; there are {available}",
            "take fewer test images per client",
        )
        order = rng(seed, "data.rotated").permutation(total)
        train = cut(order, np.full(k, self.train))
        validation = cut(order[total - k * self.validation :], np.full(k, self.validation))
        test_order = rng(seed, "data.rotated.test").permutation(available)
        return Division(
            train,
            Names(k, self._name),
            validation if self.validation else None,
            cut(test_order, np.full(k, self.test)) if self.test else None,
        )

    def _name(self, client: int) -> str:
        return f"{client * 360 / self.clients:g} degrees"

    def transform(self, samples: Samples, place: Place) -> Samples:
        return Samples(
            rotate(alone(samples.inputs, "rotated"), place.client * 360 / place.clients), samples.targets
        )


@dataclass(frozen=True)
class LabelPermutation(Partitioner):
    """Concept shift: a share of `base`'s clients has its labels renamed, by one of `groups` permutations.

    round(fraction * clients) clients, chosen at random, take turns among the groups; the others keep their
    labels. A group's permutation is one cycle through all classes, so no class keeps its name. ``groups=3,
    fraction=0.75`` makes four tasks of equal size. As text: ``"dirichlet:0.3+permuted:3,0.75"``.
    """

    base: Partitioner
    groups: int = 1
    fraction: float = 0.5
    code: ClassVar[str] = "permuted"
    transforms: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.base}+{self.code}:{self.groups},{self.fraction:g}"

    @property
    def in_client_test(self) -> bool:  # type: ignore[override]
        return self.base.in_client_test

    def divide(self, data: Dataset, seed: int) -> Division:
        require(
            self.groups >= 1, f"permuted: groups must be at least 1, not {self.groups}", "1 is one other task"
        )
        require(
            0 <= self.fraction <= 1,
            f"permuted: fraction must lie in [0, 1], not {self.fraction}",
            "0.5 renames the labels of half of the clients",
        )
        _, classes = required_labels(data, "permuted")
        require(
            classes >= 2, "permuted: one class cannot be renamed", "concept shift needs two classes or more"
        )
        return self.base.divide(data, seed)

    def assignment(self, clients: int, seed: int) -> IntArray:
        """The task of each client: 0 for the labels as they are, g for the g-th permutation."""
        tasks = np.zeros(clients, dtype=np.int64)
        chosen = rng(seed, "data.permuted").permutation(clients)[: round(self.fraction * clients)]
        tasks[chosen] = 1 + np.arange(len(chosen)) % self.groups
        return tasks

    def permutation(self, group: int, classes: int, seed: int) -> IntArray:
        """New label by old label for a task."""
        new = np.arange(classes, dtype=np.int64)
        if group:
            cycle = rng(seed, "data.permuted.cycle", client=group).permutation(classes)
            new[cycle] = np.roll(cycle, 1)
        return new

    def transform(self, samples: Samples, place: Place) -> Samples:
        changed = self.base.transform(samples, place)
        group = int(self.assignment(place.clients, place.seed)[place.client])
        if not group or place.classes is None:
            return changed
        new = torch.from_numpy(self.permutation(group, place.classes, place.seed))
        return Samples(changed.inputs, new[changed.targets])
