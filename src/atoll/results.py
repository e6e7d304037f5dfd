"""What a run leaves: its rounds, its evaluations and its model."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from atoll.errors import ConfigError
from atoll.export import Trained, write
from atoll.measures import ATTACK_SUCCESS, OF_PART, Better, called
from atoll.rounds.evaluation import Evaluation
from atoll.rounds.history import Round, best, participation
from atoll.runs.events import Event
from atoll.runs.folder import RunFolder, writing
from atoll.runs.virtual import totals
from atoll.words import value_text

__all__ = ["Run"]


@dataclass(repr=False)
class Run:
    """What a federation came to: the rounds, the last evaluation and the model; `folder` is the run's, if it has one.

    `source` gives the run's events (`docs/runs.md`). `better` says of each metric which of two values is the
    better one, `tested` how many test samples the judged clients have, `names` what clients are called. `privacy` has
    epsilon, delta, private and a sentence (`privacy`), where updates were blurred. `reason` is why the run
    is over (see the event "result"), None before it is. `trained` gives the model, or that of a client (a position or
    a name), as it is exported.
    """

    method: str
    data: str
    partition: str
    engine: str
    rounds: list[Round]
    seconds: float
    target_round: int | None
    model: nn.Module
    folder: RunFolder | None = None
    source: Callable[[], list[Event]] | None = None
    better: Mapping[str, Better | None] = field(default_factory=dict)
    tested: Mapping[int, int] = field(default_factory=dict)
    names: Sequence[object] = ()
    privacy: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    trained: Callable[[int | str | None], Trained] | None = None

    @property
    def evaluation(self) -> Evaluation | None:
        """The last evaluation."""
        return next((r.evaluation for r in reversed(self.rounds) if r.evaluation is not None), None)

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the global model on the global test set."""
        return None if self.evaluation is None else self.evaluation.overall.get("accuracy")

    @property
    def attack_success(self) -> float | None:
        """The share of test samples that the global model takes for what attackers want, where they want anything."""
        return None if self.evaluation is None else self.evaluation.overall.get(ATTACK_SUCCESS)

    @property
    def accuracy_by_parts(self) -> dict[str, float]:
        """Accuracy of the global model on the global test set, of which it is shown each part alone, and all; {} where
        samples do not say which of several parts they have."""
        overall = {} if self.evaluation is None else self.evaluation.overall
        alone = {name.removeprefix(OF_PART): v for name, v in overall.items() if name.startswith(OF_PART)}
        return {**alone, " + ".join(alone): overall["accuracy"]} if alone else {}

    @property
    def best_round(self) -> int | None:
        """The round with the best models on validation data, where a target or `patience` asks to judge there."""
        return best(self.rounds)[0]

    @property
    def tokens(self) -> int | None:
        """Tokens that clients have read, for replies that counted; None where samples are no sequences."""
        told = [r.tokens for r in self.rounds if r.tokens is not None]
        return sum(told) if told else None

    @property
    def seconds_per_round(self) -> float:
        """Median seconds of a round without evaluation; the first two are left out where there are more."""
        times = [r.seconds for r in self.rounds]
        return float(np.median(times[2:] if len(times) > 2 else times)) if times else 0.0

    @property
    def virtual_seconds(self) -> float | None:
        """How long the run took on the virtual clock; None without one."""
        return self.rounds[-1].clock.ended if self.rounds and self.rounds[-1].clock else None

    def clocked(self) -> dict[str, float | None]:
        """What the run was on the virtual clock (see `atoll.runs.virtual.totals`); empty without one."""
        clocks = {r.number: vars(r.clock) for r in self.rounds if r.clock is not None}
        return totals([*clocks.values()], clocks.get(self.target_round or 0))

    def robust(self) -> dict[str, dict[str, float]]:
        """What a robust rule made of updates: how many there were, how many it left out (under 1 % of their share in a
        mean), and the least that a client counted for, on average over its rounds; empty without one."""
        of: dict[int, list[float]] = {}
        for each in self.rounds:
            for client, kept in zip(each.cohort, each.clients.get("kept", ()), strict=False):
                if kept == kept:  # not NaN
                    of.setdefault(client, []).append(kept)
        if not of:
            return {}
        every = [kept for found in of.values() for kept in found]
        least = min(sum(found) / len(found) for found in of.values())
        out = sum(kept < 0.01 for kept in every)
        return {"robust": {"updates": len(every), "left_out": out, "least": round(least, 4)}}

    def history(self, name: str = "accuracy") -> list[tuple[int, float]]:
        """(round, value) of a measure, for the rounds that were evaluated."""
        found = [(r.number, r.evaluation.value(name)) for r in self.rounds if r.evaluation is not None]
        return [(number, value) for number, value in found if value is not None]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain numbers and strings."""
        last = self.evaluation
        own = last.own.get(last.measure) if last else None
        return {
            "method": self.method,
            "data": self.data,
            "partition": self.partition,
            "engine": self.engine,
            "rounds": len(self.rounds),
            "seconds": round(self.seconds, 4),
            "seconds_per_round": round(self.seconds_per_round, 6),
            "bytes_up": sum(r.bytes_up for r in self.rounds),
            "bytes_down": sum(r.bytes_down for r in self.rounds),
            **({} if self.tokens is None else {"tokens": self.tokens}),
            "accuracy": last.overall.get("accuracy") if last else None,
            "loss": last.overall.get("loss") if last else None,
            **({ATTACK_SUCCESS: found} if (found := self.attack_success) is not None else {}),
            **({"accuracy_by_parts": parts} if (parts := self.accuracy_by_parts) else {}),
            **({} if last is None or (found := last.value("perplexity")) is None else {"perplexity": found}),
            "metrics": {name: last.value(name) for name in last.further} if last else {},
            "target_round": self.target_round,
            "best_round": self.best_round,
            "refused": sum(len(r.refused) for r in self.rounds),
            "dropped": sum(len(r.dropped) for r in self.rounds),
            "participation": participation(self.rounds, len(self.names)),
            **({} if last is None or last.consensus is None else {"consensus": last.consensus}),
            **self.clocked(),
            **self.privacy,
            **self.robust(),
            "clients": None if own is None else own.to_dict(),
            "evaluation": last.to_dict() if last else None,
        }

    def events(self) -> list[Event]:
        """Everything that happened, as events."""
        return self.source() if self.source is not None else []

    def save(self, path: str | Path) -> None:
        """Write the model as safetensors, all of it or nothing; the same model gives the same bytes.

        `safetensors.torch.load_model(module, path)` reads it. Raises RunError where it cannot be written.
        """
        state = self.model.state_dict()
        once = dict(
            [*self.model.named_parameters(), *self.model.named_buffers()]
        )  # shared tensors appear once
        tensors = {name: state[name].contiguous() for name in once if name in state}
        about = {
            "method": self.method,
            "data": self.data,
            "partition": self.partition,
            "rounds": len(self.rounds),
        }
        part = Path(f"{path}.part")
        with writing(Path(path), "the model"):
            try:
                save_file(tensors, part, {"atoll": json.dumps(about)})
            except SafetensorError as error:  # in its words stands what the system said
                said = re.search(r"os error (\d+)", str(error))
                code = int(said[1]) if said else errno.EIO
                raise OSError(code, os.strerror(code)) from error
            os.replace(part, path)

    def export(self, to: str, path: str | Path, *, client: int | str | None = None) -> Path:
        """Write the model for other runtimes, for batches of any size (`docs/export.md`).

        The file is run before it is in place: its outputs are the model's to 1e-5.

        Args:
            to: "onnx", "torchscript" or "executorch" (`atoll.export.FORMATS`).
            path: the file.
            client: a position or a name: the model that this client predicts with; by default the global one.

        Raises ConfigError where there is no such format, client or directory, and for a model that the exporter cannot
        follow; MissingExtraError; RunError where what was written computes something else.
        """
        if self.trained is None or not self.rounds:
            raise ConfigError(
                "no round of this run counts yet, and there is nothing to export",
                hint="train it first: fit()",
            )
        return write(to, self.trained(client), path)

    def report(self, path: str | Path | None = None) -> Path:
        """Write one self-contained HTML page; by default `report.html` in the run's folder, or here."""
        from atoll.runs import report

        place = Path(path) if path else (self.folder.path if self.folder else Path()) / "report.html"
        audits = [None if self.folder is None else self.folder.audit()]
        report.write(place, f"{self.method} on {self.data}", [self.events()], audits=audits)
        return place

    def figures(self, directory: str | Path) -> list[Path]:
        """Write the run's figures for papers, each as SVG and PNG.  Needs the extra "plots"."""
        from atoll.runs import figures

        return figures.write(self.events(), Path(directory))

    def __repr__(self) -> str:
        last = self.evaluation
        score = None if last is None else last.value(last.first)
        judged = ""
        if last is not None and score is not None:
            judged = f", {called(last.first, last.measure)} {value_text(last.measure, score)}"
        return f"<Run {self.method} on {self.data}, {self.partition}: {len(self.rounds)} rounds{judged}>"

    def __str__(self) -> str:
        from atoll.show.summary import result_text

        return result_text(self)

    def _repr_html_(self) -> str:
        from atoll.show.summary import result_html

        return result_html(self)
