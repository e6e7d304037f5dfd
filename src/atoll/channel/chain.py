"""Transforms one behind the other, as the channel of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atoll import seeds
from atoll.channel.masked import SecAgg
from atoll.channel.noise import Noise
from atoll.channel.shrink import SMALL, Shapes, Shrink, shapes_of
from atoll.channel.sums import Release, Together
from atoll.channel.transform import Place, Setting, Transform, Update
from atoll.contract import Around, Change, Channel, Job, Mean, Method, Program, Reducer, Replies, Reply, Work
from atoll.errors import CodecError, ConfigError
from atoll.privacy.source import Source
from atoll.tensors import Record, leaves

__all__ = ["Chain", "Sending"]

_ORDER: tuple[Place, ...] = ("gather", "bound", "blur", "shrink", "hide")

_WHY = {
    ("bound", "gather"): "a mean of the past is what is bounded, for it is what is sent",
    ("blur", "gather"): "noise is for what is sent, and a mean of the past would take it off again",
    ("shrink", "gather"): "what is packed is what travels",
    ("hide", "gather"): "hidden numbers have no mean",
    (
        "blur",
        "bound",
    ): "what is shortened after noise is added is no longer bounded by what the noise was made for",
    ("shrink", "bound"): "what is packed cannot be shortened any more",
    ("shrink", "blur"): "what is packed is what travels, and noise comes before it",
    ("hide", "bound"): "hidden numbers cannot be shortened",
    ("hide", "shrink"): "hidden numbers look like any others, and cannot be told in fewer bytes",
    ("hide", "blur"): "noise is added to what is then hidden, not to what is hidden already",
}


@dataclass(frozen=True)
class Chain(Channel):
    """A channel of transforms, from the client outwards.

    >>> from atoll.channel import Clip, Noise
    >>> Chain([Clip(0.5), Noise(1.0)]).text
    'clip:0.5 | noise:1'

    Args:
        transforms: in the order in which they act on an update.
        setting: what is known of the run (`fitted` fills it in).

    Raises ConfigError for an order or a pair that cannot be.
    """

    transforms: tuple[Transform, ...]
    setting: Setting | None = None

    def __init__(self, transforms: Sequence[Transform], setting: Setting | None = None) -> None:
        object.__setattr__(self, "transforms", tuple(transforms))
        object.__setattr__(self, "setting", setting)
        if not self.transforms:
            raise ConfigError("the channel has no transform", hint='leave it out, or name one: "clip:0.5"')
        for at, each in enumerate(self.transforms):
            if not isinstance(each, Transform):
                raise ConfigError(
                    f"the channel holds {each!r}, and that is no transform",
                    hint="such as [atoll.channel.Clip(0.5), atoll.channel.Noise(1.0)]",
                )
            _check(each, self.transforms[:at])
        for at, each in enumerate(self.transforms):
            for name in each.before:
                if name not in (other.name for other in self.transforms[at:]):
                    raise ConfigError(
                        f"channel: {each.name} needs {name} behind it",
                        hint=f"write clip:0.5 | {each.text} | {name}",
                    )

    @property
    def text(self) -> str:
        """How it is written."""
        return " | ".join(each.text for each in self.transforms)

    @property
    def equal(self) -> bool:
        return any(each.equal for each in self.transforms)

    @property
    def hides(self) -> bool:
        return any(each.sums for each in self.transforms)

    @property
    def always(self) -> bool:
        return self.noise is not None

    @property
    def noise(self) -> Noise | None:
        """The central noise, if there is any."""
        return next((each for each in self.transforms if isinstance(each, Noise)), None)

    @property
    def protocol(self) -> SecAgg | None:
        """The secure aggregation that clients and server play between them, if there is any."""
        found = (each for each in self.transforms if isinstance(each, SecAgg) and each.how == "protocol")
        return next(found, None)

    @property
    def shrink(self) -> Shrink | None:
        """What packs updates, if there is any; nothing stands behind it."""
        last = self.transforms[-1]
        return last if isinstance(last, Shrink) else None

    @property
    def codecs(self) -> int:
        return 0 if self.shrink is None else self.shrink.choices

    @property
    def varies(self) -> bool:
        return self.shrink is not None and self.shrink.zstd

    def taking(self, work: Work, client: int) -> Chain:
        if self.shrink is None or not (self.shrink.choices or self.shrink.measures):
            return self
        told = work.shared.get("channel", Record()).get(str(len(self.transforms) - 1), Record())
        return Chain([*self.transforms[:-1], self.shrink.taking(work.codec(client), told)], self.setting)

    def packing(self) -> Chain:
        """The chain at a client on a machine of its own, whose replies are what travels (see `opened`)."""
        if self.shrink is None:
            return self
        return Chain([*self.transforms[:-1], self.shrink.packing()], self.setting)

    def opened(self, values: Record, job: Job, client: int) -> Record:
        """The values of a reply to a job, of what a client sent that was `packing`.  Raises CodecError."""
        report, shrink = self._reported(values), self.taking(job.work, client).shrink
        if shrink is None:
            return values
        sent = Record({name: part for name, part in values.items() if name != "channel"})
        found = shrink.opened(sent, job.form(client))
        change = job.method.change
        if change is not None and change.since is not None and found.get(change.field):
            found = change.put(found[change.field], found, job.work.received(client), Record())
        return found.replace(channel=report) if report else found

    def _reported(self, values: Record) -> Record:
        """What the transforms report beside an update; nothing where updates are hidden.  Raises CodecError."""
        report = values.get("channel", Record())
        due = Record({name: part for each in self.transforms for name, part in each.nothing().items()})
        if self.hides:
            due = Record()
        alike = isinstance(report, Record) and report.keys() == due.keys()
        if not alike or any(getattr(report[n], "shape", None) != due[n].shape for n in due):
            raise CodecError(
                f"what {self.text} tells of itself has another form", hint="both sides must have one channel"
            )
        return report  # type: ignore[no-any-return]

    def drawing(self, source: Source) -> Chain:
        """The chain at a client on a machine of its own, whose draws come from this source and not from the run's seed.

        A source is for one task: what is drawn from it follows from nothing else.
        """
        return Chain([each.drawing(source) for each in self.transforms], self.setting)

    def fitted(self, method: Method, expected: Record, setting: Setting) -> Chain:
        """The chain for a run of this method, whose replies have the `expected` form.

        Raises ConfigError where they do not go together.
        """
        size = sum(v.numel() for v in leaves(expected) if isinstance(v, Tensor))
        setting = replace(setting, equal=setting.equal or self.equal, size=size)
        if self.shrink is not None:
            self._check_packs(self.shrink, method, expected)
        if any(each.remembers for each in self.transforms):
            setting = replace(setting, shapes=self._remembered(method, expected))
        if self.shrink is not None and self.shrink.measures:
            setting = replace(setting, shapes=self._measured(method, expected))
        if self.varies:
            self._check_sizes(method, expected)
        chain = self.settled(setting)
        if self.hides or self.noise is not None:
            chain.check(method, expected)
        return chain

    def settled(self, setting: Setting) -> Chain:
        """The chain for a run of which all is known.  Raises ConfigError."""
        made: tuple[Transform, ...] = ()
        for each in self.transforms:
            made = (*made, each.fitted(made, setting))
        return Chain(made, setting)

    def _remembered(self, method: Method, expected: Record) -> tuple[Shapes, ...]:
        """The shapes of what clients remember of errors, the same in all rounds.  Raises ConfigError."""
        change = method.change
        adds = change is not None and change.since is None and change.field in expected
        if not adds or method.alternates:
            what = next(each for each in self.transforms if each.remembers)
            raise ConfigError(
                f"channel {self.text!r}: {type(method).__name__} sends no differences that add up from round to round,"
                " and what was lost of one is no part of another",
                hint=f"leave the feedback out: {self.text.replace(' + feedback', '')}"
                if what is self.shrink
                else f"leave {what.text} out",
            )
        return shapes_of(expected)

    def _measured(self, method: Method, expected: Record) -> tuple[Shapes, ...]:
        """The shapes of what is measured, the same in all replies.  Raises ConfigError."""
        own = method.reduction == "each" or type(method).reducer is not Method.reducer
        if not expected or own or method.alternates:
            raise ConfigError(
                f"channel {self.text!r}: {type(method).__name__} does not average replies of one form, by which codecs"
                " could be chosen",
                hint='name a codec: channel="eden:2"',
            )
        return shapes_of(expected)

    def _check_packs(self, shrink: Shrink, method: Method, expected: Record) -> None:
        """Whether a codec has anything to do where a reply has no model's change in it.  Raises ConfigError."""
        if method.change is not None and method.change.field in expected:
            return
        if expected and not shrink.packable(expected):
            raise ConfigError(
                f"channel {self.text!r}: {type(method).__name__} sends fields of fewer than {SMALL} numbers, which no"
                " codec shortens",
                hint=f"leave {shrink.text} out: there is next to nothing to save",
            )

    def _check_sizes(self, method: Method, expected: Record) -> None:
        """Whether what comes back of a reply tells how long it was.  Raises ConfigError."""
        floats = [v for v in leaves(expected) if isinstance(v, Tensor) and v.is_floating_point()]
        if not expected or (method.change is not None and method.change.since is not None):
            why = f"{type(method).__name__} sends no differences of one form"
        elif any(value.dtype != torch.float32 for value in floats):
            why = "the model has numbers that are not in single precision"
        else:
            return
        assert self.shrink is not None
        raise ConfigError(
            f"channel {self.text!r}: {why}, and how long it gets behind zstd cannot be told",
            hint=f"leave it out: {self.text.replace(' + zstd', '')}"
            if " + zstd" in self.text
            else "leave it out",
        )

    def check(self, method: Method, expected: Record) -> None:
        """Whether a method can do with the sum over clients."""
        guard = next(each for each in self.transforms if each.sums or isinstance(each, Noise))
        kind, why = type(method).__name__, f"channel {guard.text!r}"
        able = "fedavg, fedprox, fedadam, scaffold, fednova, ditto"
        if method.reduction == "each":
            raise ConfigError(
                f"{why}: {kind} needs each client's reply, and there is only their sum",
                hint=f"methods that a sum is enough for: {able} ...",
            )
        if self.noise is not None and self.noise.matrix is not None and method.alternates:
            raise ConfigError(
                f"{why}: {kind} sends other tensors in one round than in the next, and noise that is correlated"
                " over rounds is for the same ones",
                hint=f"write {replace(self.noise, matrix=None).text} in its place",
            )
        if type(method).enrol is not Method.enrol:
            raise ConfigError(
                f"{why}: {kind} asks every new client something of its own first", hint=f"take {able} ..."
            )
        if type(method).reducer is not Method.reducer:
            raise ConfigError(
                f"{why}: {kind} puts replies together in a way of its own, not as a sum",
                hint=f"take {able} ...",
            )
        whole = [
            name
            for name, part in expected.items()
            if any(not v.is_floating_point() for v in leaves(part) if isinstance(v, Tensor))
        ]
        if whole:
            raise ConfigError(
                f"{why}: the field {whole[0]!r} of the replies holds whole numbers (BatchNorm counts its batches),"
                " whose maximum cannot be had from a sum",
                hint="put nn.GroupNorm in the place of nn.BatchNorm",
            )

    # --- client half ------------------------------------------------------------------------------------------

    def program(self, name: str, inner: Program, change: Change | None) -> Around:
        return Sending(inner, change, self.transforms) if name == "train" else Around(inner, change)

    def nbytes(self, values: Record) -> int:
        found = super().nbytes(values)
        for each in self.transforms:
            found = each.nbytes(values, found)
        return found

    def sent(self, values: Record) -> int:
        return self.shrink.sent(values) if self.shrink is not None and self.varies else self.nbytes(values)

    # --- server half ------------------------------------------------------------------------------------------

    def begin(self) -> Record:
        states = {str(at): each.begin() for at, each in enumerate(self.transforms)}
        return Record({at: state for at, state in states.items() if state})

    def tell(self, state: Record) -> Record:
        told = {at: self.transforms[int(at)].tell(part) for at, part in state.items()}
        return Record({at: part for at, part in told.items() if part})

    def reducer(self, job: Job, inner: Reducer) -> Reducer:
        if type(inner) is not Mean or job.work.program != "train":
            return inner
        rules = {**inner.rules, "channel": "sum"}
        kind = Release if all(each.together is None for each in self.transforms) else Together
        return kind(rules, self.transforms, self.setting or Setting(), job)

    def learn(self, state: Record, replies: Replies) -> tuple[Record, Replies]:
        report = replies.mean.get("channel", Record())
        if replies.each and state:
            every = [each.values.channel for each in replies.each]
            report = Record({name: sum(each[name] for each in every) for name in every[0]})
        mean, new = Record({name: part for name, part in replies.mean.items() if name != "channel"}), {}
        for at, part in state.items():
            new[at], mean = self.transforms[int(at)].learn(part, mean, report, self._count(replies))
        return Record(new), replace(replies, mean=mean)

    def _count(self, replies: Replies) -> int:
        """How many clients a report is taken to come from: a fixed number where that they came is a secret."""
        return replies.count if self.noise is None else (self.setting or Setting()).cohort


@dataclass(frozen=True)
class Sending(Around):
    """The client halves around a program."""

    transforms: tuple[Transform, ...] = ()

    def own(self, task: object, received: Record) -> Record:
        found = {str(at): each.own(received) for at, each in enumerate(self.transforms)}
        return Record({at: part for at, part in found.items() if part})

    def send(
        self, reply: Reply, received: Record, memory: Record, own: Record, key: Tensor
    ) -> tuple[Reply, Record]:
        told, values, change = received.get("channel", Record()), reply.values, self.change
        moved = None if change is None or change.since is None else change.of(values, received, memory)
        if moved is not None:
            assert change is not None
            values = values.replace(**{change.field: moved})
        update, kept = Update(values, reply.weight, Record(), reply.metrics), {}
        for at, each in enumerate(self.transforms):
            name, news = str(at), told.get(str(at if each.hears is None else each.hears), Record())
            if isinstance(each, Shrink) and each.choices:
                news = news.replace(codec=received["codec"])
            update, after = each.send(update, news, own.get(name, Record()), seeds.fold(key, 1000 + at))
            if after:
                kept[name] = after
        values = update.values
        last = self.transforms[-1]
        if moved is not None and not (isinstance(last, Shrink) and last.packs):
            assert change is not None
            values = change.put(values[change.field], values, received, memory)
        if update.report:
            values = values.replace(channel=update.report)
        return Reply(values, update.weight, update.metrics), Record(kept)


def _check(each: Transform, before: tuple[Transform, ...]) -> None:
    """Whether a transform may stand behind these others."""
    for other in before:
        if other.name == each.name:
            raise ConfigError(f"channel: {each.name} stands in it twice", hint="once is enough")
        if _ORDER.index(other.place) > _ORDER.index(each.place):
            raise ConfigError(
                f"channel: {each.name} stands behind {other.name}, but {_WHY[other.place, each.place]}",
                hint=f"write {each.text} | {other.text}",
            )
        if each.place == other.place == "shrink":
            raise ConfigError(
                f"channel: {each.text} stands behind {other.text}, and updates are packed once",
                hint="leave one of the two out",
            )
        if each.place == "hide" and other.place == "shrink":
            raise ConfigError(
                f"channel: {each.name} stands behind {other.text}, but what is hidden is added up before it is opened,"
                " and packed updates have no whole numbers of a common step",
                hint=f"leave {other.text} out; masks are as long as the numbers under them",
            )
    for name in each.needs:
        if name not in (other.name for other in before):
            raise ConfigError(
                f"channel: {each.name} needs {name} before it",
                hint=f"write {name}:0.5 | {each.text}",
            )
