"""What Atoll reads can run no code: no pickle in any form, no evaluation of text, no import by a name from outside.

The rule is about what the package says itself, by its syntax tree; `EXEMPT` lists who may import by name, and why,
`CARRIED` who hands objects to others that carry them, by means of their own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import atoll

ROOT = Path(atoll.__file__).parent

EXEMPT = {
    "own.py": "imports what the user names on the command line, in a file of their own or in Python",
    "__init__.py": "names of the package, imported when they are first used, from a table that stands in the file",
    "channel/__init__.py": "the same, of the channel's parts",
    "channel/secagg/__init__.py": "the same, of the protocol's parts",
    "runs/loggers.py": "optional packages, by names that stand in the file",
}
"""Files that may use importlib, and why."""

OWN_FILES = {
    "export/torchscript.py": (
        "torch.jit.load",
        "runs the file that it has just written, in a directory of its own",
    ),
}
"""Files that load what could run code, and why: it is theirs."""

CARRIED = {
    "engines/cluster.py": "Ray starts actors with the model, data and method that the driver gives it: a cluster runs"
    " whatever its driver says; rounds pass bytes of the codec (docs/cluster.md)",
}
"""Files that import what serialises objects by itself, and why."""

CARRIERS = {"ray", "multiprocessing.managers", "multiprocessing.shared_memory"}

PACKAGES = {
    "pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml",
    "ruamel", "jsonpickle", "runpy", "imp", "code", "codeop",
}  # fmt: skip
NAMES = {"eval", "exec", "compile", "__import__"}
HARMLESS = {"importlib.metadata", "importlib.resources"}
LOADERS = {("torch", "load"), ("torch.jit", "load"), ("torch.hub", "load"), ("torch", "package")}
ATTRIBUTES = {"read_pickle", "to_pickle", "read_array", "load_module", "exec_module"}


def forbidden(source: str) -> Iterator[str]:
    """What a module says that it must not; what importlib is used for begins with "importlib"."""
    tree = ast.parse(source)
    short = dict(_imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imported(node)
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node.id
        elif isinstance(node, ast.Attribute):
            where = short.get(_dotted(node.value), _dotted(node.value))
            if where in ("builtins", "__builtins__") and node.attr in NAMES:
                yield node.attr
            if (where, node.attr) in LOADERS or node.attr in ATTRIBUTES:
                yield f"{where}.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            where = short.get(_dotted(node.func.value), _dotted(node.func.value))
            if where in ("numpy", "np") and not _without_pickle(node):
                yield "numpy.load without allow_pickle=False"


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What modules are called here, and what they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.asname, each.name) for each in node.names if each.asname)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.level:
        return
    origin = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
    for each in node.names:
        whole = f"{origin}.{each.name}" if origin else each.name
        first = whole.split(".")[0]
        if first in PACKAGES:
            yield first
        if first == "importlib" and not any(f"{whole}.".startswith(f"{known}.") for known in HARMLESS):
            yield "importlib"
        if (origin, each.name) in LOADERS or (origin == "numpy" and each.name == "load"):
            yield whole
        if origin == "builtins" and each.name in NAMES:
            yield each.name


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _without_pickle(call: ast.Call) -> bool:
    found = [each.value for each in call.keywords if each.arg == "allow_pickle"]
    return bool(found) and isinstance(found[0], ast.Constant) and found[0].value is False


def test_the_package_reads_nothing_that_can_run_code() -> None:
    """Not one file, but for those that import by names of their own."""
    used: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        if found := set(forbidden(path.read_text("utf-8"))):
            used[path.relative_to(ROOT).as_posix()] = found
    may = {file: {"importlib"} for file in EXEMPT} | {file: {what} for file, (what, _) in OWN_FILES.items()}
    strange = {file: found for file, found in used.items() if found != may.get(file)}
    assert not strange, f"these could run code that came from outside: {strange}"
    assert used.keys() == may.keys(), "who needs no exemption has none"


def test_who_has_objects_carried_is_listed() -> None:
    used = set()
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(f"{name}.".startswith(f"{known}.") for name in names for known in CARRIERS):
                used.add(path.relative_to(ROOT).as_posix())
    assert used == CARRIED.keys()


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle", "import pickle as p", "from pickle import loads", "import dill", "import cloudpickle",
        "from marshal import loads", "import shelve", "import joblib", "import yaml", "from ruamel.yaml import YAML",
        "def f(x):\n    import pickle\n    return pickle.loads(x)",
        "torch.load(path)", "torch.load(path, weights_only=True)", "import torch as t\nt.load(path)",
        "from torch import load", "torch.jit.load(path)", "torch.hub.load(path)",
        "np.load(path)", "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=wanted)",
        "import numpy as n\nn.load(path)", "from numpy import load", "numpy.load(path, None, False)",
        "pandas.read_pickle(path)", "frame.to_pickle(path)",
        "eval(text)", "exec(text)", "compile(text, name, 'exec')", "__import__(name)", "run = eval",
        "import builtins\nbuiltins.exec(text)", "from builtins import eval",
        "import importlib", "from importlib import import_module", "import importlib.util as u",
        "from importlib.machinery import SourceFileLoader", "loader.exec_module(module)", "import runpy",
    ],
)  # fmt: skip
def test_what_is_planted_is_found(planted: str) -> None:
    """Each way in which code could come from outside."""
    assert list(forbidden(planted)), planted


@pytest.mark.parametrize(
    "harmless",
    [
        "model.eval()", "import importlib.metadata", "from importlib import resources", "import re\nre.compile(text)",
        "np.load(path, allow_pickle=False)", "from safetensors.torch import load", "import json\njson.load(stream)",
        "from atoll.codec import decode", "from .table import yaml", "def yaml(value): ...",
    ],
)  # fmt: skip
def test_what_is_harmless_is_not(harmless: str) -> None:
    """A rule that cries wolf would be switched off."""
    assert not list(forbidden(harmless)), harmless
