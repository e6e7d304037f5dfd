"""Code of the user's own, named in a text as ``package.module:Name``, and imported only where the user names it.

A run folder holds such texts too, and may come from anybody. Reading one must not run code: what a text stands for is
known after `admit` alone, which is called for what stands on the user's command line, in the user's file or in a Python
keyword.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Collection
from typing import Any

from atoll.errors import ConfigError, suggest

__all__ = ["KEYS", "admit", "found", "named", "short"]

KEYS = ("model", "method", "loss", "metrics", "augment", "choose", "adaptive")
"""Keys whose values may name code."""

_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_PLAIN = ("hf:", "fused:")
"""What begins like this is no code: the path of a folder, a word for how parts become one."""
_admitted: dict[str, Any] = {}


def named(text: object, taken: Collection[str] = ()) -> list[str]:
    """The names of code in a value, where it holds some: ``"cnn + nets:Small"`` has ``nets:Small``.

    Args:
        taken: what is no module before a colon, but a name of this package, with a setting of its own.
    """
    parts = [part.strip() for part in re.split(r"[+,]", text)] if isinstance(text, str) else []
    codes = [part for part in parts if _CODE.fullmatch(part) and not part.startswith(_PLAIN)]
    return [code for code in codes if code.partition(":")[0] not in taken]


def short(text: str) -> str:
    """What a text is called in titles and in names of folders."""
    return text.rpartition(":")[2] if _CODE.fullmatch(text) else text


def admit(name: str, key: str) -> None:
    """Import what a name stands for.  Raises ConfigError, with the key, where there is no such thing."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        content = importlib.import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        what = f"there is no module {error.name}" if missing else f"{type(error).__name__}: {error}"  # type: ignore[attr-defined]
        hint = f"modules are looked for in {os.getcwd()} and among what is installed" if missing else None
        raise ConfigError(f"{key} = {name!r}: {what}", hint=hint) from error
    if not hasattr(content, attribute):
        known = [each for each in vars(content) if not each.startswith("_")]
        raise ConfigError(f"{key} = {name!r}: {module} has no {attribute}", hint=suggest(attribute, known))
    _admitted[name] = getattr(content, attribute)


def found(name: str, key: str) -> Any:
    """What an admitted name stands for.  Raises ConfigError for any other."""
    if name not in _admitted:
        raise ConfigError(
            f"{key} = {name!r} is code, and code is imported only where you name it yourself",
            hint=f"say it on the command line: --set {key}={name}",
        )
    return _admitted[name]
