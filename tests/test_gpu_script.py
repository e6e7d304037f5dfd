"""The GPU script: every part runs as far as a CPU goes, its comparison compares, and what fails is told."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts' own folder on the path, and only here."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in set(sys.modules) - known:
        if name.startswith("gpu") or name in ("workloads", "peers", "peers.networks"):
            del sys.modules[name]


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "error", str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_dry_run_reports_every_part(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = start("--device", "cpu", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert {"device_name", "torch", "cuda", "date", "python", "tf32", "budget", "seconds"} <= told.keys()
    assert (told["device"], told["quick"], told["cuda"]) == ("cpu", True, torch.version.cuda)
    parts = {part["name"]: part for part in told["parts"]}
    assert list(parts) == [
        "agree",
        "methods",
        "resume",
        "channels",
        "training",
        "together",
        "steps",
        "workloads",
        "cohorts",
        "convolutions",
        "eager",
        "tf32",
        "text",
        "graph",
    ]
    for part in parts.values():
        assert {"title", "status", "peak_mib", "rows"} <= part.keys()
        assert part["title"] in done.stdout
        assert part["rows"] and all({"case", "status"} <= row.keys() for row in part["rows"])
    assert {name for name, part in parts.items() if part["status"] != "ok"} == {"tf32"}
    assert {row["status"] for row in parts["tf32"]["rows"]} == {"needs CUDA"}
    assert {row["graph ms"] for row in parts["graph"]["rows"]} == {"needs CUDA"}
    assert all(
        0 < row["batched cpu"] <= row["tolerance"]
        for name in ("agree", "methods")
        for row in parts[name]["rows"]
    )
    timed = [row for name in ("workloads", "cohorts", "convolutions", "eager") for row in parts[name]["rows"]]
    assert all(row["s a round"] > 0 and row["steps/s"] > 0 for row in timed)


def test_an_unknown_part_and_a_missing_device_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu

    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    out = tmp_path / "gpu.json"
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--quick", "--only", "agree,speed", "--out", str(out)])
    assert "no part speed; there are agree, methods, resume" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "no CUDA device" in error and "--device cpu --quick" in error
    assert not out.exists()


def test_distance_is_relative_to_the_way_and_sees_every_difference() -> None:
    from gpu_agree import apart, distance

    start = {"w": torch.zeros(3), "n": torch.tensor(4)}
    wanted = {"w": torch.tensor([3.0, 0.0, 4.0]), "n": torch.tensor(5)}
    assert distance(wanted, wanted, start) == 0
    near = {**wanted, "w": wanted["w"] + torch.tensor([0.0, 0.05, 0.0])}
    assert distance(near, wanted, start) == pytest.approx(0.01)
    assert distance({**wanted, "n": torch.tensor(6)}, wanted, start) == math.inf
    assert distance({"w": wanted["w"]}, wanted, start) == math.inf
    assert distance({**wanted, "w": torch.zeros(2)}, wanted, start) == math.inf
    assert distance({**wanted, "w": wanted["w"] * math.nan}, wanted, start) == math.inf
    assert distance(near, wanted, wanted) == math.inf  # nothing has moved, and they differ

    layers = [torch.nn.BatchNorm1d(2) for _ in range(3)]
    found, reference, first = layers
    with torch.no_grad():
        first.weight.fill_(0.0)
        first.running_mean.fill_(-100.0)
        found.running_mean.fill_(1.0)
    assert apart(reference, reference, first) == 0
    assert apart(found, reference, first) == pytest.approx(0.01, rel=1e-3)  # of buffers, by their own way


@pytest.mark.parametrize("fault", ["another model", "an error"])
def test_engines_that_do_not_agree_are_a_failure(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_agree
    from gpu_runner import Setting

    trained = gpu_agree.trained

    def faulty(network: Any, method: str, engine: str, *rest: Any) -> Any:
        models = trained(network, method, engine, *rest)
        if engine == "batched":
            if fault == "an error":
                raise ArithmeticError("broken here")
            with torch.no_grad():
                next(models[-1].parameters()).add_(1e-3)  # of the last client's own model
        return models

    setting = Setting(CPU, quick=True)
    monkeypatch.setattr(gpu_agree, "trained", faulty)
    row = gpu_agree.agree(gpu_agree.NETWORKS["MLP"], "Ditto", setting)
    assert ("broken here" if fault == "an error" else "allowed are 1e-04") in row["failed"]


def test_a_case_that_fails_is_told_and_the_rest_goes_on() -> None:
    from gpu_runner import Case, Part, Setting, exit_code, play, table

    def broken(setting: Setting) -> dict[str, float]:
        raise RuntimeError("this part is broken")

    def fine(setting: Setting) -> dict[str, float]:
        return {"seconds": 0.125}

    parts = [
        Part("one", "The first", [Case("broken", broken), Case("fine", fine)]),
        Part(
            "two",
            "The second",
            [Case("wrong", lambda _: {"apart": 2.0, "failed": "too far"}, needs_cuda=False)],
        ),
        Part("three", "The third", [Case("device", fine, needs_cuda=True)]),
    ]
    seen: list[int] = []
    outcomes = play(parts, Setting(CPU), 100.0, after=lambda so_far: seen.append(len(so_far)))
    rows = [row for outcome in outcomes for row in outcome.rows]
    assert [row["status"] for row in rows] == ["failed", "ok", "failed", "needs CUDA"]
    assert rows[0]["error"].splitlines()[-1] == "RuntimeError: this part is broken"
    assert rows[1]["seconds"] == 0.125
    assert (rows[2]["apart"], rows[2]["error"]) == (2.0, "too far")
    assert seen == [1, 2, 3]
    assert "this part is broken" in table(outcomes[0])
    assert exit_code(outcomes) == 1
    assert exit_code(outcomes[2:]) == 0


def test_a_step_on_static_buffers_does_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_graph
    from gpu_runner import Setting
    from workloads import W1

    class Played:
        """A graph that is not recorded but called."""

        def __init__(self, work: Any) -> None:
            self.replay = work

    class AsOnCuda(Setting):
        cuda = True

        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(gpu_graph, "graph_of", Played)
    row = gpu_graph.replayed(W1, 2, AsOnCuda(CPU, quick=True))
    assert "failed" not in row
    assert row["apart"] < 1e-6 and row["ratio"] > 0
    monkeypatch.setattr(gpu_graph, "graph_of", lambda work: Played(lambda: None))
    assert "lies" in gpu_graph.replayed(W1, 2, AsOnCuda(CPU, quick=True))["failed"]


def test_what_no_longer_fits_is_skipped() -> None:
    from gpu_runner import Case, Part, Setting, exit_code, play, table

    cases = [Case("long", lambda _: {}, expect=60.0), Case("short", lambda _: {}, expect=1.0)]
    (outcome,) = play([Part("one", "One", cases)], Setting(CPU), 40.0, time.monotonic() - 10.0)
    assert [row["status"] for row in outcome.rows] == ["skipped", "ok"]
    assert "may take 60 s, 30 s left" in table(outcome)
    assert (outcome.to_dict()["status"], exit_code([outcome])) == ("skipped", 0)
