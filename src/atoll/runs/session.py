"""A run that writes itself down: its folder and lock, its events and their readers, checkpoints, the clock, the end.

Of any run, be it a federation or not: a session is handed facts (`atoll.runs.events.kinds`) and snapshots, and knows
nothing of where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import UNSET

from atoll.errors import ConfigError
from atoll.measures import Figures
from atoll.runs import about
from atoll.runs.checkpoint import Checkpoint, Keep, load_latest, prune, save, tidy
from atoll.runs.events import Event, kinds, plain
from atoll.runs.folder import RunFolder
from atoll.runs.provenance import changed_text, versions
from atoll.runs.readers import Reader
from atoll.runs.recorder import Recorder
from atoll.runs.settings import AFTER_PAUSE, FREE, agree, paused
from atoll.runs.signals import undisturbed
from atoll.runs.sinks import make
from atoll.runs.snapshot import Snapshot
from atoll.tensors import Record

__all__ = ["Session"]

Opening = Callable[[], Sequence[kinds.Written]]


class Session:
    """One run, kept.

    Args:
        runs: the directory in which the run gets its folder; None keeps nothing on disk.
        log: who else is told of the events: names that `atoll.runs.sinks.make` knows, or readers.
        checkpoint: rounds between checkpoints; 0 only at the end.
        keep: which checkpoints stay: "last", "best", "every:50", "all", or several with commas.

    `folder` is the run's, None before it has one; `number` is the last round that counts. `sound` is the last state
    that an evaluation found finite; whoever begins or goes on with a run sets the first one.

    Raises ConfigError for readers that there are not and for ways to keep that there are not, MissingExtraError for
    readers whose package is not installed.
    """

    def __init__(
        self,
        runs: str | Path | None,
        *,
        log: Sequence[str | Reader] = (),
        checkpoint: int = 10,
        keep: str = "last, best",
    ) -> None:
        self.runs = None if runs is None else Path(runs)
        self.log = list(log)
        for each in self.log:
            if isinstance(each, str):
                make(each)  # what is missing must be known before the first round
        self.checkpoint = checkpoint
        self.folder: RunFolder | None = None
        self.number = 0
        self.sound: Record | None = None
        self._keep = Keep.parse(keep)
        self._identity: Mapping[str, Any] = {}
        self._recorder = Recorder(None, [])
        self._model: Callable[[Path], object] | None = None
        self._last: Snapshot | None = None  # what a checkpoint may be written of: the events know its round
        self._round: kinds.Round | None = None  # that round's event
        self._changed: Mapping[str, Any] = {}  # settings that are others than before a pause
        self._saved = -1  # the last round in a checkpoint
        self._notes: list[tuple[str, str]] = []  # problems from before there was a recorder
        self._began = time.perf_counter()
        self._spent = 0.0  # seconds of the run before it was resumed

    @property
    def seconds(self) -> float:
        """How long the run has taken, what went before it was resumed included."""
        return self._spent + time.perf_counter() - self._began

    @property
    def can_resume(self) -> bool:
        """Whether the folder has a checkpoint of the last round that counts."""
        return self.folder is not None and self._saved == self.number

    # --- the beginning ----------------------------------------------------------------------------------------

    def resume(
        self,
        run: str | Path,
        identity: Mapping[str, Any],
        check: Callable[[Mapping[str, Any]], object] | None = None,
        upto: int | None = None,
    ) -> tuple[Checkpoint, list[Event]]:
        """Take up a run: its newest whole checkpoint, and its events up to that.

        Args:
            run: its folder, its name in `runs`, or "last", the last one there.
            identity: what decides a run's bits, as plain values: the same as when it was begun, but for what may be
                other after a pause (`atoll.runs.settings.AFTER_PAUSE`).
            check: gets the facts of the snapshot, and may refuse the run by raising.
            upto: the last round to go on from, where others have not come further; later checkpoints are dropped.

        Raises ConfigError where there is no such run or it is another one, RunError while a process writes it; then
        nothing has changed.
        """
        folder = RunFolder.find(run, self.runs)
        folder.hold()
        try:
            notes: list[tuple[str, str]] = []
            found = load_latest(folder.path, lambda *note: notes.append(note), upto)
            if found is None:
                raise ConfigError(f"{folder.path} has no checkpoint to go on from", hint="start a new run")
            log = folder.log()
            free = AFTER_PAUSE if paused(log.events, found.round) else ()
            changed = agree(identity, found.facts["fingerprint"], str(folder.path), free)
            if check is not None:
                check(found.facts)
            tidy(folder.path, found.round)
        except BaseException:
            folder.release()
            raise
        if log.damaged:
            notes.append(
                ("events.jsonl", f"lines that cannot be read: {', '.join(map(str, log.damaged[:20]))}")
            )
        events = [each for each in log.events if each["event"] != "round" or each["round"] <= found.round]
        missing = found.round - sum(each["event"] == "round" for each in events)
        if missing > 0:
            notes.append(("events.jsonl", f"{missing} rounds are missing from the events"))
        self.folder, self._notes, self._identity = folder, notes, identity
        self.number = self._saved = found.round
        self.sound = found.records.get("sound", found.records["state"])
        self._last, self._spent, self._changed = None, found.facts["seconds"], changed
        return found, events

    @contextmanager
    def written(
        self,
        opening: Opening,
        snapshot: Snapshot,
        *,
        name: str,
        rounds: int,
        identity: Mapping[str, Any],
        model: Callable[[Path], object] | None = None,
        repeatable: bool = False,
    ) -> Iterator[None]:
        """Inside, the run is played and written down: begun, or gone on with; after an error it is put away.

        Args:
            opening: gives the events that a run begins with, a `Start` first, to which the session adds what it knows
                by itself (`atoll.runs.about.begun`). Called where the run is new and somebody listens.
            snapshot: the run as it is now.
            name: what a new folder is called after.
            rounds: how many are planned.
            identity: what decides the run's bits, as plain values: only a run with the same goes on with it.
            model: writes the model to a file, at the end or where the run stopped; None where there is none.
            repeatable: whether `atoll run` can repeat it from its settings alone.

        Raises RunError where the folder cannot be written.
        """
        self._began = time.perf_counter()
        self._identity, self._model = identity, model
        try:
            self._begin(opening, snapshot, name, rounds, repeatable)
        except BaseException:
            self._recorder.close()
            raise
        try:
            yield
        except BaseException as error:
            with undisturbed():
                self._put_away(error, snapshot)
            raise
        finally:
            self._model = None  # it may hold on to all that was run
            self._recorder.close()

    def _begin(self, opening: Opening, snapshot: Snapshot, name: str, rounds: int, repeatable: bool) -> None:
        fresh, nowhere = self.folder is None, self.folder is None and self.runs is None
        log = self.log if nowhere or "csv" in self.log else ["csv", *self.log]
        readers = [make(each) if isinstance(each, str) else each for each in log]
        if self.runs is not None and self.folder is None:
            self.folder = RunFolder.create(self.runs, name)
        if self.folder is not None:
            self.folder.hold()
        self._recorder = Recorder(self.folder, readers)
        self._recorder.open()
        if not fresh:
            self._recorder.recall()
            self._settle(opening)
            changed = self._changed or UNSET
            self.emit(
                kinds.Resume(round=snapshot.number, rounds=rounds, versions=versions(), changed=changed)
            )
        elif self.folder is not None or readers:
            events = self._opened(opening)
            if self.folder is not None and isinstance(events[0], kinds.Start):
                self.folder.write("config.toml", about.settings_file(events[0], repeatable))
            for event in events:
                self.emit(event)
        for note in self._notes:
            self.problem(*note)
        self._notes = []
        self.number, self._last, self._round = snapshot.number, snapshot, None
        self.save()

    def _settle(self, opening: Opening) -> None:
        """Write down the settings with which the run goes on."""
        start = next((each for each in opening() if isinstance(each, kinds.Start)), None)
        file = None if self.folder is None else self.folder.path / "config.toml"
        if self.folder is None or file is None or start is None or not file.is_file():
            return
        free = {key: value for key, value in start.config.items() if key in (*FREE, *AFTER_PAUSE)}
        self.folder.write("config.toml", changed_text(file.read_text("utf-8"), free).encode())

    def _opened(self, opening: Opening) -> list[kinds.Written]:
        """The events that the run begins with, complete."""
        return [
            about.begun(event, self.folder) if isinstance(event, kinds.Start) else event
            for event in opening()
        ]

    # --- what happens -----------------------------------------------------------------------------------------

    def emit(self, event: kinds.Written) -> None:
        """Write an event, and tell the readers; before the run is begun, keep it in memory.  Raises RunError."""
        self._recorder.emit(event)

    def problem(self, where: str, message: str) -> None:
        """Something beside the run failed: say so, and go on. Called from any thread; never raises."""
        self._recorder.problem(where, message)

    def commit(
        self,
        event: Callable[[], kinds.Round],
        snapshot: Snapshot,
        *,
        last: bool = False,
        beside: Callable[[], Iterable[kinds.Written]] = tuple,
    ) -> None:
        """Write down a round that counts, and a checkpoint if it is its turn or the `last` one.

        Whoever has a `store`, or changes things of its own with the round, does both inside `undisturbed`.

        Args:
            event: what happened; asked where somebody is told of it.
            snapshot: the run after it.
            beside: further events, made only where a checkpoint follows.

        Raises RunError where something cannot be written.
        """
        self.number, self._last = snapshot.number, None
        self._round = None
        if self._recorder.heard:
            self._round = event()
            if self._round.evaluation:
                self.sound = snapshot.records["state"]
            self.emit(self._round)
        self._last = snapshot
        if last or (self.checkpoint and snapshot.number % self.checkpoint == 0):
            for each in beside():
                self.emit(each)
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the last round that counts, unless there is one.  Raises RunError."""
        now = self._last
        if self.folder is None or now is None or now.number == self._saved:
            return
        evaluation = plain(self._round).get("evaluation") if self._round else None
        facts = {
            **now.facts,
            "seconds": self.seconds,
            "score": evaluation and Figures(evaluation, Figures.main(evaluation)).score,
            "fingerprint": self._identity,
            "versions": versions(),
        }
        records = dict(now.records)
        if self.sound is not None and self.sound is not records["state"]:
            records["sound"] = self.sound
        path = save(self.folder.path, now.number, records, now.store, facts)
        self._saved = now.number
        self.emit(kinds.Checkpoint(round=now.number, path=f"checkpoints/{path.name}"))
        prune(self.folder.path, self._keep)

    def events(self, opening: Opening, rounds: Iterable[kinds.Round] = ()) -> list[Event]:
        """The run so far as events (`docs/runs.md`).

        Without a folder, rounds are not kept: they come from `rounds`, and the beginning from `opening` where nobody
        listened to it.
        """
        if self.folder is not None:
            return self.folder.log().events
        kept = self._recorder.kept
        if not any(each["event"] == "start" for each in kept):  # nobody listened
            kept = [*map(plain, self._opened(opening)), *kept]
        ends = ("result", "error")
        return [
            *(each for each in kept if each["event"] not in ends),
            *map(plain, rounds),
            *(each for each in kept if each["event"] in ends),
        ]

    # --- the end ----------------------------------------------------------------------------------------------

    def end(self, result: kinds.Result) -> None:
        """Write down how the run ended: a checkpoint, its model, the result, and the files made from the events."""
        with undisturbed():
            self.save()
            if self.folder is not None and self._model is not None:
                self._model(self.folder.path / "model.safetensors")
            self.emit(result)
            self._recorder.export()

    def _put_away(self, error: BaseException, snapshot: Snapshot) -> None:
        """After an error or an interruption: a checkpoint of the last whole round, its model, and what happened."""
        recorder, folder, model = self._recorder, self.folder, self._model
        if snapshot.store is not None:
            snapshot.store.rollback()
        recorder.attempt("checkpoint", self.save)
        if folder is not None and model is not None and self.number:
            recorder.attempt("model.safetensors", lambda: model(folder.path / "model.safetensors"))
        recorder.attempt("events", lambda: self.emit(about.error(error, self.number)))
        recorder.attempt("export", recorder.export)
