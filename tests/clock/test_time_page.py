"""The page about time shows what is there: its examples run, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.clock import MEDIANS, devices, kinds
from atoll.clock.parse import _FORMS
from atoll.clock.parts import CLASSES
from atoll.clock.traces import COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "time.md"
SECTIONS = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
DEVICES = next(section for section in SECTIONS if section.startswith("Devices\n"))


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", DEVICES, flags=re.DOTALL)


def test_files_on_the_page_can_be_read(tmp_path: Path) -> None:
    for kind in ("csv", "json"):
        (path := tmp_path / f"shown.{kind}").write_text(blocks(kind)[0])
        made = devices(path, clients=2, names=["north", "south"])
        speeds = made.profiles(np.arange(2)).speed
        assert speeds == pytest.approx([50, 120] if kind == "csv" else [1000 / 486, 1000 / 103.5])
        assert made.available(np.arange(2), 43_200.0).all() == (kind == "csv" or 12788 <= 43_200 < 65881)


def test_python_on_the_page_runs() -> None:
    known: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, known)
    assert devices(known["own"], clients=3) is known["own"]
    assert known["own"].until(known["cohort"], 3600.0).tolist() == [86_400] * 3
    assert known["own"].returns(known["cohort"], 90_000.0).tolist() == [7 * 86_400] * 3
    assert known["own"].profiles(np.arange(2)).speed.tolist() == [100, 20]


def test_tables_on_the_page_are_complete() -> None:
    for name in (*MEDIANS, *CLASSES, *COLUMNS, *(name for name in _FORMS)):
        assert re.search(rf"`{name}[`:]", DEVICES), name
    for text in re.findall(
        r"^\| `((?:equal|lognormal|classes|exponential|diurnal|markov|failing)[^`]*)`", DEVICES, re.M
    ):
        devices(text, clients=2)
    for name, fields in CLASSES.items():
        row = next(line for line in DEVICES.splitlines() if line.startswith(f"| `{name}` |"))
        shown = [float(re.sub(r"[^\d.]", "", cell)) for cell in row.split("|")[2:9]]
        due = [fields["speed"], fields["download"] / 1e6, fields["upload"] / 1e6, fields["latency"]]
        assert shown == [*due, fields["memory"] / 1e9, fields["watts"], 1], name


def test_kinds_say_how_each_part_is_written() -> None:
    written = [usage for usage, _ in kinds()]
    assert "lognormal:SIGMA[,BANDWIDTH_SIGMA]" in written and "exponential[:MEAN]" in written
    assert "classes:CLASS=SHARE,..." in written and "drawn:PATH" in written
    assert all(says.endswith(".") for _, says in kinds())
