"""The script of the field's tables: it runs with today's package, and leaves the rows of others alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.runs.compare import Comparison

ROOT = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("setting", ["mnist", "cifar10"])
def test_a_stored_table_is_kept_but_for_what_was_played(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import field  # type: ignore[import-not-found]

    stored = (ROOT / "results" / f"field-{setting}.md").read_text()
    assert field.table(Comparison("accuracy", None, [], []), stored) == stored.strip()
