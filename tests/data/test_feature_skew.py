"""Clients whose inputs or labels mean something else: rotation, noise, renamed labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import blobs

from atoll.data import IID, LabelPermutation, Noise, Rotated, from_arrays, load
from atoll.data.partition import rotate
from atoll.errors import DataError


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (9, 9), (12, 7)])
def test_rotation_agrees_with_pillow_to_the_pixel(size: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(1, 255, size, dtype=np.uint8)
    for degrees in [*range(0, 360, 10), 45, -30, 7.3, 359.5]:
        expected = np.array(image.fromarray(pixels).rotate(degrees))
        turned = rotate(torch.from_numpy(pixels)[None, None], degrees)[0, 0]
        assert torch.equal(turned, torch.from_numpy(expected)), degrees


def test_rotated_clients_hold_disjoint_turned_images() -> None:
    generator = np.random.default_rng(0)
    x, t = generator.random((120, 1, 8, 8)), generator.random((40, 1, 8, 8))
    data = from_arrays(x, np.arange(120) % 10, (t, np.arange(40) % 10))
    fed = data.partition(Rotated(4, train=20, validation=5, test=10), seed=3)
    assert list(fed.names) == ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]
    assert fed.partition == "rotated:4,20,5,10"
    originals = data.train.inputs.reshape(120, -1)
    seen: list[int] = []
    for client in range(4):
        for split in ("train", "validation"):
            samples = fed.samples(client, split)
            assert samples is not None
            back = torch.rot90(samples.inputs, -client, dims=(-2, -1)).reshape(samples.count, -1)
            rows = [int((originals == row).all(1).nonzero()) for row in back]
            assert torch.equal(data.train.targets[rows], samples.targets)
            seen += rows
    assert len(set(seen)) == len(seen) == 100
    assert fed.test_set is not None
    assert fed.test_set.count == 40
    assert fed.size(2) == 20


def test_rotated_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="not images"):
        blobs([300], [300]).partition("rotated:2")
    images = from_arrays(np.zeros((50, 1, 4, 4)), np.zeros(50, dtype=int))
    with pytest.raises(DataError, match="needs 384 training images"):
        images.partition("rotated:2")
    with pytest.raises(DataError, match="official test images"):
        images.partition(Rotated(2, train=5, validation=1, test=1))
    with pytest.raises(DataError, match="fixes its own validation"):
        images.partition(Rotated(2, train=5, validation=1, test=0), validation=0.1)


def test_rotated_mnist_is_fedora_setting(real: Path) -> None:
    fed = load("mnist").partition("rotated:36")
    assert len(fed) == 36
    for split, count in (("train", 128), ("validation", 64), ("test", 277)):
        samples = fed.samples(35, split)
        assert samples is not None
        assert samples.count == count


def test_noise_grows_with_the_client() -> None:
    data = blobs([500, 500], [100, 100])
    fed, clean = data.partition(Noise(4, 1.0), seed=1), data.partition(IID(4), seed=1)
    spread = []
    for client in range(4):
        noisy, plain = fed.samples(client), clean.samples(client)
        assert noisy is not None
        assert plain is not None
        assert torch.equal(noisy.targets, plain.targets)
        spread.append(float((noisy.inputs - plain.inputs).std()))
    assert spread == pytest.approx([0.25, 0.5, 0.75, 1.0], rel=0.1)
    again = data.partition(Noise(4, 1.0), seed=1).samples(2, "test")
    test = fed.samples(2, "test")
    assert test is not None
    assert again is not None
    assert torch.equal(test.inputs, again.inputs)


def test_permuted_labels_share_a_task_in_a_group() -> None:
    data = blobs([80] * 5, [20] * 5)
    rule = LabelPermutation(IID(8), groups=3, fraction=0.75)
    fed, plain = data.partition(rule, seed=2), data.partition(IID(8), seed=2)
    tasks = rule.assignment(8, 2)
    assert np.bincount(tasks).tolist() == [2, 2, 2, 2]
    for client in range(8):
        new = torch.from_numpy(rule.permutation(int(tasks[client]), 5, 2))
        for split in ("train", "test"):
            mine, theirs = fed.samples(client, split), plain.samples(client, split)
            assert mine is not None
            assert theirs is not None
            assert torch.equal(mine.inputs, theirs.inputs)
            assert torch.equal(mine.targets, new[theirs.targets])
        if tasks[client]:
            assert not (new == torch.arange(5)).any()
            assert sorted(new.tolist()) == list(range(5))
    with pytest.raises(DataError, match="fraction"):
        data.partition(LabelPermutation(IID(8), fraction=1.5))
