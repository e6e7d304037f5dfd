"""Targets that do not count: neither trained on nor judged, whatever marks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import atoll.data
from atoll.errors import ConfigError, DataError
from atoll.federation import Federation


def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(24, 1, 5, 5, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 0] > 1).long(), torch.rand(24, 5, 5, generator=g) < 0.3


def net() -> nn.Module:
    return nn.Conv2d(1, 3, 1)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_pixels_that_do_not_count(engine: str) -> None:
    x, y, hole = pictures()
    found = []
    for mark in (255, -1, -100):
        data = atoll.data.from_arrays(x, y.masked_fill(hole, mark), ignore=mark)
        assert data.classes == 3
        fed = Federation(
            net, data.partition("iid", clients=3, seed=0), rounds=2, lr=0.5, engine=engine, device="cpu"
        )
        run = fed.fit()
        found.append(run)
        held = fed.data.test_set
        assert held is not None and run.evaluation is not None
        with torch.no_grad():
            out = run.model.eval()(held.inputs)
        counts = held.targets >= 0
        right = ((out.argmax(1) == held.targets) & counts).flatten(1).sum(1) / counts.flatten(1).sum(1)
        assert run.evaluation.overall["accuracy"] == pytest.approx(right.mean().item(), abs=1e-6)
        one = [
            nn.functional.cross_entropy(o[None], t[None], ignore_index=-1).item()
            for o, t in zip(out, held.targets, strict=True)
        ]
        assert run.evaluation.overall["loss"] == pytest.approx(np.mean(one), abs=1e-5)
    for run in found[1:]:
        for a, b in zip(found[0].model.parameters(), run.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_samples_without_a_label_are_left_out() -> None:
    x, y = np.arange(20, dtype=np.float32).reshape(10, 2), np.array([0, 1, -1, 1, 0, -1, 1, 0, 1, 0])
    data = atoll.data.from_arrays(x, y, columns={"place": list("aabbaabbab")}, natural="place", ignore=-1)
    assert data.train.count == 8 and data.classes == 2
    assert torch.equal(data.train.inputs, torch.from_numpy(x[y >= 0]))
    assert data.train.targets.tolist() == [0, 1, 1, 0, 1, 0, 1, 0]
    assert data.columns["place"].tolist() == [
        each for each, label in zip("aabbaabbab", y, strict=True) if label >= 0
    ]
    with pytest.raises(DataError, match="all targets are 7, which is to be ignored"):
        atoll.data.from_arrays(x, np.full(10, 7), ignore=7)
    with pytest.raises(DataError, match="classes lists labels"):
        atoll.data.from_arrays(x, y, classes=["no", "yes"], ignore=-1)


def test_labels_out_of_range_get_hints_that_work() -> None:
    x, y, hole = pictures()
    for mark, classes in ((-1, None), (-100, 3), (255, 3)):
        holed = y.masked_fill(hole, mark)
        with pytest.raises(DataError, match="hold others") as caught:
            atoll.data.from_arrays(x, holed, classes=classes)
        assert f"ignore={mark})" in str(caught.value.hint)
        assert atoll.data.from_arrays(x, holed, ignore=mark).classes == 3
    data = atoll.data.from_arrays(x, y.masked_fill(hole, 255)).partition("iid", clients=3)
    with pytest.raises(ConfigError, match="has 3 outputs but the data has 256") as told:
        Federation(net, data, rounds=1)
    assert "ignore=255)" in str(told.value.hint)
    signs = np.array([1, -1, 1, 1, -1])
    with pytest.raises(DataError, match="at least 0") as caught:
        atoll.data.from_arrays(np.zeros((5, 2)), signs)
    assert 'classes="-1,1"' in str(caught.value.hint)
    assert atoll.data.from_arrays(np.zeros((5, 2)), signs, classes="-1,1").train.targets.tolist() == [
        1,
        0,
        1,
        1,
        0,
    ]


def test_listed_labels_may_be_several_a_sample() -> None:
    y = np.array([[3, 7], [7, 7], [9, 3]])
    for classes in ("3,7,9", [3, 7, 9]):
        data = atoll.data.from_arrays(np.zeros((3, 2)), y, classes=classes)
        assert data.classes == 3 and data.train.targets.tolist() == [[0, 1], [1, 1], [2, 0]]
    text = atoll.data.from_arrays(np.zeros((2, 2)), [["b", "a"], ["a", "a"]], classes=["a", "b"])
    assert text.train.targets.tolist() == [[1, 0], [0, 0]]
    with pytest.raises(DataError, match="differ in shape"):
        atoll.data.from_arrays(np.zeros((2, 2)), [["b"], ["a", "a"]], classes=["a", "b"])


def test_rows_of_a_table_and_of_an_npz_file(tmp_path: Path) -> None:
    x, y = np.arange(20, dtype=np.float32).reshape(10, 2), np.array([0, 1, 9, 1, 0, 9, 1, 0, 1, 0])
    rows = [
        "p,q,site,ill",
        *(f"{a},{b},{'ns'[at % 2]},{t}" for at, ((a, b), t) in enumerate(zip(x, y, strict=True))),
    ]
    rows[3] = ",5,n,9"  # a gap, and a label that does not count
    rows[4] = ",7,s,1"
    (tmp_path / "t.csv").write_text("\n".join(rows))
    np.savez(tmp_path / "t.npz", x=x, y=y, site=np.array(list("ns" * 5)))
    table = atoll.data.from_file(
        tmp_path / "t.csv", "ill", "site", ignore=9, missing="zero", scale="federated"
    ).partition("natural", test=None)
    arrays = atoll.data.from_file(tmp_path / "t.npz", client="site", ignore=9).partition("natural", test=None)
    for data in (table, arrays):
        assert data.classes == 2 and list(data.names) == ["n", "s"]
        found = [data.samples(k) for k in range(2)]
        assert [each and each.targets.tolist() for each in found] == [[0, 0, 1, 1], [1, 1, 0, 0]]
    assert table.scale is not None
    kept = x[y != 9]
    assert table.scale["q"][0] == pytest.approx(kept[:, 1].mean())
    assert table.scale["p"][0] == pytest.approx(np.delete(kept[:, 0], 2).mean())  # without the gap
    south = table.samples(1)
    assert south is not None and south.inputs[1, 0] == 0
    with pytest.raises(DataError, match="all targets are 9, which is to be ignored"):
        atoll.data.from_frame({"p": [1.0, 2.0], "ill": [9, 9]}, "ill", ignore=9)
    with pytest.raises(DataError, match="classes lists labels"):
        atoll.data.from_frame({"p": [1.0, 2.0], "ill": ["no", "yes"]}, "ill", ignore=9)
