"""What `deploy/` holds: units that systemd understands and that are confined, an image that nobody is root in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
MUST = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "Restart": "on-failure",
    "CapabilityBoundingSet": "",
    "KillSignal": "SIGTERM",
    "StateDirectoryMode": "0700",
}
INSTRUCTIONS = re.compile(
    "FROM|WORKDIR|COPY|RUN|ENV|USER|VOLUME|EXPOSE|STOPSIGNAL|HEALTHCHECK|ENTRYPOINT|CMD"
)


def keys(unit: Path) -> dict[str, str]:
    lines = [line for line in unit.read_text().splitlines() if line and line[0] not in "#["]
    found = dict(line.split("=", 1) for line in lines)
    assert len(found) == len(lines), "a key stands twice"
    return found


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Containerfile."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Containerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_confined_and_do_not_loop(unit: Path) -> None:
    found = keys(unit)
    for key, value in MUST.items():
        assert found[key] == value, key
    assert {"2", "5"} <= {*found["RestartPreventExitStatus"].split()}
    assert found["StateDirectory"] and found["User"] not in ("", "root")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_them(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/atoll/bin/atoll", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not ours and done.returncode == 0, done.stderr


def test_commands_of_units_exist() -> None:
    from tests.network.commands import command

    for unit in UNITS:
        words = keys(unit)["ExecStart"].split()[1:]
        code, out, _ = command(words[0], "--help")
        assert code == 0
        for word in words:
            assert not word.startswith("--") or word in out, (unit.name, word)


def test_the_image_is_pinned_and_not_roots() -> None:
    found = instructions()
    assert all(INSTRUCTIONS.fullmatch(name) for name, _ in found)
    bases = [rest.split()[0] for name, rest in found if name == "FROM"]
    assert bases and all(re.fullmatch(r"\S+:\d[\w.-]+", base) for base in bases), "a base without a version"
    users = [at for at, (name, _) in enumerate(found) if name == "USER"]
    names = [name for name, _ in found]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", found[users[-1]][1])
    assert names.index("ENTRYPOINT") > users[-1] > max(at for at, name in enumerate(names) if name == "RUN")
    for name, rest in found:
        if name == "RUN" and "pip install" in rest:
            assert "-c constraints.txt" in rest
        if name == "COPY" and "--from" not in rest:
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
    (health,) = (rest for name, rest in found if name == "HEALTHCHECK")
    assert "/healthz" in health


# --- what docs/deploy.md says ---------------------------------------------------------------------------------


def blocks() -> list[str]:
    """The fenced blocks of the page's first section."""
    text = (ROOT / "docs" / "deploy.md").read_text().split("\n## ")[1]
    return re.findall(r"```\w*\n(.*?)```", text, re.S)


def test_six_commands() -> None:
    typed = [line for block in blocks()[1:3] for line in block.splitlines()]
    assert len(typed) <= 6 and all(line.startswith("atoll ") for line in typed)


@pytest.mark.slow
def test_the_six_commands_do_it(tmp_path: Path) -> None:
    """Exactly as typed, but for the port."""
    from tests.network.cluster import free_port

    port = free_port()
    settings, first, second = blocks()[:3]
    (tmp_path / "run.toml").write_text(settings + f"port = {port}\n")
    rows = "".join(f"{30 + n},{100 + 7 * n % 60},{'yes' if n % 2 else 'no'}\n" for n in range(60))
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("age,bp,ill\n" + rows)
    shim = tmp_path / "bin" / "atoll"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m atoll.cli "$@"\n')
    shim.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{shim.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }

    def terminal(text: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", text.replace("8471", str(port)) + "\nwait"], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    one = terminal(first)
    assert one.stdout is not None
    said = ""
    for line in one.stdout:
        said += line
        if "listening" in line:
            break
    two = terminal(second)
    nodes, _ = two.communicate(timeout=120)
    rest, _ = one.communicate(timeout=60)
    assert one.returncode == 0, said + rest + nodes
    assert "round 1/5" in rest and nodes.count("the run is over") == 2
