"""A run that paused goes on with other devices, deadlines and quorums, and says so."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import ConfigError, PausedError
from atoll.experiment import prepare
from atoll.runs.events import Event
from atoll.runs.folder import RunFolder

SETTINGS: dict[str, Any] = {
    "data": "digits", "clients": 6, "cohort": 3, "rounds": 22, "engine": "loop", "eval_every": 0, "model": "mlp:4",
    "checkpoint": 2, "devices": "equal + failing:0.999999", "quorum": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    with pytest.raises(PausedError, match="for 20 rounds in a row"):
        prepare(runs=str(runs), **SETTINGS).fit(progress=False)
    return RunFolder.find("last", runs).path


@pytest.fixture
def folder(paused: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(paused, tmp_path / paused.name)))


def resumes(folder: RunFolder) -> list[Event]:
    return [each for each in folder.log().events if each["event"] == "resume"]


def test_it_goes_on_with_what_lets_it(folder: RunFolder) -> None:
    run = prepare(sets=["devices=equal", "quorum=2"], resume=folder.path).fit(progress=False)
    assert len(run.rounds) == 22
    assert [each.clock.used for each in run.rounds if each.clock] == [0] * 19 + [3] * 3
    assert [each["changed"] for each in resumes(folder)] == [{"devices": "equal", "quorum": 2}]
    assert folder.config()["devices"] == "equal" and folder.config()["quorum"] == 2
    longer = prepare(sets=["rounds=23"], resume=folder.path)  # it has these settings from now on
    assert longer.settings.devices == "equal"
    longer.fit(progress=False)
    assert "changed" not in resumes(folder)[-1]


def test_it_goes_on_once_more_where_no_checkpoint_knows_the_change(folder: RunFolder) -> None:
    one = prepare(sets=["quorum=1", "devices=equal"], resume=folder.path)
    with contextlib.suppress(RuntimeError), one.keeper.written(False):
        one.keeper.session.checkpoint = 0
        next(one.play())
        one.keeper.session._last = None  # as if it was killed: nothing is put away
        raise RuntimeError
    again = prepare(resume=folder.path)
    assert again.number == 19
    again.fit(progress=False)
    assert [each["changed"]["devices"] for each in resumes(folder)] == ["equal"] * 2


@pytest.mark.parametrize("change", ["retry=2", "late=keep", "seed=1", "lr=0.5"])
def test_all_else_stays(folder: RunFolder, change: str) -> None:
    with pytest.raises(ConfigError, match="cannot change when a run is resumed") as caught:
        prepare(sets=[change], resume=folder.path)
    assert caught.value.hint is not None


def test_the_clock_stays(folder: RunFolder) -> None:
    with pytest.raises(ConfigError):
        prepare(sets=["devices=none", "quorum=1"], resume=folder.path)
    assert not resumes(folder)


def test_a_run_that_did_not_pause_keeps_its_devices(tmp_path: Path) -> None:
    usual = {**SETTINGS, "devices": "equal", "rounds": 2}
    prepare(runs=str(tmp_path), **usual).fit(progress=False)
    with pytest.raises(ConfigError, match="devices cannot change when a run is resumed") as caught:
        prepare(sets=["devices=lognormal:1", "rounds=3"], resume=RunFolder.find("last", tmp_path).path)
    assert "once it has paused" in (caught.value.hint or "")
