"""The client in JavaScript: it completes rounds beside a node in Python, from Node.js and from a browser."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from atoll.data import Samples
from tests.network.cluster import Cluster
from tests.network.warm import forked
from tests.runs.browser import BROWSER, DRIVER, browser

HERE = Path(__file__).parents[2] / "clients" / "javascript"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(not NODE, reason="there is no Node.js here: apt-get install nodejs")
needs_browser = pytest.mark.skipif(
    not BROWSER or not DRIVER, reason="there is no browser here: apt-get install chromium chromium-driver"
)
FEATURES = ("width", "height", "depth")


def rows(seed: int, count: int = 75) -> tuple[Any, Any]:
    """Three clouds of points [n, 3], and whose they are."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    return (rng.normal(size=(count, 3)) * 0.4 + np.eye(3)[y] * 2).astype(np.float32), y


def points() -> dict[str, Samples]:
    """What each has, as the cluster is given it: what they read are the same points as CSV files."""
    pairs = {name: rows(seed) for seed, name in enumerate(("ann", "web"))}
    return {name: Samples(torch.from_numpy(x), torch.from_numpy(y)) for name, (x, y) in pairs.items()}


def table(path: Path, seed: int) -> None:
    """Points as a CSV file."""
    x, y = rows(seed)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*FEATURES, "kind"])
        writer.writerows([*map(repr, map(float, row)), int(label)] for row, label in zip(x, y, strict=True))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    settings = {
        "method": "fedavg", "model": "mlp:8", "rounds": 3, "lr": 0.3, "epochs": 2, "engine": "loop",
        "label": "kind", "features": ",".join(FEATURES), "classes": 3, "clients": 2,
    }  # fmt: skip
    with Cluster(tmp_path, settings, points(), ("ann", "web"), network={"absent": 20}) as found:
        for seed, name in enumerate(found.names):
            table(tmp_path / f"{name}.csv", seed)
        yield found


def events(cluster: Cluster) -> list[dict[str, Any]]:
    """What the coordinator has written down, of its one run."""
    (file,) = (cluster.place / "coordinator" / "runs").glob("*/events.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def complete(cluster: Cluster) -> None:
    """Both took part in every round, nothing was refused, and the model predicts for both."""
    assert load_file(cluster.model)["1.weight"].shape == (8, 3)
    played = {
        event["round"]: event for event in events(cluster) if event["event"] == "round"
    }  # the last counts
    assert sorted(played) == [1, 2, 3]
    for event in played.values():
        assert sorted(event["cohort"]) == [0, 1], event
        assert not event["refused"] and not event.get("dropped"), event
    judged = played[3]["evaluation"]
    assert judged["each"]["clients"]["accuracy"] and min(judged["each"]["clients"]["accuracy"]) > 0.8, judged


def beside(cluster: Cluster) -> None:
    """The node in Python."""
    cluster.start("ann", "--data", str(cluster.place / "ann.csv"))


def start(cluster: Cluster) -> subprocess.Popen[bytes]:
    """The node "web" at the command line of Node.js."""
    command = [str(NODE), str(HERE / "join.mjs"), f"http://127.0.0.1:{cluster.port}", "web"]
    with (cluster.place / "web.log").open("ab") as log:
        process = subprocess.Popen([*command, str(cluster.place / "web.csv")], stdout=log, stderr=log)
    cluster.processes["web"] = process
    return process


def test_it_is_small_and_needs_nothing() -> None:
    lines = (HERE / "atoll.mjs").read_text().splitlines()
    assert len(lines) <= 300
    assert not [line for line in lines if line.startswith("import ") or "import(" in line]
    assert max(map(len, lines)) <= 120


@needs_node
def test_from_node_js_beside_python(cluster: Cluster) -> None:
    """The coordinator is killed on the way, and comes back: the client joins again and goes on."""
    cluster.start("coordinator")
    process = start(cluster)
    beside(cluster)
    cluster.round(1)
    cluster.kill("coordinator")
    cluster.start("coordinator")
    assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
    assert process.wait(20) == 0
    assert "the run is over" in cluster.log("web"), cluster.log("web")
    complete(cluster)


@needs_node
def test_it_leaves_when_it_is_asked_to(cluster: Cluster) -> None:
    cluster.start("coordinator")
    process = start(cluster)
    for _ in cluster.ticks(30, "web is there"):
        if any(node["name"] == "web" and node["samples"] for node in cluster.status().get("nodes", [])):
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "left" in cluster.log("web")
    (node,) = cluster.status()["nodes"]
    assert not node["there"]


@needs_node
def test_over_tls_with_a_certificate_of_its_own(cluster: Cluster) -> None:
    """Who it is says its certificate (web), whatever it calls itself (ann)."""

    def ca(*words: str) -> str:
        command = [sys.executable, "-m", "atoll.cli", "ca", *words]
        return subprocess.run(command, cwd=cluster.place, capture_output=True, text=True, check=True).stdout

    where, keys = f"127.0.0.1:{cluster.port}", cluster.place / "keys"
    ca("init")
    ca("server", "127.0.0.1")
    settings = (cluster.place / "run.toml").read_text().replace('["ann", "web"]', '["web"]')
    (cluster.place / "run.toml").write_text(settings.replace("clients = 2", "clients = 1"))
    words = ["serve", "run.toml", "--port", str(cluster.port), "--save", str(cluster.model)]
    cluster.processes["coordinator"] = forked(
        words, cluster.place, cluster.place / "coordinator.log", os.environ
    )
    cluster.until("listening", "coordinator")
    token = ca("invite", "web").split()[0]
    ca("enrol", where, "--invitation", token, "--keys", str(keys))
    join = [str(NODE), str(HERE / "join.mjs"), f"https://{where}", "ann", str(cluster.place / "web.csv")]
    alone = subprocess.run(join, capture_output=True, text=True, timeout=20)
    assert alone.returncode == 2 and "usage" in alone.stderr
    done = subprocess.run([*join, "--keys", str(keys)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "the run is over" in done.stdout, done.stdout + done.stderr
    assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
    assert cluster.model.is_file()


@needs_browser
def test_from_a_browser_beside_python(cluster: Cluster) -> None:
    with (cluster.place / "run.toml").open("a") as stream:  # its last table is [network]
        stream.write(f"client = {json.dumps(str(HERE))}\n")
    cluster.start("coordinator")
    cluster.until("listening", "coordinator")
    with browser() as page:
        page.driver.get(f"http://127.0.0.1:{cluster.port}/client/index.html")
        page.driver.find_element("id", "name").send_keys("web")
        page.driver.find_element("id", "file").send_keys(str(cluster.place / "web.csv"))
        page.driver.find_element("id", "join").click()
        beside(cluster)
        page.until(lambda: page.text("#state") in ("the run is over",) or "error" in page.text("#state"), 60)
        assert page.text("#state") == "the run is over", page.text("#log") + cluster.log("coordinator")
        assert [text for text in page.errors() if "410 (Gone)" not in text] == []  # that is how a run ends
    assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
    complete(cluster)
