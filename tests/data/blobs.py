"""Small made-up datasets for the tests in this folder."""

import numpy as np

from atoll.data import Dataset, from_arrays


def blobs(counts: list[int], test: list[int] | None = None, seed: int = 0) -> Dataset:
    """A dataset with so many samples per class; input 0 is the row's own number."""
    generator = np.random.default_rng(seed)

    def split(numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.permutation(np.repeat(np.arange(len(numbers)), numbers))
        inputs = generator.normal(size=(len(labels), 3))
        inputs[:, 0] = np.arange(len(labels))
        return inputs, labels

    held = None if test is None else split(test)
    return from_arrays(*split(counts), held, classes=len(counts), name="blobs")
