"""A person's own table on the command line: text, gaps, raw units and labels that are words, in one command."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from atoll.experiment import Experiment

from .conftest import Atoll


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """400 rows of a spreadsheet; who is ill follows from age, blood pressure and smoking."""
    draw = random.Random(0)
    rows = ["age,sex,smoker,pressure,hospital,outcome"]
    for _ in range(400):
        age, pressure, smoker = draw.gauss(60, 12), draw.gauss(135, 20), draw.choice(["no", "ex", "yes"])
        risk = (
            (age - 60) / 12
            + (pressure - 135) / 20
            + {"no": -1, "ex": 0, "yes": 1}[smoker]
            + draw.gauss(0, 0.5)
        )
        numbers = ["" if draw.random() < 0.05 else f"{value:.0f}" for value in (age, pressure)]
        kept = "" if draw.random() < 0.03 else smoker
        place, outcome = draw.choice(["north", "south", "west"]), "ill" if risk > 0 else "well"
        rows.append(f"{numbers[0]},{draw.choice('fm')},{kept},{numbers[1]},{place},{outcome}")
    path = tmp_path / "patients.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_table_trains_with_five_settings(atoll: Atoll, patients: Path, tmp_path: Path) -> None:
    sets = [f"data={patients}", "label=outcome", "categorical=text", "missing=mark", "scale=federated"]
    arguments = [part for text in sets for part in ("--set", text)]
    quick = ("--set", "rounds=20", "--set", "engine=loop", "--set", "clients=8", "--set", "model=logistic")
    done = atoll("run", "--json", "--runs", str(tmp_path / "runs"), *arguments, *quick)
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert result["accuracy"] > 0.8
    assert (result["data"], result["partition"]) == (str(patients), "dirichlet:0.3")
    again = Experiment.read(next((tmp_path / "runs").glob("*/config.toml")))
    assert again == Experiment.read(None, [*sets, *quick[1::2]], runs=str(tmp_path / "runs"))
    described = atoll("data", "describe", str(patients), "--label", "outcome", *arguments[4:])
    assert described.code == 0, described.err
    for told in ("2 classes", "age is missing", "smoker=ex", "scale", "pressure:13"):
        assert told in described.out


def test_a_data_file_in_the_place_of_settings(atoll: Atoll, patients: Path) -> None:
    done = atoll("run", str(patients))
    assert done.code == 2
    assert f"hint: atoll run --set data={patients} --set label=COLUMN" in done.err
