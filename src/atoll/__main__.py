"""`python -m atoll`, and `torchrun -m atoll`: the command."""

from __future__ import annotations

from atoll.cli import main

if __name__ == "__main__":
    main()
