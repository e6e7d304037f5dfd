"""What coordinator and nodes say to each other: a closed set of messages, as JSON, and the limits of each.

Tensors do not travel in messages: they are records (`atoll.codec`) in bodies of their own, named here by their hash.
Nothing in a message is ever imported or evaluated. `docs/wire.md` describes the requests that carry them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from atoll.errors import CodecError

__all__ = [
    "LIMIT", "LOOPBACK", "NAME", "PORT", "PUBLIC", "VERSIONS", "Answered", "Beat", "Beaten", "Blob", "DataForm",
    "Failure", "Field", "Hello", "Joined", "Joining", "Member", "Plan", "Problem", "Registry", "Task", "Verdict",
    "pack", "unpack", "whole",
]  # fmt: skip

VERSIONS = (1,)
"""Versions of this protocol that are spoken here, the newest last."""

PORT = 8471
LOOPBACK = ("127.0.0.1", "::1", "localhost")

PUBLIC = 1 << 30
"""Bytes that public inputs may have."""

LIMIT = 1 << 20
"""Bytes of a message; a plan may name many columns."""

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""What a node may be called."""


def whole(pattern: str) -> Meta:
    """A text that is this pattern and nothing more: by itself "$" lets a last line break pass."""
    return Meta(pattern=rf"^{pattern}(?!\n)$")


Text = Annotated[str, Meta(max_length=4096)]
Short = Annotated[str, Meta(max_length=200)]
Hash = Annotated[str, whole("[0-9a-f]{64}")]
Id = Annotated[str, whole("[0-9]{1,9}-[0-9]{1,6}-[0-9]{1,9}(-[a-z]{1,20})?")]
Count = Annotated[int, Meta(ge=0, le=1 << 50)]
T = TypeVar("T", bound="Message")


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Anything that is said."""


class Problem(Message, frozen=True):
    """Why a request was refused: a word for programs, a sentence for people, and what to do."""

    problem: Short
    message: Text
    hint: Text | None = None


class Hello(Message, frozen=True):
    """Who answers here, and whom it sees."""

    protocols: tuple[int, ...]
    software: Short
    run: Short
    name: Short | None = None
    role: Short | None = None


class Joining(Message, frozen=True):
    """A node wants to take part. `session` is new for every start of the node: the last one counts.

    `ed25519` is the public key under which it signs in secure aggregation, in hexadecimal digits; `certificate` the one
    (PEM) that names this key, where there are certificates.
    """

    protocols: tuple[int, ...]
    software: Short
    session: Annotated[str, Meta(min_length=16, max_length=64)]
    ed25519: Hash | None = None
    certificate: Text | None = None


class Plan(Message, frozen=True):
    """All that a node must know to do its part: the model, the method, how data are read, what happens to updates.

    `hyper` are the method's settings; `data` the keys that say how a file becomes samples (`label`, `features` ...);
    `conduct` the settings of the run that clients need; `engine` is "loop" for steps as they are written, else they
    are captured.
    """

    method: Short
    hyper: dict[str, Any]
    model: Text
    loss: Short | None
    metrics: Text | None
    augment: Text | None
    channel: Text | None
    dp_sgd: Short | None
    seed: int
    engine: Literal["loop", "processes"]
    data: dict[str, Any]
    validation: int | float
    test: float | Literal["auto"] | None
    rounds: Count
    cohort: Count | float | None
    public: Blob | None = None
    """Inputs that everybody knows, for methods that distil: a record with the tensor x [n, ...]."""
    repeatable: bool = False
    """Whether nodes may draw noise and rounding from the seed, so that a simulation repeats the run: never private."""
    down: Short | None = None
    adapter: Text | None = None


class Joined(Message, frozen=True):
    """The node is known: its number is its place among the clients. It must say what it has, if it has not."""

    protocol: int
    run: Short
    number: Count
    plan: Plan
    known: bool
    """Whether the coordinator knows of the node's data already."""


class Field(Message, frozen=True):
    """The form of one part of a sample: its name ("" where there is one part), type and shape."""

    name: Short
    dtype: Short
    shape: Annotated[tuple[Count, ...], Meta(max_length=16)]


class DataForm(Message, frozen=True):
    """What a node has: the form of its samples and how many there are. `named` says whether parts go by name.

    `device` is what it computes on, for whoever watches the run; data of one form may be on any. `base` is the SHA-256
    of what its model does not train (`atoll.network.base`), which must be everybody's.
    """

    inputs: Annotated[tuple[Field, ...], Meta(min_length=1, max_length=64)]
    targets: Field
    classes: Annotated[int, Meta(ge=1, le=1 << 24)] | None
    train: Count
    validation: Count | None = None
    test: Count | None = None
    named: bool = False
    device: Annotated[str, whole("[a-z]{1,8}(:[0-9]{1,3})?")] | None = None
    base: Hash | None = None


class Blob(Message, frozen=True):
    """A body, by the SHA-256 of its bytes."""

    sha256: Hash
    size: Count


class Task(Message, frozen=True):
    """What one node is asked to do: work on its data, or its part in a stage of secure aggregation.

    `id` is "round-call-attempt", and names the task among those of a node. `memory` is the task after which the node
    kept the memory that it is to begin with. `received` is `shared` with the fields of `own` put in. `seconds` are
    left from now on, by the node's own clock; `most` bytes may be answered.

    Where models come as differences, `shared` is told from what the node keeps under the name `since`; without that it
    fetches `instead`, which is whole. It keeps the model that comes of either under the name `keep`.
    """

    id: Id
    round: Count
    program: Short
    """What is run; of kind "secagg" the stage. There `shared` is the server's message, `own` the `Registry` in the
    first stage, and `of` the task whose update is to be summed."""
    shared: Blob
    own: Blob | None = None
    memory: Id | None = None
    epochs: Count | None = None
    limit: Count | None = None
    setting: dict[str, Any] | None = None
    """What the channel knows of the run (`atoll.channel.Setting`)."""
    cohort: Count = 1
    seconds: float | None = None
    most: Count = 0
    kind: Literal["work", "secagg"] = "work"
    of: Id | None = None
    since: Hash | None = None
    instead: Blob | None = None
    keep: Hash | None = None

    def __post_init__(self) -> None:
        if (self.since is None) != (self.instead is None):
            raise ValueError("since and instead come together")

    @property
    def model(self) -> str:
        """The hash of what the task begins with."""
        return self.keep or self.shared.sha256

    @property
    def bodies(self) -> tuple[Blob, ...]:
        """All that may be fetched for it."""
        return tuple(each for each in (self.shared, self.own, self.instead) if each is not None)


class Member(Message, frozen=True):
    """A node's key for signatures in secure aggregation (see `Joining`)."""

    name: Annotated[str, whole(NAME.pattern)]
    ed25519: Hash
    certificate: Text | None = None


class Registry(Message, frozen=True):
    """Whose signatures count in an attempt."""

    members: tuple[Member, ...]


class Answered(Message, frozen=True):
    """How much of an answer has arrived, and what became of it."""

    offset: Count
    done: bool = False
    refused: Text | None = None


class Verdict(Message, frozen=True):
    """A word about a task that is no longer wanted."""

    problem: Short
    round: Count


class Beat(Message, frozen=True):
    """A sign of life: the task that the node is at, and how far it is (0 to 1)."""

    task: Id | None = None
    done: float | None = None


class Beaten(Message, frozen=True):
    """What the node should know: whether its task is still wanted, and where the run is."""

    wanted: bool
    round: Count
    state: Short


class Failure(Message, frozen=True):
    """A node could not do a task."""

    kind: Literal["raised", "hung", "memory", "exited", "refused", "spent"]
    """"spent": its update of this round may be in a sum already, and does not go into another one."""
    reason: Text


def pack(message: Message) -> bytes:
    """A message as JSON."""
    return msgspec.json.encode(message)


def unpack(blob: bytes, kind: type[T]) -> T:
    """A message of this kind.  Raises CodecError for anything else."""
    if len(blob) > LIMIT:
        raise CodecError(f"a message of {len(blob)} bytes, and the limit is {LIMIT}")
    try:
        return msgspec.json.decode(blob, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        what = kind.__name__
        raise CodecError(
            f"this is no {what}: {error}", hint="both sides must speak the same version"
        ) from None
