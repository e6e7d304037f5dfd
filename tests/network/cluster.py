"""A coordinator and nodes as processes of their own, for tests that do things to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import atoll
from atoll.data import from_clients
from atoll.data.samples import Samples
from atoll.experiment import Experiment
from atoll.network.rows import arrays
from atoll.schema import parse
from tests.network.warm import Forked, forked

NAMES = ("ann", "bob", "cat", "dan")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Cluster:
    """A federation on this machine, without TLS unless `options` say otherwise.

    Args:
        place: its directory.
        settings: of the run, as they stand in a file.
        names: of the nodes, in the order of clients; the file of node k is client k's of `data`.
        network: further keys of [network].
        fresh: processes are new interpreters, as a shell would start them, and not forked from a warm one.
    """

    def __init__(
        self,
        place: Path,
        settings: Mapping[str, Any],
        data: Mapping[str, Samples] | None = None,
        names: Sequence[str] = NAMES,
        network: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> None:
        self.place, self.names, self.port, self.fresh = place, list(names), free_port(), fresh
        self.processes: dict[str, subprocess.Popen[bytes] | Forked] = {}
        place.mkdir(parents=True, exist_ok=True)
        for name, samples in (data or digits(names)).items():
            write(place / f"{name}.npz", samples)
        settings = {"classes": 10, **settings}
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        lines += ["[network]", f"nodes = {json.dumps(list(names))}"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in (network or {}).items()]
        (place / "run.toml").write_text("\n".join(lines) + "\n")

    # --- processes --------------------------------------------------------------------------------------------

    def start(self, name: str, *options: str, port: int | None = None) -> subprocess.Popen[bytes] | Forked:
        """The coordinator ("coordinator") or a node, from now on; its output is in NAME.log."""
        if name == "coordinator":
            command = ["serve", str(self.place / "run.toml"), "--plain", "--port", str(self.port)]
            command += ["--place", str(self.place / "coordinator"), "--save", str(self.model)]
        else:
            command = ["join", f"127.0.0.1:{port or self.port}", "--plain", "--approve", "--name", name]
            command += ["--data", str(self.place / f"{name}.npz"), "--place", str(self.place / name)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "CI": "1"}
        log = self.place / f"{name}.log"
        if not self.fresh:
            process: subprocess.Popen[bytes] | Forked = forked(
                [*command, *options], self.place, log, environment
            )
        else:
            with log.open("ab") as stream:
                process = subprocess.Popen(
                    [sys.executable, "-m", "atoll.cli", *command, *options], stdout=stream, stderr=stream,
                    stdin=subprocess.DEVNULL, env=environment, cwd=self.place,
                )  # fmt: skip
        self.processes[name] = process
        return process

    def start_all(self, *options: str) -> None:
        self.start("coordinator", *options)
        for name in self.names:
            self.start(name)

    def kill(self, name: str, sign: int = signal.SIGKILL) -> int:
        """End a process that was started here; its exit status."""
        process = self.processes.pop(name)
        process.send_signal(sign)
        return process.wait(30)

    def wait(self, name: str = "coordinator", seconds: float = 240.0) -> int:
        """Its exit status, once it ends by itself."""
        try:
            return self.processes[name].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} did not end\n{self.log(name)}\n{self.log('coordinator')}") from None

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what can be seen -------------------------------------------------------------------------------------

    def log(self, name: str) -> str:
        path = self.place / f"{name}.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def status(self) -> dict[str, Any]:
        """What the coordinator says of the run; {} while it does not answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/status",
            headers={"Atoll-Name": "looker", "Atoll-Role": "auditor"},
        )
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
        return {}

    def until(self, what: str, name: str, seconds: float = 60.0) -> None:
        """Wait until a text stands in a log."""
        for _ in self.ticks(seconds, f"{what!r} in {name}.log"):
            if what in self.log(name):
                return

    def round(self, number: int, seconds: float = 60.0) -> None:
        """Wait until so many rounds count."""
        for _ in self.ticks(seconds, f"round {number}"):
            if self.status().get("round", 0) >= number:
                return

    def ticks(self, seconds: float, what: str) -> Iterator[None]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield
            time.sleep(0.05)
        logs = "\n".join(f"--- {name}\n{self.log(name)[-2000:]}" for name in ("coordinator", *self.names))
        raise AssertionError(f"{what} did not come in {seconds} s\n{logs}")

    # --- what comes of it -------------------------------------------------------------------------------------

    @property
    def model(self) -> Path:
        """The model's file, there at the end."""
        return self.place / "model.safetensors"

    def simulated(self, **overrides: Any) -> dict[str, torch.Tensor]:
        """The model of the same run in a simulation."""
        federation = simulation(self.place / "run.toml", self.names, **overrides)
        path = self.place / "simulated.safetensors"
        federation.fit(progress=False).save(path)
        return load_file(path)

    def same(self, **overrides: Any) -> bool:
        """Whether the model is the simulation's, to the bit."""
        found, due = load_file(self.model), self.simulated(**overrides)
        return found.keys() == due.keys() and all(torch.equal(found[name], due[name]) for name in due)


def simulation(file: Path, names: Sequence[str], **overrides: Any) -> atoll.Federation:
    """The run of a file in a simulation that gives the bits of nodes."""
    place, known = file.parent, Experiment.read(file, data="nodes.csv")
    engine = "loop" if known.engine == "loop" else "processes"
    data = from_clients(
        {name: place / f"{name}.npz" for name in names}, test=known.test, validation=known.validation,
        seed=known.seed, classes=known.classes,
    )  # fmt: skip
    experiment = Experiment.read(file, data="nodes.csv", runs=None, engine=engine, **overrides)
    divided = experiment.divide(data)
    if public := parse(file)["network"].get("public"):
        divided = divided.publish(arrays(Path(public)))
    if root := parse(file)["network"].get("root"):
        samples = from_clients({"root": Path(root)}, test=None, classes=known.classes).samples(0)
        assert samples is not None
        divided = divided.entrust(samples)
    return experiment.federate(divided)


def write(path: Path, samples: Samples) -> None:
    """A node's file."""
    np.savez(path, x=samples.inputs.numpy(), y=samples.targets.numpy())


def digits(names: Sequence[str] = NAMES) -> dict[str, Samples]:
    """Handwritten digits, unevenly divided."""
    data = atoll.data.load("digits").partition("dirichlet:0.5", clients=len(names), seed=0, test=None)
    found = {}
    for at, name in enumerate(names):
        samples = data.samples(at)
        assert samples is not None
        found[name] = samples
    return found
