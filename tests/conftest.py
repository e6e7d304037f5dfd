"""Every test process computes on one thread: several of them share the machine."""

from __future__ import annotations

import os
import tempfile

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["ATOLL_RUNS"] = tempfile.mkdtemp(prefix="atoll-test-runs-")
torch.set_num_threads(1)
