"""Four hospitals train one model over a network, and nothing that happens on the way changes it.

    python examples/hospitals_network/main.py [--out DIR]

Starts an authority, a coordinator and four nodes, each a process with certificates of its own, on this machine. In the
middle of the run the coordinator and one hospital are killed and started again. In the end the model is that of a
simulation of the same run, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import atoll
from atoll.data import from_clients
from atoll.experiment import Experiment

RUN = Path(__file__).with_name("run.toml")
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


class Processes:
    """What was started here, with a file for the output of each; all ends with the block."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        with (self.place / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "atoll.cli", *arguments]
            self.running[name] = subprocess.Popen(
                command, cwd=self.place, stdout=log, stderr=log, env=environment
            )

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text()

    def until(self, name: str, text: str, seconds: float = 300.0) -> None:
        """Wait until a process has said something (a regular expression)."""
        end = time.monotonic() + seconds
        while not re.search(text, self.log(name)):
            if time.monotonic() > end:
                raise SystemExit(f"{name} has not said {text!r} in {seconds:g} s:\n{self.log(name)}")
            time.sleep(0.1)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait()


def command(place: Path, *arguments: str) -> str:
    """What a command prints that ends by itself."""
    found = subprocess.run(
        [sys.executable, "-m", "atoll.cli", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise SystemExit(found.stderr)
    return found.stdout


def files(place: Path) -> None:
    """Each hospital's patients in a file of its own: what a hospital would have, and nobody else."""
    data = atoll.data.load("heart").partition("natural", test=None)
    for at, name in enumerate(data.names):
        samples = data.samples(at)
        assert samples is not None
        np.savez(place / f"{name}.npz", x=np.asarray(samples.inputs), y=samples.targets.numpy())


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def simulated(place: Path) -> dict[str, torch.Tensor]:
    """The model of the same run, simulated."""
    known = Experiment.read(RUN, data="nodes.csv", runs=None, engine="processes")
    data = from_clients(
        {name: place / f"{name}.npz" for name in HOSPITALS}, test=known.test, seed=known.seed, classes=2
    )
    path = place / "simulated.safetensors"
    known.federate(data).fit(progress=False).save(path)
    return load_file(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("hospitals-network"))
    place: Path = parser.parse_args().out.resolve()
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise SystemExit(f"{place} is not empty; name another directory with --out")
    files(place)
    command(place, "ca", "init")
    print("an authority, and an invitation for each hospital")
    where = f"127.0.0.1:{port()}"
    serve = ("serve", str(RUN), "--port", where.rpartition(":")[2], "--save", "model.safetensors")

    def join(name: str, *invitation: str) -> tuple[str, ...]:
        return (
            "join",
            where,
            "--data",
            f"{name}.npz",
            "--name",
            name,
            "--place",
            name,
            "--approve",
            *invitation,
        )

    with Processes(place) as processes:
        processes.start("coordinator", *serve)
        processes.until("coordinator", "listening")
        print(processes.log("coordinator").splitlines()[0])
        for name in HOSPITALS:
            words = command(place, "ca", "invite", name).split()
            token = next(word for word in words if word.startswith("atoll1."))
            processes.start(name, *join(name, "--invitation", token))
        for name in HOSPITALS:
            processes.until(name, "joined as")
        print("four hospitals have joined")
        processes.until("coordinator", r"round +3/")
        processes.kill("coordinator")
        print("the coordinator was killed after round 3")
        processes.start("coordinator", *serve)
        processes.until("coordinator", r"round +6/")
        processes.kill("va")
        print("va was killed after round 6")
        processes.start("va", *join("va"))
        processes.until("coordinator", "model saved")
    print("\n".join(line for line in processes.log("coordinator").splitlines() if "round " in line))
    found, due = load_file(place / "model.safetensors"), simulated(place)
    if found.keys() != due.keys() or not all(torch.equal(found[name], due[name]) for name in due):
        raise SystemExit("the model differs from the simulation's")
    print("the model is the simulation's, bit for bit")


if __name__ == "__main__":
    main()
