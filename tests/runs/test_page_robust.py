"""The page of a run with a robust rule, in a browser: who was left out stands first."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.runs import report
from tests.contract.test_seams import federation

from .browser import BROWSER, DRIVER, browser

pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER, reason="there is no browser here: apt-get install chromium chromium-driver"
)


def test_what_a_rule_kept_is_on_the_page(tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    made = federation(aggregate="krum:0", rounds=3)
    run = made.fit(progress=False)
    report.write(file, "run", [made.events()])
    with browser() as page:
        page.open(file.as_uri())
        page.ready()
        assert page.text("#kept .note") == "krum:0: of 12 updates in 3 rounds, 9 counted for nothing."
        cells = page.js(
            "return [...document.querySelectorAll('#kept tbody tr')].map((r) => r.children[3].textContent)"
        )
        assert page.errors() == []
    out = {client: [] for each in run.rounds for client in each.cohort}
    for each in run.rounds:
        for client, kept in zip(each.cohort, each.clients["kept"], strict=True):
            out[client].append(kept == 0)
    assert sorted(cells) == sorted(f"{round(100 * sum(v) / len(v))}\u00a0%" for v in out.values())
