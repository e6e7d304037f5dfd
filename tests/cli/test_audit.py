"""`atoll audit`: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Atoll

SETTINGS = """
data = "digits"
clients = 12
cohort = 6
rounds = 2
model = "mlp:16"
engine = "loop"
device = "cpu"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(SETTINGS)
    return "a.toml"


def audit_within(report: Path) -> dict[str, Any]:
    """What a page says of an audit of its one run."""
    data = report.read_text("utf-8").partition('id="atoll-data">')[2].partition("</script>")[0]
    found: dict[str, Any] = json.loads(data)["runs"][0]["audit"]["page"]
    return found


def test_a_run_without_protection_fails_its_audit(atoll: Atoll, file: str, tmp_path: Path) -> None:
    assert atoll("run", file, "--quiet", "--runs", "here").code == 0
    found = atoll("audit", "last", "--runs", "here", "--assert")
    assert found.code == 1
    rows = found.out.splitlines()
    assert [row.split()[0] for row in rows[:3]] == ["inversion", "membership", "canary"]
    assert "LEAK" in rows[0] and 'channel = "secagg"' in rows[0]
    assert "LEAK" in rows[2] and 'channel = "clip:0.5 | noise:1"' in rows[2]
    assert "proves nothing" in rows[3]
    (folder,) = (tmp_path / "here").iterdir()
    assert {each.name for each in (folder / "audit").iterdir()} == {
        "audit.json",
        "inversion.svg",
        "membership.svg",
    }
    page = audit_within(folder / "report.html")
    assert [row["attack"] for row in page["rows"] if row["leak"]] == ["inversion", "canary"]
    assert len(page["samples"]) == len(page["guesses"]) > 0 and page["roc"][-1] == [1, 1]
    assert atoll("audit", str(folder), "--attack", "membership", "--assert").code == 0
    assert atoll("run", "--resume", str(folder), "--set", "rounds=3", "--quiet").code == 0  # it was let go of


def test_settings_with_protection_pass_and_are_one_object(atoll: Atoll, file: str, tmp_path: Path) -> None:
    channel = "channel=clip:0.5 | noise:2 | secagg"
    found = atoll("audit", file, "--set", channel, "--json", "--assert", "--epsilon", "5", "--out", "there")
    assert found.code == 0
    said = json.loads(found.out)
    assert set(said) >= {"inversion", "membership", "canary", "epsilon", "protected"}
    assert said["inversion"]["psnr"] <= said["inversion"]["chance"]
    assert set(said["membership"]) >= {"auc", "advantage"}
    assert said["canary"]["epsilon_lower"] <= said["epsilon"] == 5 and said["canary"]["confidence"] == 0.95
    assert said["protected"] == ["clip:0.5", "noise:2", "secagg:16"] and said["leaks"] == []
    kept = json.loads((tmp_path / "there" / "audit.json").read_text())
    assert [each["leak"] for each in kept.pop("page")["rows"]] == [False] * 3
    assert kept == said
    assert not (tmp_path / "runs").exists()


def test_central_noise_is_told_from_secure_sums(atoll: Atoll, file: str) -> None:
    found = atoll("audit", file, "--set", "channel=clip:0.5 | noise:1", "--attack", "inversion")
    assert found.code == 0
    assert "not against the server" in found.out and "clip:0.5 | noise:1 | secagg" in found.out


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (["a.toml", "--attack", "inversoin"], "no attack 'inversoin'", "did you mean 'inversion'?"),
        (["a.toml", "--attack", ","], "names no attack", "inversion,membership,canary"),
        (["b.toml"], "cannot read b.toml", "give a TOML file"),
        (["nothing"], "there is no run nothing", "atoll run makes one"),
        (["a.toml", "--set", "chanel=secagg"], "unknown key 'chanel'", "did you mean 'channel'"),
        (["a.toml", "method=ditto"], "method=ditto", "settings follow --set: --set method=ditto"),
    ],
)
def test_what_is_wrong_is_one_screen(atoll: Atoll, file: str, words: list[str], says: str, hint: str) -> None:
    found = atoll("audit", *words, "--runs", "none-here")
    assert found.code == 2
    assert says in found.err and hint in found.err
    assert len(found.err.strip().splitlines()) <= 4 and not found.out
