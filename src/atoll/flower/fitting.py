"""Which releases of Flower fit."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from atoll.errors import ConfigError, MissingExtraError

__all__ = ["FITS", "fitting"]

FITS = "1.42"
"""The minor release whose apps, messages and grid are spoken here, by any of its patches."""


def fitting(found: str | None = None) -> None:
    """Look at the Flower that is installed, or at this version.

    Raises MissingExtraError where there is none, ConfigError for a release whose interfaces are not known to be these.
    """
    if found is None:
        try:
            found = version("flwr")
        except PackageNotFoundError:
            raise MissingExtraError("flwr", "flower", "an app on Flower's network") from None
    if not re.match(rf"{re.escape(FITS)}\.\d", found):
        raise ConfigError(
            f"Flower {found} is installed, and this release of Atoll speaks with {FITS}.x",
            hint=f'pip install "flwr=={FITS}.*", on the SuperLink and on every SuperNode',
        )
