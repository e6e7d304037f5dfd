"""On a network of Flower's own processes a run gives the simulation's bits, whoever is killed meanwhile."""

from __future__ import annotations

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
