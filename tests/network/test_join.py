"""`atoll join`: what it says before it calls anybody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atoll.cli.join import Wish, station_of
from atoll.errors import ConfigError
from tests.network.commands import command


def test_data_that_are_not_there_are_told_at_once(tmp_path: Path) -> None:
    """A coordinator may not be there for hours: nobody waits for it to hear of a wrong name."""
    file = tmp_path / "patients.csv"
    code, _, said = command(
        "join", "127.0.0.1:1", "--plain", "--name", "ann", "--data", str(file), "--approve"
    )
    assert code == 2 and f"--data {file}: there is no such file" in said


def test_code_of_ones_own_leaves_the_node_its_name(tmp_path: Path) -> None:
    data = str(tmp_path / "a.csv")
    wish = Wish("127.0.0.1:1", data, "ann", str(tmp_path), plain=True, code=["model=nets:Small"])
    station = station_of(wish, "127.0.0.1", 1, None)
    assert (station.name, station.admitted) == ("ann", {"nets:Small": "model"})
    with pytest.raises(ConfigError, match="--code nets"):
        station_of(replace(wish, code=["nets"]), "127.0.0.1", 1, None)
