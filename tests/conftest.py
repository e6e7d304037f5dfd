"""Every test process computes on one thread: several of them share the machine."""

from __future__ import annotations

import gc
import os
import tempfile

import hypothesis
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["ATOLL_RUNS"] = tempfile.mkdtemp(prefix="atoll-test-runs-")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="atoll-test-cache-")
os.environ["ATOLL_CACHE"] = "off"  # a test must not depend on what one before it has found
torch.set_num_threads(1)
gc.disable()  # until all tests are there: nothing of what is imported goes away

# A run must not fail by chance: every one tries the same examples. HYPOTHESIS_PROFILE=default looks for others.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_finish() -> None:
    """What was collected stays: neither this process nor one that it forks need look through it again."""
    gc.enable()
    gc.freeze()
