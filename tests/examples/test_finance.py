"""The application of finance, small: every way to learn by rows, and by columns more than the bank alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_examples import HAR, start

HERE = pytest.mark.skipif(
    not (HAR.parent / "credit-default").is_dir(), reason="ATOLL_DATA has no credit-default"
)


@HERE
def test_three_banks_and_a_shop(tmp_path: Path) -> None:
    code, text, err = start("finance/run", "--quick", "--out", str(tmp_path))
    assert code == 0, err
    ways = ("each alone", "federated", "secure sum", "and private", "pooled")
    rows = {name: re.search(rf"^{name} +([\d.]+) +[\d.]+% ", text, re.MULTILINE) for name in ways}
    assert all(rows.values())
    aucs = {name: float(found[1]) for name, found in rows.items() if found is not None}
    assert all(0.4 < value < 0.9 for value in aucs.values())
    assert abs(aucs["secure sum"] - aucs["federated"]) < 0.01  # whole numbers, added up
    alone, both = (float(value) for value in re.findall(r"AUC ([\d.]+), KS", text))
    assert both > alone + 0.05
    assert "the same model as without encryption: True" in text
    assert (tmp_path / "finance.png").read_bytes().startswith(b"\x89PNG")


def test_without_data_it_says_where_it_looked(tmp_path: Path) -> None:
    place = str(tmp_path)
    code, _, err = start("finance/run", "--quick", "--out", place, ATOLL_DATA=place, ATOLL_HOME=place)
    assert code == 2
    assert "ATOLL_DATA" in err and "Traceback" not in err
