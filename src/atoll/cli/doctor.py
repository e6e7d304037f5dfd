"""`atoll doctor`: versions, machine, data and engines, as plain lines to paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import re
import sys

import torch

from atoll import __version__
from atoll import data as sources
from atoll.cli.show import readable
from atoll.engines import ENGINES
from atoll.machine import cores

__all__ = ["report"]

_ABSENT = "not installed"
_REQUIREMENT = re.compile(r"""([\w.-]+).*;\s*extra\s*==\s*["']([\w-]+)["']""")
_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "msgspec",
    "typer",
    "rich",
)
_VARIABLES = (
    "ATOLL_DATA",
    "ATOLL_HOME",
    "ATOLL_DATA_URL",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CI",
    "NO_COLOR",
)


def report() -> None:
    """Print the block."""
    for name, text in lines():
        print(f"{name:<13} {text}")


def lines() -> list[tuple[str, str]]:
    """What there is, as (name, text)."""
    rows = [("atoll", __version__), ("python", f"{platform.python_version()} ({sys.executable})")]
    rows.append(("platform", f"{platform.system()} {platform.release()} {platform.machine()}"))
    rows += [(name, _version(name)) for name in _PACKAGES]
    rows += [(f"[{name}]", _extra(name, packages)) for name, packages in extras().items()]
    rows.append(("cores", f"{cores()} usable, {torch.get_num_threads()} torch threads"))
    rows.append(("gpu", _gpus()))
    rows.append(("engines", ", ".join(name for name in ENGINES if name != "auto" and _available(name))))
    root = sources.data_root()
    state = "found" if root.is_dir() else "not there"
    rows.append(
        ("data", f"{root} ({state}{'' if os.environ.get('ATOLL_DATA') else '; ATOLL_DATA is not set'})")
    )
    entries = sources.catalogue()
    here = [each.name for each in entries if readable(each)]
    absent = [each.name for each in entries if each.name not in here]
    rows.append(("readable", ", ".join(here)))
    if absent:
        rows.append(("absent", ", ".join(absent)))
    rows += [(name, os.environ[name]) for name in _VARIABLES if os.environ.get(name)]
    return rows


def extras() -> dict[str, list[str]]:
    """The extras for users and their packages, as the installed distribution declares them."""
    try:
        declared = importlib.metadata.requires("atoll") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in declared:
        match = _REQUIREMENT.match(line)
        if match and match[2] != "dev":
            found.setdefault(match[2], []).append(match[1])
    return found


def _extra(name: str, packages: list[str]) -> str:
    """The versions of its packages, or how to get those that are missing."""
    versions = {package: _version(package) for package in packages}
    text = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f'{text}; pip install "atoll[{name}]"' if _ABSENT in versions.values() else text


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _ABSENT


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (CUDA {torch.version.cuda})"


def _available(engine: str) -> bool:
    if engine == "ray":
        return _version("ray") != _ABSENT
    return engine != "processes" or "fork" in multiprocessing.get_all_start_methods()
