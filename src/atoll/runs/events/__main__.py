"""`python -m atoll.runs.events docs/runs.md` writes the tables of events in that page anew."""

from __future__ import annotations

import sys
from pathlib import Path

from atoll.runs.events.table import within

page = Path(sys.argv[1])
page.write_text(within(page.read_text("utf-8")), "utf-8")
