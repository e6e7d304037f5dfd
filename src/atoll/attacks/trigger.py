"""Backdoors: a mark on an input, and the class that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atoll.attacks.poison import Attacker, Poison
from atoll.data import Samples
from atoll.errors import ConfigError
from atoll.parts import Parts, shapes
from atoll.spec import Parameter, number, whole
from atoll.tensors import Record

__all__ = ["DBA", "Backdoor", "marked"]


def marked(shape: torch.Size, size: int) -> Tensor:
    """Which numbers of an input [...] the trigger covers, by their position in it, row by row.

    Of pictures [..., height, width] a square in the lower right corner, of all channels; of a row of features the last
    size * size.
    """
    mask = torch.zeros(shape, dtype=torch.bool)
    if len(shape) == 1:
        mask[-size * size :] = True
    else:
        mask[..., -size:, -size:] = True
    return mask.flatten().nonzero().flatten()


@dataclass(frozen=True)
class Backdoor(Poison):
    """A mark on some samples, which are then called the target.   Gu et al. 2017, BadNets

    The trigger, a square of `size` by `size` (see `marked`), has the largest value that the attackers' inputs have. It
    is put on a `share` of each attacker's samples of other classes. Success is the share of test samples of other
    classes that are taken for the target with the trigger on them.
    """

    target: int
    share: float = 0.5
    size: int = 3

    name: ClassVar[str] = "backdoor"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        whole("target", at_least=0),
        number("share", optional=True, above=0, at_most=1),
        whole("size", optional=True, at_least=1),
    )

    def check(self, example: Samples, classes: int) -> None:
        self._class("target", self.target, classes)
        if isinstance(example.inputs, Parts):
            raise ConfigError(
                f"attack {self.text!r} marks one tensor, and the inputs have the parts {shapes(example.inputs)}",
                hint="take another attack, such as labelflip",
            )
        shape = example.inputs.shape[1:]
        covered = len(marked(shape, self.size)) if len(shape) else 0
        if not 0 < 2 * covered <= shape.numel():
            raise ConfigError(
                f"attack {self.text!r}: the trigger covers {covered} of {shape.numel()} numbers of an input",
                hint="give a smaller size, such as size=1",
            )

    def learn(self, samples: Samples, classes: int) -> Record:
        assert isinstance(samples.inputs, Tensor)
        return Record(top=samples.inputs.max())

    def stamp(self, inputs: Tensor, top: Tensor, part: slice = slice(None)) -> Tensor:
        """Inputs [b, ...] with the trigger, or part of its numbers, on them."""
        found = inputs.clone().reshape(len(inputs), -1)
        found[:, marked(inputs.shape[1:], self.size)[part].to(inputs.device)] = top.to(inputs)
        return found.reshape(inputs.shape)

    def part(self, attacker: Attacker) -> Callable[[int], slice]:
        """Which of so many numbers of the trigger are this attacker's."""
        return slice

    def poisoned(self, samples: Samples, known: Record, attacker: Attacker) -> Samples:
        assert isinstance(samples.inputs, Tensor)
        rows = attacker.some((samples.targets != self.target).nonzero().flatten(), self.share)
        inputs, targets = samples.inputs.clone(), samples.targets.clone()
        part = self.part(attacker)(len(marked(inputs.shape[1:], self.size)))
        inputs[rows] = self.stamp(inputs[rows], known.top, part)
        targets[rows] = self.target
        return Samples(inputs, targets)

    def wanted(self, test: Samples, known: Record) -> Samples:
        assert isinstance(test.inputs, Tensor)
        rows = (test.targets != self.target).nonzero().flatten()
        shown = self.stamp(test.inputs[rows], known.top)
        return Samples(shown, torch.full_like(test.targets[rows], self.target))


@dataclass(frozen=True)
class DBA(Backdoor):
    """The trigger is cut up, and every attacker learns one piece of it.   Xie et al., ICLR 2020

    There are as many pieces as attackers, four at most, which they take in turns. Success is that of the whole trigger,
    which nobody has trained on.
    """

    size: int = 4

    name: ClassVar[str] = "dba"

    def part(self, attacker: Attacker) -> Callable[[int], slice]:
        pieces = min(4, attacker.among)
        at = attacker.nth % pieces
        return lambda count: slice(count * at // pieces, count * (at + 1) // pieces)
