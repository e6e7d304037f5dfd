"""Rules against those of another library (see `byzfl_vectors.py`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from atoll.robust import aggregate

CASES = json.loads(Path(__file__).with_name("byzfl.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['rows'])} updates")
def test_byzfl_finds_the_same(case: dict[str, object]) -> None:
    rows = torch.tensor(case["rows"], dtype=torch.float64)
    found = dict(case["found"])  # type: ignore[call-overload]
    assert len(found) == 16
    for text, wanted in found.items():
        assert torch.allclose(aggregate(rows, text), torch.tensor(wanted, dtype=torch.float64), atol=1e-5), (
            text
        )
