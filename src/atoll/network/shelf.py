"""A node's disk: what it remembers after each task, and answers that nobody has taken yet."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

import msgspec

from atoll.durable import replaced
from atoll.errors import ConfigError
from atoll.network.wire import Plan, Task

__all__ = ["Kept", "Shelf"]

_AHEAD = 8
"""Memories after tasks that came later than the one whose memory counts: of rounds that may still count."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What a client's model is made of: a task that was answered, and how the node was set then."""

    task: Task
    plan: Plan
    number: int
    name: str
    source: str
    start: str | None = None
    tokenizer: str | None = None
    precision: str = "float32"
    accumulate: int = 1
    recompute: bool = False

    @property
    def program(self) -> str:
        """The task's program, on whatever data."""
        return self.task.program.partition(" ")[0]

    @property
    def rank(self) -> int:
        """How much better this is than what other programs leave; negative where no model can be made of it."""
        known = ("train", "evaluate", "personal")
        return known.index(self.program) if self.program in known else -1

    @property
    def memory(self) -> str | None:
        """The task after which the memory was kept that belongs to it."""
        return self.task.id if self.program == "train" else self.task.memory


class Shelf:
    """A directory of a run's files at a node.

    After a task the node keeps what it remembers under the task's name. Which of them counts the coordinator says with
    the next task: the one to begin with. Those before it are kept for as long as a run may fall back, two of them.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        for part in ("bodies", "answers", "memories", "vectors", "references"):
            (place / part).mkdir(parents=True, exist_ok=True)

    def body(self, sha256: str) -> Path:
        return self.place / "bodies" / sha256

    def answer(self, task: str) -> Path:
        return self.place / "answers" / task

    def memory(self, task: str) -> Path:
        return self.place / "memories" / task

    def vector(self, task: str, model: str) -> Path:
        """Where the update of a task is kept that goes into a secure sum; `model` is the hash of what it began with."""
        return self.place / "vectors" / f"{task}-{model}"

    def reference(self, name: str) -> Path:
        """Where a model is kept that later ones are told from."""
        return self.place / "references" / name

    def able(self, task: Task) -> Task:
        """The task with the model whole, where what it is told from is not here; other references go."""
        kept = self.kept()
        wanted = {task.since, task.keep, None if kept is None else kept.task.keep}
        if task.keep is not None:
            for path in (self.place / "references").iterdir():
                if path.name not in wanted:
                    path.unlink(missing_ok=True)
        if task.instead is None or self.reference(str(task.since)).is_file():
            return task
        return msgspec.structs.replace(task, shared=task.instead, since=None, instead=None)

    @property
    def public(self) -> Path:
        """Where inputs are that everybody knows."""
        return self.place / "public"

    def secret(self) -> bytes:
        """32 bytes from the operating system, the same for as long as this directory is there."""
        path = self.place / "secret"
        if not path.is_file():
            replaced(path, secrets.token_bytes(32), secret=True)
        return path.read_bytes()

    def over(self, round: int) -> None:
        """Rounds before this one are over: their updates are summed no more."""
        for path in (self.place / "vectors").iterdir():
            if _order(path.name)[0] < round:
                path.unlink(missing_ok=True)

    def tidy(self, counts: str | None, wanted: Iterable[str]) -> None:
        """Remove what is needed no more: bodies but the `wanted`, and memories long before the one that `counts`."""
        keep, kept = set(wanted), self.kept()
        if kept is not None:
            keep |= {each.sha256 for each in kept.task.bodies}
        for path in (self.place / "bodies").iterdir():
            if path.name.removesuffix(".part") not in keep:
                path.unlink(missing_ok=True)
        if counts is None:
            return
        known = sorted((path for path in (self.place / "memories").iterdir()), key=lambda p: _order(p.name))
        before = [path for path in known if _order(path.name) < _order(counts)]
        after = [path for path in known if _order(path.name) > _order(counts)]
        for path in (*before[:-2], *after[:-_AHEAD]):
            if kept is None or path.name != kept.memory:
                path.unlink(missing_ok=True)

    def keep(self, kept: Kept) -> None:
        """Remember the task from whose bodies this client's model can be made: the last one that judged, if any did.

        What trains is second to what judges: a model is judged after a round that counts.
        """
        known = self.kept()
        if known is None or kept.rank >= known.rank:
            self.note("kept", kept)

    def kept(self) -> Kept | None:
        """What was kept last.  Raises ConfigError where its file is damaged."""
        path = self.place / "kept.json"
        if not path.is_file():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Kept)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"{path} is damaged ({error})", hint="remove it; it is written anew with the node's next task"
            ) from None

    def forget(self, task: str) -> None:
        """An answer was taken, or is wanted no more."""
        self.answer(task).unlink(missing_ok=True)

    def answers(self) -> list[str]:
        """Tasks whose answers nobody has taken yet."""
        return sorted(path.name for path in (self.place / "answers").iterdir() if path.suffix != ".part")

    def note(self, name: str, value: object) -> None:
        """Keep a small fact."""
        replaced(self.place / f"{name}.json", msgspec.json.encode(value))

    def noted(self, name: str) -> object:
        """A small fact, None where there is none."""
        path = self.place / f"{name}.json"
        try:
            return msgspec.json.decode(path.read_bytes())
        except (OSError, msgspec.DecodeError):
            return None


def _order(task: str) -> tuple[int, ...]:
    """Where a task stands among the tasks of a run."""
    return tuple(int(part) for part in task.split("-")[:3] if part.isdecimal())
