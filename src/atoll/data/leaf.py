"""The JSON files of LEAF (Caldas et al., 2018, "LEAF: A Benchmark for Federated Settings")."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from atoll.errors import DataError

from .federate import from_clients
from .federated import FederatedData
from .wishes import Classes

__all__ = ["load_leaf"]


def load_leaf(
    source: str | Path | Sequence[str | Path],
    *,
    test: Sequence[str | Path] | str | float | None = "auto",
    encode: Callable[[list[Any], list[Any]], tuple[Any, Any]] | None = None,
    classes: Classes = None,
    name: str | None = None,
    validation: float | int = 0,
    seed: int = 0,
) -> FederatedData:
    """Users of LEAF files as clients.

    Args:
        source: JSON files, or a folder of them. A folder may have the folders ``train`` and ``test``, as
            LEAF's own scripts make them (below ``data`` or not).
        test: files with the users' test data, or the `test` of `Dataset.partition` (for data without them).
        encode: turns a user's lists (x, y) into arrays; needed for data of text.
        classes, name: as in `from_arrays`.
        validation, seed: as in `from_clients`.

    Raises `DataError` for files of another form, naming the file and the user.
    """
    files, tests = _files(source)
    if isinstance(test, Sequence) and not isinstance(test, str):
        tests, test = [Path(path) for path in test], "auto"
    title = name if name is not None else files[0].parent.name or "leaf"
    users = _users(files, encode)
    held = _users(tests, encode)
    clients: dict[str, Any] = {
        user: {"train": pair, "test": held[user]} if user in held else pair for user, pair in users.items()
    }
    return from_clients(
        clients, test="auto" if held else test, validation=validation, classes=classes, seed=seed, name=title
    )


def _files(source: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    if not isinstance(source, (str, Path)):
        return [Path(path) for path in source], []
    root = Path(source)
    if root.is_file():
        return [root], []
    if (root / "data").is_dir() and not list(root.glob("*.json")):
        root = root / "data"
    inner = root / "train" if (root / "train").is_dir() else root
    files, tests = sorted(inner.glob("*.json")), sorted((root / "test").glob("*.json"))
    if not files:
        raise DataError(
            f"{source}: there are no JSON files", hint="pass LEAF's data folder, or the files themselves"
        )
    return files, tests


def _users(
    files: Sequence[Path], encode: Callable[[list[Any], list[Any]], tuple[Any, Any]] | None
) -> dict[str, tuple[Any, Any]]:
    users: dict[str, tuple[Any, Any]] = {}
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            entries = {str(user): content["user_data"][user] for user in content["users"]}
            pairs = {user: (list(entry["x"]), list(entry["y"])) for user, entry in entries.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not a LEAF file ({type(error).__name__}: {error})",
                hint='it needs "users" and "user_data": {user: {"x": [...], "y": [...]}}',
            ) from None
        for user, (x, y) in pairs.items():
            if user in users:
                raise DataError(f"{path}: user {user!r} occurs twice", hint="pass each file once")
            if not x:
                continue
            if encode is None and isinstance(x[0], str):
                raise DataError(
                    f"{path}, user {user!r}: the inputs are text",
                    hint="in Python, load_leaf takes encode=function(x, y), which makes numbers of them",
                )
            users[user] = (x, y) if encode is None else encode(x, y)
    return users
