"""Writes the table of `docs/reliability.md`: `python -m tests.network.matrix` runs every fault, quick and slow.

    python -m tests.network.matrix            runs all, then writes
    python -m tests.network.matrix RESULTS    writes from junit files of runs before (pytest --junitxml), later ones win

Number, fault and what must happen are the first paragraph and the rest of each test's docstring.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FAULTS = Path(__file__).parent / "faults"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- the matrix: python -m tests.network.matrix -->", "<!-- end of the matrix -->"


class Row(NamedTuple):
    """A fault and its test."""

    number: int
    fault: str
    due: str
    test: str
    file: str


def rows() -> Iterator[Row]:
    """All tests of faults, in the order of numbers."""
    found = []
    for path in sorted(FAULTS.glob("test_fault_*.py")):
        for each in ast.parse(path.read_text()).body:
            if isinstance(each, ast.FunctionDef) and each.name.startswith("test_"):
                text = inspect.cleandoc(ast.get_docstring(each) or "")
                fault, _, due = text.partition("\n\n")
                said = re.fullmatch(r"R(\d+)\. (.*)", " ".join(fault.split()))
                assert said is not None and due, (
                    f"{path.name}: {each.name} does not say which fault it is, and what must be"
                )
                found.append(Row(int(said[1]), said[2], " ".join(due.split()), each.name, path.stem))
    return iter(sorted(found, key=lambda row: row.number))


def results(files: Sequence[Path]) -> dict[tuple[str, str], dict[str, str]]:
    """(file, test) -> what became of each of its cases."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for path in files:
        for case in ET.parse(path).getroot().iter("testcase"):
            name = case.get("name", "")
            kinds = {each.tag for each in case}
            came = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            key = case.get("classname", "").rpartition(".")[2], name.partition("[")[0]
            found.setdefault(key, {})[name] = came
    return found


def table(files: Sequence[Path]) -> str:
    """The matrix as Markdown."""
    came = results(files)
    lines = ["| | fault | what must happen | test | result |", "|---|---|---|---|---|"]
    for row in rows():
        cases = came.get((row.file, row.test), {})
        counts = {
            kind: sum(each == kind for each in cases.values()) for kind in ("passed", "failed", "skipped")
        }
        said = ", ".join(
            kind if len(cases) == 1 else f"{count} {kind}" for kind, count in counts.items() if count
        )
        test = f"`{row.file.removeprefix('test_fault_')}: {row.test.removeprefix('test_')}`"
        lines.append(f"| R{row.number} | {row.fault} | {row.due} | {test} | {said or 'not run'} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    files = [Path(each) for each in arguments]
    if not files:
        files = [Path(tempfile.mkdtemp()) / "results.xml"]
        command = [sys.executable, "-m", "pytest", str(FAULTS), "-m", "slow or not slow", "-n", "0"]
        subprocess.run([*command, f"--junitxml={files[0]}"], cwd=ROOT, check=False)
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(files)}\n\n{END}{tail}")


if __name__ == "__main__":
    main(sys.argv[1:])
