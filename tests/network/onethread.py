"""A coordinator and its nodes in one thread: all of both but the wire, for many settings in little time.

Where the rounds would wait for answers, the nodes that have tasks do them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file

from atoll.cli.serve import Wish, network
from atoll.data.samples import Samples
from atoll.deployed import federated, office_of, prepared, stand_in
from atoll.errors import AtollError
from atoll.experiment import Experiment
from atoll.federation import Federation
from atoll.network.coordinator import Coordinator
from atoll.network.desk import Posted
from atoll.network.masking import Masking, told
from atoll.network.node import Node as NetworkNode
from atoll.network.node import Station
from atoll.network.shelf import Shelf
from atoll.network.signing import Signer
from atoll.network.wire import Failure, Joining, Plan, Task
from atoll.network.worker import Begin, Declined, Do, _Work
from atoll.schema import parse
from tests.network.cluster import simulation, write

__all__ = ["OneThread", "clients"]

NAMES = ("ann", "bob", "cat")


def clients(names: Sequence[str] = NAMES, features: int = 6, classes: int = 3) -> dict[str, Samples]:
    """Unequal clients with classes that can be learned, shifted from one to the next."""
    rng = np.random.default_rng(7)
    weights, found = rng.normal(size=(features, classes)), {}
    for at, name in enumerate(names):
        inputs = (rng.normal(size=(18 + 7 * at, features)) + 0.3 * at).astype(np.float32)
        found[name] = Samples(torch.from_numpy(inputs), torch.from_numpy((inputs @ weights).argmax(1)))
    return found


class OneThread:
    """A federation whose file has these settings.

    Args:
        place: its directory.
        network: further keys of [network].
        before: called before a node does a task, for tests that do something then.
        device: what nodes compute on.
        starts: the weights that nodes' models stand over, by name.
        how: further fields of what workers are told first (`Begin`).
    """

    def __init__(
        self,
        place: Path,
        settings: Mapping[str, Any],
        data: Mapping[str, Samples] | None = None,
        network: Mapping[str, Any] | None = None,
        before: Callable[[str, Task], object] = lambda name, task: None,
        device: str = "cpu",
        starts: Mapping[str, Path] | None = None,
        how: Mapping[str, Any] | None = None,
    ) -> None:
        self.place, self.before, self.device, self.starts = place, before, device, starts or {}
        self.how = how or {}
        found = data or clients()
        self.suffix = ".npz"  # of nodes' files
        self.names, self.nodes = list(found), dict[str, Node]()
        self.fetched = Counter[str]()
        """Bytes of bodies that each node has fetched."""
        place.mkdir(parents=True, exist_ok=True)
        for name, samples in found.items():
            write(place / f"{name}.npz", samples)
        usual = {"classes": 3, "model": "mlp:8", "rounds": 2, "seed": 3, "engine": "loop"}
        lines = [
            f"{key} = {json.dumps(value)}"
            for key, value in {**usual, **settings}.items()
            if value is not None
        ]
        lines += ["[network]", f"nodes = {json.dumps(self.names)}"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in (network or {}).items()]
        self.file = place / "run.toml"
        self.file.write_text("\n".join(lines) + "\n")

    def play(self) -> OneThread:
        """Serve the file, join, and play to the end.  Raises what `atoll serve` would say."""
        wish = Wish(str(self.file), [], plain=True, place=str(self.place / "coordinator"))
        given = network(wish)
        experiment = prepared(
            Experiment.read(wish.file, wish.sets, data=stand_in(parse(self.file).get("data"))), given
        )
        office = office_of(experiment, given)
        self.coordinator = Coordinator(office, lambda *given: federated(experiment, *given))
        self.coordinator.desk.wait = self._wait  # type: ignore[method-assign]
        try:
            for name in self.names:
                self.nodes[name] = Node(self, name)
            assert self.coordinator._played()
        finally:
            self.coordinator.close()
        return self

    def _wait(self, seconds: float | None = None) -> None:
        worked = [self.nodes[name].worked() for name in self.names]
        if not any(worked):
            raise AssertionError(f"nobody has anything to do: {self.coordinator.desk.state}")

    @property
    def federation(self) -> Federation:
        found = self.coordinator.federation
        assert isinstance(found, Federation)
        return found

    def twin(self, **overrides: Any) -> Federation:
        """The simulation of the same run, played."""
        made = simulation(self.file, self.names, **overrides)
        made.fit(progress=False)
        return made

    def same(self, **overrides: Any) -> bool:
        """Whether the model is the simulation's, to the bit."""
        files = [self.place / f"{each}.safetensors" for each in ("found", "due")]
        self.federation.run().save(files[0])
        self.twin(**overrides).run().save(files[1])
        found, due = map(load_file, files)
        return found.keys() == due.keys() and all(torch.equal(found[name], due[name]) for name in due)


class Node:
    """What a node does, without the line."""

    def __init__(self, house: OneThread, name: str) -> None:
        self.house, self.name, self.desk = house, name, house.coordinator.desk
        self.place = house.place / name
        self.place.mkdir(exist_ok=True)
        signer = Signer(self.place)
        joining = Joining(
            protocols=(1,), software="test", session=hashlib.md5(name.encode()).hexdigest(),
            ed25519=signer.public.hex(),
        )  # fmt: skip
        joined = house.coordinator.join(name, joining)
        self.plan: Plan = joined.plan
        self.joined, self.number = joined, joined.number
        self.shelf = Shelf(self.place / joined.run)
        self.masking = Masking(name, joined.run, self.shelf, signer, told)
        source = self.source = str(house.place / f"{name}{house.suffix}")
        public = None
        if joined.plan.public is not None:
            shutil.copyfile(house.coordinator.blobs.path(joined.plan.public.sha256), self.shelf.public)
            public = str(self.shelf.public)
        begin = Begin(joined.plan, source, joined.number, name, str(self.place), public, device=house.device)
        if name in house.starts:
            begin = msgspec.structs.replace(begin, start=str(house.starts[name]))
        self.work = _Work(msgspec.structs.replace(begin, **house.how))
        house.coordinator.welcome(name, self.work.ready().form)

    def worked(self) -> bool:
        """Do all that is asked; whether there was anything."""
        some = False
        while (task := self.desk.task(self.number)) is not None:
            self.house.before(self.name, task)
            self._do(task)
            self.desk.seen(self.number)
            some = True
        return some

    def _do(self, task: Task) -> None:
        posted, blobs = self.desk.open(self.number, task.id), self.house.coordinator.blobs
        assert posted is not None
        task = self.shelf.able(task)
        if task.kind == "secagg":
            self._masked(task, posted)
            return
        for blob in (task.shared, task.own):
            if blob is not None:
                self.house.fetched[self.name] += blob.size
                shutil.copyfile(blobs.path(blob.sha256), self.shelf.body(blob.sha256))
        memory = None if task.memory is None else str(self.shelf.memory(task.memory))
        path = self.shelf.answer(task.id)
        do = Do(
            task, str(self.shelf.body(task.shared.sha256)),
            None if task.own is None else str(self.shelf.body(task.own.sha256)),
            memory, str(path), str(self.shelf.memory(task.id)),
            str(self.shelf.vector(task.id, task.model)), None if self.plan.repeatable else bytes(32),
            None if task.since is None else str(self.shelf.reference(task.since)),
            None if task.keep is None else str(self.shelf.reference(task.keep)),
        )  # fmt: skip
        try:
            found = self.work.do(do)
        except AtollError as error:
            self.desk.fail(posted, Failure(kind="raised", reason=error.message))
            return
        if isinstance(found, Declined):
            self.desk.fail(posted, Failure(kind="refused", reason=found.reason))
            return
        blob = path.read_bytes()
        refused = posted.check(bytearray(blob))
        self.desk.accept(posted, None if refused else blobs.put(blob), len(blob), refused)
        path.unlink()
        if refused is None:
            station = Station(url="", name=self.name, source=self.source, place=self.place)
            node = NetworkNode(station)
            node.shelf = self.shelf
            node._keep(self.joined, task)
        wanted = [each.sha256 for each in task.bodies]
        self.shelf.tidy(task.memory if task.program == "train" else None, wanted)

    def _masked(self, task: Task, posted: Posted) -> None:
        """A stage of secure aggregation."""
        blobs = self.house.coordinator.blobs
        bodies = [
            blobs.path(each.sha256).read_bytes() for each in (task.shared, task.own) if each is not None
        ]
        found = self.masking.answer(task, *bodies)
        if isinstance(found, Failure):
            self.desk.fail(posted, found)
        else:
            self.desk.accept(posted, blobs.put(found), len(found), posted.check(bytearray(found)))
