"""Workers that die, stop and go on: real processes, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atoll
from atoll.cli import main
from atoll.errors import ConfigError, DivergedError, RunError
from tests.distributed.test_strategies import blobs, flat, net, trained
from tests.forked import fork


class Stumbling(nn.Module):
    """Kills its process, or raises, in the forward pass of a training step; once, or always."""

    def __init__(self, mark: Path, how: str, worker: int = 1, after: int = 20) -> None:
        super().__init__()
        self.inner = net()
        self.mark, self.how, self.worker, self.after, self.calls = str(mark), how, worker, after, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.distributed.is_initialized():
            self.calls += 1
            mine = torch.distributed.get_rank() == self.worker
            if mine and self.calls > self.after and not Path(self.mark).exists():
                if self.how == "kill":
                    Path(self.mark).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("the sensor is broken")
        return self.inner(x)


@pytest.mark.parametrize(
    ("strategy", "worker"),
    [
        ("ddp", 1),
        *(
            pytest.param(strategy, worker, marks=pytest.mark.slow)
            for strategy, worker in (
                ("ddp", 0),
                ("zero1", 0),
                ("zero1", 1),
                ("diloco:10", 0),
                ("diloco:10", 1),
            )
        ),
    ],
)
def test_a_killed_worker_and_a_restart_change_nothing(strategy: str, worker: int, tmp_path: Path) -> None:
    settings = {"workers": 2, "steps": 60, "every": 10, "batch": 30, "optimizer": "sgd:0.9", "lr": 0.05}
    given = {**settings, "threads": 1, "runs": str(tmp_path / "runs")}
    torch.manual_seed(1)
    model = Stumbling(tmp_path / "killed", "kill", worker, 33)
    run = atoll.train(model, blobs(), strategy, restarts=1, **given)
    assert (tmp_path / "killed").exists()
    undisturbed = atoll.train(model, blobs(), strategy, **given)
    assert torch.equal(flat(run), flat(undisturbed))
    assert run.folder is not None
    log = [each["event"] for each in run.folder.log().events]
    assert log.count("start") == 1 and log.count("resume") == 1
    assert log.count("round") == 6 and log[-1] == "result"


def test_a_killed_worker_ends_the_run_in_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RunError, match="worker 1 of 2 was ended by SIGKILL"):
        atoll.train(Stumbling(tmp_path / "k", "kill"), blobs(), "ddp", workers=2, steps=2000, threads=1)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("worker", [0, 1])  # the first has a run to put away before it can say what befell it
def test_an_error_is_told_once(worker: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = {"workers": 2, "steps": 2000, "threads": 1, "runs": str(tmp_path / "runs")}
    with pytest.raises(RunError, match=f"worker {worker} of 2 failed: RuntimeError: the sensor is broken"):
        atoll.train(Stumbling(tmp_path / "k", "raise", worker), blobs(), "ddp", **given)
    assert capfd.readouterr().err.count("Traceback") == 1


@pytest.mark.parametrize(
    "strategy",
    ["ddp", *(pytest.param(each, marks=pytest.mark.slow) for each in ("zero1", "fsdp", "diloco:10"))],
)
def test_goes_on_to_the_bit_and_with_other_workers(strategy: str, tmp_path: Path) -> None:
    whole = trained(strategy, 2, every=10)
    half = trained(strategy, 2, steps=30, every=10, runs=str(tmp_path))
    assert half.folder is not None
    for workers in (2, 1):
        on = atoll.train(
            net, blobs(), strategy, workers=workers, steps=60, batch=30, optimizer="sgd:0.9", lr=0.05, every=10,
            threads=1, runs=str(tmp_path), resume=half.folder.path,
        )  # fmt: skip
        if workers == 2:
            assert torch.equal(flat(on), flat(whole))
            half = trained(strategy, 2, steps=30, every=10, runs=str(tmp_path))
            assert half.folder is not None
        elif strategy != "diloco:10":
            assert float((flat(on) - flat(whole)).abs().max()) < 1e-5


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Tanh(), nn.Linear(9, 4))


def test_goes_on_with_the_draws_that_would_have_come(tmp_path: Path) -> None:
    given = {"workers": 2, "every": 10, "batch": 30, "threads": 1}
    whole = atoll.train(dropping, blobs(), "ddp", steps=40, **given)
    half = atoll.train(dropping, blobs(), "ddp", steps=20, runs=str(tmp_path), **given)
    assert half.folder is not None
    on = atoll.train(dropping, blobs(), "ddp", steps=40, runs=str(tmp_path), resume=half.folder.path, **given)
    assert torch.equal(flat(on), flat(whole))


def test_another_run_is_refused(tmp_path: Path) -> None:
    half = trained("ddp", 2, steps=30, every=30, runs=str(tmp_path))
    assert half.folder is not None
    with pytest.raises(ConfigError, match=r"lr is 0\.05 there, 0\.1 here"):
        trained("ddp", 2, lr=0.1, runs=str(tmp_path), resume=half.folder.path)


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(DivergedError):
        trained("ddp", 2, lr=3e38, optimizer="sgd")


# --- the command ----------------------------------------------------------------------------------------------------


def begun(out: int, *arguments: str) -> int:
    """`atoll train` as a process of its own, forked from this one."""
    return fork(lambda: main(["train", *arguments]), out, 2, {**os.environ, "OMP_NUM_THREADS": "1"})


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def command(*arguments: str) -> tuple[int, dict[str, Any]]:
    """How it ended, and its last event."""
    with TemporaryFile() as out:
        code = ended(begun(out.fileno(), "--json", *arguments))
        out.seek(0)
        return code, json.loads(out.read().splitlines()[-1])


@contextlib.contextmanager
def training(place: Path) -> Iterator[int]:
    """A training of two workers that is under way, and has no end."""
    sets = [f"--set={each}" for each in ("data=digits", "steps=100000", "every=10", "threads=1")]
    read, write = os.pipe()
    process = begun(write, "--workers", "2", "--runs", str(place), *sets)
    os.close(write)
    with open(read) as said:
        while "step" not in said.readline():
            pass
        yield process
        while said.read(4096):
            pass


def test_the_command(tmp_path: Path) -> None:
    sets = [f"--set={each}" for each in ("strategy=ring", "data=digits", "steps=20", "threads=1")]
    code, last = command("--workers", "2", "--runs", str(tmp_path), "--save", str(tmp_path / "m"), *sets)
    assert code == 0
    assert last["event"] == "result" and last["steps"] == 20 and last["workers"] == 2
    assert {"loss", "accuracy", "bytes", "seconds", "steps_per_second"} <= set(last)
    assert (tmp_path / "m").stat().st_size > 1000


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["strategy=dpd"], "did you mean"),
        (["batch=1"], "a batch of 1 samples cannot be divided among 2 workers"),
        (["shards=dirichlet"], "needs alpha"),
        (["shares=1,2,3"], "has 3 numbers"),
        (["device=cuda"], "cuda"),
        (["momentum=0.9"], "unknown key 'momentum'"),
        (["optimizer=sgd:2"], "momentum"),
        (["schedule=cosinus:3"], "did you mean"),
    ],
)
def test_bad_input_is_one_screen(
    sets: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if sets == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as end:
        main(["train", "--workers", "2", "--runs", str(tmp_path), *[f"--set={each}" for each in sets]])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and "hint" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with training(tmp_path) as running:
        os.kill(running, number)
    assert ended(running) == code
    (folder,) = tmp_path.iterdir()
    done = atoll.RunFolder(folder).log().events[-1]
    assert done["event"] == "error" and done["round"] > 0
    code, on = command("--resume", str(folder), "--workers", "2", f"--set=steps={10 * done['round'] + 20}")
    assert code == 0 and on["steps"] == 10 * done["round"] + 20


def test_no_worker_outlives_who_started_it(tmp_path: Path) -> None:
    with training(tmp_path) as running:
        workers = Path(f"/proc/{running}/task/{running}/children").read_text().split()
        assert len(workers) == 2
        os.kill(running, signal.SIGKILL)
    assert ended(running) == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    """Two processes that torch's own launcher starts."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "atoll", "train",
         "--json", "--runs", str(tmp_path), "--set=data=digits", "--set=steps=20", "--set=threads=1"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if '"result"' in line]
    assert [each["workers"] for each in results] == [2] and results[0]["steps"] == 20
