"""Tables as they come: names that look like numbers, dialects, gaps, units; clients with other orders of columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from readers import LIBRARIES, only

import atoll
from atoll.data import as_federated, from_arrays, from_clients, from_file, from_frame, from_function
from atoll.errors import ConfigError, DataError

ROWS = [(30 + k % 40, 110 + 7 * k % 60, "AB"[k % 2], k // 2 % 2) for k in range(40)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def lines(separator: str = ",", header: str = "age,pressure,site,ill") -> str:
    body = [separator.join(map(str, row)) for row in ROWS]
    return "\n".join([header.replace(",", separator), *body]) + "\n"


@pytest.fixture(params=["none", *LIBRARIES])
def library(request: pytest.FixtureRequest) -> Iterator[str]:
    """What files are read with."""
    with only(request.param):
        yield request.param


# --- what is written ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "ids",
    [
        ("007", "7"),
        ("1_2", "12"),
        ("89014103211118510720", "89014103211118510721"),
        ("1e3", "1000", "10e2"),
        ("1.10", "1.1"),
        ("nan", "inf", "none"),
        ("x", "x "),
        ("9", "10"),
    ],
)
def test_names_of_clients_are_text_as_written(tmp_path: Path, ids: tuple[str, ...]) -> None:
    rows = [f"{k},{ids[k % len(ids)]},{k // len(ids) % 2}" for k in range(10 * len(ids))]
    path = write(tmp_path / "t.csv", "\n".join(["x,who,y", *rows]))
    data = from_file(path, "y", "who").partition("natural", test=None)
    assert set(data.names) == set(ids)
    assert [data.size(k) for k in range(len(ids))] == [10] * len(ids)


@pytest.mark.usefixtures("library")
def test_only_an_empty_field_is_an_unknown_client(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "x,who,y\n1,,0\n2,NA,1\n3,b,0\n")
    assert list(from_file(path, "y", "who").partition("natural", test=None).names) == ["NA", "b", "unknown"]
    data = from_frame(
        {"x": [1, 2, 3], "who": np.array(["a", None, np.nan], object), "y": [0, 1, 0]}, "y", client="who"
    )
    assert list(data.partition("natural", test=None).names) == ["a", "unknown"]


@pytest.mark.usefixtures("library")
def test_names_that_are_whole_numbers_stand_in_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "x,who,y\n1,10,0\n2,9,1\n")
    assert list(from_file(path, "y", "who").partition("natural", test=None).names) == ["9", "10"]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "text",
    [
        lines(";"),
        lines("\t"),
        lines("|"),
        lines(", "),
        "\ufeff" + lines().replace("\n", "\r\n"),
        lines().replace("ill\n", "ill,\n").replace(",0\n", ",0,\n").replace(",1\n", ",1,\n"),
        "\n".join(("" if k == 0 else str(k - 1)) + "," + row for k, row in enumerate(lines().splitlines())),
        lines(";").replace("110;", "110,0;").replace("117;", "117,0;"),
    ],
    ids=["semicolon", "tab", "bar", "spaces", "bom", "trailing", "row numbers", "decimal comma"],
)
def test_dialects_are_told_apart(tmp_path: Path, text: str) -> None:
    data = from_file(write(tmp_path / "t.csv", text), "ill", "site")
    assert data.features == ("age", "pressure")
    assert torch.equal(data.train.inputs, torch.tensor([[a, p] for a, p, _, _ in ROWS], dtype=torch.float32))
    assert data.train.targets.tolist() == [y for *_, y in ROWS]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        (lines().replace("age", "âge"), "latin-1", r"UTF-8 text \(byte 0 is 0xe2\)(.|\n)*save it as UTF-8"),
        (lines(header="age,age,site,ill"), "utf-8", "more than one column 'age'"),
        ("", "utf-8", "the file is empty"),
        ("age,site,ill\n", "utf-8", "no rows below the header"),
        (
            lines().replace("30,110", '30,"1,110"'),
            "utf-8",
            "'pressure' holds values such as 1,110, not numbers",
        ),
        (
            lines().replace("30,110", "30,1_100"),
            "utf-8",
            "'pressure' holds values such as 1_100, not numbers",
        ),
        (
            lines().replace("30,110", "30,2021-01-10"),
            "utf-8",
            "'pressure' holds values such as 2021-01-10, not",
        ),
        (lines() + "30,120\n", "utf-8", "data row 40 has 2 fields, the header 4"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, text: str, encoding: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        from_file(write(tmp_path / "t.csv", text, encoding), "ill", "site")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("mark", ["", "NA", "N/A", "NaN", "null", "None", "?", "-"])
def test_marks_of_a_gap_among_numbers(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path / "t.csv", lines().replace("\n35,", f"\n{mark},", 1))
    with pytest.raises(
        DataError, match=r"'age' has no finite value in 1 of 40 rows \(row 5\)(.|\n)*missing=\"drop\""
    ):
        from_file(path, "ill", "site")
    dropped = from_file(path, "ill", "site", missing="drop")
    assert dropped.train.count == 39
    assert len(dropped.columns["site"]) == 39
    assert from_file(path, "ill", "site", missing="zero").train.inputs[5].tolist() == [0, 145]
    marked = from_file(path, "ill", "site", missing="mark")
    assert marked.features == ("age", "age is missing", "pressure")
    assert marked.train.inputs[4:6].tolist() == [[34, 0, 138], [0, 1, 145]]


@pytest.mark.usefixtures("library")
def test_truth_and_labels_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "smoker,tree\nTrue,oak\nFalse,elm\nTrue,ash\nFalse,oak\n")
    data = from_file(path, "tree")
    assert data.train.inputs.flatten().tolist() == [1, 0, 1, 0]
    assert (data.classes, data.train.targets.tolist()) == (3, [2, 1, 0, 2])
    assert from_file(path, "tree", classes="oak,elm,ash").train.targets.tolist() == [0, 1, 2, 0]
    named = write(tmp_path / "n.csv", "x,name\n" + "".join(f"{k},P{k}\n" for k in range(30)))
    with pytest.raises(DataError, match="holds 30 different texts in 30 rows: too many"):
        from_file(named, "name")
    with pytest.raises(DataError, match="'name' holds 30 different texts"):
        from_file(named, "x", categorical="text", classes="regression")


def test_categories_as_text() -> None:
    table = {"sex": ["f", "m", "f"], "smoker": ["no", "yes", "no"], "age": [1, 2, 3], "y": [0, 1, 0]}
    every = from_frame(table, "y", categorical="text")
    assert every.features == ("sex=f", "sex=m", "smoker=no", "smoker=yes", "age")
    fixed = from_frame(table, "y", categorical="sex, smoker:yes|no|ex")
    assert fixed.features == ("sex=f", "sex=m", "smoker=yes", "smoker=no", "smoker=ex", "age")
    assert fixed.train.inputs[0].tolist() == [1, 0, 0, 1, 0, 1]
    for listed in (
        "['sex','smoker']",
        "[sex,smoker]",
        ["sex", "smoker"],
    ):  # as TOML has it; as a shell leaves it
        assert from_frame(table, "y", categorical=listed).features == every.features
    with pytest.raises(
        DataError, match=r"outside its categories: yes(.|\n)*categorical=\"smoker:no\|ex\|yes\""
    ):
        from_frame(table, "y", categorical="sex,smoker:no|ex")
    with pytest.raises(DataError, match="did you mean 'smoker'"):
        from_frame(table, "y", categorical="smokes")


# --- units --------------------------------------------------------------------------------------------------


def test_constants_bring_columns_to_a_scale() -> None:
    table = {"age": [50.0, 65.0, np.nan], "weight": [80.0, 100.0, 60.0], "y": [0, 1, 0]}
    for scale in ("age:50:15, weight:100", {"age": (50, 15), "weight": 100}, ["age:50:15", "weight:100"]):
        data = from_frame(table, "y", scale=scale, missing="zero")
        assert torch.allclose(data.train.inputs, torch.tensor([[0, 0.8], [1, 1], [0, 0.6]]))
    for scale in ("age", "age:0", "age:1:0", "age:x", "age:inf"):
        with pytest.raises(ConfigError, match=r"has no constants(.|\n)*scale=COLUMN:MIDDLE:UNIT"):
            from_frame(table, "y", scale=scale, missing="zero")
    with pytest.raises(DataError, match="did you mean 'weight'"):
        from_frame(table, "y", scale="wieght:2")
    with pytest.raises(DataError, match="'y' is no feature to scale"):
        from_frame(table, "y", scale="y:2")


@pytest.fixture
def measured() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    height = generator.normal(170, 10, 60)
    height[::7] = np.nan
    return {
        "height": height,
        "same": np.full(60, 0.1),
        "sex": np.array(["f", "m"] * 30),
        "site": np.array(["a", "b", "c"] * 20),
        "y": np.arange(60) // 3 % 2,
    }


def test_sums_over_the_clients_bring_columns_to_a_scale(measured: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {"client": "site", "categorical": "sex", "missing": "mark", "scale": "federated"}
    whole = from_frame(measured, "y", **wanted)
    data = whole.partition("natural", seed=3, validation=2)
    raw = from_frame(measured, "y", **{**wanted, "scale": None}).partition("natural", seed=3, validation=2)
    rows = np.concatenate([raw.rows(k) for k in range(3)])  # training rows alone count
    own = measured["height"][rows]
    middle, unit = np.nanmean(own), np.nanstd(own)
    assert data.scale is not None
    assert data.scale["height"] == pytest.approx((middle, unit), rel=1e-6)
    assert data.scale["same"] == (pytest.approx(0.1), 1.0)
    assert whole.features == ("height", "height is missing", "same", "sex=f", "sex=m")
    for split in ("train", "validation", "test"):
        for k in range(3):
            found, before = data.samples(k, split), raw.samples(k, split)
            assert found is not None and before is not None
            gap = before.inputs[:, 1] == 1
            right = torch.where(gap, 0, (before.inputs[:, 0] - middle) / unit)
            assert torch.allclose(found.inputs[:, 0], right.float(), atol=1e-5)
            assert torch.equal(found.inputs[:, [1, 3, 4]], before.inputs[:, [1, 3, 4]])
    assert data.choose([1]).scale == data.scale
    again = from_frame(measured, "y", **{**wanted, "scale": data.scale}).partition(
        "natural", seed=3, validation=2
    )
    assert torch.allclose(again.pool().inputs, data.pool().inputs, atol=1e-5)  # type: ignore[union-attr]
    public = whole.partition("iid", clients=2, public=6).public
    assert public is not None
    assert public.inputs.isfinite().all()
    assert public.inputs[:, 0].abs().max() < 4


def test_an_official_test_table_is_on_the_scale_of_the_training_rows() -> None:
    train = {"x": np.array([1.0, 3, 5, 7]), "y": np.array([0, 1, 0, 1])}
    test = {"x": np.array([104.0, 4.0]), "y": np.array([0, 1])}
    data = from_frame(train, "y", test=test, scale="federated").partition("iid", clients=2, seed=0)
    assert data.scale == {"x": (4.0, pytest.approx(5**0.5))}
    assert data.test_set is not None
    assert data.test_set.inputs.flatten().tolist() == pytest.approx([100 / 5**0.5, 0])


def test_clients_of_their_own_agree_on_a_scale(measured: dict[str, Any]) -> None:
    parts = {
        site: {key: v[measured["site"] == site] for key, v in measured.items() if key != "site"}
        for site in "abc"
    }
    pandas = pytest.importorskip("pandas")
    wanted: dict[str, Any] = {"label": "y", "categorical": "sex", "missing": "zero", "scale": "federated"}
    data = from_clients({site: pandas.DataFrame(part) for site, part in parts.items()}, test=None, **wanted)
    assert data.scale is not None
    assert data.scale["height"][0] == pytest.approx(np.nanmean(measured["height"]), rel=1e-6)


# --- clients by the names of their columns ------------------------------------------------------------------


def hospitals(folder: Path, orders: dict[str, list[int]]) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for site, order in orders.items():
        x = generator.normal(size=(60, 3)).round(3)
        y = (x[:, 0] + 0.5 * x[:, 1] > 0).astype(int)
        rows = [",".join([*map(str, row[order]), str(label)]) for row, label in zip(x, y, strict=True)]
        header = ",".join([*(f"f{k}" for k in order), "y"])
        write(folder / f"{site}.csv", "\n".join([header, *rows]))
    return folder


def test_the_order_of_columns_makes_no_difference(tmp_path: Path) -> None:
    same = hospitals(tmp_path / "same", {"a": [0, 1, 2], "b": [0, 1, 2], "c": [0, 1, 2]})
    own = hospitals(tmp_path / "own", {"a": [0, 1, 2], "b": [2, 1, 0], "c": [1, 2, 0]})
    one, two = (as_federated(folder, label="y") for folder in (same, own))
    assert torch.equal(one.pool().inputs, two.pool().inputs)  # type: ignore[union-attr]
    found = [
        atoll.Federation(lambda: atoll.models.logistic(3, 2), data, rounds=8, lr=0.5, engine="loop").fit()
        for data in (one, two)
    ]
    assert found[0].accuracy == found[1].accuracy > 0.9


def test_frames_given_as_arrays_keep_their_names() -> None:
    pandas = pytest.importorskip("pandas")
    a, b = (
        pandas.DataFrame({"age": [30.0, 40], "mass": [60.0, 70]}),
        pandas.DataFrame({"mass": [80.0], "age": [50.0]}),
    )
    y = pandas.Series([0, 1])
    assert from_arrays(a, y).train.inputs.tolist() == [[30, 60], [40, 70]]
    assert from_arrays(a.astype(int), y).train.inputs.dtype == torch.float32
    data = from_clients({"a": (a, y), "b": (b, y[:1])}, test=None)
    assert data.samples(1).inputs.tolist() == [[50, 80]]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="client 'b' has a column 'kg' that client 'a' has not"):
        from_clients({"a": (a, y), "b": (b.rename(columns={"mass": "kg"}), y[:1])})


def test_columns_that_differ_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "age,weight_kg,ill\n30,70,0\n70,80,1\n")
    write(tmp_path / "b.csv", "age,weight_lb,ill\n30,154,0\n70,176,1\n")
    with pytest.raises(
        DataError, match=r"client 'b' has no column 'weight_kg' and a column 'weight_lb' that .* 'a' has not"
    ):
        as_federated(tmp_path, label="ill")
    assert as_federated(tmp_path, label="ill", features="age", test=None).example().inputs.shape == (1, 1)


def test_categories_and_labels_are_those_of_all_clients(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "smoker,ill\nex,yes\nnever,no\n")
    write(tmp_path / "b.csv", "smoker,ill\nnever,maybe\nyes,yes\n")
    data = as_federated(tmp_path, label="ill", categorical="smoker", test=None)
    first, second = data.samples(0), data.samples(1)
    assert first is not None and second is not None
    assert first.inputs.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert second.inputs.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert (data.classes, first.targets.tolist(), second.targets.tolist()) == (3, [2, 1], [0, 2])


@pytest.mark.usefixtures("library")
def test_folders_with_train_and_test(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        (tmp_path / split).mkdir()
        for k in range(2):
            np.savez(
                tmp_path / split / f"{k}.npz", x=generator.normal(size=(count, 3)), y=np.arange(count) % 2
            )
    data = as_federated(tmp_path)
    assert (list(data.names), data.size(0)) == (["0", "1"], 12)
    assert data.samples(1, "test").count == 4  # type: ignore[union-attr]
    np.savez(tmp_path / "train" / "1.npz", data=np.array({"x": [[1.0]], "y": [0]}, dtype=object))
    with pytest.raises(DataError, match=r"client '1': .*'data' holds Python objects(.|\n)*numpy.savez\("):
        as_federated(tmp_path)
    write(tmp_path / "train" / "1.csv", "x,y\n1,0\n")
    with pytest.raises(DataError, match="are one client"):
        as_federated(tmp_path)


def test_frames_that_are_lazy_nested_or_named_twice() -> None:
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    lazy = polars.LazyFrame({"a": [1.0, 2.0], "y": [0, 1]})
    assert from_frame(lazy, "y").train.inputs.tolist() == [[1], [2]]
    assert from_arrays(lazy.select("a"), [0, 1]).train.inputs.tolist() == [[1], [2]]
    for frame in (polars.DataFrame, pandas.DataFrame):
        with pytest.raises(DataError, match="column 'a' holds lists"):
            from_frame(frame({"a": [[1.0, 2.0], [3.0, 4.0]], "y": [0, 1]}), "y")
    with pytest.raises(DataError, match="more than one column 'a'"):
        from_frame(pandas.DataFrame([[1, 2, 0], [3, 4, 1]], columns=["a", "a", "y"]), "y")
    kept = pandas.DataFrame({"Unnamed: 0": [0, 1], "a": [5.0, 6.0], "y": [0, 1]})
    assert from_frame(kept, "y").features == ("a",)


# --- classes or numbers -------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(30, 4))
THREE = np.arange(30) % 3


@pytest.mark.parametrize(
    ("y", "message", "hints"),
    [
        (THREE.astype(float), "whole numbers in a floating type", ["classes=3", 'classes="regression"']),
        (THREE * 2.0 - 1, "whole numbers in a floating type", ['classes="-1,1,3"', 'classes="regression"']),
        (THREE + 1, "the labels are 1, 2, 3, which leaves gaps in 0..3", ['classes="1,2,3"', "classes=4"]),
        (np.array([3, 7, 100])[THREE], "leaves gaps in 0..100", ['classes="3,7,100"', "classes=101"]),
        (np.eye(3)[THREE], "a row with a single 1", ["y.argmax", 'classes="regression"']),
        (np.eye(3, dtype=int)[THREE], "a row with a single 1", ["y.argmax", 'classes="regression"']),
    ],
)
def test_what_targets_are_is_a_question_with_both_answers(y: Any, message: str, hints: list[str]) -> None:
    for ask in (lambda: from_arrays(X, y), lambda: from_clients({"a": (X, y), "b": (X, y)})):
        with pytest.raises(DataError, match=message) as caught:
            ask()
        assert all(hint in str(caught.value.hint) for hint in hints)
    for hint in hints:
        if hint.startswith("classes="):
            answer: Any = hint.removeprefix("classes=").strip('"')
            data = from_arrays(X, y, classes=answer if not answer.isdecimal() else int(answer))
            assert (data.classes is None) == (answer == "regression")


def test_answers_that_targets_give_themselves() -> None:
    assert from_arrays(X, X[:, 0]).classes is None
    assert from_arrays(X, THREE).classes == 3
    mapped = from_arrays(X, np.array([3, 7, 100])[THREE], classes=[3, 7, 100])
    assert mapped.train.targets.tolist() == THREE.tolist()
    assert from_arrays(X, THREE, classes="regression").train.targets.dtype == torch.float32
    # one client's labels leave gaps, and its numbers happen to be whole; all clients' together do not
    shared = from_clients({"a": (X, THREE // 2), "b": (X, 2 * (THREE // 2))}, test=None)
    assert shared.classes == 3
    numbers = from_clients({"a": (X, THREE.astype(float)), "b": (X, X[:, 0])}, test=None)
    assert numbers.classes is None


def test_a_population_on_demand_asks_at_once() -> None:
    with pytest.raises(
        DataError, match=r"client 0: the targets are whole numbers(.|\n)*classes=3 (.|\n)*regression"
    ):
        from_function(lambda client: (X, THREE), 5)
    assert from_function(lambda client: (X, THREE), 5, classes=3).classes == 3
    numbers = from_function(lambda client: (X, THREE), 5, classes="regression")
    assert numbers.classes is None
    assert numbers.example().targets.dtype == torch.float32
    letters = from_function(lambda client: (X, np.array(list("abc"))[THREE]), 5, classes=["a", "b", "c"])
    assert letters.classes == 3
    assert from_function(lambda client: (X, X[:, 0]), 5).classes is None


def test_leaf_files_with_classes_as_floats(tmp_path: Path) -> None:
    user = '{{"x": [[0.5, 1], [1, 2], [3, 1]], "y": [{}]}}'
    users = {"u": user.format("3.0, 5.0, 3.0"), "v": user.format("0.0, 1.0, 2.0")}
    entries = ", ".join(f'"{name}": {content}' for name, content in users.items())
    path = write(tmp_path / "all.json", f'{{"users": ["u", "v"], "user_data": {{{entries}}}}}')
    with pytest.raises(DataError, match=r"whole numbers in a floating type(.|\n)*classes=6 for classes"):
        atoll.data.load_leaf(path)
    assert atoll.data.load_leaf(path, classes=6).classes == 6


def test_an_error_quotes_what_is_wrong() -> None:
    table = {"a": np.array([2, 3, "four"], object), "y": [0, 1, 0]}
    with pytest.raises(DataError, match="'a' holds values such as four, not numbers"):
        from_frame(table, "y")
    with pytest.raises(DataError, match="'a' holds numbers written as text, such as '2'"):
        from_frame({"a": ["2", "3", "4"], "y": [0, 1, 0]}, "y")
