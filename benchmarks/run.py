"""Measure Atoll and its peers on this machine: one after the other, in turn, on the same arrays.

    python benchmarks/run.py [--only W1,W2,population] [--peers pfl,fedjax,tutorial,matmul,limit] [--repeat 3]

Run it with the interpreter of the environment in which Atoll is installed. See `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads import cores

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
RUN_LIMIT = 1200  # seconds for one process

COLUMNS = (
    "",
    "s/round",
    "ratio",
    "fastest-slowest",
    "to 1st round",
    "proc x thr",
    "MiB",
    "accuracy",
    "version",
)

FIRST = {**os.environ, "ATOLL_CACHE": "off"}
"""Every process is the first of its kind: nothing that another one found is remembered."""
# What is installed has its bytecode, and so have all that are measured.
FIRST.pop("PYTHONDONTWRITEBYTECODE", None)

Json = dict[str, Any]


@dataclass(frozen=True)
class System:
    """One line of the table: a script, the environment it runs in ("" is this one) and how it is started."""

    title: str
    peer: str
    script: str
    arguments: tuple[str, ...] = ()
    environment: str = ""
    processes: int = 1
    workloads: tuple[str, ...] = ("W1", "W2")

    def command(self, workload: str, rounds: int) -> list[str]:
        """What is executed in the root of the repository."""
        python = _python(self.environment) if self.environment else sys.executable
        start = [python]
        if self.processes > 1:
            count = str(self.processes)
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
        return [*start, f"benchmarks/{self.script}", workload, "--rounds", str(rounds), *self.arguments]


def systems(processes: int) -> list[System]:
    """Atoll first: the others are compared with it."""
    atoll, alone = "atoll_bench.py", ("population",)
    found = [
        System("Atoll", "atoll", atoll),
        System("Atoll, 1,000 clients", "atoll", atoll, ("--clients", "1000"), workloads=alone),
        System("Atoll, 1,000,000 clients", "atoll", atoll, ("--clients", "1000000"), workloads=alone),
        System("batched matmul (limit)", "matmul", "peers/batched_matmul.py", workloads=("W1",)),
        System(
            "written-out CNN (limit)",
            "limit",
            "peers/written_out_cnn.py",
            processes=processes,
            workloads=("W2",),
        ),
        System("FedJAX", "fedjax", "peers/fedjax_peer.py", environment="fedjax"),
    ]
    if processes > 1:
        title = f"pfl, {processes} processes"
        found.append(System(title, "pfl", "peers/pfl_peer.py", environment="pfl", processes=processes))
    found += [
        System("pfl, 1 process", "pfl", "peers/pfl_peer.py", environment="pfl"),
        System("tutorial loop", "tutorial", "peers/tutorial_loop.py"),
    ]
    return found


# --- environments -------------------------------------------------------------------------------------------


def _python(environment: str) -> str:
    return f"benchmarks/peers/.venv-{environment}/bin/python"


def prepare(environment: str) -> str | None:
    """Make a peer's environment if it is absent or out of date.  Returns why it cannot be had, or None."""
    place = BENCHMARKS / "peers" / f".venv-{environment}"
    requirements = BENCHMARKS / "peers" / f"requirements-{environment}.txt"
    wanted = f"python {platform.python_version()}\n{requirements.read_text()}"
    stamp = place / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    print(f"preparing the environment of {environment} ...", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    install = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
    for command in ([sys.executable, "-m", "venv", str(place)], install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"installation failed: {_last_words(done.stderr or done.stdout)}"
    stamp.write_text(wanted)
    return None


def _last_words(text: str) -> str:
    """The line of an output that says what went wrong: the last that names an error, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines)[-1].replace(str(ROOT), ".")


# --- one process --------------------------------------------------------------------------------------------


def measure(system: System, workload: str, rounds: int) -> Json:
    """Run one system once.  Returns its line, or {"failed": reason}."""
    command = system.command(workload, rounds)
    began, busy, own = time.monotonic(), _machine_seconds(), _own_seconds()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            process = subprocess.Popen(command, cwd=ROOT, env=FIRST, stdout=out, stderr=err, text=True)
        except OSError as error:
            return {"failed": f"cannot be started: {error.strerror}"}
        memory = _watched(process, began + RUN_LIMIT)
        if memory is None:
            return {"failed": f"no result after {RUN_LIMIT} s"}
        out.seek(0), err.seek(0)
        lines = [line for line in out if line.startswith("{")]
        if process.returncode or not lines:
            return {"failed": f"exit status {process.returncode}: {_last_words(err.read())}"}
    others = (_machine_seconds() - busy) - (_own_seconds() - own)
    about = {"memory_mib": memory, "others_cores": max(0.0, others / (time.monotonic() - began))}
    return {**json.loads(lines[-1]), **about}


def _watched(process: subprocess.Popen[str], deadline: float) -> float | None:
    """Wait for a process; the most memory that it and its children had together, MiB. None where it took too long."""
    peak = 0.0
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            return None
        peak = max(peak, sum(map(_memory, _family(process.pid))))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
    return peak


def _family(pid: int) -> list[int]:
    """A process and all that it has started, and they."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(each for child in children for each in _family(int(child)))]


def _memory(pid: int) -> float:
    """Memory of a process in MiB, what it shares with others divided among them (PSS)."""
    return float((_proc(f"/proc/{pid}/smaps_rollup", "Pss:", ":") or "0 kB").split()[0]) / 1024


def _machine_seconds() -> float:
    """Processor seconds spent on this machine since it started, by everybody and on every core."""
    fields = (_proc("/proc/stat", "cpu ", " ") or "").split()
    # user, nice, system, idle, iowait, irq, softirq, steal: all but idle and iowait.
    return sum(map(int, fields[:3] + fields[5:8])) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Processor seconds of this process and of those it has waited for."""
    return sum(os.times()[:4])


def machine() -> Json:
    """What the numbers depend on besides the code."""
    return {
        "cpu": _proc("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "cores_used": cores(),
        "memory": _proc("/proc/meminfo", "MemTotal"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
    }


def _proc(path: str, key: str, separator: str = ":") -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(separator)[2].strip() for line in lines if line.startswith(key)), None)


def revision() -> str | None:
    """The commit that was measured, with "-dirty" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


# --- a workload ---------------------------------------------------------------------------------------------


def compare(
    workload: str, chosen: Sequence[System], missing: dict[str, str], rounds: int, repeat: int
) -> list[Json]:
    """Every system `repeat` times, in turn: A B C, A B C, so that a change of the machine meets all alike."""
    entries: list[Json] = []
    for system in chosen:
        command = " ".join(system.command(workload, rounds)).replace(sys.executable, "python")
        missed = missing.get(system.environment)
        entries.append({"title": system.title, "command": command, "missing": missed, "runs": []})
    for turn in range(repeat):
        for system, entry in zip(chosen, entries, strict=True):
            if entry["missing"]:
                continue
            print(f"{workload} {turn + 1}/{repeat} {system.title} ...", file=sys.stderr, flush=True)
            result = measure(system, workload, rounds)
            entry["runs"].append(result)
            if "failed" in result:
                entry["missing"] = result["failed"]
    for entry in entries:
        times = [result["seconds_per_round"] for result in entry["runs"] if "failed" not in result]
        entry["seconds_per_round"] = None if entry["missing"] else statistics.median(times)
    first = entries[0]["seconds_per_round"]
    for entry in entries:
        own = entry["seconds_per_round"]
        entry["ratio"] = own / first if own and first else None
    return entries


def table(workload: str, entries: Sequence[Json]) -> str:
    """The entries as plain text, times in seconds."""
    rows = [list(COLUMNS)]
    notes = []
    for entry in entries:
        if entry["missing"]:
            rows.append([entry["title"], "missing", *[""] * (len(COLUMNS) - 2)])
            notes.append(f"{entry['title']}: {entry['missing']}")
            continue
        runs = entry["runs"]
        times = [result["seconds_per_round"] for result in runs]
        if (others := max(result["others_cores"] for result in runs)) > 0.1:
            notes.append(f"{entry['title']}: not alone, other processes kept {others:.1f} cores busy")
        engines = dict.fromkeys(result["engine"] for result in runs if "engine" in result)
        notes += [f"{entry['title']}: {engine}" for engine in engines]
        accuracy = runs[-1]["accuracy_after"]
        rows.append(
            [
                entry["title"],
                f"{entry['seconds_per_round']:.4f}",
                f"{entry['ratio']:.2f}" if entry["ratio"] else "",
                f"{min(times):.4f}-{max(times):.4f}",
                f"{statistics.median(result['seconds_to_first_round'] for result in runs):.1f}",
                f"{runs[0]['processes']} x {runs[0]['threads']}",
                f"{max(result['memory_mib'] for result in runs):.0f}",
                f"{accuracy:.4f}" if accuracy is not None else "",
                runs[0]["version"],
            ]
        )
    rows[0][0] = workload
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    head, *lines = ["  ".join(row).rstrip() for row in padded]
    return "\n".join([head, "-" * len(head), *lines, *notes])


def store(workload: str, entries: Sequence[Json], about: Json) -> Path:
    """Write everything that was measured, raw numbers included."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{workload}-{time.strftime('%Y-%m-%d-%H%M')}.json"
    path.write_text(json.dumps({"workload": workload, **about, "systems": entries}, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Atoll and its peers on the same arrays.")
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--only", default="W1,W2", help="of W1, W2 and population")
    parser.add_argument("--peers", default="matmul,limit,fedjax,pfl,tutorial", help="'' for Atoll alone")
    parser.add_argument("--repeat", type=int, default=3, help="processes for each system")
    parser.add_argument("--rounds", type=int, default=12, help="rounds a process, two of them warm-up")
    parser.add_argument("--cores", type=int, default=2, help="bind everything to so many cores")
    given = parser.parse_args()
    wanted = {"atoll", *filter(None, given.peers.split(","))}
    workloads = given.only.split(",")

    if hasattr(os, "sched_setaffinity"):  # what is started below inherits it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    everything = systems(cores())
    for kind, unknown in (
        ("peers", wanted - {system.peer for system in everything}),
        ("only", set(workloads) - {name for system in everything for name in system.workloads}),
    ):
        if unknown:
            parser.error(f"--{kind}: unknown {', '.join(sorted(unknown))}")
    if given.repeat < 1 or given.rounds < 3:
        parser.error("at least --repeat 1 and --rounds 3")

    chosen = [system for system in everything if system.peer in wanted]
    needed = {s.environment for s in chosen if s.environment and set(s.workloads) & set(workloads)}
    missing = {name: reason for name in sorted(needed) if (reason := prepare(name))}
    about: Json = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "arguments": sys.argv[1:],
        "revision": revision(),
        "machine": machine(),
    }
    if (load := about["machine"]["load_at_start"]) > 0.5:
        print(f"note: the machine is not idle (load {load:.1f})", file=sys.stderr)
    for workload in workloads:
        taking_part = [system for system in chosen if workload in system.workloads]
        entries = compare(workload, taking_part, missing, given.rounds, given.repeat)
        path = store(workload, entries, about)
        print(f"\n{table(workload, entries)}\n{path.relative_to(ROOT)}\n", flush=True)


if __name__ == "__main__":
    main()
