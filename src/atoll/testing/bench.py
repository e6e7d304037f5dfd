"""One call that plays a method in every way there is and says what does not agree."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

from atoll.contract import Method
from atoll.data import FederatedData, as_federated
from atoll.engines import ENGINES
from atoll.errors import AtollError, ConfigError, EngineError, suggest
from atoll.federation import Federation
from atoll.losses import Loss
from atoll.networks import Model
from atoll.testing import problem
from atoll.testing.byhand import ByHand, Unplayable
from atoll.testing.compared import differs, distant
from atoll.testing.declared import declared
from atoll.testing.draws import Draw, recorded
from atoll.testing.report import CHECKS, Notes, Report

__all__ = ["check"]

_PLAYED = tuple(CHECKS)[2:]


def check(
    method: Method,
    model: Model | Sequence[Model] | None = None,
    data: Any = None,
    *,
    rounds: int = 3,
    cohort: int | None = None,
    seed: int = 0,
    loss: str | Loss | None = None,
    engines: Sequence[str] = ("batched", "processes"),
    tolerance: float = 1e-4,
    raises: bool = True,
) -> Report:
    """Hold a method to its contract: ``atoll.testing.check(MyMethod(lr=0.05))``.

    Args:
        method: what is checked, with the settings it is checked with.
        model: as for `Federation`; by default a small network with BatchNorm and dropout. One of your own has no bias
            before BatchNorm where Adam is used: its gradient is rounding alone, and Adam makes steps of that.
        data: as for `Federation`; by default five unequal clients, one of them with a single sample, with public
            inputs, and with validation data where the method reads it.
        rounds: rounds to play, at least 2.
        cohort: clients a round; by default 4, or all where there are fewer.
        seed: the seed of the runs; the one after it is the other seed.
        loss: as for `Federation`.
        engines: those that are compared with the loop.
        tolerance: relative distance ||a - b|| / ||a|| that engines and padding may make in a tensor of the state,
            of memories and of replies; ten times that in a client's test loss.
        raises: whether broken promises are an AssertionError; otherwise they are only in the report.

    Returns the report: a finding for each of `CHECKS`. Raises AssertionError with all that is wrong in one message, and
    ConfigError for arguments that mean nothing.
    """
    for name in engines:
        if name not in ("batched", "processes"):
            known = [each for each in ENGINES if each not in ("auto", "loop", "ray")]
            raise ConfigError(f"engine {name!r} is not compared with the loop", hint=suggest(name, known))
    if rounds < 2:
        raise ConfigError(
            f"rounds = {rounds}, but a run must be broken off between rounds", hint="play 2 or more"
        )
    since, notes = time.perf_counter(), Notes()
    declared(method, notes)
    bench = _Bench(method, model, data, rounds, cohort, seed, loss, tolerance, notes)
    try:
        bench.play(engines)
    except Unplayable:
        for name in _PLAYED:
            notes.skip(name, "the method could not be played to the end")
    report = notes.report(type(method).__name__, tuple(engines), time.perf_counter() - since)
    if raises and not report.ok:
        raise AssertionError(str(report))
    return report


class _Bench:
    """Federations of one method on one problem, and what they are compared for."""

    def __init__(
        self,
        method: Method,
        model: Model | Sequence[Model] | None,
        data: Any,
        rounds: int,
        cohort: int | None,
        seed: int,
        loss: str | Loss | None,
        tolerance: float,
        notes: Notes,
    ) -> None:
        self.method, self.rounds, self.seed, self.loss = method, rounds, seed, loss
        self.model = problem.model if model is None else model
        self.data: FederatedData = problem.data(method) if data is None else as_federated(data)
        self.cohort = cohort or min(4, len(self.data))
        self.tolerance, self.notes = tolerance, notes

    def federation(self, **settings: Any) -> Federation:
        """A federation that has not begun. Raises Unplayable where the parts do not fit."""
        given = {"engine": "loop", "seed": self.seed, "rounds": self.rounds, **settings}
        try:
            return Federation(
                self.model, self.data, self.method, loss=self.loss, cohort=self.cohort, device="cpu",
                eval_every=0, **given,
            )  # fmt: skip
        except EngineError:
            raise
        except Exception as error:
            hint = error.hint if isinstance(error, AtollError) else None
            said = (
                error.message if isinstance(error, AtollError) else f"setup: {type(error).__name__}: {error}"
            )
            self.notes.wrong(
                "runs",
                said,
                hint or "give a model and data that the method takes: check(method, model, data)",
            )
            raise Unplayable from error

    def play(self, engines: Sequence[str]) -> None:
        """Everything there is to play."""
        hand, drawn = self.by_hand(self.seed, self.rounds)
        _, others = self.by_hand(self.seed + 1, 1)
        constant = sorted(drawn & others, key=repr)
        if constant:
            where, *address = constant[0]
            self.notes.wrong(
                "seed",
                f"{where} draws from the address {', '.join(map(str, address))} whatever the seed",
                "the address follows from the run's seed: data.key, batch.key, or population.seed on the server",
            )
        loop = self.played()
        self._same(
            loop, self.played(), "seed", "two runs with the same seed differ",
            "keep nothing outside of the state and the memories, and draw from addresses only",
        )  # fmt: skip
        self._alone(loop, hand)
        if "settings" in self.notes.problems:
            self.notes.skip("resume", "runs are told apart by their settings, which are wrong")
        else:
            self._same(
                loop, self.resumed(), "resume", f"a run resumed after round {self.rounds // 2} ends otherwise",
                "keep all that lasts from round to round in the state or in the memories",
            )  # fmt: skip
        hand.padded(self.tolerance)
        for name in engines:
            self._agrees(loop, name)

    # --- ways to play -----------------------------------------------------------------------------------------

    def by_hand(self, seed: int, rounds: int) -> tuple[ByHand, set[Draw]]:
        """The federation played by hand, and what was drawn."""
        hand = ByHand(self.federation(seed=seed), self.notes)
        with recorded() as drawn:
            hand.play(rounds)
        return hand, drawn

    def played(self, **settings: Any) -> dict[str, Any]:
        """What a run leaves: the state, the memories by client, and clients' test losses under "judged"."""
        return self._left(self.federation(**settings))

    def resumed(self) -> dict[str, Any]:
        """The same of a run that stops half way and is taken up by another federation."""
        with tempfile.TemporaryDirectory(prefix="atoll-check-") as place:
            self._left(self.federation(runs=place, rounds=self.rounds // 2))
            return self._left(self.federation(runs=place).resume("last"))

    def _left(self, federation: Federation) -> dict[str, Any]:
        try:
            run = federation.fit(progress=False)
        except EngineError:
            raise
        except Exception as error:
            said = error.message if isinstance(error, AtollError) else f"{type(error).__name__}: {error}"
            self.notes.wrong("runs", f"by hand it plays, in a federation it does not: {said}")
            raise Unplayable from error
        memories = federation.memories
        kept = {str(k): memories.get(k) for k in memories.clients()}
        found = {} if run.evaluation is None else run.evaluation.each
        judged = {kind: {str(k): v for k, v in each.get("loss", {}).items()} for kind, each in found.items()}
        return {"state": federation.state, "memories": kept, "judged": judged}

    # --- comparisons ------------------------------------------------------------------------------------------

    def _same(self, one: dict[str, Any], two: dict[str, Any], name: str, problem: str, hint: str) -> None:
        """Note where two runs are not equal to the bit."""
        parts = [part for part in one if part in two]
        where = differs({part: one[part] for part in parts}, {part: two[part] for part in parts})
        if where is not None:
            self.notes.wrong(name, f"{problem}, first in {where}", hint)

    def _alone(self, loop: dict[str, Any], hand: ByHand) -> None:
        """Note where rounds by hand come to something else. Several architectures are summed in another order."""
        memories = {str(client): hand.memories[client] for client in sorted(hand.memories)}
        found = {"state": hand.state, "memories": memories}
        problem = "clients that are asked alone and in another order come to something else"
        hint = "an answer follows from the order, the client's data and its memory alone"
        if len(hand.clients) == 1:
            self._same(loop, found, "by hand", problem, hint)
            return
        far = distant({part: loop[part] for part in found}, found, self.tolerance)
        if far is not None:
            self.notes.wrong("by hand", f"{problem}, most in {far[0]}", hint)

    def _agrees(self, loop: dict[str, Any], name: str) -> None:
        """Note where an engine comes to something else than the loop."""
        try:
            other = self.played(engine=name, **({"workers": 2} if name == "processes" else {}))
        except EngineError as error:
            if name == "processes" and "fork" in error.message:
                self.notes.skip(name, error.message)
                return
            self.notes.wrong(name, error.message, error.hint)
            return
        except AtollError as error:
            self.notes.wrong(name, error.message, error.hint)
            return
        for parts, tolerance in ((("state", "memories"), self.tolerance), (("judged",), 10 * self.tolerance)):
            far = distant({p: loop[p] for p in parts}, {p: other[p] for p in parts}, tolerance)
            if far is not None:
                self.notes.wrong(
                    name,
                    f"{name} and the loop differ by {far[1]:.1e} (relative) in {far[0]}",
                    "weigh rows by batch.mask, keep numbers that change in tensors, draw from batch.key or data.key",
                )
                return
