"""A model that is larger than its coordinator's memory: three nodes under TLS, one of them killed while it answers.

    python benchmarks/network_stream.py [--layers 6] [--width 9100] [--write]

The model is an MLP of random weights with few large layers (`--layers` of `--width` squared: 2 GB by default), the
method FedAvg, one step of two samples at each of three nodes, in turn so that one machine has room for them. The
second node is killed in the middle of its upload, and begun again. What is looked at, every 10 ms: the coordinator's
memory that no file stands behind (RssAnon of /proc), and all that is resident, mapped files included. In the end the
mean of the answers is taken in memory, layer by layer, and must be the global model's change to the bit; and the
streaming mean of the same answers, in files, is timed against plain copies of them. `--write` stores
benchmarks/results/network-stream.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from atoll.codec import OWN, read, viewed
from atoll.contract import Answer, Mean
from atoll.contract.screen import screen
from atoll.mapped import Mapped
from atoll.network.blobs import mapped
from atoll.tensors import Record, Tensors
from network import FEATURES, Processes, Watch, command, invitation, memory, port, scene, settings

NAMES = ("ann", "bob", "cat")
SAMPLES = {"ann": 2, "bob": 3, "cat": 5}
RESULTS = Path(__file__).parent / "results" / "network-stream"


def node(processes: Processes, place: Path, where: int, name: str) -> subprocess.Popen[bytes]:
    return processes.atoll(
        name, "join", f"127.0.0.1:{where}", "--data", f"{name}.npz", "--name", name, "--place", name, "--approve",
        "--log-json", *([] if (place / name).is_dir() else ["--invitation", invitation(place, name)]),
    )  # fmt: skip


def worker(process: subprocess.Popen[bytes]) -> int:
    """A node's worker process."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return int(text.split()[0])


def waiting(condition: Any, what: str, processes: Processes, seconds: float = 3000.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or any(each.poll() not in (None, 0, -9) for each in processes.running):
            logs = [
                f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}"
                for log in processes.place.glob("*.log")
            ]
            raise SystemExit("\n".join([f"no {what}", *logs]))
        time.sleep(0.01)


def events(place: Path, kind: str) -> list[dict[str, Any]]:
    path = place / "coordinator" / "audit.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [each for line in lines if (each := json.loads(line))["event"] == kind]


def run(layers: int, width: int) -> dict[str, Any]:
    with scene() as (place, processes):
        where = port()
        command(place, "ca", "init")
        model = "mlp:" + ",".join([str(width)] * (layers + 1))
        settings(
            place, {"nodes": NAMES}, method="fedavg", model=model, rounds=1, lr=0.01, epochs=1, batch_size=2, steps=1,
            test="none", eval_every=0, engine="loop",
        )  # fmt: skip
        random = np.random.default_rng(0)
        for name, count in SAMPLES.items():
            x = random.standard_normal((count, FEATURES)).astype(np.float32)
            np.savez(place / f"{name}.npz", x=x, y=np.arange(count) % 10)
        coordinator = processes.atoll("coordinator", "serve", "run.toml", "--port", str(where))
        processes.until("coordinator", "listening")
        base = memory(coordinator.pid)
        watch = Watch(coordinator.pid, place / "coordinator", 0.01)
        since = time.monotonic()
        nodes: dict[str, subprocess.Popen[bytes]] = {}
        for name in NAMES:
            nodes[name] = node(processes, place, where, name)
            waiting(lambda: len(events(place, "announced")) == len(nodes), f"node {name}", processes)
            os.kill(worker(nodes[name]), signal.SIGSTOP)
        bodies, killed, peaks = place / "coordinator" / "bodies", dict[str, Any](), dict[str, float]()
        for at, name in enumerate(NAMES):
            hand = worker(nodes[name])
            os.kill(hand, signal.SIGCONT)
            if name == "bob":
                killed = cut(place, processes, nodes[name], bodies)
                nodes[name] = node(processes, place, where, name)
                hand = 0
            peaks[name] = answered(place, processes, at, hand)
            print(f"{time.monotonic() - since:.0f} s: answer of {name}", file=sys.stderr, flush=True)
        answers = place / "answers"  # kept for what is looked at afterwards
        answers.mkdir()
        for each in events(place, "answer-accepted"):
            os.link(bodies / each["facts"]["sha256"], answers / each["facts"]["sha256"])
        waiting(lambda: coordinator.poll() is not None, "end", processes)
        watch.end()
        seconds = time.monotonic() - since
        trained = processes.log("bob").count('"event":"trained"')
        print(f"{seconds:.0f} s: the run is over", file=sys.stderr, flush=True)
        size, equal = compared(place, sorted(answers.iterdir()))
        found = {
            "bytes": size, "layers": layers, "largest_layer": 4 * width * width, "base_mb": base["RssAnon"] / 1024,
            "anonymous_mb": watch.anonymous / 1024, "highest_mb": watch.highest / 1024, "node_mb": peaks,
            "seconds": seconds, "equal": equal, "killed": killed, "trained": trained,
            "streaming": streaming(place, sorted(answers.iterdir())),
        }  # fmt: skip
    return found


def answered(place: Path, processes: Processes, before: int, hand: int) -> float:
    """Wait for the next answer; the worker's anonymous memory at most, in MB."""
    most = 0.0

    def done() -> bool:
        nonlocal most
        if Path(f"/proc/{hand}/status").is_file():
            most = max(most, memory(hand).get("RssAnon", 0) / 1024)
        return len(events(place, "answer-accepted")) > before

    waiting(done, f"answer {before + 1}", processes)
    return most


def cut(place: Path, processes: Processes, process: subprocess.Popen[bytes], bodies: Path) -> dict[str, Any]:
    """Kill a node in the middle of its upload; what had come by then."""

    def part() -> Path | None:
        return next(bodies.glob("[0-9]*.part"), None)

    def size() -> int:
        found = part()
        try:
            return 0 if found is None else found.stat().st_size
        except OSError:
            return 0

    shelf = next((place / "bob").glob("*/answers"))

    def there() -> Path | None:
        return next((each for each in shelf.iterdir() if each.suffix != ".part"), None)

    waiting(lambda: there() is not None, "answer of bob", processes)
    answer = there()
    assert answer is not None
    whole = answer.stat().st_size
    waiting(lambda: size() > 0.4 * whole, "upload", processes)
    process.kill()
    process.wait()
    time.sleep(0.5)
    return {"size": whole, "there": size()}


def compared(place: Path, answers: list[Path]) -> tuple[int, bool]:
    """Whether the global model is the one before it plus the mean of the answers, taken in memory; and its bytes."""
    run = next((place / "coordinator" / "runs").iterdir())
    first = read(run / "checkpoints" / "round-00000" / "state.safetensors")
    found = sorted((read_answer(each) for each in answers), key=lambda each: each.client)
    size, equal = 0, True
    with safe_open(run / "model.safetensors", "pt") as model:
        for name in model.keys():  # noqa: SIM118 - not a mapping
            value, mean = model.get_tensor(name), Mean()
            size += value.nbytes
            for each in found:
                mine = Record(update=Tensors({name: each.reply.values.update[name].clone()}))
                mean.merge_one(Mean, each.client, each.reply._replace(values=mine))
            replies = mean.result()
            assert replies is not None
            equal = equal and torch.equal(first.params[name] + replies.mean.update[name], value)
    return size, equal


def read_answer(path: Path) -> Answer:
    return Answer.of_record(viewed(mapped(path), limits=OWN))


def streaming(place: Path, answers: list[Path], times: int = 3) -> dict[str, Any]:
    """Seconds for the mean of these answers, each looked at as a coordinator does, and for copies of their files."""
    room = place / "room"
    room.mkdir()
    taken: dict[str, list[float]] = {"mean": [], "copy": []}
    for _ in range(times):
        since = time.perf_counter()
        for path in answers:
            shutil.copyfile(path, room / path.name)
        taken["copy"].append(time.perf_counter() - since)
        for path in answers:
            (room / path.name).unlink()
        since = time.perf_counter()
        with Mapped(room):
            mean = Mean()
            for path in answers:
                answer = read_answer(path)
                assert screen(answer.reply, answer.reply.values) is None
                values = answer.reply._replace(values=Record(update=answer.reply.values.update))
                mean.merge_one(Mean, answer.client, values)
            found = mean.result()
        taken["mean"].append(time.perf_counter() - since)
        assert found is not None
        del found, mean, answer, values
    size = sum(path.stat().st_size for path in answers)
    ratios = [copy / mean for copy, mean in zip(taken["copy"], taken["mean"], strict=True)]
    return {
        "bytes": size, **{f"{name}_mb_s": [size / 1e6 / each for each in all] for name, all in taken.items()},
        "ratio": statistics.median(ratios), "ratios": ratios,
    }  # fmt: skip


TEXT = """# A model that is larger than its coordinator's memory

`python benchmarks/network_stream.py --write`: {layers} layers of {largest:.0f} MB, {size:.2f} GB in all, FedAvg, one
round of three nodes under TLS on one machine ({cores} cores, shared with other work). Anonymous memory is RssAnon of
/proc, looked at every 10 ms: what no file stands behind.

| | | wanted |
|---|---|---|
| coordinator, anonymous memory at most | {anonymous:.0f} MB ({base:.0f} before any node) | under 600 MB: {little} |
| coordinator, resident, mapped files included | {highest:.0f} MB | |
| node, anonymous memory at most | {node:.0f} MB | |
| global model is the mean taken in memory, to the bit | {equal} | yes |
| node killed in the middle of its upload | at {there:.0f} of {whole:.0f} MB; then it sent the rest, {trained} | |
| streaming mean of three answers, MB/s | {mean}; copies of their files {copy}: {ratio:.2f} | half: {half} |
| the round, with the start of all processes | {seconds:.0f} s | |
"""


def render(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""

    def yes(fine: bool) -> str:
        return "yes" if fine else "no"

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"

    killed, taken = found["killed"], found["streaming"]
    return TEXT.format(
        layers=found["layers"], largest=found["largest_layer"] / 1e6, size=found["bytes"] / 1e9,
        cores=found["machine"]["cores"], anonymous=found["anonymous_mb"], base=found["base_mb"],
        little=yes(found["anonymous_mb"] < 600), highest=found["highest_mb"], node=max(found["node_mb"].values()),
        equal=yes(found["equal"]), there=killed["there"] / 1e6, whole=killed["size"] / 1e6,
        trained="not trained anew" if found["trained"] == 1 else "trained anew", mean=spread(taken["mean_mb_s"]),
        copy=spread(taken["copy_mb_s"]), ratio=taken["ratio"], half=yes(taken["ratio"] >= 0.5),
        seconds=found["seconds"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=9100)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        **run(given.layers, given.width),
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
    }
    print(json.dumps(found, indent=1))
    if given.write:
        RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        RESULTS.with_suffix(".md").write_text(render(found), "utf-8")


if __name__ == "__main__":
    main()
