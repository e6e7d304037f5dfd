"""The first file of settings, and the one that a rehearsal prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.experiment import Experiment, run_settings

from .conftest import Atoll


@pytest.mark.parametrize("sets", [(), ("method=ditto", "lr=0.02", "runs=none", "steps=3", "log=csv")])
def test_the_file_runs_and_explains_every_key(atoll: Atoll, tmp_path: Path, sets: tuple[str, ...]) -> None:
    file = tmp_path / "experiment.toml"
    done = atoll("init", str(file), *(word for each in sets for word in ("--set", each)))
    assert done.code == 0, done.err
    assert done.out == f"wrote {file}\nrun it with: atoll run {file}\n"
    wanted = Experiment.read(sets=sets)
    assert Experiment.read(file) == wanted
    text = file.read_text("utf-8")
    assert max(map(len, text.splitlines())) <= 110
    held = [line.partition(" = ")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert held[:4] == ["data", "partition", "model", "method"]
    # with every default written out it is the same
    file.write_text(text.replace("#: ", ""), "utf-8")
    assert Experiment.read(file) == wanted
    keys = [
        line.partition(" = ")[0]
        for line in file.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert sorted(keys) == sorted(wanted.to_dict())
    assert set(run_settings()) <= set(keys)
    before = [line for line in text.splitlines() if line.startswith("# clients a round, a number or a share")]
    assert len(before) == 1


def test_no_file_is_written_over(atoll: Atoll, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("lr = 0.5\n")
    done = atoll("init", str(file))
    assert done.code == 2
    assert "is there already" in done.err and "atoll init FILE.toml" in done.err
    assert file.read_text() == "lr = 0.5\n"


def test_settings_that_are_wrong_are_told(atoll: Atoll, tmp_path: Path) -> None:
    done = atoll("init", str(tmp_path / "a.toml"), "--set", "lrr=1")
    assert done.code == 2
    assert "did you mean 'lr'" in done.err
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_prints_a_file_that_runs(atoll: Atoll, tmp_path: Path) -> None:
    sets = (
        "method=fedprox",
        "rounds=2",
        "clients=4",
        "model=logistic",
        "engine=loop",
        "batch_size=full",
        "runs=none",
    )
    words = [word for each in sets for word in ("--set", each)]
    done = atoll("run", "--dry-run", *words)
    assert done.code == 0, done.err
    assert "2 rounds" in done.out and "650 parameters" in done.out
    file = tmp_path / "again.toml"
    file.write_text(done.out)
    assert Experiment.read(file) == Experiment.read(sets=sets)
    first, second = atoll("run", *words, "-q"), atoll("run", str(file), "-q")
    assert (first.code, second.code) == (0, 0), second.err

    def figures(text: str) -> list[str]:
        return [line.rstrip() for line in text.splitlines() if line.split("  ")[0] not in ("time", "engine")]

    assert figures(first.out) == figures(second.out)
