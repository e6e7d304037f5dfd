"""A SuperLink, SuperNodes and runs on this machine, as processes of Flower's own commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.network.cluster import digits, free_port, write

__all__ = ["Loopback"]

NAMES = ("ann", "bob", "cat")

_KEPT = '"$@" & cat > /dev/null; kill -KILL 0'
"""Runs a command as long as who has started it is there, whose end of the pipe the system closes: no process is left of
a test that was killed. Those that Flower puts into other groups look for their parents themselves."""


class Loopback:
    """A Flower network of three SuperNodes with handwritten digits, without TLS.

    Args:
        place: its directory; a node's file, directory and log are NAME.npz, NAME and NAME.log in it.

    Nothing is fetched: no telemetry, no look for updates, no installation of an app's dependencies.
    """

    def __init__(self, place: Path, names: Sequence[str] = NAMES) -> None:
        self.place, self.names, self.port = place, list(names), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._before: dict[str, int] = {}
        for name, samples in digits(self.names).items():
            write(place / f"{name}.npz", samples)
        home = place / "flower"
        home.mkdir()
        self.settings = home / "config.toml"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.environment = {
            **os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1", "COLUMNS": "160", "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path),
            "PATH": os.pathsep.join([*_commands(), os.environ["PATH"]]),
        }  # fmt: skip

    def start(self, name: str, release: str | None = None) -> None:
        """The SuperLink ("superlink"), or a node's SuperNode; to its apps Flower says that it is this release."""
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port),
                   "--disable-runtime-dependency-installation"]  # fmt: skip
        if name != "superlink":
            said = {"name": name, "data": str(self.place / f"{name}.npz"), "place": str(self.place / name)}
            config = " ".join(f"{key}={json.dumps(value)}" for key, value in said.items())
            command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}",
                       "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", config]  # fmt: skip
        environment = self.environment
        if release is not None:
            said_by = self.place / "release" / f"flwr-{release}.dist-info"
            said_by.mkdir(parents=True, exist_ok=True)
            (said_by / "METADATA").write_text(f"Metadata-Version: 2.1\nName: flwr\nVersion: {release}\n")
            first = os.pathsep.join([str(said_by.parent), environment["PYTHONPATH"]])
            environment = {**environment, "PYTHONPATH": first}
        self._before[name] = len(self.log(name))
        with (self.place / f"{name}.log").open("ab") as stream:
            self.processes[name] = subprocess.Popen(
                ["sh", "-c", _KEPT, name, *command], stdout=stream, stderr=stream, stdin=subprocess.PIPE,
                env=environment, cwd=self.place, start_new_session=True,
            )  # fmt: skip

    def start_all(self) -> None:
        self.start("superlink")
        self.until("Starting Flower SuperLink|running on", "superlink")
        for name in self.names:
            self.start(name)

    def flwr(self, *arguments: str) -> str:
        """What a command of Flower's says."""
        done = subprocess.run(
            ["flwr", *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def project(self, app: str, **settings: Any) -> Path:
        """A Flower project with this app.py, and these settings of Atoll's."""
        found = self.place / f"project{len(list(self.place.glob('project*')))}"
        found.mkdir()
        (found / "app.py").write_text(app)
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        (found / "pyproject.toml").write_text(_PROJECT + lines)
        return found

    def run(self, project: Path) -> str:
        """Start a run of a project; its number."""
        said = self.flwr("run", str(project), "here", "--format", "json")
        return str(json.loads(said[said.index("{") :])["run-id"])

    def ended(self, run: str, seconds: float = 240.0) -> str:
        """How a run has ended, in Flower's words, once it has."""
        for _ in self.ticks(seconds, f"the end of run {run}"):
            said = self.flwr("list", "--run-id", run, "here", "--format", "json")
            (found,) = json.loads(said[said.index("{") :])["runs"]
            if found["status"].startswith("finished"):
                return str(found["status"])
        raise AssertionError

    def log(self, name: str) -> str:
        path = self.place / f"{name}.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def until(self, what: str, name: str, seconds: float = 90.0) -> None:
        """Wait until one of some texts stands in a log, since its process was started last."""
        for _ in self.ticks(seconds, f"{what!r} in {name}.log"):
            if any(each in self.log(name)[self._before[name] :] for each in what.split("|")):
                return

    def ticks(self, seconds: float, what: str) -> Iterator[None]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield
            time.sleep(0.3)
        logs = "\n".join(f"--- {name}\n{self.log(name)[-3000:]}" for name in ("superlink", *self.names))
        raise AssertionError(f"{what} did not come in {seconds} s\n{logs}")

    def found(self) -> dict[int, str]:
        """Every process that is there of this network, of whatever group: its number, and its command."""
        here = {}
        for each in Path("/proc").glob("[0-9]*"):
            try:
                command = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"FLWR_HOME={self.settings.parent}\0".encode() in (each / "environ").read_bytes():
                    here[int(each.name)] = command
            except OSError:  # it has ended, or is another user's
                continue
        return here

    def kill_app(self) -> None:
        """End the ServerApp's process, without a word."""
        (number,) = [each for each, command in self.found().items() if "flwr-serverapp" in command]
        os.kill(number, signal.SIGKILL)

    def kill(self, name: str) -> None:
        """End the SuperLink or a SuperNode and what it has started, without a word."""
        with self.processes.pop(name) as process:  # which closes the pipe
            os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_PROJECT = """[project]
name = "on-flower"
version = "1.0.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:client"
[tool.flwr.app.config.atoll]
"""


def _commands() -> list[str]:
    """Where Flower's commands are: with the interpreter, or beside the package."""
    import flwr

    found = [Path(sys.executable).parent, Path(flwr.__file__).parents[1] / "bin"]
    return [str(each) for each in found if (each / "flower-superlink").is_file()]
