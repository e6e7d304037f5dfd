"""The parameter server: what it computes, whom it waits for, and what becomes of it when processes die."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import atoll
from atoll.distributed import Trained
from atoll.distributed.free import frames
from atoll.distributed.free.frames import Frame, Line
from atoll.distributed.free.gate import Gate
from atoll.distributed.free.keeping import _replica
from atoll.distributed.free.room import Room
from atoll.distributed.free.servers import Servers
from atoll.distributed.free.shard import Shard
from atoll.distributed.settings import Training
from atoll.distributed.training import prepare
from atoll.errors import ConfigError, RunError
from atoll.optimizers import SGD
from atoll.tensors import Record
from tests.distributed.test_strategies import alone, blobs, flat, net, trained

# --- identities -----------------------------------------------------------------------------------------------------


@cache
def once(strategy: str, workers: int = 2) -> Trained:
    return trained(strategy, workers)


@pytest.mark.parametrize(
    "strategy", ["ps:bsp", "ps:ssp,0", pytest.param("ps:bsp,servers=3", marks=pytest.mark.slow)]
)
def test_waiting_for_all_is_one_process_on_the_union_batch(strategy: str) -> None:
    """With momentum, so that one update is not two; servers, however many, and a bound of 0 change no bit."""
    assert float((flat(once(strategy)) - flat(alone())).abs().max()) < 1e-5
    assert torch.equal(flat(once(strategy)), flat(once("ps:bsp,servers=2")))
    assert once(strategy).figures["staleness"] == 0


def test_updates_are_counted_by_their_staleness() -> None:
    found = once("ps:async").figures
    counts = found["stale"]
    assert sum(counts) == 2 * found["steps"]
    assert sum(steps * count for steps, count in enumerate(counts)) / sum(counts) == pytest.approx(
        found["staleness"]
    )
    assert once("ps:bsp").figures["stale"] == [sum(once("ps:bsp").figures["stale"])]


@pytest.mark.slow
def test_four_workers_with_uneven_parts() -> None:
    run = trained("ps:bsp,servers=2", 4, shares="4, 3, 2, 1", accumulate=2, optimizer="adam", lr=0.01)
    want = trained("ddp", 1, optimizer="adam", lr=0.01)
    assert float((flat(run) - flat(want)).abs().max()) < 1e-5
    again = trained("ps:bsp,servers=2", 4, shares="4, 3, 2, 1", accumulate=2, optimizer="adam", lr=0.01)
    assert torch.equal(flat(run), flat(again))


def test_one_asynchronous_worker_is_plain_training() -> None:
    """Nothing comes in between: tau is 0, and w_now is w_seen."""
    for strategy in ("async", "ps:dcasgd,0.5"):
        assert float((flat(once(strategy, 1)) - flat(alone())).abs().max()) < 1e-6


def test_a_gradient_that_is_late_moves_less_or_is_mended() -> None:
    """w = 1, 0: worker 1 sees it, worker 0 moves it by -0.5, 0; then worker 1's gradient 2, 4 comes."""

    def after(rule: str, compensation: float = 0.0) -> list[float]:
        shard = Shard(torch.tensor([1.0, 0.0]), Record(), SGD(), rule, compensation)
        rooms = torch.zeros(2, 2)
        for worker in (0, 1):
            shard.give(worker, rooms[worker])
        shard.apply([0], [torch.tensor([0.5, 0.0])], 1.0)
        shard.apply([1], [torch.tensor([2.0, 4.0])], 0.1)
        assert (shard.version, shard.delay, shard.stale[:2].tolist()) == (2, 1, [1, 1])
        return shard.params.tolist()

    assert after("sum") == pytest.approx([0.5 - 0.2, -0.4])
    assert after("rates") == pytest.approx([0.5 - 0.1, -0.2])
    assert after("delay", 0.25) == pytest.approx([0.5 - 0.1 * (2 + 0.25 * 2 * 2 * -0.5), -0.4])


@pytest.mark.parametrize("strategy", ["async", "ps:dcasgd,0.04", "ps:ssp,3", "hogwild"])
def test_learns_as_well_as_ddp(strategy: str) -> None:
    """On blobs of which everybody finds the best line: within a point of the accuracy.

    Steps become smaller, so that what is found does not hang on who came last.
    """
    settings = {
        "steps": 400, "every": 200, "optimizer": "sgd", "lr": 0.1, "batch": 40, "schedule": "cosine:400", "threads": 1,
    }  # fmt: skip
    want = atoll.train(net, blobs(4000), "ddp", workers=1, **settings).accuracy
    found = atoll.train(net, blobs(4000), strategy, workers=2, **settings).accuracy
    assert want is not None and found is not None and found > want - 0.0101


# --- clocks ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 4), st.lists(st.integers(0, 3), max_size=120), st.integers(0, 120))
def test_no_clock_is_further_ahead_than_the_bound(bound: int, order: list[int], death: int) -> None:
    """Workers give gradients in any order, each when it may, and one dies: the rest always goes on."""
    gate = Gate(bound)
    for worker in range(4):
        gate.enter(worker, 0)
    waiting: set[int] = set()
    computing = set(range(4))
    for at, worker in enumerate(order):
        if at == death:
            gate.leave(3)
            waiting.discard(3)
            computing.discard(3)
        if worker in computing:
            computing.remove(worker)
            gate.arrive(worker)
            waiting.add(worker)
        for free in [each for each in waiting if gate.open(each)]:
            gate.go(free)
            waiting.remove(free)
            computing.add(free)
        working = [gate.clocks[each] for each in computing]
        assert working and max(working) - min(gate.clocks.values()) <= bound
    assert gate.widest <= bound


def test_the_gap_in_a_run_is_bounded_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow worker and a bound of 2; the log is the first server's."""
    log = tmp_path / "gaps"
    going = Gate.go

    def logged(gate: Gate, worker: int) -> None:
        with log.open("a") as file:
            file.write(f"{max(gate.clocks.values()) - min(gate.clocks.values())} {gate.gap(worker)}\n")
        going(gate, worker)

    monkeypatch.setattr(Gate, "go", logged)
    atoll.train(Acting(tmp_path, "slow"), blobs(), "ps:ssp,2", workers=2, steps=12, batch=30, threads=1)
    gaps = [int(line.split()[1]) for line in log.read_text().splitlines()]
    assert len(gaps) == 24 and max(gaps) == 2


# --- deaths ---------------------------------------------------------------------------------------------------------


class Acting(nn.Module):
    """The second worker that is started here is slow, or kills itself or a server in its sixth step, once."""

    def __init__(self, place: Path, how: str, after: int = 6) -> None:
        super().__init__()
        self.inner = net()
        self.place, self.how, self.after, self.calls = place, how, after, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 2:
            self.calls += 1
            if self.calls == 1:
                self.mine = _number(self.place)
            if self.mine == 1 and self.how == "slow":
                time.sleep(0.02)
            elif self.mine == 1 and self.calls == self.after:
                os.kill(os.getpid() if self.how == "worker" else _server(), signal.SIGKILL)
                time.sleep(60)
        return self.inner(x)


def _number(place: Path) -> int:
    """How many have come before, by files that only one can make."""
    for number in range(20):
        try:
            os.close(os.open(place / f"came-{number}", os.O_CREAT | os.O_EXCL))
            return number
        except FileExistsError:
            continue
    raise AssertionError


def _server() -> int:
    """The last child of the process that started this one: the last server."""
    parent = os.getppid()
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return max(map(int, children))


@pytest.mark.parametrize(
    "strategy",
    [
        "ps:async",
        "ps:bsp,servers=2",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("ps:ssp,2", "hogwild")),
    ],
)
def test_a_worker_that_is_killed_is_missed_by_nobody(
    strategy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = atoll.train(
        Acting(tmp_path, "worker"), blobs(), strategy, workers=2, steps=80, every=20, batch=30, threads=1
    )
    assert run.figures["steps"] == 80 and run.figures["rounds"] == 4
    assert run.accuracy is not None and run.accuracy > 0.6
    assert "was ended by SIGKILL; the others go on" in capfd.readouterr().err
    assert (tmp_path / "came-1").exists() and not (tmp_path / "came-2").exists()


@pytest.mark.parametrize("strategy", ["ps:bsp,servers=2", pytest.param("ps:async", marks=pytest.mark.slow)])
def test_another_takes_its_place(strategy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = atoll.train(
        Acting(tmp_path, "worker"), blobs(), strategy, workers=2, steps=600, every=150, batch=30, threads=1,
        restarts=1,
    )  # fmt: skip
    assert run.figures["steps"] == 600
    assert "another takes its place" in capfd.readouterr().err
    assert (tmp_path / "came-2").exists()


def test_a_server_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RunError, match="server 1 of 2 was ended by SIGKILL") as raised:
        atoll.train(
            Acting(tmp_path, "server"),
            blobs(),
            "ps:async,servers=2",
            workers=2,
            steps=5000,
            batch=30,
            threads=1,
        )
    assert raised.value.exit_code == 1
    assert time.monotonic() - began < 50  # no time-out was needed


def test_a_server_that_is_killed_and_a_restart_change_nothing(tmp_path: Path) -> None:
    given = {"workers": 2, "steps": 60, "every": 10, "batch": 30, "optimizer": "sgd:0.9", "lr": 0.05}
    torch.manual_seed(1)
    model = Acting(tmp_path, "server", 33)
    run = atoll.train(
        model, blobs(), "ps:bsp,servers=2", threads=1, restarts=1, runs=str(tmp_path / "runs"), **given
    )
    assert run.folder is not None
    log = [each["event"] for each in run.folder.log().events]
    assert log.count("start") == 1 and log.count("resume") == 1
    assert log.count("round") == 6 and log[-1] == "result"
    assert torch.equal(flat(run), flat(atoll.train(model, blobs(), "ps:bsp", threads=1, **given)))


def test_a_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    """Statistics in buffers and the optimiser's state included; with other workers and servers, nearly so."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    given: dict[str, Any] = {"batch": 32, "optimizer": "adam", "lr": 0.01, "every": 10, "threads": 1}
    place = str(tmp_path)
    half = atoll.train(model, blobs(), "ps:bsp", workers=2, steps=20, runs=place, **given)
    whole = atoll.train(model, blobs(), "ps:bsp", workers=2, steps=40, **given)
    assert half.folder is not None
    on = atoll.train(
        model, blobs(), "ps:bsp", workers=2, steps=40, runs=place, resume=half.folder.path, **given
    )
    for name, value in whole.model.state_dict().items():
        assert torch.equal(on.model.state_dict()[name], value), name
    assert int(on.model.state_dict()["1.num_batches_tracked"]) == 40
    plain = {"workers": 2, "steps": 20, "runs": place, **given}
    half = atoll.train(net, blobs(), "ps:bsp,servers=2", **plain)
    assert half.folder is not None
    on = atoll.train(
        net, blobs(), "ps:bsp,servers=2", resume=half.folder.path, **{**plain, "workers": 1, "steps": 40}
    )
    want = atoll.train(net, blobs(), "ps:bsp", workers=2, steps=40, **given)
    assert float((flat(on) - flat(want)).abs().max()) < 1e-5


# --- who may connect, and what they may say -------------------------------------------------------------------------

TOKEN = bytes(range(frames.TOKEN))


class Stage:
    """A server for two workers in a thread, and whoever wants to speak to it."""

    def __init__(self, place: Path, strategy: str = "ps:bsp") -> None:
        training = Training.read(
            strategy=strategy, workers=2, steps=4, every=4, batch=30, test=None, timeout=20
        )
        self.job = prepare(training, net, blobs())
        self.replica = _replica(self.job)
        self.servers = Servers(self.job, self.job.strategy, self.replica, place)  # type: ignore[arg-type]
        self.servers.token = TOKEN
        self.door = self.servers.doors(0)[0]
        self.thread = threading.Thread(target=self.servers.serve, args=(0, 0), daemon=True)
        self.thread.start()
        self.servers.begin(self.replica, 0, 0)
        self.size = self.replica.params.nbytes
        self.lines: list[Line] = []

    def worker(self, number: int, token: bytes = TOKEN, room: Room | None = None) -> tuple[Line, Room]:
        room = room or Room(self.replica)
        self.lines.append(Line(self.door, token, number, 20.0, room.descriptor))
        return self.lines[-1], room

    def push(self, number: int, step: int = 0, **other: int) -> Frame:
        return Frame(frames.PUSH, number, number, 15, step, size=self.size)._replace(**other)

    def finish(self) -> None:
        """Both workers are still served to the end."""
        lines = [self.worker(number)[0] for number in (0, 1)]
        for step in range(4):
            assert [line.told(self.size).step for line in lines] == [step, step]
            for number, line in enumerate(lines):
                line.push(self.push(number, step))
        assert self.servers.at(self.replica, 4)["samples"] == 120
        self.servers.end()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    if stage.thread.is_alive():
        stage.servers.end()
        stage.thread.join(20)
    for line in stage.lines:
        line.close()


def refused(stage: Stage, line: Line) -> None:
    with pytest.raises(ConnectionError):
        line.told(stage.size)
    line.close()


def test_without_the_token_nobody_is_heard(stage: Stage) -> None:
    refused(stage, stage.worker(0, bytes(frames.TOKEN))[0])
    refused(stage, stage.worker(0, TOKEN[::-1])[0])
    stage.finish()


SPOILED: list[tuple[str, Callable[[Stage], bytes]]] = [
    ("of another protocol", lambda stage: b"GET / HTTP/1.1\r\n".ljust(frames.HEAD, b" ")),
    ("huge", lambda stage: stage.push(0, size=1 << 60).packed()),
    ("short", lambda stage: stage.push(0, size=stage.size - 4).packed()),
    ("another worker's", lambda stage: stage.push(1).packed()),
    ("of another step", lambda stage: stage.push(0, step=1).packed()),
    ("of another part", lambda stage: stage.push(0, part=1).packed()),
    ("the keeper's", lambda stage: Frame(frames.END, 0).packed()),
    ("a state", lambda stage: Frame(frames.LOAD, 0, size=100).packed() + bytes(100)),
]


@pytest.mark.parametrize("blob", [blob for _, blob in SPOILED], ids=[name for name, _ in SPOILED])
def test_frames_that_make_no_sense_end_the_connection_and_nothing_else(
    stage: Stage, blob: Callable[[Stage], bytes]
) -> None:
    line, _ = stage.worker(0)
    line.told(stage.size)
    line._socket.sendall(blob(stage))
    refused(stage, line)
    other, _ = stage.worker(1)
    assert other.told(stage.size).step == 0
    other.push(stage.push(1))  # alone now, it is not held up
    assert other.told(stage.size).step == 1


def test_a_second_gradient_before_the_answer_is_not_taken(stage: Stage) -> None:
    """The first one waits for the other worker."""
    line, _ = stage.worker(0)
    line.told(stage.size)
    line.push(stage.push(0))
    line.push(stage.push(0, 1))
    refused(stage, line)


def test_memory_of_another_length_is_refused(stage: Stage) -> None:
    short = os.memfd_create("short")
    os.ftruncate(short, 64)
    refused(stage, Line(stage.door, TOKEN, 0, 20.0, short))
    unsealed = os.memfd_create("unsealed")
    os.ftruncate(unsealed, os.fstat(Room(stage.replica).descriptor).st_size)
    refused(stage, Line(stage.door, TOKEN, 0, 20.0, unsealed))
    refused(stage, Line(stage.door, TOKEN, 0, 20.0))
    stage.finish()


def test_half_a_frame_holds_up_nobody(stage: Stage) -> None:
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(str(stage.door))
    stranger.sendall(Frame(frames.HELLO, 0, size=frames.TOKEN).packed()[:20])
    stage.finish()
    stranger.close()


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "settings", "said"),
    [
        ("ps:ssp,-1", {}, "value = '-1' is not a number"),
        ("ps:ssp,1.5", {}, "steps are whole"),
        ("ps:ssp", {}, "needs how many steps"),
        ("ps:bsp,3", {}, "takes no number"),
        ("ps:esp", {}, "'ps:esp' is unknown"),
        ("ps", {}, "needs rule"),
        ("ps:async,servers=0", {}, "servers = '0'"),
        ("ps:async,servers=64", {"model": nn.Linear(6, 4)}, "64 servers divide 28 parameters"),
        ("ps:bsp", {"clip": 1.0}, "clip = 1"),
        ("hogwild", {"optimizer": "sgd:0.9"}, "has a state"),
        ("hogwild", {"optimizer": "adam"}, "has a state"),
    ],
)
def test_what_cannot_be_is_told_before_a_process_starts(
    strategy: str, settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.distributed.crew.Crew.run", lambda *_: pytest.fail("a process was started"))
    model = settings.pop("model", net)
    with pytest.raises(ConfigError, match=said):
        atoll.train(model, blobs(), strategy, workers=2, **settings)


@pytest.mark.parametrize(
    "strategy", ["ps:bsp", "ps:ssp,3", "ps:dcasgd,0.04,servers=2", "async", "async:servers=2"]
)
def test_a_strategy_reads_what_it_writes(strategy: str) -> None:
    from atoll.distributed import parse

    assert parse(parse(strategy).text).text == parse(strategy).text  # async is written ps:async
