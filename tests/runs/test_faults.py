"""What can go wrong with a run folder: each is a clear error or a recovery, and nothing is lost."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from atoll.callbacks import Callback
from atoll.errors import ConfigError, RunError
from atoll.federation import Federation
from atoll.rounds.history import Round
from atoll.runs.checkpoint import list_checkpoints
from atoll.runs.events import read
from atoll.runs.folder import RunFolder
from atoll.runs.readers import Reader

from .test_resume import StopAfter, everything, federation


class Before(Callback):
    """Does something before a round."""

    def __init__(self, number: int, action: object) -> None:
        self.number, self.action = number, action

    def on_round_start(self, federation: Federation, number: int) -> None:
        if number == self.number:
            self.action(federation)  # type: ignore[operator]


@functools.cache
def whole() -> dict[str, bytes]:
    fed = federation()
    fed.fit()
    return everything(fed)


def part(place: Path, rounds: int = 3, **settings: object) -> RunFolder:
    """The folder of a run that was stopped after some rounds."""
    federation(runs=place, callbacks=[StopAfter(rounds)], **settings).fit()  # type: ignore[arg-type]
    return RunFolder.find("last", place)


# --- the disk -------------------------------------------------------------------------------------------------------


def test_no_room_for_events(tmp_path: Path) -> None:
    def fill(federation: Federation) -> None:
        descriptor = federation.keeper.session._recorder._file
        assert descriptor is not None
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)  # the kernel refuses every byte

    fed = federation(runs=tmp_path, callbacks=[Before(4, fill)], checkpoint=1)
    with pytest.raises(RunError, match=r"cannot write events .*events\.jsonl: No space left") as caught:
        fed.fit()
    assert "free some space" in str(caught.value)
    again = federation(runs=tmp_path, checkpoint=1).resume()
    assert again.number == 3
    again.fit()
    assert everything(again) == whole()


def test_no_room_for_a_checkpoint(tmp_path: Path) -> None:
    """A checkpoint that does not fit is no checkpoint; the one before it is gone on from."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    wide = {"model": lambda: nn.Sequential(nn.Linear(6, 4096), nn.ReLU(), nn.Linear(4096, 3))}

    def fill(federation: Federation) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # room for events, not for the model

    fed = federation(runs=tmp_path, callbacks=[Before(4, fill)]).replace(**wide)
    try:
        with pytest.raises(RunError, match=r"cannot write the checkpoint .*round-00004: File too large"):
            fed.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    folder = RunFolder.find("last", tmp_path)
    assert [number for number, _ in list_checkpoints(folder.path)] == [2]
    assert not list((folder.path / "checkpoints").glob(".*"))
    again = federation(runs=tmp_path).replace(**wide).resume()
    assert again.number == 2
    again.fit()
    undisturbed = federation().replace(**wide)
    undisturbed.fit()
    assert everything(again) == everything(undisturbed)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the rename finds every file whole, and the rename itself is written through."""
    told: list[int | str] = []
    sync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        told.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        told.append(Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    folder = part(tmp_path, method="scaffold", rounds=2)
    [(_, path)] = list_checkpoints(folder.path)
    at = told.index(path.name)
    files = {file.name: file.stat().st_ino for file in path.iterdir()}
    assert files.keys() >= {"checkpoint.json", "state.safetensors"} and len(files) > 2  # memories too
    assert set(files.values()) <= set(told[:at])
    assert path.parent.stat().st_ino in told[at:]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match=r"cannot write the run folder in .*file/runs") as caught:
        federation(runs=blocked / "runs").fit()
    assert "--runs" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:  # pragma: no cover - not as root
    folder = part(tmp_path)
    folder.path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="Permission denied"):
            federation(runs=tmp_path).resume().fit()
    finally:
        folder.path.chmod(0o700)


# --- damage ---------------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_played_again(tmp_path: Path) -> None:
    folder = part(tmp_path)
    with open(folder.events_file, "ab") as file:
        file.write(b'{"event":"round","round":4,"coh')
    again = federation(runs=tmp_path).resume()
    run = again.fit()
    assert everything(again) == whole()
    log = read(folder.events_file)
    assert len(log.damaged) == 1
    assert [e["round"] for e in log.events if e["event"] == "round"] == [1, 2, 3, 4, 5, 6]
    assert len(run.rounds) == 6


def test_a_damaged_line_is_reported_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = part(tmp_path)
    lines = folder.events_file.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"round":2,"cohort"' in line and b'"loss"' in line)
    lines[at] = b"\x00\xff" * 20 + b"\n"
    folder.events_file.write_bytes(b"".join(lines))
    again = federation(runs=tmp_path).resume()
    run = again.fit()
    assert everything(again) == whole()
    assert [r.number for r in run.rounds] == [1, 3, 4, 5, 6]
    problems = [e["message"] for e in folder.log().events if e["event"] == "problem"]
    assert any(f"lines that cannot be read: {at + 1}" in text for text in problems)
    assert any("1 rounds are missing" in text for text in problems)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    folder = part(tmp_path, rounds=4, keep="all")
    newest = list_checkpoints(folder.path)[-1][1]
    state = newest / "state.safetensors"
    blob = bytearray(state.read_bytes())
    blob[-1] ^= 1
    state.write_bytes(blob)
    again = federation(runs=tmp_path, keep="all").resume()
    assert again.number == 2
    again.fit()
    assert everything(again) == whole()
    problems = [e["message"] for e in folder.log().events if e["event"] == "problem"]
    assert any("this checkpoint is damaged" in text for text in problems)
    assert (newest.parent / f"damaged-{newest.name}").is_dir()


def test_a_checkpoint_of_another_version(tmp_path: Path) -> None:
    folder = part(tmp_path)
    head = list_checkpoints(folder.path)[-1][1] / "checkpoint.json"
    content = json.loads(head.read_text())
    head.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ConfigError, match=r"has format 99, and this version of Atoll reads format 2"):
        federation(runs=tmp_path).resume()
    head.write_text(json.dumps(content))
    federation(runs=tmp_path).resume().fit()


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no runs in"):
        federation(runs=tmp_path).resume()
    folder = part(tmp_path)
    with pytest.raises(ConfigError, match="there is no run nope") as caught:
        federation(runs=tmp_path).resume("nope")
    assert folder.name in str(caught.value)


# --- others ---------------------------------------------------------------------------------------------------------


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    folder = part(tmp_path)
    code = "import sys, time; from atoll.runs.folder import RunFolder; folder = RunFolder(sys.argv[1]); folder.hold()"
    code = f"{code}; print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline()
        assert folder.held()
        with pytest.raises(RunError, match=rf"is being written by process {other.pid} on"):
            federation(runs=tmp_path).resume()
        with pytest.raises(RunError, match="is still running"):
            folder.remove()
    finally:
        other.kill()
        other.communicate()
    deadline = time.monotonic() + 10
    while folder.held() and time.monotonic() < deadline:
        time.sleep(0.01)
    again = federation(runs=tmp_path).resume()
    with pytest.raises(RunError, match="is being written by this process"):
        federation(runs=tmp_path).resume()
    again.fit()
    assert not folder.held()


def test_a_callback_or_reader_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    class Broken(Callback):
        calls = 0

        def on_round_end(self, federation: Federation, record: Round) -> None:
            self.calls += 1
            raise ValueError("no luck")

    class Deaf(Reader):
        def event(self, event: dict[str, object]) -> None:
            raise OSError("gone")

    broken = Broken()
    fed = federation(runs=tmp_path, callbacks=[broken], log=[Deaf()])
    run = fed.fit()
    assert len(run.rounds) == 6
    assert broken.calls == 1
    found = {e["where"]: e["message"] for e in run.events() if e["event"] == "problem"}
    assert "ValueError: no luck" in found["callback Broken.on_round_end"]
    assert "gone" in found["Deaf"]
    assert everything(fed) == whole()


def test_an_interrupted_round_leaves_no_trace(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a round of a method with memories: the round before is what is kept."""

    class Interrupt(Callback):
        def on_round_start(self, federation: Federation, number: int) -> None:
            if number == 4:
                run, seen = federation.engine.run, federation.memories

                def half(*arguments: object) -> object:
                    run(*arguments)  # type: ignore[arg-type]
                    assert seen._fresh
                    os.kill(os.getpid(), signal.SIGINT)
                    return time.sleep(10)

                federation.engine.run = half  # type: ignore[method-assign, assignment]

    fed = federation("scaffold", runs=tmp_path, callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        fed.fit()
    folder = RunFolder.find("last", tmp_path)
    last = folder.log().events[-1]
    assert (last["event"], last["kind"], last["round"]) == ("error", "Interrupted", 3)
    assert list_checkpoints(folder.path)[-1][0] == 3
    assert load_file(folder.path / "model.safetensors")["body.0.weight"].equal(
        fed.state.params["body.0.weight"]
    )
    again = federation("scaffold", runs=tmp_path).resume()
    again.fit()
    undisturbed = federation("scaffold")
    undisturbed.fit()
    assert everything(again) == everything(undisturbed)


def test_memories_are_written_once_and_linked(tmp_path: Path) -> None:
    """Checkpoints share the memories that did not change, and rewrite them once most of a file is stale."""
    fed = federation("scaffold", runs=tmp_path, rounds=12, checkpoint=1, keep="all", cohort=2)
    fed.fit()
    assert fed.folder is not None
    paths = [path for _, path in list_checkpoints(fed.folder.path)]
    heads = [json.loads((path / "checkpoint.json").read_text()) for path in paths]
    assert any(
        os.stat(path / name).st_nlink > 1
        for path, h in zip(paths, heads, strict=True)
        for name in h["memories"]
    )
    for head in heads:
        clients = [k for held in head["memories"].values() for k in held]
        assert len(clients) == len(set(clients))
        stored = sum(head["files"][name][2] for name in head["memories"])
        assert stored <= 2 * len(clients) + 2
    again = federation("scaffold", runs=tmp_path, rounds=12, cohort=2).resume(fed.folder.path)
    assert everything(again) == everything(fed)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state.params.values(), fed.state.params.values(), strict=True)
    )
    again.fit()
