"""Partitions of flwr-datasets, by what they document: load_partition, num_partitions, partitioners."""

from __future__ import annotations

import numpy as np
import pytest

import atoll
from atoll.errors import DataError


class Partitioner:
    """As `flwr_datasets.partitioner.Partitioner`: partitions of a dataset, by number."""

    num_partitions = 3

    def load_partition(self, partition_id: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(partition_id)
        return rng.normal(size=(5 + partition_id, 2)).astype(np.float32), rng.integers(0, 2, 5 + partition_id)


class Federated:
    """As `flwr_datasets.FederatedDataset`: a partitioner a split."""

    partitioners = {"train": Partitioner()}  # noqa: RUF012

    def load_partition(self, partition_id: int, split: str) -> tuple[np.ndarray, np.ndarray]:
        return self.partitioners[split].load_partition(partition_id)


@pytest.mark.parametrize("divided", [Partitioner(), Federated()])
def test_clients_are_the_partitions(divided: object) -> None:
    data = atoll.data.from_partitions(divided, test=None, classes=2)
    assert [data.size(k) for k in range(len(data))] == [5, 6, 7]
    assert data.names[2] == "partition-2"
    samples = data.samples(1)
    assert samples is not None
    inputs, targets = Partitioner().load_partition(1)
    assert np.array_equal(samples.inputs.numpy(), inputs) and np.array_equal(samples.targets.numpy(), targets)


def test_what_has_no_partitions_is_refused() -> None:
    with pytest.raises(DataError, match="has no load_partition"):
        atoll.data.from_partitions([1, 2])
    with pytest.raises(DataError, match="'test' is not divided"):
        atoll.data.from_partitions(Federated(), split="test")


def test_partitions_of_the_package_itself_are_clients() -> None:
    pytest.importorskip("flwr_datasets")
    datasets = pytest.importorskip("datasets")
    from flwr_datasets.partitioner import DirichletPartitioner

    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(0, 256, (60, 4, 4), dtype=np.uint8), rng.integers(0, 3, 60)
    form = datasets.Features(
        {"image": datasets.Array2D((4, 4), "uint8"), "label": datasets.ClassLabel(num_classes=3)}
    )
    divided = DirichletPartitioner(3, partition_by="label", alpha=0.5, min_partition_size=2, seed=1)
    divided.dataset = datasets.Dataset.from_dict(
        {"image": list(pictures), "label": labels.tolist()}, features=form
    )
    data = atoll.data.from_partitions(divided, label="label", inputs="image", test=None)
    assert len(data) == 3 and sum(data.size(k) for k in range(3)) == 60
    for number in range(3):
        samples, own = data.samples(number), divided.load_partition(number)
        assert samples is not None and samples.targets.tolist() == own["label"]
        assert np.array_equal(samples.inputs.numpy().reshape(-1, 4, 4), np.asarray(own["image"], np.float32))
