"""Robust rules between machines: the coordinator has the replies, and the model is the simulation's."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.errors import ConfigError
from tests.network.onethread import OneThread


@pytest.mark.parametrize(
    ("method", "rule", "channel"),
    [("fedavg", "nnm + trimmed:1", "momentum:0.9 | clip:0.5 | int8"), ("scaffold", "cclip:0.5,2", None)],
)
def test_it_is_the_simulation_to_the_bit(method: str, rule: str, channel: str | None, tmp_path: Path) -> None:
    settings = {"method": method, "aggregate": rule, "channel": channel, "rounds": 3, "model": "mlp:16"}
    made = OneThread(tmp_path, settings).play()
    assert made.same()
    found = [each.clients["kept"] for each in made.federation.history]
    assert found == [each.clients["kept"] for each in made.twin().history]
    assert all(len(each) == 3 for each in found)


def test_a_coordinator_has_no_root_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it has none"):
        OneThread(tmp_path, {"aggregate": "fltrust", "rounds": 1, "model": "mlp:16"}).play()
