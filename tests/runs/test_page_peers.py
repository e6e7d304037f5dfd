"""Pages of runs without a server, in a browser: how far models are apart, and a peer among its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

import atoll
from atoll.runs import report
from atoll.runs.events import kinds, plain

from .browser import BROWSER, DRIVER, browser

pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER, reason="there is no browser here: apt-get install chromium chromium-driver"
)


def link(sent: int, heard: int, gone: bool) -> kinds.Link:
    return kinds.Link(sent=sent, received=sent, heard=heard, gone=gone)


def test_consensus_and_neighbours_are_on_the_page(tmp_path: Path) -> None:
    run = atoll.run(
        data="digits", clients=6, method="dpsgd", rounds=2, runs=None, model="mlp:4", progress=False
    )
    report.write(tmp_path / "all.html", "run", [run.events()])
    peer = [
        kinds.Start(
            method="dpsgd", seed=0, rounds=2, peers=["ann", "bea", "cat", "dan"], peer="ann", config={}
        ),
        kinds.Round(round=1, seconds=0.1, links={"bea": link(1000, 1, False), "cat": link(1000, 1, False)}),
        kinds.Round(round=2, seconds=0.1, links={"bea": link(1000, 2, False), "cat": link(0, 1, True)}),
    ]
    report.write(tmp_path / "one.html", "run", [[*map(plain, peer)]])
    assert run.evaluation is not None and run.evaluation.consensus is not None
    with browser() as page:
        page.open((tmp_path / "all.html").as_uri())
        page.ready()
        apart = f"{run.evaluation.consensus:.3g}"
        assert page.text("#consensus .note") == f"After round 2 peers’ models are {apart} from their mean."
        page.open((tmp_path / "one.html").as_uri())
        page.ready()
        assert page.text("#neighbours .note") == "Given up: cat. They count again once they are heard."
        rows = page.js(
            "return [...document.querySelectorAll('#neighbours tbody tr')]"
            ".map((r) => [...r.children].map((c) => c.textContent))"
        )
        assert [[row[0], *row[3:]] for row in rows] == [["bea", "this round", "0"], ["cat", "gone", "1"]]
        lines = (
            "return [...document.querySelectorAll('#neighbours line')].map((l) => l.getAttribute('class'))"
        )
        assert page.js(lines) == ["fresh", "gone"]
        assert page.errors() == []
