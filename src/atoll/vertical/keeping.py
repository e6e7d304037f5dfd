"""Writes a run between parties down through a session, for as many of the parties as are in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from msgspec import UNSET

from atoll.parties import Transcript
from atoll.runs.checkpoint import list_checkpoints
from atoll.runs.events import kinds
from atoll.runs.folder import RunFolder
from atoll.runs.readers import Reader
from atoll.runs.session import Session
from atoll.runs.snapshot import Snapshot
from atoll.tensors import Record
from atoll.vertical.halves import file, save
from atoll.vertical.protocol import Known, Progress
from atoll.vertical.settings import Vertical
from atoll.vertical.side import FloatArray

if TYPE_CHECKING:
    from atoll.vertical.running import Ended

__all__ = ["Keeper"]

_MATRIX = 100  # columns whose correlations are in the event; all are in the half

_BETTER: Mapping[str, Any] = {
    "auc": "higher", "ks": "higher", "lift": "higher", "rmse": "lower", "r2": "higher", "d2": "higher",
    "perplexity": "lower", "accuracy": "higher",
}  # fmt: skip


class Keeper:
    """A run folder with the events, and in it the halves of the parties that are here, each in a file of its own.

    Args:
        here: the parties in this process: all in a simulation, one between machines.
        runs: where run folders go; None keeps nothing.
        resume: a run to go on with.
    """

    def __init__(
        self,
        plan: Vertical,
        here: Sequence[str],
        transcript: Transcript,
        runs: Path | None,
        log: Sequence[Reader] = (),
        resume: str | Path | None = None,
    ) -> None:
        self.plan, self.here, self.transcript = plan, tuple(here), transcript
        self.session = Session(runs, log=list(log), checkpoint=plan.checkpoint, keep=plan.keep)
        self.number = 0
        self.halves: dict[str, Record] = {}
        self._resumed = None if resume is None else RunFolder.find(resume, runs)
        self._told: dict[str, tuple[Record, Mapping[str, float]]] = {}
        self._stack, self._begun = ExitStack(), False
        self._last = self._born = time.perf_counter()
        self._before, self._aligned = 0, 0.0
        self._figures: Mapping[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    # --- the beginning ----------------------------------------------------------------------------------------

    def finished(self) -> list[int]:
        """The steps with checkpoints, of a run that goes on; 0, where all begins, among them."""
        if self._resumed is None:
            return [0]
        return sorted({0, *(number for number, _ in list_checkpoints(self._resumed.path))})

    def begin(self, number: int, rows: int) -> None:
        """All parties go on after this step; they have so many rows in common. The first party that says so counts.

        Raises ConfigError where the run that goes on is another one.
        """
        if self._begun:
            return
        self._begun, self._aligned = True, time.perf_counter() - self._born
        identity = {"run": self.plan.fingerprint(), "parties": list(self.here), "rows": rows}
        if self._resumed is not None:
            found, _ = self.session.resume(self._resumed.path, identity, upto=number)
            self.number = found.round
            self.halves = {name: half for name, half in found.records["state"].items() if len(half)}
        self._stack.enter_context(
            self.session.written(
                self._opening,
                self._snapshot(),
                name=self.plan.protocol,
                rounds=self._steps(),
                identity=identity,
            )
        )
        folder = self.session.folder
        if folder is not None:
            folder.write("config.toml", self.plan.to_toml().encode())
        self._last = time.perf_counter()

    def _steps(self) -> int:
        return 0 if self.plan.protocol == "psi" else self.plan.made().steps

    def _opening(self) -> tuple[kinds.Start]:
        plan = self.plan
        where = [plan.party[name].data for name in self.here if plan.party[name].data]
        return (
            kinds.Start(
                method=plan.protocol,
                data=", ".join(str(each) for each in where) or UNSET,
                seed=plan.seed,
                rounds=self._steps(),
                measure="loss",
                metrics={name: _BETTER.get(name) for name in _BETTER},
                engine=f"{', '.join(plan.names)} under {plan.cipher}",
                parties=plan.names,
                config=plan.to_dict(),
            ),
        )

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            self.number, {"state": Record({name: self.halves.get(name, Record()) for name in self.here})}
        )

    # --- what happens -----------------------------------------------------------------------------------------

    def progress(self, name: str) -> Progress:
        """Where a party's part begins, and whom it tells."""

        def tell(number: int, half: Record, figures: Mapping[str, float]) -> None:
            self._told[name] = half, figures
            if len(self._told) == len(self.here):
                self._commit(number)

        return Progress(self.number, self.halves.get(name), tell)

    def _commit(self, number: int) -> None:
        self.number = number
        figures: dict[str, float] = {}
        for name, (half, shown) in self._told.items():
            self.halves[name] = half
            figures |= shown
        self._told = {}
        now, sent = time.perf_counter(), sum(count.nbytes for count in self.transcript.counts())
        overall = {name: value for name, value in figures.items() if name != "loss"}
        event = kinds.Round(
            round=number,
            loss=figures.get("loss", UNSET),
            bytes_up=sent - self._before,
            seconds=round(now - self._last, 6),
            evaluation=kinds.Evaluation(overall=overall) if overall else None,
        )
        self._last, self._before = now, sent
        self.session.commit(lambda: event, self._snapshot(), last=number == self._steps())

    def end(self, ended: Mapping[str, Ended], shown: str) -> dict[str, Any]:
        """All is done; the figures of the event "result".

        Args:
            ended: what each party that is here has in the end.
            shown: the one whose figures they are.
        """
        self.halves = {name: each.half for name, each in ended.items() if each.half is not None}
        if self.session.folder is not None:
            for name, half in self.halves.items():
                self.session.folder.write(file(Path(), name).name, save(half))
        self.session.emit(kinds.Crypto(said=[kinds.Said(**row) for row in self.transcript.rows()]))
        own = ended[shown]
        best = own.test or own.train
        features = [_told(name, each.known) for name, each in ended.items() if each.known is not None]
        found: dict[str, Any] = {
            "method": self.plan.protocol,
            "engine": f"{', '.join(self.plan.names)} under {self.plan.cipher}",
            "rounds": self.number,
            "seconds": round(self._aligned + self.session.seconds, 4),
            "bytes": self.transcript.nbytes(),
            "ciphertexts": self.transcript.ciphertexts(),
            **({} if own.common is None else {"common": own.common}),
            **{name: best[name] for name in ("auc", "accuracy", "rmse", "perplexity") if name in best},
            **({"train": dict(own.train)} if own.train else {}),
            **({"test": dict(own.test)} if own.test else {}),
            **({"features": features} if features else {}),
        }
        self.session.end(kinds.Result(reason="rounds", **found))
        return found


def _told(party: str, known: Known) -> kinds.Features:
    """For the event: null for what is not finite."""
    figures = {name: _finite(values) for name, values in known.figures.items()}
    matrix = known.correlations
    shown = matrix is not None and len(matrix) <= _MATRIX
    return kinds.Features(
        party=party,
        columns=known.columns,
        figures=figures,
        correlations=[_finite(row) for row in matrix] if matrix is not None and shown else UNSET,
    )


def _finite(values: FloatArray) -> list[float | None]:
    return [float(each) if math.isfinite(each) else None for each in values]
