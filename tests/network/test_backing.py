"""A coordinator's large states and sums lie in files without names, where the system can take their memory back."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import pytest

from atoll.network import backing
from tests.network.faults.bench import Wound, bench
from tests.network.faults.test_fault_restart import over, peers


def test_run_with_states_in_files(tmp_path: Path) -> None:
    """Every state in a file, the coordinator killed within a round: the model of the simulation, to the bit."""
    values = {f"{backing.__name__}:_LARGE": 0, f"{backing.__name__}:_PART": 1}
    with bench(tmp_path) as made:
        wound = Wound("atoll.network.desk:Desk.accept", call=3, after=True)
        made.start("coordinator", wounds=[wound], values=values)
        found, threads = peers(made)
        assert made.dead() == -signal.SIGKILL
        made.start("coordinator", values=values)
        over(made, found, threads)


@pytest.mark.slow
def test_a_round_holds_no_model(tmp_path: Path) -> None:
    """In memory that no file stands behind: neither a state, nor a sum, nor the task's module, nor an answer."""
    wide, layers, most = 1500, 6, 0
    model = "mlp:" + ",".join([str(wide)] * layers)
    with bench(tmp_path, model=model, lr=0.01) as made:
        process = made.start("coordinator", environment={"MALLOC_TRIM_THRESHOLD_": "1"})
        base = process.status("RssAnon")
        _, threads = peers(made)
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                most = max(most, process.status("RssAnon"))
            time.sleep(0.005)
        for thread in threads:
            thread.join(30)
        assert made.same()
    assert (most - base) * 1024 < 0.6 * 4 * wide * (layers - 1) * wide
