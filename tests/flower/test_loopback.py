"""On a network of Flower's own processes a run gives the simulation's bits, whoever is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from atoll.data import from_clients
from atoll.experiment import Experiment

pytest.importorskip("flwr", reason='flwr is not installed (pip install "atoll[flower]")')
from tests.flower.loopback import NAMES, Loopback

pytestmark = pytest.mark.slow

APP = """from atoll.flower import client_app, server_app
server = server_app(model="mlp:8", classes=10, lr=0.1, nodes=["ann", "bob", "cat"])
client = client_app()
"""
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "scaffold": {},
    "fedora": {"validation": 0.2},
}


def simulated(place: Path, method: str, rounds: int) -> dict[str, torch.Tensor]:
    """The model of the same run in a simulation."""
    experiment = Experiment.read(
        data="nodes.csv", runs=None, model="mlp:8", classes=10, lr=0.1, method=method, rounds=rounds, seed=3,
        engine="processes", **METHODS[method],
    )  # fmt: skip
    data = from_clients(
        {name: place / f"{name}.npz" for name in NAMES}, test=experiment.test, validation=experiment.validation,
        seed=3, classes=10,
    )  # fmt: skip
    experiment.federate(experiment.divide(data)).fit(progress=False).save(place / f"{method}-due.safetensors")
    return load_file(place / f"{method}-due.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_the_bits_of_the_simulation_though_a_supernode_is_killed(
    tmp_path: Path, method: str
) -> None:
    """One SuperNode is killed while it works, and started again: it has another number in Flower then."""
    model = tmp_path / "model.safetensors"
    with Loopback(tmp_path) as network:
        network.start_all()
        project = network.project(
            APP, method=method, rounds=2, seed=3, min_clients=3, quorum=3, eval_every=2,
            place=str(tmp_path / "run"), save=str(model), **METHODS[method],
        )  # fmt: skip
        run = network.run(project)
        network.until("ROUND 2", "bob", 240)
        network.kill("bob")
        network.start("bob")
        assert network.ended(run, 420) == "finished:completed", network.flwr("log", run, "here", "--show")
    found, due = load_file(model), simulated(tmp_path, method, 2)
    assert found.keys() == due.keys()
    assert all(torch.equal(found[name], due[name]) for name in due)


def happened(place: Path, event: str) -> list[int]:
    """The rounds with which the logs of runs tell of an event."""
    lines = [line for log in place.glob("runs/*/events.jsonl") for line in log.read_text().splitlines()]
    return [each["round"] for each in map(json.loads, lines) if each["event"] == event]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the ServerApp's process in Linux's /proc")
def test_a_run_whose_server_is_killed_goes_on_to_the_bits_of_the_simulation(tmp_path: Path) -> None:
    """First the ServerApp is killed, then the SuperLink and all SuperNodes; `flwr run` takes the run up each time."""
    model = tmp_path / "model.safetensors"
    with Loopback(tmp_path) as network:
        network.start_all()
        project = network.project(
            APP, method="scaffold", rounds=3, seed=3, min_clients=3, quorum=3, eval_every=3,
            checkpoint=1, place=str(tmp_path / "run"), save=str(model),
        )  # fmt: skip

        def until(rounds: int) -> None:
            for _ in network.ticks(240, f"the end of round {rounds}"):
                if rounds in happened(tmp_path / "run", "round"):
                    return

        run = network.run(project)
        until(1)
        network.kill_app()
        assert network.ended(run) == "finished:failed"
        network.run(project)
        until(2)
        network.close()
        for _ in network.ticks(60, "the end of what the SuperLink had started"):
            if not network.found():
                break
        assert not model.exists()
        network.start_all()
        run = network.run(project)
        assert network.ended(run, 420) == "finished:completed", network.flwr("log", run, "here", "--show")
    assert len(happened(tmp_path / "run", "resume")) == 2
    found, due = load_file(model), simulated(tmp_path, "scaffold", 3)
    assert found.keys() == due.keys()
    assert all(torch.equal(found[name], due[name]) for name in due)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in Linux's /proc")
def test_nothing_is_left_of_a_network_whose_owner_is_killed(tmp_path: Path) -> None:
    """It has a run at work: a SuperLink, a SuperNode, their SuperExecs, a ServerApp, a ClientApp or a worker."""
    code = f"""import pathlib, time
from tests.flower.loopback import Loopback
network = Loopback(pathlib.Path({str(tmp_path)!r}), ["ann", "bob"])
network.start_all()
settings = dict(method="fedavg", rounds=50, min_clients=2, place={str(tmp_path / "run")!r})
network.run(network.project({APP.replace(', "cat"', "")!r}, **settings))
network.until("ROUND 1", "ann", 240)
print("there", flush=True)
time.sleep(600)
"""
    path = [str(Path(__file__).parents[2]), *sys.path]
    start = f"import sys; sys.path[:0] = {path!r}\n{code}"
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "there\n"
        owner.kill()
    network = Loopback.__new__(Loopback)
    network.settings, network.place, network.names = (
        tmp_path / "flower" / "config.toml",
        tmp_path,
        ["ann", "bob"],
    )
    for _ in network.ticks(60, "the end of all its processes"):
        if not network.found():
            return


@pytest.mark.parametrize("where", ["superlink", "bob"])
def test_another_release_of_flower_is_told_where_its_user_looks(tmp_path: Path, where: str) -> None:
    """In the log of the run where the server has it; in that of the SuperNode, without which the others go on."""
    told = "error: Flower 1.43.0 is installed"
    with Loopback(tmp_path) as network:
        for name in ("superlink", *NAMES):
            network.start(name, release="1.43.0" if name == where else None)
            if name == "superlink":
                network.until("Starting Flower SuperLink|running on", "superlink")
        settings = {"method": "fedavg", "rounds": 1, "min_clients": 2, "quorum": 2, "eval_every": 0}
        run = network.run(network.project(APP, place=str(tmp_path / "run"), **settings))
        ended = network.ended(run, 300)
        said = network.flwr("log", run, "here", "--show")
        if where == "superlink":
            assert ended == "finished:failed"
            assert told in said
            assert "Traceback" not in said
        else:
            assert ended == "finished:completed"
            assert told in network.log("bob")
            assert "Traceback" not in network.log("bob")
