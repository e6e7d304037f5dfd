"""What a run between machines costs: a thousand clients, a model of 400 MB, uploads beside nginx, four nodes.

    python benchmarks/network.py [--only load,large,upload,round] [--clients 1000] [--write]

Everything runs on this machine, over the loopback. `load` and `large` put bare clients (`network_clients.py`) before a
coordinator's process; `upload` and `round` are nodes under TLS. `--write` stores benchmarks/results/network.json and
.md; parts that were not run keep what is stored.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "network"
TICK = os.sysconf("SC_CLK_TCK")
FEATURES = 784


# --- processes ------------------------------------------------------------------------------------------------------


class Processes:
    """What was started here; all of it ends with the block."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "CI": "1"}
        with (self.place / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=self.place, stdout=log, stderr=log, env=environment)
        self.running.append(process)
        return process

    def atoll(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        return self.start(name, sys.executable, "-m", "atoll.cli", *arguments)

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text(errors="replace")

    def until(self, name: str, text: str, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.log(name):
            if time.monotonic() > end or any(each.poll() for each in self.running):
                raise SystemExit(f"{name} has not said {text!r}:\n{self.log(name)[-3000:]}")
            time.sleep(0.02)

    def ended(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        """Wait for a process that ends by itself, well."""
        end = time.monotonic() + seconds
        while process.poll() is None:
            if time.monotonic() > end or any(each.poll() for each in self.running):
                break
            time.sleep(0.05)
        if process.poll() != 0:
            logs = [
                f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}"
                for log in self.place.glob("*.log")
            ]
            raise SystemExit("\n".join(["a process failed", *logs]))

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.running:
            if each.poll() is None:
                each.send_signal(signal.SIGTERM)
        for each in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(10)
            if each.poll() is None:
                each.kill()


@contextlib.contextmanager
def scene() -> Iterator[tuple[Path, Processes]]:
    """A directory for one measurement, and its processes."""
    with tempfile.TemporaryDirectory(prefix="atoll-network-") as name, Processes(Path(name)) as processes:
        yield Path(name), processes


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def settings(place: Path, network: dict[str, Any], **given: Any) -> None:
    """The run's file."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"classes": 10, "seed": 1, **given}.items()]
    lines += ["[network]", *(f"{key} = {json.dumps(value)}" for key, value in network.items())]
    (place / "run.toml").write_text("\n".join(lines) + "\n")


def answer(path: Path, *widths: int) -> int:
    """Write what a client answers that has learned nothing, to "train" of an MLP; the bytes of its parameters."""
    from atoll.codec import encode
    from atoll.contract import Answer, Reply
    from atoll.tensors import Record, Tensors

    sizes = (FEATURES, *widths, 10)
    update = {}
    for at, (one, other) in enumerate(pairwise(sizes)):
        update[f"{2 * at + 1}.weight"], update[f"{2 * at + 1}.bias"] = (
            torch.zeros(other, one),
            torch.zeros(other),
        )
    metrics = Record(loss=torch.tensor(600.0), count=torch.tensor(600.0), steps=torch.tensor(60.0))
    reply = Reply(
        Record(update=Tensors(update), buffers=Tensors(), counters=Tensors()), torch.tensor(600.0), metrics
    )
    path.write_bytes(encode(Answer(999, reply).to_record()))
    return sum(4 * each.numel() for each in update.values())


def memory(pid: int) -> dict[str, int]:
    """Kilobytes of a process: resident, its highest, and what no file stands behind."""
    text = Path(f"/proc/{pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return {key: int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM", "RssAnon") if key in lines}


def processor(pid: int) -> float:
    """Processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Watch(threading.Thread):
    """Looks at a coordinator's memory, and at which round it is, for as long as it is there."""

    def __init__(self, pid: int, place: Path, every: float) -> None:
        super().__init__(daemon=True)
        self.pid, self.audit, self.every = pid, place / "audit.jsonl", every
        self.anonymous = self.highest = 0
        self.rounds: list[dict[str, float]] = []
        self._base = 0
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        seen = 0
        while not self._over.wait(self.every):
            with contextlib.suppress(OSError, KeyError, ValueError):
                now = memory(self.pid)
                self.anonymous, self.highest = (
                    max(self.anonymous, now["RssAnon"]),
                    max(self.highest, now["VmHWM"]),
                )
                lines = self.audit.read_bytes()[seen:] if self.audit.is_file() else b""
                whole = lines.rpartition(b"\n")[0]
                seen += len(whole)
                for _ in range(whole.count(b'"round-committed"')):
                    self.rounds.append(
                        {"anonymous": now["RssAnon"], "resident": now["VmRSS"], "cpu": processor(self.pid),
                         "at": time.monotonic()}
                    )  # fmt: skip

    def end(self) -> None:
        self._over.set()
        self.join()


def committed(place: Path) -> list[dict[str, Any]]:
    """What the audit log says of each round, `time` in seconds."""
    from datetime import datetime

    found = []
    for line in (place / "audit.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["event"] == "round-committed":
            at = datetime.fromisoformat(record["time"].replace("Z", "+00:00")).timestamp()
            found.append({**record["facts"], "time": at})
    return found


# --- a thousand clients ---------------------------------------------------------------------------------------------


class Prober(threading.Thread):
    """Asks for hello, status and beat in turn, twenty times a second, and notes how long each took."""

    def __init__(self, where: int) -> None:
        super().__init__(daemon=True)
        self.port, self.taken = where, {"hello": [], "status": [], "beat": []}
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        node = {"Atoll-Name": "c0000", "Atoll-Session": f"c0000{1:020d}"}
        asked = {
            "hello": ("GET", "/v1/hello", None, node),
            "status": ("GET", "/v1/status", None, {"Atoll-Name": "looker", "Atoll-Role": "auditor"}),
            "beat": ("POST", "/v1/beat", b"{}", {**node, "Content-Type": "application/json"}),
        }
        while not self._over.is_set():
            for name, (method, path, body, headers) in asked.items():
                since = time.perf_counter()
                try:
                    line.request(method, path, body, headers)
                    found = line.getresponse()
                    found.read()
                except (OSError, http.client.HTTPException):
                    line.close()
                    continue
                if found.status == 200:
                    self.taken[name].append(time.perf_counter() - since)
                self._over.wait(0.05)

    def end(self) -> None:
        self._over.set()
        self.join()


def load(count: int, rounds: int = 20) -> dict[str, Any]:
    """Bare clients, a tenth of which join anew in every round."""
    with scene() as (place, processes):
        where = port()
        settings(
            place, {"min_clients": count * 8 // 10}, method="fedavg", model="mlp:314", rounds=rounds,
            clients=count, cohort=count, quorum=1,
        )  # fmt: skip
        size = answer(place / "answer", 314)
        coordinator = processes.atoll("coordinator", "serve", "run.toml", "--plain", "--port", str(where))
        processes.until("coordinator", "listening")
        watch = Watch(coordinator.pid, place / "coordinator", 0.05)
        clients = processes.start(
            "clients",
            sys.executable,
            str(HERE / "network_clients.py"),
            str(where),
            str(count),
            "answer",
            "0.1",
        )
        processes.until("coordinator", "round", 300)
        prober = Prober(where)
        processes.ended(coordinator, 3000)
        prober.end()
        watch.end()
        processes.ended(clients, 60)
        found = committed(place / "coordinator")
        sessions = int(processes.log("clients").split()[-1])
    late = [each["anonymous"] / 1024 for each in watch.rounds[4:]]
    slope, error = trend(late)
    times = np.diff([each["time"] for each in found])
    cpu = np.diff([each["cpu"] for each in watch.rounds])
    asked = sorted(each for taken in prober.taken.values() for each in taken)
    result = {
        "clients": count, "rounds": len(found), "bytes": size, "sessions": sessions,
        "anonymous_mb": [round(each["anonymous"] / 1024, 1) for each in watch.rounds],
        "resident_mb": [round(each["resident"] / 1024, 1) for each in watch.rounds],
        "slope_anonymous_mb": slope, "slope_error_mb": error,
        "seconds": spread(times), "cpu": spread(cpu), "requests": len(asked),
        "p50_ms": 1e3 * statistics.median(asked), "p99_ms": 1e3 * asked[int(len(asked) * 0.99)],
        "most_ms": 1e3 * asked[-1],
        **{f"p99_{name}_ms": 1e3 * sorted(each)[int(len(each) * 0.99)] for name, each in prober.taken.items()},
    }  # fmt: skip
    result["flat"] = flat(late)
    result["quick"] = result["p99_ms"] < 250
    return result


def trend(values: list[float]) -> tuple[float | None, float | None]:
    """How much is added from each value to the next, by least squares, and the standard error of that; None where too
    few values say nothing of it.
    """
    if len(values) < 4:
        return None, None
    at, y = np.arange(len(values)) - (len(values) - 1) / 2, np.asarray(values)
    slope = float(at @ y / (at @ at))
    rest = y - y.mean() - slope * at
    return slope, math.sqrt(float(rest @ rest) / (len(values) - 2) / float(at @ at))


def flat(values: list[float]) -> bool | None:
    """Whether they go up by less than a fiftieth in all, or by less than a tenth and nothing that their scatter would
    not show, too.
    """
    slope, error = trend(values)
    if slope is None or error is None:
        return None
    risen = slope * (len(values) - 1) / values[0]
    return risen < 1 / 50 or (risen < 1 / 10 and slope < 2 * error)


def spread(values: Any) -> list[float]:
    """Median, least and most."""
    return [float(np.median(values)), float(np.min(values)), float(np.max(values))]


# --- 400 MB ---------------------------------------------------------------------------------------------------------

WIDE = (4900,) * 5


def large(rounds: int = 3) -> dict[str, Any]:
    """Four bare clients and a model of 100 million numbers."""
    with scene() as (place, processes):
        where = port()
        model = "mlp:" + ",".join(map(str, WIDE))
        settings(place, {"min_clients": 4}, method="fedavg", model=model, rounds=rounds, clients=4)
        size = answer(place / "answer", *WIDE)
        coordinator = processes.atoll("coordinator", "serve", "run.toml", "--plain", "--port", str(where))
        processes.until("coordinator", "listening")
        base = memory(coordinator.pid)
        watch = Watch(coordinator.pid, place / "coordinator", 0.01)
        clients = processes.start(
            "clients", sys.executable, str(HERE / "network_clients.py"), str(where), "4", "answer", "0"
        )
        processes.ended(coordinator, 1200)
        watch.end()
        processes.ended(clients, 60)
        found = committed(place / "coordinator")
    models = size / 1024
    return {
        "bytes": size, "rounds": len(found), "base_mb": base["RssAnon"] / 1024,
        "anonymous_mb": watch.anonymous / 1024, "highest_mb": watch.highest / 1024,
        "anonymous_models": watch.anonymous / models, "highest_models": watch.highest / models,
        "seconds": spread(np.diff([each["time"] for each in found])), "cpu": watch.rounds[-1]["cpu"] / len(found),
    }  # fmt: skip


# --- TLS ------------------------------------------------------------------------------------------------------------


def command(place: Path, *arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "atoll.cli", *arguments], cwd=place, capture_output=True, text=True, check=True
    )
    return found.stdout


def invitation(place: Path, name: str) -> str:
    return next(word for word in command(place, "ca", "invite", name).split() if word.startswith("atoll1."))


NGINX = """
daemon off; worker_processes 1; pid {place}/nginx.pid; error_log {place}/nginx-error.log; user root;
events {{ worker_connections 64; }}
http {{
  access_log off; client_max_body_size 0; client_body_temp_path {place}/nginx-body;
  proxy_temp_path {place}/nginx-1; fastcgi_temp_path {place}/nginx-2; uwsgi_temp_path {place}/nginx-3;
  scgi_temp_path {place}/nginx-4; client_body_buffer_size 1m;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3;
    ssl_certificate {served}; ssl_certificate_key {served};
    ssl_client_certificate {place}/ca.pem; ssl_verify_client on;
    location / {{ root {place}/nginx-files; dav_methods PUT; }}
  }}
}}
"""


def upload(width: int = 4900, rounds: int = 7) -> dict[str, Any]:
    """One node sends answers of some 100 MB to its coordinator; curl sends as much to nginx."""
    with scene() as (place, processes):
        where, other = port(), port()
        command(place, "ca", "init")
        settings(
            place, {"min_clients": 1}, method="fedavg", model=f"mlp:{width},{width}", rounds=rounds, clients=1
        )
        answer(place / "answer", width, width)
        coordinator = processes.atoll("coordinator", "serve", "run.toml", "--port", str(where))
        processes.until("coordinator", "listening")
        files = place / "nginx-files"
        files.mkdir()
        files.chmod(0o777)
        node = processes.start(
            "node", sys.executable, str(HERE / "network_upload.py"), str(where), invitation(place, "node"), "answer",
        )  # fmt: skip
        processes.until("node", "ready")
        from atoll.network.authority import Authority

        authority = Authority(place / "ca")
        served = authority.server_certificate(["127.0.0.1"])
        (place / "ca.pem").write_bytes(authority.pem)
        (place / "nginx.conf").write_text(NGINX.format(place=place, port=other, served=served))
        master = processes.start("nginx", "nginx", "-c", str(place / "nginx.conf"))
        while not (place / "nginx.pid").is_file():
            time.sleep(0.05)
        (worker,) = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
        (place / "part").write_text(f"https://127.0.0.1:{other}/body {coordinator.pid} {worker}")
        (place / "part").rename(place / "other.txt")
        processes.ended(node, 600)
        found = json.loads(processes.log("node").splitlines()[-1])
        processes.ended(coordinator, 60)
    return found


# --- four nodes -----------------------------------------------------------------------------------------------------

NAMES = ("ann", "bob", "cat", "dan")


def four(rounds: int = 40, test: bool = False) -> dict[str, Any]:
    """Four nodes on W1's task: 600 images each, batches of ten, one epoch."""
    sys.path.insert(0, str(HERE))
    from workloads import W1, arrays

    known = arrays(W1)
    with scene() as (place, processes):
        where = port()
        command(place, "ca", "init")
        settings(
            place, {"nodes": NAMES}, method="fedavg", model="2nn", rounds=rounds, lr=W1.lr, batch_size=10, epochs=1,
            test=0.2 if test else "none",
        )  # fmt: skip
        coordinator = processes.atoll("coordinator", "serve", "run.toml", "--port", str(where))
        processes.until("coordinator", "listening")
        nodes = []
        for at, name in enumerate(NAMES):
            np.savez(place / f"{name}.npz", x=known.x[at].reshape(-1, FEATURES), y=known.y[at])
            nodes.append(processes.atoll(
                name, "join", f"127.0.0.1:{where}", "--data", f"{name}.npz", "--name", name, "--place", name,
                "--approve", "--log-json", "--invitation", invitation(place, name),
            ))  # fmt: skip
        start = None
        while coordinator.poll() is None:
            with contextlib.suppress(OSError):
                if start is None and len(committed(place / "coordinator")) >= 5:
                    start = processor(coordinator.pid), sum(processor(each.pid) for each in nodes)
                now = processor(coordinator.pid), sum(processor(each.pid) for each in nodes)
            time.sleep(0.1)
        processes.ended(coordinator, 60)
        found = committed(place / "coordinator")
        training: dict[int, list[float]] = {}
        for name in NAMES:
            for line in processes.log(name).splitlines():
                if line.startswith("{") and (record := json.loads(line))["event"] == "trained":
                    training.setdefault(record["facts"]["round"], []).append(record["facts"]["seconds"])
    slowest = {number: max(each) for number, each in training.items()}
    periods = {b["round"]: b["time"] - a["time"] for a, b in pairwise(found)}
    warm = [number for number in periods if number > 5]
    assert start is not None
    return {
        "rounds": len(warm), "test": test,
        "round_ms": spread([1e3 * periods[n] for n in warm]),
        "training_ms": spread([1e3 * slowest[n] for n in warm]),
        "beyond_ms": spread([1e3 * (periods[n] - slowest[n]) for n in warm]),
        "coordinator_cpu_ms": 1e3 * (now[0] - start[0]) / len(warm),
        "nodes_cpu_ms": 1e3 * (now[1] - start[1]) / len(warm) / 4,
    }  # fmt: skip


# --- what comes of it ------------------------------------------------------------------------------------------------


def three(values: list[float], digits: int = 0) -> str:
    """Median, and from least to most."""
    middle, least, most = (f"{each:,.{digits}f}" for each in values)
    return f"{middle} ({least} to {most})"


def judged(fine: bool | None) -> str:
    return "not known" if fine is None else "yes" if fine else "no"


def sloping(found: dict[str, Any]) -> str:
    """The slope of a memory, with its standard error."""
    slope, error = found["slope_anonymous_mb"], found.get("slope_error_mb")
    if slope is None:
        return "too few rounds for a slope"
    return f"{slope:+.2f} MB" if error is None else f"{slope:+.2f} +- {error:.2f} MB"


def rows(known: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was measured, what it came to, what was wanted."""
    if found := known.get("load"):
        name = f"{found['clients']:,} clients, {found['rounds']} rounds, {found['bytes'] / 1e6:.1f} MB"
        late = found["anonymous_mb"][4:] or found["anonymous_mb"][-1:]
        yield name, f"{three(found['seconds'], 1)} s a round, {three(found['cpu'], 1)} s of the processor", ""
        yield "sessions", f"{found['sessions']:,}", "a tenth anew in each round"
        yield (
            "anonymous memory from round 5",
            f"{late[0]:.0f} to {late[-1]:.0f} MB, {sloping(found)} a round",
            f"flat: {judged(found['flat'])}",
        )
        yield (
            f"control requests ({found['requests']:,})",
            f"median {found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms, most {found['most_ms']:.0f} ms",
            f"p99 under 250 ms: {judged(found['quick'])}",
        )
    if found := known.get("large"):
        yield (
            f"a model of {found['bytes'] / 1e6:.0f} MB, 4 clients",
            f"anonymous {found['anonymous_models']:.1f} models, resident {found['highest_models']:.1f} at most"
            f" ({found['base_mb']:.0f} MB before the first client)",
            f"under 3: {'yes' if found['highest_models'] < 3 else 'no'}",
        )
        yield "its round", f"{three(found['seconds'], 1)} s, {found['cpu']:.1f} s of the processor", ""
    if found := known.get("upload"):
        ours, theirs = three(found["node_mb_s"]), three(found["nginx_mb_s"])
        yield (
            f"uploads of {found['bytes'] / 1e6:.0f} MB over TLS",
            f"{ours} MB/s, curl to nginx {theirs}: {three(found['ratio'], 2)}",
            f"half: {'yes' if found['ratio'][0] >= 0.5 else 'no'}",
        )
        spent = {name: found["bytes"] / 1e6 / each[0] for name, each in found["cpu"].items()}
        yield (
            "of which a second of the processor takes",
            f"node {spent['node']:,.0f} MB, coordinator {spent['coordinator']:,.0f} MB;"
            f" curl {spent['curl']:,.0f} MB, nginx {spent['nginx']:,.0f} MB",
            "",
        )
    for name, found in known.get("round", {}).items():
        if isinstance(found, dict):
            yield (
                f"four nodes, W1, {'with' if found['test'] else 'without'} test data ({name})",
                f"{three(found['round_ms'])} ms a round, {three(found['beyond_ms'])} beyond the slowest training",
                "" if found["test"] else f"60 ms: {'yes' if found['beyond_ms'][0] <= 60 else 'no'}",
            )


TEXT = """# What a run between machines costs

`python benchmarks/network.py --write`, on {machine[cores]} cores shared with others (load before
each part: {loads}). Medians, in brackets least and most. What each row means is in `docs/performance.md`,
"Between machines".

| | | wanted |
|---|---|---|
{table}
"""


def render(known: dict[str, Any]) -> str:
    """All that is stored, as Markdown."""
    loads = ", ".join(
        f"{name} {each['load_before']:.1f}" for name, each in known.items() if "load_before" in each
    )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows(known))
    return TEXT.format(machine=known["machine"], loads=loads, table=table)


# --- the command ----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="load,large,upload,round")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20, help="of load")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds: there is no time between rounds where there is one")
    torch.set_num_threads(1)
    parts = {
        "load": lambda: load(given.clients, given.rounds),
        "large": large,
        "upload": upload,
        "round": lambda: {"alone": four(), "judged": four(test=True)},
    }
    stored = RESULTS.with_suffix(".json")
    known = json.loads(stored.read_text()) if stored.is_file() else {}
    for name in filter(None, given.only.split(",")):
        before = os.getloadavg()[0]
        known[name] = {**parts[name](), "load_before": before}
        print(name, json.dumps(known[name], indent=1), flush=True)
        if given.write:
            known["machine"] = {"cores": os.cpu_count(), "system": platform.platform()}
            stored.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
            RESULTS.with_suffix(".md").write_text(render(known), "utf-8")


if __name__ == "__main__":
    main()
