"""docs/distributed.md is about what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from atoll.distributed import STRATEGIES, Training
from atoll.origin import Origin

TEXT = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text("utf-8")


def test_every_key_is_told_as_the_schema_has_it() -> None:
    """Keys of data are in docs/data.md."""
    elsewhere = {each.name for each in dataclasses.fields(Origin)}
    section = TEXT.partition("\n## Settings\n")[2].partition("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", section, re.MULTILINE))
    kinds = {key: kind for key, kind in Training.kinds().items() if key not in elsewhere}
    assert {key: kind.__metadata__[-1].description for key, kind in kinds.items()} == table


def test_every_strategy_has_its_place() -> None:
    section = TEXT.partition("\n## Which one?\n")[2].partition("\n### ")[0]
    assert set(re.findall(r"^\| [^|]* \| `([a-z0-9]+)[:`]", section, re.MULTILINE)) >= set(STRATEGIES)
