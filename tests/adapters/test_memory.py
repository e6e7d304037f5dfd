"""Clients with adapters share one base: what is in memory beside files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys, torch, atoll.data
from atoll import models
from atoll.federation import Federation
from atoll.tensors import nbytes

def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

tokens = torch.randint(0, 256, (20, 1, 8))
data = atoll.data.from_clients({f"c{k}": (x, x.roll(-1, 1)) for k, x in enumerate(tokens)}, classes=256, test=None)
made = Federation(
    lambda: models.gpt(256, 8, 8, 1024, 8), data, "fedit", adapter="lora:8,16", rounds=1, engine=sys.argv[1],
    device="cpu", eval_every=0,
)
before = anonymous()
run = made.fit(progress=False)
base, adapter = nbytes(made.task.frozen), nbytes(made.state.params)
print(json.dumps({"base": base, "adapter": adapter, "anonymous": anonymous(), "before": before}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_twenty_clients_share_one_base(engine: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, engine], capture_output=True, text=True, check=True, timeout=1200
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["base"] > 380 << 20
    assert found["anonymous"] <= found["base"] + 20 * found["adapter"] + (300 << 20), found
