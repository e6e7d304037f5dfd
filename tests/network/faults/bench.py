"""A cluster whose processes are forked from one that is warm, and whose nodes may be clients in the test itself."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.codec import encode
from tests.network.cluster import NAMES, Cluster, digits, simulation
from tests.network.faults.child import Wound
from tests.network.liar import Peer
from tests.network.warm import Forked

__all__ = ["Bench", "Forked", "Twin", "Wound", "bench"]

SETTINGS: dict[str, Any] = {
    "method": "fedavg", "model": "logistic", "rounds": 3, "checkpoint": 1, "engine": "loop",
    "eval_every": 0,
}  # fmt: skip
"""A run that is over quickly."""


class Bench(Cluster):
    """See `Cluster`. `wounds`, `values` and `limits` of `start` are those of `atoll`'s process (see `child.run`)."""

    processes: dict[str, Any]

    def start(
        self,
        name: str,
        *options: str,
        port: int | None = None,
        wounds: Sequence[Wound] = (),
        values: Mapping[str, Any] | None = None,
        limits: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Any:
        if name == "coordinator":
            command = ["serve", str(self.place / "run.toml"), "--plain", "--port", str(self.port)]
            command += ["--place", str(self.place / "coordinator"), "--save", str(self.model)]
        else:
            command = ["join", f"127.0.0.1:{port or self.port}", "--plain", "--approve", "--name", name]
            command += ["--data", str(self.place / f"{name}.npz"), "--place", str(self.place / name)]
        process = Forked(
            ([*command, *options], str(self.place), str(self.place / f"{name}.log"), list(wounds), values or {},
             limits or {}, environment or {})
        )  # fmt: skip
        self.processes[name] = process
        if name == "coordinator":
            for _ in self.ticks(120, "an answer of the coordinator"):
                assert process.poll() is None or wounds, self.log(name)
                if process.poll() is not None or self.status():
                    break
        return process

    def peer(self, name: str, port: int | None = None) -> Peer:
        """A client on this cluster's wire that does honest work, in this process."""
        place = self.place / f"peer-{name}"
        return Peer(port or self.port, name, str(self.place / f"{name}.npz"), place)

    def dead(self, name: str = "coordinator", seconds: float = 30.0) -> int:
        """Wait until a process has ended by a planted fault; its exit status."""
        code = self.wait(name, seconds)
        del self.processes[name]
        return code

    def facts(self) -> dict[str, Any]:
        """What stands in the journal."""
        import sqlite3

        import msgspec

        copy = self.place / "looked-at"
        copy.mkdir(exist_ok=True)
        for name in (
            "journal.sqlite-wal",
            "journal.sqlite",
        ):  # the coordinator's own are locked while it runs
            shutil.copyfile(self.place / "coordinator" / name, copy / name)
        with contextlib.closing(sqlite3.connect(copy / "journal.sqlite")) as base:
            return {k: msgspec.json.decode(v) for k, v in base.execute("SELECT key, value FROM facts")}


class Twin:
    """The run in a simulation, round by round, beside the one on the wire."""

    def __init__(self, bench: Bench, names: Sequence[str] | None = None) -> None:
        self.federation = simulation(bench.place / "run.toml", names or bench.names)

    def round(self) -> None:
        self.federation.round()

    def broadcast(self) -> str:
        """SHA-256 of the body that the next round begins with."""
        run = self.federation.keeper.simulation
        number = run.number + 1
        job = run.opened(run.state, run.enlist(number)[0], number).job
        assert job is not None
        return hashlib.sha256(encode(job.work.shared)).hexdigest()


@contextlib.contextmanager
def bench(
    place: Path, names: Sequence[str] = NAMES[:2], network: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[Bench]:
    """A small federation whose processes end with it."""
    with Bench(place, {**SETTINGS, **settings}, digits(names), names, network) as made:
        yield made
