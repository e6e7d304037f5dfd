"""Asynchronous rounds between processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.network.cluster import Cluster

SMALL = {"method": "fedavg", "model": "mlp:16", "seed": 3, "engine": "loop", "concurrency": 4}


def test_a_step_for_all_replies_is_the_simulation(tmp_path: Path) -> None:
    """With as many replies a step as nodes nobody is late: the model is that of equal devices, to the bit."""
    with Cluster(tmp_path, {**SMALL, "rounds": 2, "pace": "buffered:4"}) as made:
        made.start_all()
        assert made.wait() == 0, made.log("coordinator")
        assert made.same(devices="equal")


@pytest.mark.slow
@pytest.mark.parametrize("pace", ["buffered:2", "fedasync:poly,0.5"])
def test_killed_on_the_way(tmp_path: Path, pace: str) -> None:
    """A coordinator and a node that are killed: the steps go on, and nothing is answered twice."""
    settings = {**SMALL, "rounds": 8, "pace": pace, "concurrency": 3, "eval_every": 4, "epochs": 3}
    with Cluster(tmp_path, settings, network={"absent": 30}) as made:
        made.start_all()
        made.round(2, 120)
        made.kill("coordinator")
        made.start("coordinator")
        made.round(4, 120)
        made.kill("bob")
        made.start("bob")
        assert made.wait() == 0, made.log("coordinator")
        assert all(value.isfinite().all() for value in load_file(made.model).values())
        assert "round 8/8" in made.log("coordinator")
