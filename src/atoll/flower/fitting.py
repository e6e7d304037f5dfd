"""Which releases of Flower fit."""

from __future__ import annotations

import re
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from atoll.errors import AtollError, ConfigError, MissingExtraError

__all__ = ["FITS", "fits_or_ends", "fitting"]

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


def fits_or_ends() -> None:
    """`fitting` for what an app.py calls as it is read: where Flower does not fit, one screen, and the process ends."""
    try:
        fitting()
    except AtollError as error:
        print(f"error: {error}", file=sys.stderr)
        if "flwr" in Path(sys.argv[0]).name:
            time.sleep(1)  # a ServerApp's log is sent every 0.2 s, by a thread that ends with the process
        sys.exit(error.exit_code)
