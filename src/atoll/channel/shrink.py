"""Fewer bytes: what a client sends goes through a codec, with what that loses remembered or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from atoll import seeds
from atoll.channel.clip import Clip
from atoll.channel.local import Local
from atoll.channel.transform import Place, Setting, Transform, Update, filled
from atoll.compress import Codec, Same
from atoll.compress.entropy import needed, squeezed, unsqueezed
from atoll.errors import CodecError, ConfigError
from atoll.tensors import Record, leaves, named_tensors

__all__ = ["SMALL", "Shrink", "Unit", "float_shapes", "put_back", "shapes_of"]

SMALL = 256
"""A field of fewer numbers goes as it is: counts, lengths and choices, which cost nothing and must be right."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Shrink(Transform):
    """Everything that is in floating point through a codec: each field of a reply for itself, its tensors joined.

    SCAFFOLD's control variates as well as the difference of its model; counters and fields of fewer than 256 numbers go
    as they are. (Codecs that want tensors `apart` have each for itself.) In a simulation a reply holds what comes back;
    a node sends what `Codec.encode` gives, and the coordinator decodes it to the same bits.

    With `feedback` a client remembers what was lost, and adds it to what it sends when it is asked again, however many
    rounds later:   Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019

    u = update + e;  sent = c(u);  e <- u - sent,  so that all that was sent and e are all updates, added up.

    Behind a `Clip` what comes back is no longer than its bound either: all is multiplied by min(1, C / |sent|), which
    travels as well, so that noise made for C hides it. Behind `Local` it is made of what is private already.

    With `others` each client is told, round by round, which of all codecs it takes (`Work.codec`), and remembers what
    was lost by any of them: one memory, for they all act on the same numbers.

    With `zstd` what a codec gives is packed once more, and nothing of it lost; how long that gets is in the numbers.

    Args:
        codec: see `atoll.compress`.
        feedback: whether what is lost is remembered.
        others: further codecs, none of which wants tensors apart.
        zstd: whether what travels is packed without loss (`atoll.compress.entropy`).
    """

    codec: Codec
    feedback: bool = False
    others: tuple[Codec, ...] = ()
    zstd: bool = False
    packs: bool = False
    """Whether updates become what travels (`packing`), and not what comes back."""
    bound: Clip | None = None
    """What bounds updates, and `at` where in the chain; a chain fills them in, and `shapes` where there is feedback."""
    at: int = 0
    shapes: tuple[Shapes, ...] = ()

    place: ClassVar[Place] = "shrink"

    def __post_init__(self) -> None:
        for each in self.codecs:
            if self.feedback and not each.contracts:
                raise ConfigError(
                    f"channel {self.text!r}: what {each.text} loses may be longer than what it is given,"
                    " and would grow from round to round",
                    hint=f'leave the feedback out, or take another codec: "topk:0.01 + feedback" (not {each.name})',
                )
            if self.others and each.apart:
                raise ConfigError(
                    f"channel {self.text!r}: {each.text} acts on each tensor for itself, and others on all as one",
                    hint=f"leave {each.text} out",
                )
        if isinstance(self.codec, Same) and self.feedback:
            raise ConfigError(
                f"channel {self.text!r}: zstd loses nothing that feedback could make good",
                hint="leave the feedback out",
            )
        if self.zstd:
            self._check_zstd()

    def _check_zstd(self) -> None:
        if self.others:
            raise ConfigError(
                f"channel {self.text!r}: who takes which codec follows from how long each is, and what is behind zstd"
                " is as long as the numbers will have it",
                hint="leave + zstd out, or name one codec",
            )
        if not self.codec.again:
            raise ConfigError(
                f"channel {self.text!r}: what {self.codec.text} sends looks drawn by lot, and zstd finds next to"
                " nothing in it",
                hint='leave + zstd out; it goes with bf16, fp16, int8, int4, and alone: channel = "zstd"',
            )
        needed()

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """All codecs that an update may go through."""
        return (self.codec, *self.others)

    @property
    def name(self) -> str:  # type: ignore[override]
        return " / ".join(each.name for each in self.codecs)

    @property
    def text(self) -> str:
        text = " / ".join(each.text for each in self.codecs)
        behind = self.zstd and not isinstance(self.codec, Same)
        return text + " + zstd" * behind + " + feedback" * self.feedback

    @property
    def remembers(self) -> bool:
        return self.feedback

    @property
    def hears(self) -> int | None:
        return None if self.bound is None else self.at

    def fitted(self, before: tuple[Transform, ...], setting: Setting) -> Shrink:
        blurred = any(isinstance(each, Local) for each in before)
        bounds = [] if blurred else [(at, each) for at, each in enumerate(before) if isinstance(each, Clip)]
        at, bound = bounds[0] if bounds else (0, None)
        if self.zstd and bound is not None:
            raise ConfigError(
                f"channel: {self.text} stands behind {bound.text}, which bounds what one client changes, and how long"
                " something gets behind zstd nothing bounds",
                hint=f"leave zstd out: {bound.text} | {'bf16' if isinstance(self.codec, Same) else self.codec.text}",
            )
        return replace(self, bound=bound, at=at, shapes=setting.shapes if self.feedback else ())

    def packing(self) -> Shrink:
        """The transform at a node: its updates are what travels."""
        return replace(self, packs=True)

    @property
    def choices(self) -> int:
        """Codecs that clients choose between, one of them each; 0: there is nothing to choose."""
        return len(self.codecs) if self.others else 0

    @property
    def measures(self) -> bool:
        """Whether it must know the form of replies, to learn from them."""
        return False

    def taking(self, codec: int, told: Record) -> Shrink:
        """The transform of a client that takes this one of the codecs; `told` is what all clients were."""
        return replace(self, codec=self.codecs[codec], others=())

    def nbytes(self, values: Record, usual: int) -> int:
        named = dict(named_tensors(values))
        for at, unit in enumerate(self._units(float_shapes(named))):
            usual -= sum(named[name].numel() * named[name].element_size() for name in unit.names)
            usual += self._coded(at).nbytes(unit.shape)
        return usual if self.bound is None else usual + 4

    def sent(self, values: Record) -> int:
        """Bytes that these values took on the way: what came back, packed again."""
        named, none = dict(named_tensors(values)), torch.zeros((), dtype=torch.int64)
        found = sum(value.nbytes for value in named.values())
        for unit in self._units(float_shapes(named)):
            found -= sum(named[name].nbytes for name in unit.names)
            found += len(squeezed(self.codec.encode(unit.joined(named), none)).zstd)
        return found

    # --- client half ------------------------------------------------------------------------------------------

    def own(self, received: Record) -> Record:
        if not self.feedback:
            return Record()
        named = {
            f"{at:04}.{k:06}": shape for at, part in enumerate(self.shapes) for k, shape in enumerate(part)
        }
        device = next((v.device for v in leaves(received) if isinstance(v, Tensor)), None)
        return Record(
            {str(at): torch.zeros(unit.shape, device=device) for at, unit in enumerate(self._units(named))}
        )

    def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
        named, parts, backs, lost = dict(named_tensors(update.values)), [], [], {}
        units = self._units(float_shapes(named))
        for at, unit in enumerate(units):
            value = unit.joined(named)
            if self.feedback:
                value = value + self._left(own, at, unit)
            stream = seeds.fold(key, at)
            if self.packs:
                codec = self._packs(at, told)
                packed = codec.encode(value, stream)
                back = codec.decode(packed, unit.shape)
                parts.append(squeezed(packed) if self.zstd else packed)
            else:
                back = self._through(at, value, stream, told)
            lost[str(at)] = value
            backs.append(back)
        factor = self._factor(named, units, backs, told)
        if factor is not None:
            backs = [back * factor for back in backs]
            named = {n: v * factor.to(v.dtype) if v.is_floating_point() else v for n, v in named.items()}
        if self.feedback:
            there = update.weight > 0  # a reply without weight counts for nothing: nothing of it was sent
            own = Record(
                {at: torch.where(there, value - backs[int(at)], own[at]) for at, value in lost.items()}
            )
        if self.packs:
            return update._replace(values=_travelling(named, units, parts, factor)), own
        return update._replace(values=put_back(update.values, named, units, backs)), own

    def _through(self, at: int, value: Tensor, key: Tensor, told: Record) -> Tensor:
        """What comes back by the codec that the client was told. Under `vmap` all are computed, and one is taken."""
        back = self.codec.through(value, key)
        for which, each in enumerate(self.others, start=1):
            back = torch.where(told.codec == which, each.through(value, key), back)
        return back

    def _packs(self, at: int, told: Record) -> Codec:
        """The codec by which a client packs a part, as it was told."""
        return self.codecs[int(told.codec)] if self.others else self.codec

    def _coded(self, at: int) -> Codec:
        """The codec of a part at whoever reads it (see `taking`)."""
        return self.codec

    def _left(self, own: Record, at: int, unit: Unit) -> Tensor:
        """What was lost of this part until now."""
        if str(at) not in own or own[str(at)].shape != unit.shape:
            raise ConfigError(
                f"channel {self.text!r}: clients' updates differ in form, and what is remembered of them has one",
                hint=f"leave the feedback out: {self.codec.text}",
            )
        left: Tensor = own[str(at)]
        return left

    def _factor(
        self, named: Mapping[str, Tensor], units: Sequence[Unit], backs: Sequence[Tensor], told: Record
    ) -> Tensor | None:
        """By what all that comes back is multiplied, for it to be no longer than the bound."""
        if self.bound is None:
            return None
        covered = {name for unit in units for name in unit.names}
        plain = [value for name, value in named.items() if name not in covered]
        norm = self.bound.length([*plain, *backs])
        return (self.bound.bound(told).to(norm.device) / norm).clamp(max=1)

    # --- what travels -----------------------------------------------------------------------------------------

    def opened(self, sent: Record, form: Record) -> Record:
        """The values that a node packed, for a reply of this form.

        Raises CodecError where something else is there. All sizes and types are looked at before a number is read.
        """
        named = dict(named_tensors(form))
        units = self._units(float_shapes(named))
        covered = {name for unit in units for name in unit.names}
        plain = {name: value for name, value in named.items() if name not in covered}
        due = {"packed", "plain"} | ({"factor"} if self.bound is not None else set())
        if sent.keys() != due or not all(isinstance(sent[each], Record) for each in ("packed", "plain")):
            raise CodecError(
                f"this is nothing that {self.text} sends", hint="both sides must have one channel"
            )
        if sent.packed.keys() != {str(at) for at in range(len(units))} or sent.plain.keys() != plain.keys():
            raise CodecError(
                f"other fields came than {self.text} sends for this model", hint="has one another?"
            )
        packed = [sent.packed[str(at)] for at in range(len(units))]
        if self.zstd:
            packed = [
                unsqueezed(each, self.codec.form(unit.shape))
                for each, unit in zip(packed, units, strict=True)
            ]
        for at, unit in enumerate(units):
            self._coded(at).check(packed[at], unit.shape)
        single = {"factor": torch.zeros(())} if self.bound is not None else {}
        for name, value in [*plain.items(), *single.items()]:
            found = sent.get(name) if name in single else sent.plain[name]
            if not isinstance(found, Tensor) or found.shape != value.shape or found.dtype != value.dtype:
                raise CodecError(f"{name} is not {value.dtype} {tuple(value.shape)}", hint="has one another?")
        backs = [self._coded(at).decode(packed[at], unit.shape) for at, unit in enumerate(units)]
        if self.bound is not None:
            if not 0 <= float(sent.factor) <= 1:
                raise CodecError(f"its factor is {float(sent.factor):g}", hint="it lies between 0 and 1")
            backs = [back * sent.factor for back in backs]
        return put_back(form, {**named, **dict(sent.plain.items())}, units, backs)

    def packable(self, form: Record) -> bool:
        """Whether a reply of this form has anything that a codec shortens."""
        return bool(self._units(float_shapes(dict(named_tensors(form)))))

    def _units(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Unit]:
        """What goes through the codec together, of tensors in floating point by name; in the order of names."""
        found = []
        for _, held in groupby(sorted(shapes), lambda name: name.partition(".")[0]):
            names = tuple(held)
            sizes = [torch.Size(shapes[name]).numel() for name in names]
            if sum(sizes) < SMALL:
                continue
            if not self.codec.apart:
                found.append(Unit(names, (sum(sizes),)))
                continue
            for name, size in zip(names, sizes, strict=True):
                if self.codec.nbytes(shapes[name]) < 4 * size:
                    found.append(Unit((name,), shapes[name]))
        return found


class Unit(NamedTuple):
    """What goes through a codec together: tensors by name, and the shape that they have as one."""

    names: tuple[str, ...]
    shape: tuple[int, ...]

    def joined(self, named: Mapping[str, Tensor]) -> Tensor:
        if len(self.names) == 1 and len(self.shape) != 1:
            return named[self.names[0]].float()
        return torch.cat([named[name].reshape(-1).float() for name in self.names])


def float_shapes(named: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in named.items() if value.is_floating_point()}


def shapes_of(form: Record) -> tuple[Shapes, ...]:
    """The shapes of a reply's tensors in floating point, field by field, in the order of their names."""
    shapes = float_shapes(dict(named_tensors(form)))
    return tuple(
        tuple(shapes[name] for name in held)
        for _, held in groupby(sorted(shapes), lambda name: name.partition(".")[0])
    )


def put_back(
    values: Record, named: Mapping[str, Tensor], units: Sequence[Unit], backs: Sequence[Tensor]
) -> Record:
    """These values with what came back in the place of what went in."""
    found = dict(named)
    for unit, back in zip(units, backs, strict=True):
        sizes = [named[name].numel() for name in unit.names]
        for name, part in zip(unit.names, torch.split(back.reshape(-1), sizes), strict=True):
            found[name] = part.reshape(named[name].shape)
    return filled(values, found)


def _travelling(
    named: Mapping[str, Tensor], units: Sequence[Unit], parts: Sequence[Record], factor: Tensor | None
) -> Record:
    covered = {name for unit in units for name in unit.names}
    return Record(
        packed=Record({str(at): part for at, part in enumerate(parts)}),
        plain=Record({name: value for name, value in named.items() if name not in covered}),
        **({} if factor is None else {"factor": factor}),
    )
