"""The page about reliability says what the tests of faults say."""

from __future__ import annotations

from tests.network.matrix import PAGE, rows


def test_every_fault_is_in_the_table() -> None:
    text = PAGE.read_text()
    found = list(rows())
    assert len(found) > 40
    missing = [row.test for row in found if f"| R{row.number} | {row.fault} | {row.due} |" not in text]
    assert not missing, "python -m tests.network.matrix writes the table anew"
    assert "failed" not in text.partition("<!-- the matrix")[2]
