"""A codec for each tensor, chosen by what it loses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll import seeds
from atoll.channel.shrink import SMALL, Shrink, Unit, float_shapes
from atoll.channel.transform import Setting, Transform, Update
from atoll.compress import Codec, parse
from atoll.errors import ConfigError
from atoll.tensors import Record, named_tensors

__all__ = ["Auto"]

_LADDER = {
    "topk:0.01": 0.9,
    "drive": 0.363,
    "eden:2": 0.1175,
    "eden:4": 0.0095,
    "int8": 1.6e-4,
    "bf16": 2.7e-6,
}
"""The codecs, from the smallest to the largest, and what each is taken to lose of |x|^2 before anything is known."""

_CODECS = tuple(map(parse, _LADDER))


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


@dataclass(frozen=True)
class Auto(Shrink):
    """Each tensor through the codec that suits it, all together in `share` of the bytes that they have.

    Clients measure on their updates what every codec of a list (top-k of one in a hundred, DRIVE, EDEN with 2 and 4
    bits, int8, bf16) would lose of each tensor, and tell |x - c(x)|^2; the server adds these up, and tells all which to
    take in the next round: from the smallest on, that tensor gets another codec whose error falls most for a byte,
    while there is room. The first round goes by what codecs lose of normal numbers. Tensors of fewer than 256 numbers
    go as they are; they, and what is told, are part of the share.

    Args:
        share: of the bytes without a codec.
    """

    codec: Codec = _CODECS[0]
    others: tuple[Codec, ...] = _CODECS[1:]
    share: float = 0.1
    chosen: tuple[int, ...] = ()
    """By tensor, the codec that clients were told; what looks at the replies to a job fills it in."""

    name: ClassVar[str] = "auto"

    def __post_init__(self) -> None:
        self._require("share", 0 < self.share <= 1, "must be above 0, and at most 1", "0.1 is a tenth")

    @property
    def text(self) -> str:
        return f"auto:{self.share:g}" + " + feedback" * self.feedback

    @property
    def choices(self) -> int:
        return 0

    @property
    def measures(self) -> bool:
        return True

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> Auto:
        if before:
            raise ConfigError(
                f"channel: {self.text} stands behind {before[-1].text}, and what codecs lose is told in the open",
                hint=f'let it stand alone, or name a codec: "{before[-1].text} | int8"',
            )
        found = replace(self, shapes=setting.shapes)
        if not found._parts:
            raise ConfigError(
                f"channel = {self.text!r}: no tensor of this model has {SMALL} numbers, and fewer are not packed",
                hint="leave it out: there is next to nothing to save",
            )
        least = float(found._sizes.min(1).sum())
        if least > found._budget:
            numbers = sum(_size(shape) for part in setting.shapes for shape in part)
            share = self.share + (least - found._budget) / numbers / 4
            raise ConfigError(
                f"channel = {self.text!r}: the smallest codecs take {share:.2g} of this model's bytes",
                hint="give it a larger share, or name a codec",
            )
        return found

    def taking(self, codec: int, told: Record) -> Auto:
        return replace(self, chosen=tuple(told.choice.tolist()))

    # --- client half ------------------------------------------------------------------------------------------

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        named, lost = dict(named_tensors(update.values)), []
        for at, unit in enumerate(self._units(float_shapes(named))):
            value, stream = unit.joined(named), seeds.fold(key, at)
            if self.feedback:
                value = value + self._left(own, at, unit)
            lost.append(
                torch.stack([(each.through(value, stream) - value).square().sum() for each in self.codecs])
            )
        after, kept = super().send(update, told, own, key)
        return after._replace(report=after.report.replace(lost=torch.stack(lost))), kept

    def _through(self, at: int, value: Tensor, key: Tensor, told: Record) -> Tensor:
        return super()._through(at, value, key, told.replace(codec=told.choice[at]))

    def _packs(self, at: int, told: Record) -> Codec:
        return self.codecs[int(told.choice[at])]

    def _coded(self, at: int) -> Codec:
        return self.codecs[self.chosen[at]]

    def _units(self, shapes: Any) -> list[Unit]:
        names = (
            name for name in sorted(shapes) if not name.startswith("channel.")
        )  # what is reported of them
        return [Unit((name,), shapes[name]) for name in names if _size(shapes[name]) >= SMALL]

    # --- server half ------------------------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> list[Unit]:
        """The tensors that are packed, in the order of their names."""
        return self._units(
            {f"{at:04}.{k:06}": s for at, part in enumerate(self.shapes) for k, s in enumerate(part)}
        )

    @cached_property
    def _sizes(self) -> NDArray[np.float64]:
        """Bytes of each tensor by each codec, [tensors, codecs]."""
        return np.array(
            [[each.nbytes(unit.shape) for each in self.codecs] for unit in self._parts], np.float64
        )

    @cached_property
    def _budget(self) -> float:
        """Bytes that there are for these."""
        numbers = sum(_size(shape) for part in self.shapes for shape in part)
        packed = sum(_size(unit.shape) for unit in self._parts)
        return 4 * (self.share * numbers - (numbers - packed) - len(self._parts) * len(self.codecs))

    def nothing(self) -> Record:
        return Record(lost=torch.zeros(len(self._parts), len(self.codecs)))

    def begin(self) -> Record:
        sizes = [_size(unit.shape) for unit in self._parts]
        return Record(choice=self._chosen(np.outer(sizes, [*_LADDER.values()])))

    def learn(self, state: Record, mean: Record, report: Record, count: int) -> tuple[Record, Record]:
        return Record(choice=self._chosen(report.lost.double().cpu().numpy())), mean

    def _chosen(self, lost: NDArray[np.float64]) -> Tensor:
        """The codec of each tensor, of what each loses [tensors, codecs]: the most error that goes for a byte first."""
        sizes, rows = self._sizes, np.arange(len(self._parts))
        chosen = np.argmin(sizes, axis=1)
        while True:
            more = sizes - sizes[rows, chosen][:, None]
            gain = lost[rows, chosen][:, None] - lost
            room = self._budget - sizes[rows, chosen].sum()
            worth = np.where((gain > 0) & (more > 0) & (more <= room), gain / np.maximum(more, 1), -1.0)
            if not worth.size or worth.max() <= 0:
                return torch.from_numpy(chosen)
            tensor, codec = np.unravel_index(np.argmax(worth), worth.shape)
            chosen[tensor] = codec
