"""The house as it is drawn: no module imports its way back to itself, not even inside a function."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import atoll

ROOT = Path(atoll.__file__).parent


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("atoll", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that this one imports when it runs, at the top or later; for types alone does not count."""
    types = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.dump(test.test)
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) in types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "atoll":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def graph() -> dict[str, set[str]]:
    known = modules()
    edges = {name: set(imported(ast.parse(path.read_text("utf-8")), known)) for name, path in known.items()}
    return {name: edges[name] - {name, "atoll"} for name in edges}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle, or none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := walk(name, []))), [])


def test_no_imports_go_round_in_a_circle_not_even_later() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c"]  # it would be seen
    edges = graph()
    assert len(edges) > 150 and "atoll.contract.reduce" in edges["atoll.contract.method"]
    assert circle(edges) == []


def test_engines_leave_reducers_to_themselves() -> None:
    """What a reducer holds is its own: engines call, and read nothing in it."""
    for path in (ROOT / "engines").glob("*.py"):
        text = path.read_text("utf-8")
        found = re.findall(r"\.total\b|\bMean\(|\bEach\(", text)
        assert not found, f"{path.name}: {found}"
