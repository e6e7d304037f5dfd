"""A model, divided data and a method, as a run: what joins rounds and what is written down of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from atoll import seeds
from atoll.assembly import Metrics, Nodes, as_found, assemble, budgeted, build_method, changed
from atoll.callbacks import Callback, Hooks
from atoll.channel import Transform
from atoll.contract import Channel, Method
from atoll.data import FederatedData, as_federated
from atoll.engines import Engine
from atoll.guarding import stated
from atoll.keeper import Keeper
from atoll.losses import Loss
from atoll.networks import Model
from atoll.results import Run
from atoll.rounds.evaluation import Evaluation
from atoll.rounds.history import Round
from atoll.rounds.memories import MemoryStore
from atoll.runs.events import Event
from atoll.runs.folder import RunFolder
from atoll.runs.readers import Reader
from atoll.runs.signals import undisturbed
from atoll.settings import Settings, signature
from atoll.tensors import Record

__all__ = ["Federation"]


class Federation:
    """A model, divided data and a method, to be trained round by round.

    Args:
        model: an `nn.Module`, or a function of no arguments that makes one (then its initial parameters follow from
            `seed`). A list of them gives clients different architectures, in turns; for methods that can
            (`Method.mixed`).
        data: a `FederatedData`, or anything `atoll.data.as_federated` accepts.
        method: a `Method`, or the name of one; its hyper-parameters may come as further keywords (``lr=0.1, mu=0.01``).
        loss: a name or a function (see `Task`); by default cross entropy for classes, squared error otherwise.
        metrics: what to measure beside the loss: names ("auc, f1"), or functions and `Metric`s by name (see `Task`).
        public: inputs [n, ...] that everybody knows, without labels, for methods that distil.
        channel: what happens to updates between client and server: a text ("clip:0.5 | noise:1.0"), a list of
            transforms (see `atoll.channel`), or a `Channel` of your own.
        log: further readers of the run's events: names ("tensorboard", "mlflow"), or `Reader`s of your own.
        callbacks: hooks around rounds.
        nodes: where the clients are, if not on this machine (see `atoll.network`).
        settings: how the run is set (`Settings`: rounds, cohort, seed, engine ...), and the method's own.

    Raises ConfigError or DataError before anything runs if the parts do not fit.
    """

    def __init__(
        self,
        model: Model | Sequence[Model],
        data: Any,
        method: Method | str = "fedavg",
        *,
        loss: str | Loss | None = None,
        metrics: Metrics | None = None,
        public: Tensor | None = None,
        channel: str | Sequence[Transform] | Channel | None = None,
        log: str | Sequence[str | Reader] = (),
        callbacks: Sequence[Callback] = (),
        nodes: Nodes | None = None,
        **settings: Any,
    ) -> None:
        self._given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        way, text = stated(channel)
        self.settings, own = Settings.split({**settings, "channel": text})
        self.data: FederatedData = as_federated(data)
        if public is not None:
            self.data = self.data.publish(public)
        self.method = build_method(method, own)
        way, self.settings = budgeted(
            way, self.settings, self.data, settings.get("choose", self.settings.choose)
        )
        parts = model, self.data, self.method, self.settings, loss, metrics, way
        self.simulation = assemble(*parts, given=settings, nodes=nodes)
        self.settings = as_found(self.settings, self.simulation)
        self.tasks, self.judge = self.simulation.tasks, self.simulation.judge
        self.membership, self.cohort = self.simulation.cohorts.membership, self.simulation.cohorts.size
        self.task, self.rounds, self.seed = self.tasks[0], self.settings.rounds, self.settings.seed
        self.keeper = Keeper(self.settings, self.simulation, log)
        self.hooks = Hooks(callbacks, self.keeper.session.problem)
        self._stopping = False

    # --- what it is -------------------------------------------------------------------------------------------

    @property
    def state(self) -> Record:
        """The server's state after the last round."""
        return self.simulation.state

    @property
    def memories(self) -> MemoryStore:
        """What clients remember."""
        return self.simulation.memories

    @property
    def engine(self) -> Engine:
        """Where clients' work runs."""
        return self.simulation.engine

    @property
    def number(self) -> int:
        """The last round that counts."""
        return self.simulation.number

    @property
    def history(self) -> list[Round]:
        """What happened, round by round."""
        return self.simulation.history

    @property
    def folder(self) -> RunFolder | None:
        """The run's folder, None before it has one."""
        return self.keeper.session.folder

    # --- the run ----------------------------------------------------------------------------------------------

    def fit(self, *, progress: bool | None = None) -> Run:
        """Play what remains, up to `target` or `patience`. Terminals and notebooks show it, or as `progress` says.

        Raises DivergedError where the model leaves the finite numbers; `run()` then still has every committed round and
        the last finite model. However it ends, a run folder has what is needed to go on.
        """
        # Nobody else's code runs between the rounds without callbacks: global states need to be kept only once.
        kept = nullcontext() if self.hooks.callbacks else seeds.held()
        with closing(self.engine), self.keeper.written(progress), kept:
            self.hooks.call("on_start", self)
            for record in self.play():
                self.hooks.call("on_round_end", self, record)
            self.keeper.end()
        self.hooks.call("on_end", self, run := self.run())
        return run

    def play(self) -> Iterator[Round]:
        """Play round after round, yielding each once it is committed."""
        every = self.settings.eval_every
        while self.number < self.rounds and self.keeper.over is None and not self._stopping:
            number = self.number + 1
            self.hooks.call("on_round_start", self, number)
            played = self.keeper.charged(self.simulation.advance(self.keeper.begun))
            if number == self.rounds or (every and number % every == 0):
                played = self.simulation.judged(played)
            with undisturbed():
                self.simulation.commit(played)
                self.keeper.committed(played)
            yield played.record

    def round(self) -> Round:
        """Play one round and commit it; evaluation is the caller's."""
        played = self.keeper.charged(self.simulation.advance())
        self.simulation.commit(played)
        return played.record

    def stop(self) -> None:
        """End the run after the round that is being played (for callbacks)."""
        self._stopping = True

    def resume(self, run: str | Path = "last") -> Federation:
        """Go on with a run of this same federation: its folder, its name in `runs`, or the last one there.

        Takes over state, memories and rounds of its newest whole checkpoint; `fit` then plays what remains, and the
        result is the undisturbed run's to the bit. `rounds`, `target`, `patience` and `eval_...` may differ, and of
        a run that paused `devices`, `deadline`, `quorum` and `over_select`, with which it then goes on.
        Raises ConfigError where there is no such run or it is another federation's, RunError while it is written.
        """
        self.keeper.resume(run)
        return self

    def evaluate(self) -> Evaluation:
        """Judge the present models (see `atoll.rounds.judge`)."""
        return self.simulation.evaluate()

    def personal(self, client: int | str) -> nn.Module:
        """The model that this client (a position, or a name) would predict with now, fine-tuned if that is the method.

        For methods without models of clients' own it is the global model; where a method predicts otherwise than by its
        model alone (`knn-per`, `fedproto`), that model. Raises ConfigError for an unknown client or one whose model is
        narrower than the module (`heterofl`).
        """
        return self.simulation.personal(self.data.position(client))

    def run(self) -> Run:
        """What the rounds played so far came to."""
        return self.keeper.run()

    def events(self) -> list[Event]:
        """The run so far as events (`docs/runs.md`)."""
        return self.keeper.events()

    def replace(self, **changes: Any) -> Federation:
        """A federation like this one with other settings, such as ``seed=1`` or ``method="scaffold"``."""
        made = Federation(**changed(self._given, changes))
        own = {"method": made.keeper.labels["method"]} if "method" in changes else {}
        made.keeper.labels = {**self.keeper.labels, **own}
        return made

    def __repr__(self) -> str:
        labels, played = self.keeper.labels, f"{self.number} of {self.rounds} rounds"
        return f"<Federation {labels['method']} on {labels['data']}, {labels['partition']}: {played}>"

    def _repr_html_(self) -> str:
        return self.keeper.html(repr(self)[1:-1])


Federation.__init__.__signature__ = signature(Federation.__init__)  # type: ignore[attr-defined]
