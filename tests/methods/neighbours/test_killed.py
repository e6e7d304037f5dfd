"""Peers that are killed at their work, and come back after a while."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import atoll

PEERS, KILLED, ROUNDS = 16, 5, 45


def played(devices: str, rounds: int = ROUNDS) -> atoll.Federation:
    data = atoll.data.load("digits").partition("dirichlet:0.5", clients=PEERS, seed=0)
    made = atoll.Federation(
        lambda: atoll.models.mlp(64, 32, 10), data, "dpsgd", topology="exponential", rounds=rounds, lr=0.1, epochs=2,
        batch_size=16, eval_every=0, devices=devices,
    )  # fmt: skip
    made.fit(progress=False)
    return made


def test_of_thirty_percent_killed_and_restarted_hardly_anything_is_seen(tmp_path: Path) -> None:
    """Five of sixteen are gone for a quarter of the run, each from a time of its own on."""
    first = played("equal", 1).history[0].clock
    assert first is not None
    end, rows = first.ended * ROUNDS, []
    for peer in range(PEERS):
        gone = {"active": [0, end * (0.35 + 0.1 * peer)], "inactive": [end * (0.1 + 0.1 * peer), 1e9]}
        rows.append({"client": peer, **(gone if peer < KILLED else {"active": None, "inactive": None})})
    hours = tmp_path / "hours.json"
    hours.write_text(json.dumps(rows))
    whole, cut = played("equal"), played(str(hours))
    clocks = [each.clock for each in cut.history if each.clock is not None]
    broken = {peer for clock in clocks for peer in clock.failed}
    assert broken and broken <= set(range(KILLED))  # the others were killed while they waited
    assert np.mean([clock.used for clock in clocks]) < PEERS - 1
    ours, theirs = (each.evaluate().own["accuracy"].mean for each in (cut, whole))
    assert theirs > 0.93 and ours > theirs - 0.01
