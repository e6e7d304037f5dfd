"""Large states lie in files without names: the same numbers, where the system can take their memory back."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from atoll.errors import RunError
from atoll.network import backing
from atoll.network.backing import backed, rest
from atoll.tensors import Record, Tensors, leaves, nbytes
from tests.network.faults.bench import Wound, bench
from tests.network.faults.test_fault_machine import small
from tests.network.faults.test_fault_restart import over, peers


def _anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])


def _state() -> Record:
    params = Tensors(w=torch.randn(2100, 2003).t(), b=torch.randn(7), none=torch.empty(0, 3))
    return Record(
        params=params, round=3, more=Record(count=torch.tensor(5), half=torch.randn(4_100_001).bfloat16())
    )


def test_same_numbers_aligned(tmp_path: Path) -> None:
    made = _state()
    found = backed(made, tmp_path)
    assert nbytes(made) == 4 * (2100 * 2003 + 7) + 8 + 2 * 4_100_001 > 1 << 24
    assert found is made  # not worth a file
    found = backed(made.replace(other=made.params * 2.0), tmp_path)
    assert found.round == 3 and list(found) == [*made, "other"]
    for one, other in zip(leaves(made), leaves(found), strict=False):
        assert (
            other.dtype == one.dtype and torch.equal(one, other)
            if isinstance(one, torch.Tensor)
            else one == other
        )
    assert all(each.data_ptr() % 64 == 0 for each in leaves(found) if isinstance(each, torch.Tensor))
    assert list(tmp_path.iterdir()) == []


def test_no_anonymous_memory(tmp_path: Path) -> None:
    before = _anonymous()
    state = backed(Record(params=Tensors(w=torch.ones(1 << 25))), tmp_path)  # 128 MB
    module = nn.Linear(1 << 13, 1 << 12)  # as much
    rest(module, tmp_path)
    assert _anonymous() - before < 32 << 20
    assert float(state.params["w"].sum()) == 1 << 25 and module(torch.ones(1, 1 << 13)).shape == (1, 1 << 12)


def test_no_room(tmp_path: Path) -> None:
    with small(tmp_path / "disk", "1m"), pytest.raises(RunError, match="no space left"):
        backed(Record(w=torch.ones(1 << 23)), tmp_path / "disk")


def test_run_with_states_in_files(tmp_path: Path) -> None:
    """Every state in a file, the coordinator killed within a round: the model of the simulation, to the bit."""
    values = {f"{backing.__name__}:_LARGE": 0}
    with bench(tmp_path) as made:
        wound = Wound("atoll.network.desk:Desk.accept", call=3, after=True)
        made.start("coordinator", wounds=[wound], values=values)
        found, threads = peers(made)
        assert made.dead() == -signal.SIGKILL
        made.start("coordinator", values=values)
        over(made, found, threads)


def test_a_round_holds_a_sum_and_a_new_state(tmp_path: Path) -> None:
    """In memory that no file stands behind: not the old state, the task's module, nor an answer."""
    wide, most = 3500, 0
    with bench(tmp_path, model=f"mlp:{wide},{wide}", lr=0.01) as made:
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
    assert (most - base) * 1024 < 2.6 * 4 * wide * (64 + wide + 10)
