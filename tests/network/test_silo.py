"""Nodes that are jobs: `atoll join --silo ddp:2`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atoll.cli.join import Wish, station_of
from atoll.errors import ConfigError
from tests.network.cluster import Cluster
from tests.network.warm import Forked


def test_the_coordinator_cannot_tell(tmp_path: Path) -> None:
    """One of two nodes is a silo, and the model is that of two that are not."""
    small = {"model": "mlp:16", "rounds": 2, "seed": 3, "engine": "loop", "method": "scaffold"}
    with Cluster(tmp_path, small, names=("ann", "bob")) as cluster:
        cluster.start("coordinator")
        cluster.start("ann", "--silo", "ddp:2")
        cluster.start("bob")
        for name in ("coordinator", "ann", "bob"):
            assert cluster.wait(name) == 0, cluster.log(name)
        alone, together = cluster.simulated(), load_file(cluster.model)
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) < 1e-5


@pytest.mark.slow
def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    small = {"model": "mlp:16", "rounds": 1, "epochs": 400, "batch_size": 4}
    with Cluster(tmp_path, small, names=("ann",)) as cluster:
        cluster.start("coordinator")
        node = cluster.start("ann", "--silo", "ddp:2")
        for _ in cluster.ticks(60, "a helper"):
            if (helper := grandchild(node)) is not None:
                break
        os.kill(helper, signal.SIGKILL)
        cluster.until("process 1 of the silo's 2 was ended by SIGKILL", "ann", 30)


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(each) for each in found.split()]


def grandchild(node: subprocess.Popen[bytes] | Forked) -> int | None:
    """The helper of a node's worker."""
    return next((helper for worker in children(node.pid) for helper in children(worker)), None)


def test_what_cannot_be_is_told_before_anybody_is_called(tmp_path: Path) -> None:
    wish = Wish("127.0.0.1:1", str(tmp_path), "ann", str(tmp_path), plain=True, silo="ring:2")
    with pytest.raises(ConfigError, match="unknown silo 'ring'"):
        station_of(wish, "127.0.0.1", 1, None)
