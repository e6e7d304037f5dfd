"""The application of phones, small: every way to learn beside training alone, on the phones' own clock."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_examples import HAR, start

HERE = pytest.mark.skipif(not HAR.exists(), reason="ATOLL_DATA has no har")


@HERE
def test_thirty_phones_and_a_server_that_waits_for_nobody(tmp_path: Path) -> None:
    code, text, err = start("phones/run", "--quick", "--out", str(tmp_path))
    assert code == 0, err
    found = re.findall(
        r"^(waiting|not waiting|int8|int8, own models) .*%\s+([\d.]+)\s+([\d.]+)\s+[\d.]+$", text, re.M
    )
    minutes = {name: float(time) for name, time, _ in found}
    sent = {name: float(megabytes) for name, _, megabytes in found}
    assert minutes["not waiting"] < minutes["waiting"] / 2
    assert sent["int8"] < sent["not waiting"] / 3
    assert (tmp_path / "phones.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@HERE
def test_every_method_beside_local(tmp_path: Path) -> None:
    code, text, err = start("phones/methods", "--out", str(tmp_path), "--rounds", "2")
    assert code == 0, err
    rows = dict(re.findall(r"^(Local|FedAvg|Ditto|FEDORA) +([\d.]+) %", text, re.MULTILINE))
    assert set(rows) == {"Local", "FedAvg", "Ditto", "FEDORA"}
    assert float(rows["Local"]) > 30  # six activities: guessing gives 19 %
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["phones/run", "phones/methods"])
def test_without_data_it_says_where_it_looked(tmp_path: Path, name: str) -> None:
    place = str(tmp_path)
    code, _, err = start(name, "--out", place, ATOLL_DATA=place, ATOLL_HOME=place)
    assert code == 2
    assert "ATOLL_DATA" in err and "Traceback" not in err
