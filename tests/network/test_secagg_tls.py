"""Secure aggregation over mutual TLS: keys that certificates name, and a node that is lost in each stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.network.cluster import digits
from tests.network.secured import Secured
from tests.network.test_secagg import LONG, SETTINGS, STAGES, kept, summed

HELD = """
import asyncio
from atoll.network.line import Line
answer = Line.answer
async def held(line, task, body):
    if task.endswith("-{stage}"):
        print("is held in {stage}", flush=True)
        await asyncio.sleep(3600)
    return await answer(line, task, body)
Line.answer = held
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_node_may_be_killed_in_any_stage(tmp_path: Path, stage: str) -> None:
    """Who has given its masked update by then is in the sum; nobody else's trust is lost over it."""
    made = Secured(
        tmp_path, SETTINGS, digits(), network={"repeatable_noise": True, "absent": 4.0},
        before={"dan": HELD.format(stage=stage)},
    )  # fmt: skip
    with made:
        made.start("coordinator")
        for name in made.names:
            made.start(name, "--repeatable-noise")
        made.until(f"is held in {stage}", "dan", LONG)
        made.kill("dan")
        assert made.wait(seconds=LONG) == 0
        clients, total = summed(made)
        assert clients == ([0, 1, 2] if stage in ("keys", "shares", "masked") else [0, 1, 2, 3])
        assert np.array_equal(total, kept(made, clients))
        assert made.same() == (len(clients) == 4)
        assert "no part in the secure sum" not in "".join(made.log(name) for name in made.names)
