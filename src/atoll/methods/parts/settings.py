"""Checking the settings of a method."""

from __future__ import annotations

from typing import Any

from atoll.errors import ConfigError

__all__ = ["require"]


def require(method: Any, name: str, holds: bool, what: str) -> None:
    """Raise ConfigError, naming the method, the setting and its value, unless `holds`."""
    if not holds:
        raise ConfigError(f"{type(method).__name__}: {name} = {getattr(method, name)!r}, but it {what}")
