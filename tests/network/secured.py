"""A coordinator and nodes over mutual TLS, each with a certificate by invitation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.data.samples import Samples
from atoll.network.authority import Authority
from tests.network.cluster import NAMES, Cluster

MAIN = "\nfrom atoll.cli import main\nmain()\n"


class Secured(Cluster):
    """As `Cluster`, with an authority in `ca`.

    Args:
        before: code that a process runs before it is what it is, by name ("": all others').
    """

    def __init__(
        self,
        place: Path,
        settings: Mapping[str, Any],
        data: Mapping[str, Samples] | None = None,
        names: Sequence[str] = NAMES,
        network: Mapping[str, Any] | None = None,
        before: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(place, settings, data, names, {"ca": str(place / "ca"), **(network or {})})
        self.authority, self.before = Authority.init(place / "ca"), before or {}

    def start(self, name: str, *options: str, port: int | None = None) -> subprocess.Popen[bytes]:
        if name == "coordinator":
            words = [
                "serve",
                "run.toml",
                "--port",
                str(self.port),
                "--place",
                name,
                "--save",
                str(self.model),
            ]
        else:
            words = [
                "join",
                f"127.0.0.1:{port or self.port}",
                "--data",
                f"{name}.npz",
                "--place",
                name,
                "--approve",
            ]
            if not (self.place / name).exists():
                words += ["--invitation", self.authority.invite(name)]
        code = self.before.get(name, self.before.get("", "")) + MAIN
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "CI": "1"}
        with (self.place / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *words, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=environment, cwd=self.place,
            )  # fmt: skip
        self.processes[name] = process
        if name == "coordinator":
            self.until("listening", name)  # invitations are taken up there
        return process
