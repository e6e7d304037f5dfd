"""A run between processes is the simulation, to the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atoll.data import Samples
from atoll.network.rows import unpacked
from tests.network.cluster import NAMES, Cluster, digits, simulation

SMALL = {"model": "mlp:16", "rounds": 2, "seed": 3}


def played(place: Path, names: Sequence[str] = NAMES, fresh: bool = False, **settings: Any) -> Cluster:
    """A cluster whose run went through."""
    with Cluster(place, {**SMALL, **settings}, names=names, fresh=fresh) as cluster:
        cluster.start_all()
        assert cluster.wait(seconds=240) == 0, cluster.log("coordinator")
        for name in cluster.names:
            assert cluster.wait(name, 30) == 0, cluster.log(name)
    return cluster


def test_scaffold_as_written_and_captured(tmp_path: Path) -> None:
    """Control variates stay on nodes; steps run as they are written. Every process is started as a shell starts it."""
    assert played(tmp_path, names=("ann", "bob"), fresh=True, method="scaffold", engine="loop").same()


QUICK = {
    "fedavg": {"method": "fedavg"},
    "stragglers": {"method": "fedprox", "stragglers": 0.5, "epochs": 3},
    "fedadam": {"method": "fedadam"},
    "fedora": {"method": "fedora", "validation": 0.2},
    "pfedhn": {"method": "pfedhn"},
    "fedma": {"method": "fedma"},
    "fedper": {"method": "fedper"},
    "clip": {"method": "fedavg", "channel": "clip:0.5"},
    "cohort": {"method": "fedavg", "cohort": 2, "rounds": 4},
    "newcomer": {"method": "fedora", "validation": 0.2, "newcomers": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["feddf", "fedmd"])
def test_public_data(method: str, tmp_path: Path) -> None:
    """Nodes get public inputs once, and keep them on their shelves."""
    shape = digits()["ann"].inputs.shape[1:]
    inputs = np.random.default_rng(1).random((40, *shape), np.float32)
    np.savez(tmp_path / "public.npz", x=inputs)
    with Cluster(
        tmp_path, {**SMALL, "method": method}, network={"public": str(tmp_path / "public.npz")}
    ) as made:
        made.start_all()
        for name in ("coordinator", *made.names):
            assert made.wait(name, 60) == 0, made.log(name)
    assert made.same()
    kept = list(tmp_path.glob("*/*/public"))
    assert len(kept) == len(made.names)
    assert all(torch.equal(unpacked(each.read_bytes()), torch.from_numpy(inputs)) for each in kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_methods(name: str, tmp_path: Path) -> None:
    """Programs, payloads of clients' own, memories, evaluation and newcomers are those of the simulation."""
    assert played(tmp_path, **QUICK[name]).same()


@pytest.mark.slow
def test_texts(tmp_path: Path) -> None:
    """Nodes answer sums over tokens, and perplexity is made of them once, as in a simulation."""
    generator, held = torch.Generator().manual_seed(0), {}
    for name, count in (("ann", 12), ("bob", 7)):
        tokens = torch.randint(0, 16, (count, 9), generator=generator)
        held[name] = Samples(tokens[:, :-1], tokens[:, 1:])
    settings = {**SMALL, "model": "gpt:1,8,2", "method": "fedavg", "classes": 16, "batch_size": 4}
    with Cluster(tmp_path, settings, names=tuple(held), data=held) as made:
        made.start_all()
        assert made.wait(seconds=240) == 0, made.log("coordinator")
    assert made.same()
    (events,) = tmp_path.glob("**/events.jsonl")
    known = [json.loads(line) for line in events.read_text().splitlines()]
    result = next(each for each in known if each["event"] == "result")
    federation = simulation(tmp_path / "run.toml", made.names)
    run = federation.fit()
    federation.engine.close()
    assert run.evaluation is not None
    pooled = run.evaluation.clients["perplexity"].pooled
    assert result["perplexity"] == pytest.approx(pooled, rel=1e-5)
    assert pooled == pytest.approx(math.exp(run.evaluation.clients["loss"].pooled), rel=1e-5)
