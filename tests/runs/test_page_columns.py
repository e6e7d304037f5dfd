"""The page of runs between parties, in a browser: what each party knows of columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.vertical import Vertical, Where, run
from tests.vertical.tables import written

from .browser import BROWSER, DRIVER, Page, browser

pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER, reason="there is no browser here: apt-get install chromium chromium-driver"
)

NAMES = "return [...document.querySelectorAll('#columns .halves > div:nth-child(1) .who')].map((e) => e.textContent)"
BARS = "return [...document.querySelectorAll('#columns .bar')].map((e) => e.style.getPropertyValue('--part'))"
CELLS = "return document.querySelectorAll('#columns .correlations tbody td').length"
PRESS = "[...document.querySelectorAll('#columns .figure button')].find((e) => e.textContent === arguments[0]).click()"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as found:
        yield found


def shown(page: Page, place: Path, protocol: str, given: dict[str, object]) -> None:
    written(place)
    party = {name: Where(data=str(place / f"{name}.csv")) for name in ("guest", "host")}
    plan = Vertical(protocol=protocol, crypto="none", party=party, given=given, runs=str(place / "runs"))
    found = run(replace(plan, test=0.0))
    assert found.folder is not None
    page.open((found.folder.path / "report.html").as_uri())
    page.ready()
    assert not page.errors()


def test_figures_of_columns_are_bars_and_correlations_cells(page: Page, tmp_path: Path) -> None:
    shown(page, tmp_path, "features", {})
    assert sorted(page.js(NAMES)) == ["a0", "a1", "host.0", "host.1", "host.2"]
    parts = [float(part.rstrip("%")) for part in page.js(BARS)]
    assert len(parts) == 8
    assert max(parts) == 100
    assert parts[:5] == sorted(parts[:5], reverse=True)
    assert page.js(CELLS) == 25
    assert "IV: how much" in page.text("#columns .meant")
    page.js(PRESS, "VIF")
    assert "VIF: 1 where" in page.text("#columns .meant")


def test_what_a_guest_knows_of_trees_and_others_do_not(page: Page, tmp_path: Path) -> None:
    shown(page, tmp_path, "secureboost", {"trees": 2, "importance": "column"})
    assert "What guest knows" in page.text("#columns")
    assert "What host knows" not in page.text("#columns")  # gains are the guest's
    page.js(PRESS, "Splits")
    assert "What host knows" in page.text("#columns")
    assert page.js("return document.querySelector('#columns .matrix').hidden")
