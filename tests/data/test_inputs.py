"""A person's own data: arrays, PyTorch datasets, frames, files, LEAF; and how bad data is explained."""

import gzip
import json
import lzma
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import blobs
from torch.utils import data as torch_data

from atoll.data import (
    FederatedData,
    as_federated,
    from_arrays,
    from_clients,
    from_file,
    from_frame,
    from_hf,
    from_tensors,
    from_torch,
    load_leaf,
)
from atoll.errors import ConfigError, DataError, MissingExtraError

X = np.arange(24, dtype=np.float64).reshape(12, 2)
Y = np.arange(12) % 3


def same(data: Any, x: Any = X, y: Any = Y) -> None:
    assert torch.equal(data.train.inputs, torch.as_tensor(np.asarray(x), dtype=torch.float32))
    assert torch.equal(data.train.targets, torch.as_tensor(np.asarray(y)))


# --- arrays -------------------------------------------------------------------------------------------------


def test_arrays_tensors_and_lists() -> None:
    for x, y in ((X, Y), (torch.tensor(X), torch.tensor(Y)), (X.tolist(), Y.tolist()), (X[::-1][::-1], Y)):
        data = from_arrays(x, y)
        same(data)
        assert data.classes == 3
    assert from_tensors is from_arrays


def test_sparse_inputs() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    same(from_arrays(sparse.csr_matrix(X), Y))


def test_kinds_of_inputs_and_targets() -> None:
    assert from_arrays(X.astype(np.float16), Y).train.inputs.dtype == torch.float32
    assert from_arrays(X.astype(np.int32), Y).train.inputs.dtype == torch.int64
    assert from_arrays(X.astype(np.uint8), Y).train.inputs.dtype == torch.float32
    assert from_arrays(X, Y / 2).classes is None
    assert from_arrays(X, Y / 2).train.targets.dtype == torch.float32
    assert from_arrays(X, Y.astype(float), classes=3).train.targets.dtype == torch.int64
    assert from_arrays(X, Y > 0).classes == 2
    assert from_arrays(X, Y, classes=5).classes == 5
    named = from_arrays(X, ["no", "yes"] * 6, classes=["no", "yes"])
    assert named.train.targets.tolist() == [0, 1] * 6
    assert from_arrays(X, Y, test=(X, Y + 2)).classes == 5


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, Y[:-1], {}, "12 inputs but 11 targets"),
        (X[:0], Y[:0], {}, "no samples"),
        (np.where(X == 5, np.nan, X), Y, {}, "NaN or infinite values in row 2"),
        (np.where(X > 5, np.inf, X), Y, {}, r"9 rows \(3, 4, 5, 6, 7, ...\)"),
        (X, np.where(Y == 1, np.nan, Y), {}, "targets hold NaN"),
        (X, Y, {"classes": 2}, r"lie in 0..1, but 4 rows \(2, 5, 8, 11\) hold others, such as \[2\]"),
        (X, Y - 1, {}, "at least 0"),
        (X, Y + 0.5, {"classes": 4}, "not whole numbers"),
        (X, ["a"] * 12, {}, "not numbers"),
        (X, ["a", "c"] * 6, {"classes": ["a", "b"]}, "not in classes: c"),
        ([np.zeros(2), np.zeros(3)], [0, 1], {}, "differ in shape"),
        (X, Y, {"columns": {"site": [1, 2]}}, "column 'site' has 2 values"),
        (X, Y, {"natural": "site"}, "not among the columns"),
        (X, Y, {"test": (X[:, :1], Y)}, "a test input"),
        (X, Y, {"test": (X, Y / 2)}, "one is whole numbers"),
        (np.float64(3), Y, {}, "inputs are a single float64"),
        (X, torch.tensor(3), {}, "not one per sample"),
    ],
)
def test_bad_arrays_are_explained(x: Any, y: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(x, y, **options)


# --- PyTorch ------------------------------------------------------------------------------------------------


@dataclass
class Item:
    img: torch.Tensor
    label: int
    place: str = "here"


class Mapped(torch_data.Dataset[Any]):
    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        if index >= 12:
            raise IndexError
        return self.make(torch.tensor(X[index]), int(Y[index]))


def test_torch_datasets() -> None:
    stored = torch_data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    same(from_torch(stored))
    same(from_torch(torch_data.DataLoader(stored, batch_size=5, shuffle=True)))
    same(from_torch(torch_data.Subset(stored, [3, 1])), X[[3, 1]], Y[[3, 1]])
    joined: Any = torch_data.ConcatDataset(
        [torch_data.Subset(stored, range(4)), torch_data.Subset(stored, range(4, 12))]
    )
    same(from_torch(joined))
    point = namedtuple("point", ["a", "b"])
    for make, keys in (
        (lambda x, y: (x, y), None),
        (lambda x, y: (x, torch.tensor(y)), None),
        (lambda x, y: [x.numpy(), np.int64(y)], None),
        (lambda x, y: {"img": x, "label": y}, None),
        (lambda x, y: {"id": 3, "label": y, "img": x}, ("img", "label")),
        (lambda x, y: {"x": x, "y": y, "z": 0}, None),
        (Item, ("img", "label")),
        (point, ("a", "b")),
    ):
        same(from_torch(Mapped(make), keys=keys))
    data = from_torch(Mapped(lambda x, y: (x, y)), test=stored)
    assert data.test is not None
    assert data.name == "Mapped"


def test_pictures_become_channels_first_in_the_unit_interval() -> None:
    image = pytest.importorskip("PIL.Image")
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    colour = np.stack([grey, grey * 0, grey], axis=-1)
    data = from_torch([(image.fromarray(grey), 0), (image.fromarray(grey), 1)])
    assert data.train.inputs.shape == (2, 1, 4, 4)
    assert data.train.inputs.max() == 1.0
    data = from_torch([(image.fromarray(colour), 0)])
    assert torch.equal(data.train.inputs[0, 2], torch.tensor(grey) / 255)


class Stream(torch_data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def test_bad_torch_datasets_are_explained() -> None:
    with pytest.raises(DataError, match="cannot be indexed"):
        from_torch(Stream())
    with pytest.raises(DataError, match="item 0 has 3 parts"):
        from_torch(Mapped(lambda x, y: (x, y, 1)))
    with pytest.raises(DataError, match="item 0 has 3 fields \\(img, label, place\\): which are the inputs"):
        from_torch(Mapped(Item))
    with pytest.raises(DataError, match="no field 'image'"):
        from_torch(Mapped(Item), keys=("image", "label"))
    with pytest.raises(DataError, match="no samples"):
        from_torch([])


# --- frames and files ---------------------------------------------------------------------------------------


TABLE = {
    "age": [30, 40, 50, 60],
    "weight": [60.5, 70.0, 80.0, 90.0],
    "smoker": ["yes", "no", "no", "yes"],
    "site": ["a", "b", "a", "b"],
    "ill": [0, 1, 1, 0],
}


@pytest.fixture(params=["pandas", "polars", "mapping"])
def frame(request: pytest.FixtureRequest) -> Any:
    if request.param == "mapping":
        return dict
    return pytest.importorskip(request.param).DataFrame


def test_frames(frame: Any) -> None:
    data = from_frame(frame(TABLE), "ill", client="site", categorical=["smoker"])
    assert data.train.inputs.tolist() == [[30, 60.5, 0, 1], [40, 70, 1, 0], [50, 80, 1, 0], [60, 90, 0, 1]]
    assert data.classes == 2
    assert data.natural == "site"
    fed = data.partition("natural", test=None)
    assert list(fed.names) == ["a", "b"]
    assert [fed.size(0), fed.size(1)] == [2, 2]
    fixed = from_frame(frame(TABLE), "weight", ["smoker"], categorical={"smoker": ["no", "yes", "never"]})
    assert fixed.train.inputs.shape == (4, 3)
    assert fixed.classes is None
    text = from_frame(frame(TABLE), "smoker", ["age"], classes=["no", "yes"], test=frame(TABLE))
    assert text.train.targets.tolist() == [1, 0, 0, 1]
    assert text.test is not None


def test_bad_frames_are_explained(frame: Any) -> None:
    with pytest.raises(DataError, match="did you mean 'ill'"):
        from_frame(frame(TABLE), "il")
    with pytest.raises(
        DataError, match=r"column 'smoker' holds values such as yes(.|\n)*categorical=\"smoker\""
    ):
        from_frame(frame(TABLE), "ill", client="site")
    gaps = {**TABLE, "weight": [None, 70.0, None, 90.0]}
    if frame is dict:
        gaps["weight"] = [np.nan, 70.0, np.nan, 90.0]
    with pytest.raises(DataError, match=r"column 'weight' has no finite value in 2 of 4 rows \(row 0, 2\)"):
        from_frame(frame(gaps), "ill", ["age", "weight"])
    with pytest.raises(DataError, match="column 'smoker' has no finite value in 1 of 4 rows"):
        from_frame(
            frame({**TABLE, "smoker": ["yes", None, "no", "no"]}), "ill", ["smoker"], categorical=["smoker"]
        )
    with pytest.raises(DataError, match="column 'weight' has no finite value"):
        from_frame(frame(gaps), "weight", ["age"])
    with pytest.raises(DataError, match="outside its categories: yes"):
        from_frame(frame(TABLE), "ill", ["smoker"], categorical={"smoker": ["no"]})
    with pytest.raises(DataError, match="no feature columns"):
        from_frame(frame({"ill": [0, 1]}), "ill")


def test_pandas_nullable_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": pandas.array([1, 2, 3], dtype="Int64"), "y": [0, 1, 0]})
    assert from_frame(table, "y").train.inputs.tolist() == [[1], [2], [3]]
    table.loc[1, "a"] = pandas.NA
    with pytest.raises(DataError, match="column 'a' has no finite value in 1 of 3 rows"):
        from_frame(table, "y")


def csv_text(separator: str = ",") -> str:
    rows = [TABLE.keys(), *zip(*TABLE.values(), strict=True)]
    return "\n".join(separator.join(map(str, row)) for row in rows) + "\n"


def test_csv_files(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(csv_text())
    (tmp_path / "t.tsv").write_text(csv_text("\t"))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(csv_text().encode()))
    (tmp_path / "t.csv.xz").write_bytes(lzma.compress(csv_text().encode()))
    for name in ("t.csv", "t.tsv", "t.csv.gz", "t.csv.xz"):
        data = from_file(tmp_path / name, "ill", "site", categorical=["smoker"])
        assert data.train.inputs[1].tolist() == [40, 70, 1, 0]
        assert (data.classes, data.natural) == (2, "site")
    assert from_file(tmp_path / "t.csv", "weight", features=["age"], test=tmp_path / "t.tsv").test is not None


def test_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table(TABLE), tmp_path / "t.parquet")
    data = from_file(tmp_path / "t.parquet", "ill", "site", categorical=["smoker"])
    assert data.train.inputs[1].tolist() == [40, 70, 1, 0]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"atoll\[frames\]"):
        from_file(tmp_path / "t.parquet", "ill")


def test_npz_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y, x_test=X[:2], y_test=Y[:2], site=np.arange(12) // 6)
    data = from_file(tmp_path / "d.npz", client="site")
    same(data)
    assert data.test is not None
    assert len(data.partition("natural")) == 2


@pytest.mark.parametrize(
    ("name", "content", "label", "message"),
    [
        ("a.csv", None, "y", "no such file"),
        ("a.csv", b"x,y\n1,2\n", None, "which column"),
        ("a.xls", b"", "y", "'.xls' are not known"),
        ("a.csv", b"x,x\n1,2\n", "x", "name the columns"),
        ("a.csv", b"x,y\n1\n", "y", "row 0 has 1 fields"),
        ("a.csv", b"\xff\xfe\x00", "y", "cannot be read"),
        ("a.csv", b"x,y\n1,0\n,1\n", "y", "column 'x' has no finite value in 1 of 2 rows"),
        ("a.csv.gz", b"not gzip", "y", "cannot be read"),
        ("a.npz", b"not a zip", None, "cannot be read"),
        ("a.parquet", b"not parquet", "y", "cannot be read"),
    ],
)
def test_bad_files_are_explained(
    tmp_path: Path, name: str, content: bytes | None, label: str | None, message: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        from_file(tmp_path / name, label)


# --- Hugging Face -------------------------------------------------------------------------------------------


class ClassLabel:
    num_classes = 4


class Hub:
    """Walks like a `datasets.Dataset`."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = columns
        self.column_names = list(columns)
        self.features = {"label": ClassLabel()}

    def with_format(self, kind: str | None) -> "Hub":
        assert kind is None
        return self

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.column_names)


def test_hugging_face_by_its_shape() -> None:
    hub = Hub({"vector": X.tolist(), "label": Y.tolist(), "user": ["a", "b", "c"] * 4})
    data = from_hf(hub, client="user")
    same(data)
    assert (data.classes, data.natural) == (4, "user")
    splits = {"train": hub, "test": Hub({"vector": X[:3].tolist(), "label": Y[:3].tolist()})}
    assert from_hf(splits, inputs="vector").test is not None
    assert len(as_federated(splits, client="user")) == 3
    several = Hub({"a": [1, 2], "b": [3.0, 4.0], "label": [0, 1]})
    assert from_hf(several, inputs=["b", "a"]).train.inputs.tolist() == [[3, 1], [4, 2]]
    with pytest.raises(DataError, match="which columns are the inputs"):
        from_hf(several)
    with pytest.raises(DataError, match="did you mean 'label'"):
        from_hf(several, label="labels", inputs="a")
    with pytest.raises(DataError, match="did you mean 'train'"):
        from_hf(splits, split="trian")


# --- clients ------------------------------------------------------------------------------------------------


def test_natural_clients_of_any_kind() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": Y})
    fed = from_clients(
        {
            "arrays": (X, Y),
            "tensors": torch_data.TensorDataset(torch.tensor(X), torch.tensor(Y)),
            "dataset": from_frame(table, "y"),
            "split": {"train": (X, Y), "test": (X[:3], Y[:3])},
            "pairs": [(X[k], int(Y[k])) for k in range(12)],
        },
        seed=1,
    )
    assert list(fed.names) == ["arrays", "tensors", "dataset", "split", "pairs"]
    assert [fed.size(client) for client in range(5)] == [10, 10, 10, 12, 10]
    tests = [fed.samples(client, "test") for client in range(5)]
    assert [test.count if test else 0 for test in tests] == [2, 2, 2, 3, 2]
    assert fed.classes == 3
    assert fed.test_set is not None
    assert fed.test_set.count == 11
    union = from_clients({"a": (X, Y), "b": (X + 1, Y)}, test=None, validation=0.25)
    assert union.test_set is None
    check = union.samples(1, "validation")
    assert check is not None
    assert check.count == 3
    whole = from_clients([(X, Y), (X, Y)], test=(X, Y))
    assert whole.size(1) == 12
    assert whole.test_set is not None
    assert whole.samples(0, "test") is None


def test_bad_clients_are_named() -> None:
    with pytest.raises(DataError, match="client 'b': arrays, train: the inputs hold NaN"):
        from_clients({"a": (X, Y), "b": (X * np.nan, Y)})
    with pytest.raises(DataError, match=r"client 'b' has inputs 3 .* but client 'a' has inputs 2 "):
        from_clients({"a": (X, Y), "b": (np.zeros((5, 3)), Y[:5])})
    with pytest.raises(DataError, match=r"client 'b' has .* numbers, but client 'a'"):
        from_clients({"a": (X, Y), "b": (X, Y / 2)})
    with pytest.raises(DataError, match="no samples"):
        from_clients({"a": (X, Y), "b": (X[:0], Y[:0])})
    with pytest.raises(DataError, match="no clients"):
        from_clients({})
    with pytest.raises(DataError, match="client 'a': cannot learn from data of type int"):
        from_clients({"a": 3})


def leaf(users: dict[str, Any]) -> str:
    return json.dumps(
        {
            "users": list(users),
            "num_samples": [len(x) for x, _ in users.values()],
            "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
        }
    )


def test_leaf_files(tmp_path: Path) -> None:
    for split, share in (("train", 9), ("test", 3)):
        folder = tmp_path / "femnist" / "data" / split
        folder.mkdir(parents=True)
        for number in range(2):
            users = {f"f{number}_{k}": (X[:share].tolist(), Y[:share].tolist()) for k in range(2)}
            (folder / f"part_{number}.json").write_text(leaf(users))
    fed = load_leaf(tmp_path / "femnist")
    assert list(fed.names) == ["f0_0", "f0_1", "f1_0", "f1_1"]
    test = fed.samples(3, "test")
    assert fed.size(3) == 9
    assert test is not None
    assert test.count == 3
    alone = load_leaf(tmp_path / "femnist" / "data" / "train" / "part_0.json", test=None)
    assert len(alone) == 2
    assert len(as_federated(tmp_path / "femnist")) == 4
    (tmp_path / "text.json").write_text(leaf({"romeo": (["ab", "cd"], ["c", "d"])}))
    with pytest.raises(DataError, match="user 'romeo': the inputs are text"):
        load_leaf(tmp_path / "text.json")
    encoded = load_leaf(
        tmp_path / "text.json",
        encode=lambda x, y: ([[ord(c) - 97 for c in s] for s in x], [ord(c) - 97 for c in y]),
        classes=26,
    )
    assert encoded.samples(0) is not None
    (tmp_path / "bad.json").write_text('{"users": ["a"]}')
    with pytest.raises(DataError, match="not a LEAF file"):
        load_leaf(tmp_path / "bad.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no JSON files"):
        load_leaf(tmp_path / "empty")


# --- one door -----------------------------------------------------------------------------------------------


def test_as_federated_takes_anything(tmp_path: Path) -> None:
    stored = torch_data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    (tmp_path / "t.csv").write_text(csv_text())
    sites = tmp_path / "sites"
    sites.mkdir()
    for name in ("north", "south"):
        (sites / f"{name}.csv").write_text(csv_text())
    table = {"label": "ill", "features": ["age"]}
    cases: list[tuple[Any, dict[str, Any], int]] = [
        (blobs([20, 20]), {"partition": "iid", "clients": 4}, 4),
        ("digits", {"partition": "dirichlet:0.5", "clients": 3}, 3),
        ("heart", {}, 4),
        ("synthetic:0,0", {}, 30),
        ((X, Y), {"partition": "iid", "clients": 2}, 2),
        ({"x": X, "y": Y}, {"partition": "iid", "clients": 2}, 2),
        ({"train": (X, Y), "test": (X, Y)}, {"partition": "iid", "clients": 2}, 2),
        (stored, {"partition": "iid", "clients": 2}, 2),
        (torch_data.DataLoader(stored), {"partition": "iid", "clients": 2}, 2),
        ([(X[k], int(Y[k])) for k in range(12)], {"partition": "iid", "clients": 2}, 2),
        ([stored, stored, stored], {}, 3),
        ([(X, Y), (X, Y)], {}, 2),
        ({"a": (X, Y), "b": stored}, {}, 2),
        (tmp_path / "t.csv", {"client": "site", **table}, 2),
        (str(tmp_path / "t.csv"), {"partition": "iid", "clients": 3, **table}, 3),
        (sites, table, 2),
        (lambda client: (X, Y), {"clients": 1000, "classes": 3}, 1000),
    ]
    for data, options, clients in cases:
        fed = as_federated(data, **options)
        assert isinstance(fed, FederatedData)
        assert len(fed) == clients
        assert fed.size(clients - 1) > 0
        assert as_federated(fed) is fed


def test_as_federated_explains() -> None:
    for data in (3, None, {1, 2}, b"bytes", object()):
        with pytest.raises(
            DataError, match=r"cannot learn from data of type .*\n  hint: accepted: FederatedData"
        ):
            as_federated(data)
    with pytest.raises(DataError, match="in one place"):
        as_federated((X, Y))
    with pytest.raises(DataError, match="needs the population"):
        as_federated(lambda client: (X, Y))
    with pytest.raises(DataError, match="inputs without targets"):
        as_federated(X)
    with pytest.raises(ConfigError, match="divided already"):
        as_federated(from_clients([(X, Y)]), "iid")
    with pytest.raises(ConfigError, match="clients already"):
        as_federated({"a": (X, Y)}, "iid")
    with pytest.raises(ConfigError, match="no option 'lable'"):
        as_federated((X, Y), lable="y")
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        as_federated("digit")
