"""Large tables: what pandas or polars read of a file is what is read without them, to the value."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import LIBRARIES, only

from atoll.data import Dataset, bulk, from_file
from atoll.data.delimited import read_delimited
from atoll.data.table import key
from atoll.errors import DataError

NUMBERS = [
    "0",
    "-1",
    "+5",
    "007",
    "12",
    "1.",
    ".5",
    "-0",
    "-0.0",
    "1e3",
    "4.35",
    "1.10",
    "9007199254740993",
    "3E-2",
]
ODD = [
    "1e400",
    "9223372036854775808",
    "18446744073709551616",
    "1" * 25,
    "2.2250738585072011e-308",
    " 7",
    "7 ",
    "\t7",
]
GAPS = ["", "NA", "nA", "nan", "NaN", "null", "None", "?", "-", ".", "#N/A", " NA "]
NEITHER = ["1_000", "1e", "e5", "+-5", "--1", "0x10", "inf", "-inf", "Infinity", "-nan", "1 2", "1d5", "１", "1,5",
           "2,25", "1.2.3", "+", "1e5.5", "TRUE", "true", "False", "tRue", "a", "b c", "é", "日", "#", "'", "x ",
           "\x0b5", "5\x1c", 'q"q', "a;b", "l\nl", "r\rr"]  # fmt: skip

field = st.sampled_from(NUMBERS)
columns = st.one_of(
    st.lists(field, min_size=1),
    st.lists(st.integers(-(2**70), 2**70).map(str), min_size=1),
    st.lists(st.floats(allow_nan=False, allow_infinity=False).map(repr), min_size=1),
    st.lists(st.sampled_from(NUMBERS + ODD + GAPS), min_size=1),
    st.lists(st.sampled_from(NUMBERS + ODD + GAPS + NEITHER), min_size=1),
    st.lists(st.sampled_from(["true", "FALSE", "True", "", "NA"]), min_size=1),
)


def quoted(text: str, separator: str, always: bool) -> str:
    special = always or any(sign in text for sign in f'{separator}"\r\n')
    return '"' + text.replace('"', '""') + '"' if special else text


@st.composite
def files(draw: Callable[[Any], Any]) -> bytes:
    """Tables as programs write them, and now and then one that is damaged."""
    separator, end = draw(st.sampled_from(",;\t|")), draw(st.sampled_from(["\n", "\r\n"]))
    many = draw(st.lists(columns, min_size=1, max_size=5))
    rows = [[column[at % len(column)] for column in many] for at in range(max(map(len, many)))]
    always = draw(st.booleans())
    lines = [separator.join(quoted(each, separator, always) for each in row) for row in rows]
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] += draw(
            st.sampled_from([separator, '"', " ", separator * 2, "\r", end, end * 3, end + " ", "\0"])
        )
        lines[at] = draw(st.sampled_from(["", '"', " ", 'x"'])) + lines[at]
    if draw(st.integers(0, 4)) == 0 and len(many) > 1:
        one, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        lines[one] += separator + lines[other].split(separator, 1)[0]
        lines[other] = lines[other].split(separator, 1)[-1]
    header = separator.join(f"c{at}" for at in range(len(many)))
    text = header + end + end.join(lines) + draw(st.sampled_from(["", end, end * 2]))
    return draw(st.sampled_from(["", "\ufeff"])).encode() + text.encode()


def seen(path: Path) -> Any:
    """All that is read of a file, or the error."""
    try:
        table = read_delimited(path)
    except (DataError, ValueError) as error:
        return type(error), str(error)
    found = []
    for name in table.names:
        levels = [key(value) for value in table.coded(name).whole().tolist()]
        for values in (table.values(name), table.gaps(name), table.identifiers(name)):
            values = values + 0.0 if values.dtype.kind == "f" else values  # 0 for -0
            found.append((name, levels, str(values.dtype), values.shape, values.tobytes()))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files())
def test_columns_do_not_depend_on_the_library(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    alone = seen(path)
    for library in LIBRARIES:
        with only(library):
            assert seen(path) == alone, library


def survey(rows: int) -> list[list[str]]:
    """Numbers, gaps, names and words; columns 3 and 4 are numbers until shortly before the end."""
    draw = np.random.default_rng(0)
    numbers, words = draw.normal(size=rows), draw.choice(["red", "blue", "NA"], rows)
    table = [
        list(map(repr, numbers.tolist())),
        [f"{value:.2f}" if value < 2 else "NA" for value in numbers],
        [str(k % 90) for k in range(rows)],
        [str(k % 7) if k != rows - 9 else "2.5" for k in range(rows)],
        [str(k % 5) if k != rows - 9 else "none of them" for k in range(rows)],
        words.tolist(),
        [f"{k % 30:03d}" for k in range(rows)],
        ["yes" if value > 0 else "no" for value in numbers],
    ]
    return list(map(list, zip(*table, strict=True)))


HEADER = ["exact", "gappy", "whole", "late", "text", "colour", "who", "ill"]


def written(rows: list[list[str]], separator: str, quotes: str) -> bytes:
    return "\n".join(
        separator.join(f"{quotes}{each}{quotes}" for each in row) for row in [HEADER, *rows]
    ).encode()


def parts(data: Dataset) -> list[Any]:
    return [data.train.inputs, data.train.targets, data.columns["who"], data.features, data.classes]


@pytest.mark.parametrize(("separator", "quotes"), [(",", ""), (";", '"')])
def test_a_dataset_does_not_depend_on_the_library(tmp_path: Path, separator: str, quotes: str) -> None:
    rows, path = survey(60_000), tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(written(rows, separator, quotes), 1))
    found = []
    for library in ("none", *LIBRARIES):
        with only(library):
            found.append(parts(from_file(path, "ill", "who", categorical="text:0|1|2|3|4|none of them, colour",
                                         missing="mark")))  # fmt: skip
    inputs, targets, who, features, classes = found[0]
    for other in found[1:]:
        assert torch.equal(inputs, other[0]) and torch.equal(targets, other[1])
        assert who.dtype == other[2].dtype and (who == other[2]).all() and other[3:] == [features, classes]
    assert features[:5] == ("exact", "gappy", "gappy is missing", "whole", "late")
    assert inputs[:, 0].tolist() == [np.float32(row[0]) for row in rows]
    assert [inputs[k, 2].item() == 1 for k in range(len(rows))] == [row[1] == "NA" for row in rows]
    assert inputs[:, 4].tolist() == [float(row[3]) for row in rows]
    assert (who == [row[6] for row in rows]).all()
    assert targets.tolist() == [int(row[7] == "yes") for row in rows]


@pytest.mark.parametrize("library", LIBRARIES)
def test_names_are_asked_for_later_too(tmp_path: Path, library: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,who\n1,007\n2,7\n3,1.10\n")
    with only(library):
        table = read_delimited(path)
        assert table.values("who").tolist() == [7, 7, 1.1]
        assert table.identifiers("who").tolist() == ["007", "7", "1.10"]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("rows", "split"),
    [
        ("1,2\n3,4", True),
        ("1,2\r\n3,4\r\n", True),
        ('"a,b",2\n"c ""d""",4\n\n', True),
        ("1,2\n3,4,5\n6", False),  # as many fields as there should be
        ("1,2,3\n4\n5,6", False),
        ("1\n2,3,4\n5,6", False),
        ("1,2\n\n3,4", False),
        ("1,2\n  \n3,4", False),
        ("1,2\r3,4", False),
        ('a"b,2\n"c",4', False),
        ('"a"b,2', False),
        ('"a\nb",2', False),
        ("1\0,2", False),
        ("", False),
    ],
)
def test_a_library_splits_what_all_split_alike(library: str, rows: str, split: bool) -> None:
    with only(library):
        assert (bulk.read(f"a,b\n{rows}".encode(), 4, 2, ",") is not None) == split


def test_without_a_library_rows_are_read_by_csv() -> None:
    with only("none"):
        assert bulk.read(b"a,b\n1,2", 4, 2, ",") is None


@pytest.mark.parametrize("library", LIBRARIES)
def test_numbers_come_as_numbers(library: str) -> None:
    with only(library):
        found = bulk.read(b"1,2.5,x,007\n-3,4e2,y,7\n", 0, 4, ",", [3])
    assert found is not None
    whole, real, text, names = found.columns
    assert isinstance(whole, np.ndarray) and (whole.dtype, whole.tolist()) == (np.int64, [1, -3])
    assert isinstance(real, np.ndarray) and (real.dtype, real.tolist()) == (np.float64, [2.5, 400])
    assert isinstance(text, bulk.Texts) and isinstance(names, bulk.Texts)
    assert [names.texts[code] for code in names.codes] == ["007", "7"]
    assert [found.texts(1).texts[code] for code in found.texts(1).codes] == ["2.5", "4e2"]
