"""`python -m atoll.cli` is the command `atoll` of that Python."""

from __future__ import annotations

from atoll.cli.main import main

main()
