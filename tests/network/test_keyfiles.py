"""Files that are replaced as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.network.keyfiles import keep


def test_every_version_of_a_file_has_a_later_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks at time and size alone sees each, though the clock stands still, or goes back."""
    path, times = tmp_path / "file", []
    keep(path, b"as long")
    for clock in (2_000_000_000_000_000_000, 2_000_000_000_000_000_000, 1_000_000_000_000_000_000):
        monkeypatch.setattr("time.time_ns", lambda clock=clock: clock)
        keep(path, b"as long")
        times.append(path.stat().st_mtime_ns)
    assert times == [2_000_000_000_000_000_000 + step for step in range(3)]
