"""A small made-up dataset, and the door to real ones."""

import os
from pathlib import Path

import pytest
from blobs import blobs

from atoll.data import Dataset


@pytest.fixture
def small() -> Dataset:
    """300 training and 100 test samples of 5 classes."""
    return blobs([60] * 5, [20] * 5)


@pytest.fixture
def real() -> Path:
    """The folder with the real data, or a skip."""
    root = os.environ.get("ATOLL_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("ATOLL_DATA does not name a folder with the real data")
    return Path(root)
