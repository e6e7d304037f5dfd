"""Folders as data on the command line: a file a client, a file a split, LEAF's files; and what clients count for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from atoll.experiment import Experiment

from .conftest import Atoll

QUICK = ("rounds=1", "engine=loop", "model=logistic", "batch_size=8")


def arguments(*sets: str) -> list[str]:
    return [part for text in (*sets, *QUICK) for part in ("--set", text)]


def arrays(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    return x, np.arange(n) % 2


def table(path: Path, n: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = arrays(n, seed)
    rows = [f"{a},{b},{c},{t}" for (a, b, c), t in zip(x, y, strict=True)]
    path.write_text("\n".join(["a,b,c,ill", *rows]))


def packed(path: Path, n: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = arrays(n, seed)
    np.savez(path, x=x, y=y)


def leaf(path: Path, users: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {}
    for seed, (user, n) in enumerate(users.items()):
        x, y = arrays(n, seed)
        data[user] = {"x": x.tolist(), "y": y.tolist()}
    path.write_text(json.dumps({"users": list(data), "user_data": data}))


def ran(atoll: Atoll, tmp_path: Path, *sets: str) -> dict[str, object]:
    """The partition that a run on the command line begins with."""
    done = atoll("run", "--json", "--runs", str(tmp_path / "runs"), *arguments(*sets))
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    again = Experiment.read(next((tmp_path / "runs").glob("*/config.toml")))
    assert again == Experiment.read(None, [*sets, *QUICK], runs=str(tmp_path / "runs"))
    return next(event for event in events if event["event"] == "partition")


def test_a_table_a_client(atoll: Atoll, tmp_path: Path) -> None:
    for at, name in enumerate(("site_a", "site_b", "site_c")):
        table(tmp_path / "sites" / f"{name}.csv", 20 + 10 * at, at)
    found = ran(
        atoll, tmp_path, f"data={tmp_path}/sites", "label=ill", "weights=site_a:2, site_b:0.5", "validation=2"
    )
    assert found["names"] == ["site_a", "site_b", "site_c"]
    assert found["sizes"] == [14, 22, 30]  # less a fifth, and 2
    assert found["weights"] == pytest.approx([12 / 7, 3 / 7, 6 / 7])
    described = atoll("data", "describe", f"{tmp_path}/sites", "--label", "ill", "--set", "weights=site_a:4")
    assert described.code == 0, described.err
    assert "3 clients, 2 classes" in described.out and "0.5 to 2, 1 on average" in described.out


def test_npz_files_of_training_and_test_data(atoll: Atoll, tmp_path: Path) -> None:
    for at in range(3):
        packed(tmp_path / "pf" / "train" / f"{at}.npz", 12, at)
        packed(tmp_path / "pf" / "test" / f"{at}.npz", 5, at + 10)
    found = ran(atoll, tmp_path, f"data={tmp_path}/pf", "classes=2")
    assert (found["names"], found["sizes"], found["tested"]) == (["0", "1", "2"], [12] * 3, [5] * 3)


def test_two_files_are_a_dataset_with_a_test_split(atoll: Atoll, tmp_path: Path) -> None:
    table(tmp_path / "one" / "train.csv", 40, 0)
    table(tmp_path / "one" / "test.csv", 12, 1)
    found = ran(
        atoll, tmp_path, f"data={tmp_path}/one", "label=ill", "clients=4", "partition=iid", "weights=equal"
    )
    sizes, tested = found["sizes"], found["tested"]
    assert isinstance(sizes, list) and isinstance(tested, list)
    assert (sum(sizes), sum(tested)) == (40, 12)
    assert found["weights"] == [1, 1, 1, 1]


def test_leaf(atoll: Atoll, tmp_path: Path) -> None:
    leaf(tmp_path / "leaf" / "train" / "all.json", {"u1": 12, "u2": 9})
    leaf(tmp_path / "leaf" / "test" / "all.json", {"u1": 4, "u2": 3})
    found = ran(atoll, tmp_path, f"data={tmp_path}/leaf", "validation=3")
    assert (found["names"], found["sizes"], found["tested"]) == (["u1", "u2"], [9, 6], [4, 3])


def test_a_folder_beside_where_atoll_starts(
    atoll: Atoll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name needs no slash; a name of the catalogue stays one."""
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "sites" / "a.csv", 9, 0)
    table(tmp_path / "digits" / "a.csv", 9, 0)
    assert Experiment(data="sites", label="ill").kind == "file"
    assert Experiment(data="digits").kind == "name"


@pytest.mark.parametrize(
    ("sets", "message", "hint"),
    [
        (["data={}/empty"], "there are no data in the folder", "a .csv, .tsv, .parquet or .npz file for each client"),
        (["data={}/sites", "label=ill", "partition=iid"], "partition is for data that are to be divided", "leave"),
        (["data={}/sites", "label=ill", "clients=3"], "clients is for data that are to be divided", "leave"),
        (["data={}/sites", "label=ill", "public=5"], "public is for data that are to be divided", "leave"),
        (["data={}/sites"], "which column is to be predicted?", "label"),
        (["data={}/sites", "label=ill", "weights=c:2"], "there is no client 'c'", "a, b"),
        (["data={}/sites", "label=ill", "weights=a:-2"], "the weight of client 'a' is -2", "from 0 up"),
        (["data={}/leaf", "label=ill"], "has no option 'label'", "known"),
        (["data=digits", "ignore=3"], "ignore is for data files", "leave ignore out"),
        (["data=digits", "weights=much"], "'much' is not NAME:WEIGHT", "equal"),
    ],
)  # fmt: skip
def test_what_is_refused(atoll: Atoll, tmp_path: Path, sets: list[str], message: str, hint: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in "ab":
        table(tmp_path / "sites" / f"{name}.csv", 9, 0)
    leaf(tmp_path / "leaf" / "all.json", {"u1": 12})
    done = atoll("run", *arguments(*(text.format(tmp_path) for text in sets)))
    assert done.code == 2
    told = " ".join(done.err.split())
    assert message in told and hint in told


def test_labels_that_do_not_count(atoll: Atoll, tmp_path: Path) -> None:
    x, y = arrays(60, 0)
    y[::3] = 255
    np.savez(tmp_path / "d.npz", x=x, y=y)
    found = ran(
        atoll, tmp_path, f"data={tmp_path}/d.npz", "ignore=255", "clients=2", "partition=iid", "test=none"
    )
    assert found["sizes"] == [20, 20]
