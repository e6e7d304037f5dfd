"""The door of secure aggregation: what it takes to come in, and that the page says what is so."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atoll.channel import secagg

from .cohort import identity, names, registry

ROOT = Path(secagg.__file__).parent


def test_every_name_is_there_and_explained() -> None:
    for name in secagg.__all__:
        assert getattr(secagg, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Sever'"):
        _ = secagg.Sever


def test_nothing_is_imported_but_arithmetic_and_primitives() -> None:
    """No torch, no input or output, no clock, nothing that makes code of bytes; random numbers only from outside."""
    allowed = {
        "__future__", "collections", "dataclasses", "functools", "hashlib", "importlib", "math", "typing", "secrets",
        "numpy", "msgspec", "cryptography", "atoll.errors",
    }  # fmt: skip
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module or ""]
            for name in found:
                assert (
                    name in allowed
                    or name.split(".")[0] in allowed
                    or name.startswith("atoll.channel.secagg")
                ), path
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called not in {"open", "eval", "exec", "compile", "print", "input", "__import__"}, path
        assert not re.search(r"np\.random\.(?!Generator\b)", path.read_text("utf-8")), path


def test_without_cryptography_there_is_still_the_ideal() -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from atoll.channel import secagg\n"
        "from atoll.errors import MissingExtraError\n"
        "assert secagg.plan(10) == (9, 6) and secagg.ideal\n"
        "try: secagg.Client\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "secure aggregation needs cryptography" in done.stdout and "atoll[secagg]" in done.stdout


def test_the_page_shows_what_works() -> None:
    page = (Path(__file__).parents[3] / "docs" / "secagg.md").read_text("utf-8")
    block = re.search(r"((?:    .*\n|\n)+)\n## Rounds", page)
    assert block
    code = "\n".join(line[4:] for line in block[1].splitlines())
    nodes, rng = names(10), np.random.default_rng(0)
    update = rng.normal(0, 0.01, 5).astype(np.float32)
    head, tail = code.split("client = Client(")
    known: dict[str, object] = {
        "nodes": nodes, "registry": registry(nodes), "size": 5, "rng": rng, "update": update, "weight": 300.0,
        "hash_of_the_model": hashlib.sha256(b"").digest(), "clients": {},
    }  # fmt: skip
    body, end = ("client = Client(" + tail).split("total = ")
    exec(head, known)
    for node in nodes:
        known |= {"node": node, "sign": identity(node).sign}
        exec(body, known)
        known["clients"][node] = known["client"]  # type: ignore[index]
    exec("total = " + end, known)
    total = known["total"]
    assert (known["degree"], known["threshold"]) == (9, 7)
    assert np.abs(total.mean - update).max() < 1e-5 and total.weight == pytest.approx(3000.0)  # type: ignore[attr-defined]
