"""Every hint is true where it is read: its keys exist at that door, and what it says can be typed as it stands."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll import data as sources
from atoll.errors import AtollError
from atoll.experiment import Experiment, run_settings
from atoll.methods import METHODS, fields

_KEY = re.compile(r"""(?<![\w.])([a-z_]+)=("[^"]*"|[^\s"',;)]+)""")
_ASKED = re.compile(r"\b(set|pass|with|name) ([a-z_]+)=")
GOOD = "age,sex,site,ill\n" + "".join(
    f"{30 + k},{'fm'[k % 2]},{'ab'[k // 2 % 2]},{k % 2}\n" for k in range(40)
)
CASES: list[tuple[str, dict[str, str]]] = [
    (GOOD, {}),  # which column?
    (GOOD, {"label": "ill"}),
    (GOOD, {"label": "ill", "features": "age,site"}),
    (GOOD, {"label": "ill", "features": "age", "categorical": "sex:f"}),
    (GOOD, {"label": "ill", "categorical": "site,sex:f"}),
    (GOOD.replace("31,", ",", 1), {"label": "ill", "features": "age"}),
    (GOOD.replace("31,", "NA,"), {"label": "ill", "features": "age"}),
    (GOOD.replace(",1\n", ",\n", 1), {"label": "ill", "features": "age"}),
    (GOOD.replace(",1\n", ",1.0\n"), {"label": "ill", "features": "age"}),
    (GOOD.replace(",1\n", ",5\n"), {"label": "ill", "features": "age"}),
    (GOOD.replace(",1\n", ",-1\n"), {"label": "ill", "features": "age"}),
    (GOOD, {"label": "ill", "features": "age", "scale": "age"}),
    (GOOD, {"label": "ill", "features": "age", "missing": "fill"}),
    (GOOD, {"label": "ill", "features": "age", "classes": "1"}),
    (GOOD, {"label": "ill", "features": "age", "partition": "by:site"}),
    (GOOD, {"label": "ill", "features": "age", "partition": "natural"}),
    (GOOD, {"label": "ill", "features": "age", "classes": "regression", "partition": "dirichlet:1"}),
    (
        "age,name,y\n" + "".join(f"{k},P{k},{k % 2}\n" for k in range(40)),
        {"label": "y", "categorical": "text"},
    ),
    ("age,name,y\n" + "".join(f"{k},P{k},{k % 2}\n" for k in range(40)), {"label": "name"}),
]


def hint(action: Callable[[], object]) -> str:
    with pytest.raises(AtollError) as caught:
        action()
    assert caught.value.hint, caught.value.message
    return caught.value.hint


def by_text(path: Path, given: dict[str, str]) -> str:
    sets = [f"data={path}", *(f"{key}={value}" for key, value in given.items())]

    def run() -> None:
        experiment = Experiment.read(None, sets)
        experiment.divide(experiment.load())

    return hint(run)


@pytest.mark.parametrize(("content", "given"), CASES)
def test_hints_about_data_are_true_at_both_doors(tmp_path: Path, content: str, given: dict[str, str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    told = _KEY.findall(by_text(path, given))
    for key, value in told:
        assert key in run_settings(), key
        assert shlex.split(f"--set {key}={value}")[1] == f"{key}={value.strip(chr(34))}"
        if "COLUMN:" not in value:  # a form, and no value
            Experiment.read(None, [f"data={path}", f"{key}={value.strip(chr(34))}"])
            if value.startswith('"') or value.isdecimal():
                file = tmp_path / "run.toml"
                file.write_text(f"data = 't.csv'\n{key} = {value}\n")
                assert tomllib.loads(file.read_text())[key]
                Experiment.read(file)
    known = {
        *inspect.signature(sources.from_file).parameters,
        *inspect.signature(sources.Dataset.partition).parameters,
    }
    options = {key: value for key, value in given.items() if key != "partition"}

    def call() -> Any:
        return sources.from_file(path, **options).partition(given.get("partition", "iid"), clients=None)  # type: ignore[arg-type]

    for key, _ in _KEY.findall(hint(call)):
        assert key in known, key


@pytest.mark.parametrize(
    ("content", "given", "answer"),
    [
        (GOOD.replace("31,", ",", 1), {"label": "ill", "features": "age"}, "missing="),
        (GOOD, {"label": "ill", "features": "age,sex"}, "categorical="),
        (GOOD, {"label": "ill", "features": "age,sex", "categorical": "sex:f"}, "categorical="),
        (GOOD.replace(",1\n", ",1.0\n"), {"label": "ill", "features": "age"}, "classes="),
        (GOOD.replace(",1\n", ",5\n"), {"label": "ill", "features": "age"}, "classes="),
    ],
)
def test_what_a_hint_says_mends_it(tmp_path: Path, content: str, given: dict[str, str], answer: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    answers = [(key, value) for key, value in _KEY.findall(by_text(path, given)) if f"{key}=" == answer]
    assert answers
    for key, value in answers:
        typed = shlex.split(f"{key}={value}")[0].partition("=")[2]
        experiment = Experiment.read(
            None, [f"data={path}", *(f"{k}={v}" for k, v in {**given, key: typed}.items())]
        )
        assert len(experiment.divide(experiment.load())) >= 2
        python: Any = int(typed) if typed.isdecimal() else typed
        assert sources.from_file(path, **{**given, key: python}).train.count >= 39


def hints() -> list[tuple[str, str]]:
    """Every hint in the source, by its module; what is filled in stands as ``*``."""
    found = []
    root = Path(atoll.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for keyword in node.keywords if isinstance(node, ast.Call) else ():
                if keyword.arg == "hint":
                    found += [
                        (str(path.relative_to(root)), "".join(map(_text, parts)))
                        for part in ast.walk(keyword.value)
                        if (
                            parts := getattr(part, "values", None)
                            if isinstance(part, ast.JoinedStr)
                            else [part]
                        )
                        and all(isinstance(each, (ast.Constant, ast.FormattedValue)) for each in parts)
                    ]
    return found


def _text(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "*"


def test_keys_that_hints_ask_to_set_exist() -> None:
    settings = {*run_settings(), *(each.name for kind in METHODS.values() for each in fields(kind))}
    functions = [
        getattr(sources, name) for name in sources.__all__ if inspect.isfunction(getattr(sources, name))
    ]
    functions += [sources.Dataset.partition, atoll.Federation.__init__]
    words = settings | {name for each in functions for name in inspect.signature(each).parameters}
    asked = [(where, verb, key) for where, text in hints() for verb, key in _ASKED.findall(text)]
    assert len(asked) > 8
    for where, verb, key in asked:
        assert key in (settings if verb == "set" else words), f"{where}: {verb} {key}="
