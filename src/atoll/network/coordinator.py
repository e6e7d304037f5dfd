"""The coordinator: the rounds in one thread, the nodes' requests in asyncio's, the desk between them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from atoll import __version__
from atoll.callbacks import Callback
from atoll.contract import Channel
from atoll.errors import AtollError, ConfigError, DataError, PausedError, RunError, Terminated
from atoll.network.backing import backed
from atoll.network.base import Bases
from atoll.network.blobs import Blobs
from atoll.network.desk import Desk
from atoll.network.elsewhere import Elsewhere, alike
from atoll.network.entrusted import entrusted
from atoll.network.here import Here
from atoll.network.journal import Journal
from atoll.network.notebook import Notebook
from atoll.network.remote import Remote, Waiting
from atoll.network.room import crowded
from atoll.network.rounds import Deployed
from atoll.network.rows import unpacked
from atoll.network.suitable import check
from atoll.network.sums import between
from atoll.network.told import Told
from atoll.network.unhurried import Unhurried
from atoll.network.wire import VERSIONS, Blob, DataForm, Joined, Joining, Plan
from atoll.rounds.adapting import Rule
from atoll.rounds.paces import Buffered, Mixing, pace
from atoll.settings import Settings
from atoll.tensors import Record, nbytes

__all__ = ["CROWDED", "Coordinator", "Deployment", "Federated", "Office"]


CROWDED = "paused: no room on the coordinator's machine (disk, or open files)"

_AGAIN = 5
"""Seconds, about, after which a run that had no room tries again."""


class Federated(Protocol):
    """What the rounds thread plays: a federation."""

    folder: Any
    number: int
    state: Record

    def resume(self, run: str | Path) -> Any: ...

    def fit(self, *, progress: bool | None = None) -> Any: ...


Build = Callable[[Elsewhere, "Deployment", Sequence[Any]], Federated]
"""(data, nodes, callbacks) -> the federation."""


@dataclass(frozen=True)
class Office:
    """How a coordinator is set.

    Args:
        place: its directory: journal, bodies, what it has promised.
        plan: what nodes are told.
        places: clients that there may be.
        least: nodes without which no round begins.
        nodes: their names, in the order of clients; None: whoever is admitted, in the order of coming.
        absent: seconds of silence after which a node counts as absent.
        public: inputs that all nodes get (`atoll.network.rows`).
        base: tells, by the form of nodes' data, the hash of what the model does not train (`atoll.network.base`).
        root: the coordinator's own samples, with which a rule compares (`aggregate = "fltrust"`).
    """

    place: Path
    plan: Plan
    places: int
    least: int
    nodes: Sequence[str] | None = None
    absent: float = 60.0
    public: bytes | None = None
    base: Callable[[DataForm], str | None] = lambda form: None
    root: Here | None = None


class Deployment:
    """The nodes of a coordinator, as a federation is given them (`atoll.assembly.Nodes`).

    `repeatable` says that they may draw noise from the run's seed.
    """

    def __init__(self, desk: Desk, blobs: Blobs, least: int, repeatable: bool = False) -> None:
        self.desk, self.blobs, self.least, self.repeatable = desk, blobs, least, repeatable

    def engine(self, tasks: Sequence[Any], data: Any, device: torch.device, settings: Settings) -> Remote:
        return Remote(
            tasks, data, device, desk=self.desk, blobs=self.blobs, written=settings.engine == "loop"
        )

    def rounds(
        self, settings: Settings, parts: tuple[Any, ...], channel: Channel | None, rule: Rule | None
    ) -> Deployed:
        """Rounds on the real clock.  Raises ConfigError for what is not to be had there."""
        channel = between(channel, secret=not self.repeatable)
        check(settings, parts[0])
        if parts[3].membership.stated:
            raise ConfigError(
                "clients come and go here by virtual time, and nodes by their own",
                hint='say rounds: joins = "1@20"',
            )
        cohorts, engine = parts[3], parts[4]
        quorum = settings.quorum
        needed = (
            max(1, round(quorum * cohorts.size)) if isinstance(quorum, float) and quorum < 1 else int(quorum)
        )
        if needed > cohorts.size:
            raise ConfigError(f"quorum = {needed} replies, but a cohort has only {cohorts.size} clients")
        engine.waiting = Waiting(
            target=cohorts.size if settings.over_select > 1 else None,
            quorum=needed,
            deadline=None if settings.deadline is None else float(settings.deadline),
        )
        self.desk.retry = settings.retry or self.desk.retry
        step = pace(settings.pace)
        if isinstance(step, Buffered | Mixing):  # pairs have no coordinator
            return Unhurried(
                *parts, desk=self.desk, least=self.least, pace=step,
                concurrency=settings.concurrency or cohorts.size, channel=channel, rule=rule,
            )  # fmt: skip
        return Deployed(
            *parts, desk=self.desk, least=max(self.least, needed), over=settings.over_select, channel=channel,
            rule=rule,
        )  # fmt: skip


class Coordinator:
    """Who is there, what they are told, and the run. Requests are `atoll.network.routes`' business.

    Args:
        build: makes the federation once enough nodes are there.

    Raises RunError where its directory cannot be written, or another process has it.
    """

    def __init__(self, office: Office, build: Build) -> None:
        self.office, self.build = office, build
        office.place.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(office.place / "journal.sqlite")
        self.blobs = Blobs(office.place / "bodies")
        self.desk = Desk(self.journal, self.blobs, absent=office.absent)
        self.plan = office.plan
        if office.public is not None:
            public = Blob(sha256=self.blobs.put(office.public), size=len(office.public))
            self.plan = msgspec.structs.replace(office.plan, public=public)
            self.desk.lasting.add(public.sha256)
        self.run = self.journal.get("run/id") or secrets.token_hex(8)
        self.journal.put("run/id", self.run)
        self.notebook = Notebook(office.place, self.run)
        self.desk.note = self._note
        self.sessions: dict[int, str] = {}
        self._nodes = {key.partition("/")[2]: fact for key, fact in self.journal.items("node/").items()}
        self.names = {int(fact["number"]): name for name, fact in self._nodes.items()}
        self.federation: Federated | None = None
        self.elsewhere: Elsewhere | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = asyncio.Event()
        self._lock = threading.Lock()
        self._bases = Bases(office.base, office.plan.adapter is not None)
        self._thread = threading.Thread(target=self._play, name="rounds", daemon=True)

    # --- who is there -----------------------------------------------------------------------------------------

    def number(self, name: str) -> int | None:
        """A node's place among the clients, None where it has none."""
        fact = self._nodes.get(name)
        return None if fact is None else int(fact["number"])

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What is known of each node, by name."""
        return dict(self._nodes)

    def _know(self, name: str, fact: dict[str, Any]) -> None:
        """Write down what is known of a node."""
        self.journal.put(f"node/{name}", fact)
        self._nodes[name] = self.journal.get(f"node/{name}")  # as it will be after a restart

    def join(self, name: str, joining: Joining) -> Joined:
        """Take a node in, or welcome it back.  Raises ConfigError where it cannot be."""
        spoken = sorted({*VERSIONS} & {*joining.protocols})
        if not spoken:
            raise ConfigError(
                f"the node speaks versions {list(joining.protocols)} of the protocol, and this coordinator"
                f" {list(VERSIONS)}",
                hint="install the same release of atoll on both sides",
            )
        with self._lock:
            known = self._nodes.get(name)
            if known is not None:
                number = int(known["number"])
            else:
                number = self._place(name, {int(fact["number"]) for fact in self._nodes.values()})
                self._know(name, {"number": number, "form": None})
            self.names[number] = name
            event = "joined" if known is None else "returned"
            self.notebook.write(event, node=name, number=number, software=joining.software)
            self.sessions[number] = joining.session
            if joining.ed25519 is not None:
                key = {"ed25519": joining.ed25519, "certificate": joining.certificate}
                self.journal.put(f"key/{name}", key)
        self.desk.seen(number)
        form = self._nodes[name]["form"]
        return Joined(
            protocol=spoken[-1], run=self.run, number=number, plan=self.plan, known=form is not None
        )

    def _place(self, name: str, taken: set[int]) -> int:
        listed = self.office.nodes
        if listed is not None:
            if name not in listed:
                raise ConfigError(
                    f"{name} is not among the nodes of this run", hint="nodes = [...] in its settings"
                )
            return list(listed).index(name)
        free = [place for place in range(self.office.places) if place not in taken]
        if not free:
            raise ConfigError(
                f"all {self.office.places} places of this run are taken",
                hint="set clients to a larger number",
            )
        return free[0]

    def welcome(self, name: str, form: DataForm) -> None:
        """A node says what data it has.  Raises DataError where these do not fit the others', or have changed."""
        device, form = form.device, msgspec.structs.replace(form, device=None)
        self._bases.check(name, form)
        with self._lock:
            fact = self._nodes[name]
            others = (each["form"] for key, each in self._nodes.items() if each["form"] and key != name)
            first = next(others, None)
            due = msgspec.convert(first, DataForm, strict=False) if first else form
            problem = alike(due, form)
            if problem is None and form.train == 0:
                problem = "it has no training samples"
            if problem is not None:
                raise DataError(
                    f"{name}: {problem}", hint="all nodes must read the same columns in the same way"
                )
            known = None if fact["form"] is None else msgspec.convert(fact["form"], DataForm, strict=False)
            if known not in (None, form):
                raise DataError(
                    f"{name}: its data are others than when it joined ({known.train} training samples then,"
                    f" {form.train} now)",
                    hint="give it the same data, or join under another name",
                )
            if known is None:
                counts = {"train": form.train, "validation": form.validation, "test": form.test}
                self.notebook.write("announced", node=name, **counts, classes=form.classes)
            self._know(name, {**fact, "form": msgspec.to_builtins(form), "device": device})
        if self.elsewhere is not None:
            self.elsewhere.welcome(int(fact["number"]), name, form)
        self.desk.seen(int(fact["number"]))

    # --- the run ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or go on; returns at once. `ended` is set when it is over."""
        self._loop = asyncio.get_running_loop()
        for (
            fact
        ) in self.nodes().values():  # they were there before this process was, and get the time to return
            if fact["form"] is not None:
                self.desk.seen(int(fact["number"]))
        self.notebook.write("started", software=SOFTWARE)
        for notice in self.journal.notices:
            self.notebook.note("problem", message=notice)
        self._thread.start()

    async def stop(self) -> None:
        """End the rounds where they are; what was accepted is in the journal."""
        self.desk.stop()
        await asyncio.to_thread(self._thread.join)

    def close(self) -> None:
        self.journal.close()
        self.notebook.close()

    def _note(self, event: str, *, client: int | None = None, **facts: Any) -> None:
        """Write down what the desk tells, clients by the names of their nodes; and count it."""
        book = self.notebook
        if client is not None:
            facts = {"node": self.names.get(client), **facts}
        for key in ("asked", "counted"):
            if key in facts:
                facts[key] = [self.names.get(each, str(each)) for each in facts[key]]
        book.write(event, **facts)
        if event == "answer-accepted":
            book.answers["accepted"] += 1
            book.phases[f"{facts['program']}-node"].add(facts["seconds"])
        elif event == "answer-refused":
            book.answers[facts["kind"]] += 1
        elif event == "call-closed":
            book.phases[facts["program"]].add(facts["seconds"])

    def _play(self) -> None:
        try:
            while not self._played():
                self.desk.state = CROWDED
                with self.desk.changed:
                    for _ in range(_AGAIN):
                        self.desk.wait()
        except Terminated:
            self.desk.state = "stopped"
            self.notebook.note("run-stopped")
        except BaseException as error:
            self.error = error
            self.desk.state = f"failed: {error.message if isinstance(error, AtollError) else error}"
            event = "run-paused" if isinstance(error, PausedError) else "run-failed"
            self.notebook.note(event, reason=str(error)[:500])
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self.ended.set)

    def _played(self) -> bool:
        """Play the run from its last checkpoint to its end; False where there was no room to."""
        try:
            self._gather()
            assert self.elsewhere is not None
            nodes = Deployment(self.desk, self.blobs, self.office.least, self.office.plan.repeatable)
            with backed(self.blobs.place):
                self.federation = self.build(self.elsewhere, nodes, [_Written(self), Told(self.notebook)])
            with backed(self.blobs.place, nbytes(self.federation.state)):
                if (folder := self.journal.get("run/folder")) is not None and Path(folder).is_dir():
                    self.federation.resume(folder)
                result = self.federation.fit(progress=False)
            self.journal.put("run/over", True)
        except (OSError, RunError) as error:
            if not crowded(error):
                raise
            if self.federation is not None and self.federation.folder is not None:
                self.federation.folder.release()  # the next attempt takes it up
            return False
        self.notebook.note("run-ended", rounds=self.federation.number)
        self.desk.state = "over"
        self.result = result
        return True

    def _gather(self) -> None:
        """Wait until enough nodes have said what they have."""
        desk, least = self.desk, self.office.least
        with desk.changed:
            while len(ready := {k: f for k, f in self.nodes().items() if f["form"]}) < least:
                desk.state = f"waiting for nodes, {len(ready)} of {least} are there"
                desk.wait()
        forms = {name: msgspec.convert(fact["form"], DataForm, strict=False) for name, fact in ready.items()}
        with self._lock:
            self.elsewhere = Elsewhere(self.office.places, next(iter(forms.values())))
            for name, form in forms.items():
                self.elsewhere.welcome(int(ready[name]["number"]), name, form)
            if self.office.public is not None:
                known = self.elsewhere.publish(unpacked(self.office.public))
                assert isinstance(known, Elsewhere)
                self.elsewhere = known
            if self.office.root is not None:
                self.elsewhere = entrusted(self.elsewhere, self.office.root, self.journal)


class _Written(Callback):
    """Tells the journal where the run is written down, and what is done with."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self._saved = 0  # the round of the newest checkpoint

    def on_start(self, federation: Any) -> None:
        self._saved = federation.number
        if federation.folder is not None:
            self.coordinator.journal.put("run/folder", str(federation.folder.path))

    def on_round_end(self, federation: Any, record: Any) -> None:
        if federation.keeper.can_resume:
            # One checkpoint more than the newest: should that be damaged, the run goes on from the one before.
            self.coordinator.desk.tidy(self._saved + 1)
            self._saved = record.number


SOFTWARE = f"atoll {__version__}"
