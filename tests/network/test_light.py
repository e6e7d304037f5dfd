"""A node's own process stays small: what trains is its worker."""

from __future__ import annotations

import subprocess
import sys


def test_a_node_does_not_load_torch() -> None:
    code = "import sys, atoll.cli.join, atoll.network.node; print(sorted({'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
