"""Recordings of nodes: read there as the run's file says, to the bits of the simulation that has them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from atoll.data import from_clients
from atoll.experiment import Experiment
from tests.data.test_media import tone, write
from tests.network.onethread import NAMES, OneThread

READ: dict[str, Any] = {"rate": 8000, "seconds": 0.06, "waves": True, "classes": "no,yes"}


def test_recordings_are_read_where_they_lie(tmp_path: Path) -> None:
    """Each node has a rate of its own; what the run's file says of them reaches every node."""
    settings = {**READ, "augment": "shift:4", "batch_size": 4, "rounds": 2}
    made = OneThread(tmp_path, settings)
    made.suffix = "-words"
    for at, name in enumerate(NAMES):
        for label in ("no", "yes"):
            for take in range(5):
                path = tmp_path / f"{name}-words" / label / f"{take}.wav"
                write(path, tone(take + 10 * at), (8000, 11025, 16000)[at])
    made.play()
    experiment = Experiment.read(made.file, data="nodes.csv", runs=None)
    folders = {name: tmp_path / f"{name}-words" for name in NAMES}
    due = experiment.federate(experiment.divide(from_clients(folders, seed=experiment.seed, **READ)))
    due.fit(progress=False)
    assert torch.equal(made.federation.state.params.flat(), due.state.params.flat())
    assert "of shape 1x480, from recordings" in made.nodes["ann"].work.text
