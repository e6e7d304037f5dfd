"""Which Flower fits is known before anything begins."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from atoll.errors import ConfigError, MissingExtraError
from atoll.flower import client_app, server_app
from atoll.flower.fitting import fitting


@pytest.mark.parametrize("version", ["1.42.0", "1.42.7", "1.42.1rc1"])
def test_patches_of_the_release_fit(version: str) -> None:
    fitting(version)


@pytest.mark.parametrize("version", ["1.41.3", "1.43.0", "1.420.0", "2.42.0", "11.42.0", "1.42"])
def test_another_release_is_told_with_what_to_install(version: str) -> None:
    with pytest.raises(ConfigError, match=f"Flower {version} is installed") as told:
        fitting(version)
    assert told.value.hint is not None and "flwr==1.42.*" in told.value.hint
    assert told.value.exit_code == 2


@pytest.mark.parametrize("app", [server_app, client_app])
def test_an_app_that_is_read_beside_another_release_ends_with_one_screen(
    app: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("atoll.flower.fitting.version", lambda _: "1.43.0")
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: Flower 1.43.0 is installed") and second.startswith("  hint: pip install")


@pytest.mark.skipif(find_spec("flwr") is not None, reason="flwr is installed")
def test_without_flower_it_is_told_what_is_missing() -> None:
    with pytest.raises(MissingExtraError, match="flwr"):
        fitting()


def test_apps_load_no_torch() -> None:
    """Flower starts a process for every message; what is heavy is in a worker that stays."""
    code = "import sys, atoll.flower; print(sorted({'torch', 'flwr'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
