"""The command line. Its commands load what they need when they are called: `atoll --help` needs no torch."""

from __future__ import annotations

from atoll.cli.main import main

__all__ = ["main"]
