"""The processes that serve the live page: how they begin, and that they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from atoll.errors import ConfigError
from atoll.runs.serve import Dash, serve

from .synthetic import log, write


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write(tmp_path / "runs" / "one", log(rounds=5))
    return tmp_path / "runs"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def elsewhere(url: str) -> bool:
    """Whether the port answers at another address of this machine as well."""
    port = int(url.rstrip("/").rpartition(":")[2])
    try:
        socket.create_connection(("127.0.0.2", port), timeout=1).close()
    except OSError:
        return False
    return True


def ended(pid: int) -> bool:
    """Whether a process is over, soon."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (OSError, ValueError):
            return True
        time.sleep(0.1)
    return False


def test_beside_a_run(place: Path) -> None:
    with Dash(place) as dash:
        assert dash.url.startswith("http://127.0.0.1:")
        assert answers(dash.url)
        assert not elsewhere(dash.url)
        pid = dash._process.pid
        port = int(dash.url.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken"):
            Dash(place, port=port)
        with pytest.raises(ConfigError, match="is taken"):
            serve(place, port=port)
    assert ended(pid)
    assert not answers(dash.url)
    dash.close()


def test_it_does_not_outlive_the_run(place: Path) -> None:
    code = (
        "import sys, os, time; from atoll.runs.serve import Dash; dash = Dash(sys.argv[1]); "
        "worker = os.fork() or time.sleep(30) or os._exit(0); "  # a worker that holds the pipes of its parent
        "print(dash._process.pid, worker, flush=True); time.sleep(30)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        pid, worker = map(int, run.stdout.readline().split())
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert ended(pid)
        os.kill(worker, signal.SIGKILL)


def test_bad_places_and_addresses(place: Path) -> None:
    with pytest.raises(ConfigError, match="there is no directory"):
        Dash(place / "nowhere")
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        serve(place, "192.0.2.1")
    with pytest.raises(ConfigError, match="not a port"):
        serve(place, port=70_000)


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "atoll.cli", "dash", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_the_command(place: Path, sign: signal.Signals) -> None:
    with command(str(place), "--port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"runs in {place} are shown on http://127.0.0.1:")
        found = answers(line.split()[-1]), elsewhere(line.split()[-1])
        process.send_signal(sign)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")
        assert found == (True, False)


def test_who_asks_for_nothing_else_listens_to_this_machine_alone(place: Path) -> None:
    code = "import sys; from atoll.runs.serve import serve; "
    code += "serve(*sys.argv[1:], ready=lambda url: print(url, flush=True))"
    for host, seen in (([], False), (["0.0.0.0"], sys.platform == "linux")):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(place), *host], stdout=subprocess.PIPE, text=True
        ) as here:
            assert here.stdout is not None
            url = here.stdout.readline().strip()
            found = answers(url), elsewhere(url)
            here.terminate()
        assert found == (True, seen)


def test_the_command_says_what_is_wrong(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with command(str(place), "--port", port) as busy, command(str(place / "nowhere")) as lost:
            for process, words in ((busy, f"port {port} of 127.0.0.1 is taken"), (lost, "is no directory")):
                out, err = process.communicate(timeout=30)
                assert (process.returncode, out) == (2, "")
                first, second = err.splitlines()
                assert first.startswith("error: ")
                assert words in first
                assert second.startswith(" hint: ")


def test_without_aiohttp_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "import atoll, atoll.runs.report\nfrom atoll.errors import MissingExtraError\n"
        "try:\n    import atoll.runs.serve\nexcept MissingExtraError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        done.stdout
        == 'the live page needs aiohttp, which is not installed\n  hint: pip install "atoll[dash]"\n'
    )
