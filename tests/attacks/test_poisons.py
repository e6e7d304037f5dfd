"""Poisoned data: what attackers train on, what others do not, and what success is measured on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import atoll
from atoll.attacks import DBA, Attacker, Backdoor, Edge, LabelFlip, Poison
from atoll.attacks.poisoned import poisoned
from atoll.attacks.trigger import marked
from atoll.data import FederatedData, Samples
from atoll.data.exchanged import exchanged
from atoll.errors import ConfigError
from atoll.parts import Parts
from atoll.tensors import Record

ONE = Attacker(client=3, nth=0, among=1, seed=0)


def pictures(count: int = 40, classes: int = 4) -> Samples:
    pixels = np.random.default_rng(0).random((count, 1, 5, 6), np.float32)
    return Samples(torch.from_numpy(pixels), torch.arange(count) % classes)


def changed(poison: Poison, samples: Samples, attacker: Attacker = ONE, classes: int = 4) -> Samples:
    made = poison.poisoned(samples, poison.learn(samples, classes), attacker)
    assert made.count == samples.count and image(made).shape == image(samples).shape
    return made


def image(samples: Samples) -> Tensor:
    assert isinstance(samples.inputs, Tensor)
    return samples.inputs


def test_labels_are_turned_around() -> None:
    samples = pictures()
    assert torch.equal(changed(LabelFlip(), samples).targets, 3 - samples.targets)
    assert torch.equal(image(changed(LabelFlip(), samples)), image(samples))
    one = changed(LabelFlip(2, 0), samples).targets
    assert torch.equal(one, torch.where(samples.targets == 2, 0, samples.targets))


def test_what_wrong_labels_are_wanted() -> None:
    samples = pictures(9, 3)
    wanted = LabelFlip().wanted(samples, Record(classes=3))
    assert wanted.targets.tolist() == [2, 0] * 3  # the class in the middle stays what it is
    wanted = LabelFlip(1, 0).wanted(samples, Record(classes=3))
    assert wanted.targets.tolist() == [0] * 3 and torch.equal(image(wanted), image(samples)[1::3])


def test_a_trigger_lies_in_the_corner() -> None:
    flat = marked(torch.Size([3, 4, 5]), 2).tolist()
    rows = {(at // 20, at // 5 % 4, at % 5) for at in flat}
    assert rows == {(c, y, x) for c in range(3) for y in (2, 3) for x in (3, 4)}
    assert marked(torch.Size([10]), 2).tolist() == [6, 7, 8, 9]


def test_a_backdoor_is_put_on_a_share_of_the_other_classes() -> None:
    samples, poison = pictures(), Backdoor(1, share=0.3, size=2)
    made, there = changed(poison, samples), marked(torch.Size([1, 5, 6]), 2)
    moved = (image(made) != image(samples)).flatten(1).any(1)
    assert int(moved.sum()) == round(0.3 * 30)
    assert not (samples.targets[moved] == 1).any() and (made.targets[moved] == 1).all()
    assert torch.equal(made.targets[~moved], samples.targets[~moved])
    assert (image(made)[moved].flatten(1)[:, there] == image(samples).max()).all()
    rest = [at for at in range(30) if at not in there.tolist()]
    assert torch.equal(image(made).flatten(1)[:, rest], image(samples).flatten(1)[:, rest])
    again, other = changed(poison, samples), changed(poison, samples, ONE._replace(client=4))
    assert torch.equal(again.targets, made.targets) and not torch.equal(other.targets, made.targets)


def test_success_is_measured_on_every_sample_of_other_classes() -> None:
    samples, poison = pictures(), Backdoor(1, size=2)
    wanted = poison.wanted(samples, poison.learn(samples, 4))
    assert wanted.count == 30 and (wanted.targets == 1).all()
    there = marked(torch.Size([1, 5, 6]), 2)
    assert (image(wanted).flatten(1)[:, there] == image(samples).max()).all()


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_pieces_of_a_trigger_make_it_whole(count: int) -> None:
    samples, poison = pictures(), DBA(1, share=1.0, size=2)
    covered: set[int] = set()
    for nth in range(count):
        made = changed(poison, samples, Attacker(nth, nth, count, 0))
        moved = (image(made) != image(samples)).flatten(1).any(0).nonzero().flatten().tolist()
        assert len(moved) == 4 / min(4, count)
        covered |= {*moved}
    assert covered == {*marked(torch.Size([1, 5, 6]), 2).tolist()}


def test_an_edge_is_what_lies_far_from_its_class() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(200, 3)).astype(np.float32)
    targets = np.repeat([0, 1], 100)
    samples = Samples(torch.from_numpy(rows), torch.from_numpy(targets))
    poison = Edge(0, share=0.1)
    known = poison.learn(samples, 3)
    apart = np.linalg.norm(rows - rows[targets == 1].mean(0), axis=1)
    far = (targets == 1) & (apart >= np.quantile(apart[targets == 1], 0.9))
    made = poison.poisoned(samples, known, ONE)
    np.testing.assert_array_equal(made.targets.numpy(), np.where(far, 0, targets))
    assert far.sum() == 10
    unknown = samples._replace(targets=torch.full((200,), 2))  # a class that no attacker has
    assert poison.wanted(unknown, known).count == 0
    assert poison.wanted(samples, known).count == 10


# --- of a federation ------------------------------------------------------------------------------------------------


def digits(clients: int = 6) -> FederatedData:
    return atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=clients, alpha=1.0), seed=0)


def pair(data: FederatedData, client: int, split: str = "train") -> tuple[Any, Any]:
    found = data.samples(client, split)
    assert found is not None
    return found.inputs, found.targets


@pytest.mark.parametrize("lazy", [False, True])
def test_only_attackers_train_on_other_samples(lazy: bool) -> None:
    data = digits()
    known = [{split: pair(data, client, split) for split in ("train", "test")} for client in range(6)]
    if lazy:
        data = atoll.data.from_function(known.__getitem__, 6, 10)
    data = data.entrust(data.example())
    made, _ = poisoned(data, LabelFlip(), (1, 4), 0)
    assert (made.pool("train") is None) == lazy and made.root is data.root
    for client in range(6):
        assert made.size(client) == data.size(client)
        for split in ("train", "test"):
            inputs, targets = pair(made, client, split)
            lies = split == "train" and client in (1, 4)
            assert torch.equal(inputs, known[client][split][0])
            assert torch.equal(targets, 9 - known[client][split][1] if lies else known[client][split][1])
            if not lazy:
                pool, rows = made.pool(split), made.rows(client, split)
                assert pool is not None and rows is not None
                assert torch.equal(pool.take(rows).targets, targets)
    few = made.choose([4, 0])
    assert torch.equal(pair(few, 0)[1], 9 - known[4]["train"][1])
    assert torch.equal(pair(few, 1)[1], known[0]["train"][1])


def test_tests_that_lie_in_the_same_pool_stay_as_they_were() -> None:
    x, y = torch.randn(60, 2), torch.arange(60) % 3
    data = atoll.data.from_arrays(x, y, classes=3).partition("iid", clients=3, test=0.5).weigh("equal")
    made = exchanged(data, [1], lambda _, s: Samples(image(s) + 1, s.targets))
    assert data.pool("train") is data.pool("test") is made.pool("test")
    for client in range(3):
        assert torch.equal(pair(made, client)[0], pair(data, client)[0] + (client == 1))
        assert torch.equal(pair(made, client, "test")[0], pair(data, client, "test")[0])
    assert made.weights is not None and made.names == data.names


def test_data_without_a_class_each_have_nothing_to_be_mistaken_for() -> None:
    data = atoll.data.from_arrays(torch.randn(40, 3), torch.randn(40)).partition("iid", clients=4)
    with pytest.raises(
        ConfigError, match="is about classes, and the samples of arrays have numbers"
    ) as error:
        poisoned(data, LabelFlip(), (0,), 0)
    assert "signflip" in str(error.value.hint)


@pytest.mark.parametrize(
    ("poison", "says"),
    [
        (Backdoor(10), "target = 10, and there are the classes 0 to 9"),
        (LabelFlip(3, 11), "target = 11"),
        (Edge(12), "target = 12"),
        (Backdoor(0, size=7), "the trigger covers 49 of 64 numbers"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(poison: Poison, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        poisoned(digits(), poison, (0,), 0)
    assert says in error.value.message and error.value.hint


@pytest.mark.parametrize("poison", [Backdoor(0, size=1), Edge(0)])
def test_inputs_in_parts_have_no_corner_and_no_distance(poison: Poison) -> None:
    inputs = Parts({"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)})
    with pytest.raises(ConfigError, match="the parts") as error:
        poison.check(Samples(inputs, torch.arange(4)), 4)
    assert "labelflip" in str(error.value.hint)


def test_attackers_know_their_own_samples_alone() -> None:
    data = digits()
    _, shown = poisoned(data, Backdoor(0, size=1), (2,), 0)
    own = data.samples(2)
    louder = exchanged(data, [0, 1, 3], lambda _, s: Samples(image(s) * 9, s.targets))
    _, again = poisoned(louder, Backdoor(0, size=1), (2,), 0)
    assert own is not None and shown is not None and again is not None
    assert torch.equal(image(shown), image(again)) and float(image(shown).max()) == float(image(own).max())


def test_samples_of_several_targets_each_are_refused() -> None:
    rows = {f"c{at}": {"train": (torch.randn(6, 3), torch.zeros(6, 2, dtype=torch.int64))} for at in range(3)}
    with pytest.raises(ConfigError, match="several targets each"):
        poisoned(atoll.data.from_clients(rows, classes=3), LabelFlip(), (0,), 0)
