"""Certificates that last for seconds, and nodes that run for longer."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from atoll.network.certificates import Known
from atoll.network.chain import Record, lines
from atoll.network.renewal import asked_at
from tests.network.secured import Secured

START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
def test_when_a_node_asks_for_its_next_certificate(draw: float) -> None:
    """Not before it is due, with more than half of the last third left; and ever sooner where that failed."""
    known = Known(name="ann", role="node", serial="1", begins=START, ends=START + 90 * DAY, ed25519=b"")
    first = asked_at(known, START, draw)
    assert START + 67.5 * DAY <= first <= START + 75 * DAY
    tries, at = 0, first
    while known.ends - at > timedelta(minutes=1):
        later = asked_at(known, at, draw)
        assert at < later < known.ends
        at, tries = later, tries + 1
    assert 10 < tries < 60


SHORT = """
from datetime import timedelta
from atoll.network import authority, tls
authority.Authority.__init__.__kwdefaults__["lives"] = timedelta(seconds=25)
authority._SERVER, authority._EARLY, tls._DAY = timedelta(days=20), timedelta(days=30), 1.0
"""


def serials(place: Path, event: str) -> list[str]:
    """Of certificates, as the audit log tells."""
    found = [each for each in lines(place / "coordinator" / "audit.jsonl") if isinstance(each, Record)]
    return [str(each.facts["serial"]) for each in found if each.event == event]


@pytest.mark.slow
def test_a_node_outlives_its_certificate(tmp_path: Path) -> None:
    """And so does a coordinator's: who calls later sees another."""
    run = {"model": "logistic", "rounds": 1_000_000, "method": "fedavg", "seed": 1}
    with Secured(tmp_path, run, names=("ann",), before={"": SHORT}) as cluster:
        cluster.start("coordinator")
        first = ssl.get_server_certificate(("127.0.0.1", cluster.port))
        cluster.start("ann")
        cluster.until("trained", "ann", 400.0)
        ends = cluster.authority.list()[0].ends
        for _ in cluster.ticks(400, "the end of its first certificate"):
            assert cluster.processes["ann"].poll() is None, cluster.log("ann")
            if datetime.now(UTC) > ends:
                break
        known = len(cluster.log("ann").splitlines())
        for _ in cluster.ticks(400, "a round after that"):
            if any("trained" in line for line in cluster.log("ann").splitlines()[known:]):
                break
        assert ssl.get_server_certificate(("127.0.0.1", cluster.port)) != first
        given = serials(tmp_path, "certificate-issued") + serials(tmp_path, "certificate-renewed")
        assert len({*given}) == len(given) >= 2
        assert "cannot be reached" not in cluster.log("ann")
