"""Which parts of samples are there: as people say it, and as it is taken away."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import atoll
from atoll.data.augment import drop
from atoll.errors import AtollError, ConfigError, DataError
from atoll.experiment import prepare
from atoll.modalities import HERE, kept, modalities, owners, present, said
from atoll.parts import Parts

IMAGES, SOUNDS = torch.ones(6, 1, 4, 4), torch.ones(6, 3) * 2
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def both(data: Any) -> Parts:
    inputs = data.train.inputs if isinstance(data, atoll.data.Dataset) else data
    assert isinstance(inputs, Parts)
    return inputs


def test_samples_without_a_part_are_said_by_none() -> None:
    sounds = [None if at in (1, 4) else each for at, each in enumerate(SOUNDS)]
    inputs = both(atoll.data.from_arrays({"image": IMAGES, "sound": sounds}, LABELS))
    assert modalities(inputs) == ("image", "sound")
    assert present(inputs)[:, 1].tolist() == [1, 0, 1, 1, 0, 1]
    assert present(inputs)[:, 0].all()
    assert not dict(inputs.items())["sound"][[1, 4]].any()


def test_or_by_a_part_of_their_own_and_what_is_absent_becomes_zero() -> None:
    here = torch.tensor([[1, 0]] * 3 + [[1, 1]] * 3)
    sounds = SOUNDS.clone()
    sounds[:3] = float("nan")
    inputs = both(atoll.data.from_arrays({"image": IMAGES, "sound": sounds, HERE: here}, LABELS))
    assert torch.equal(present(inputs), here.float())
    assert dict(inputs.items())["sound"].sum(1).tolist() == [0, 0, 0, 6, 6, 6]


@pytest.mark.parametrize(
    "here", [torch.ones(6, 3), torch.ones(6), torch.full((6, 2), 2), torch.full((6, 2), 0.5)]
)
def test_a_part_of_that_name_that_says_something_else_is_refused(here: torch.Tensor) -> None:
    with pytest.raises(DataError, match="which of image, sound are there"):
        atoll.data.from_arrays({"image": IMAGES, "sound": SOUNDS, HERE: here}, LABELS)


def test_a_part_that_no_sample_has_is_refused() -> None:
    with pytest.raises(DataError, match="no sample has the part 'sound'"):
        atoll.data.from_arrays({"image": IMAGES, "sound": [None] * 6}, LABELS)


def test_parts_are_taken_away_and_stay_away() -> None:
    inputs = both(said(Parts({"image": IMAGES, "sound": SOUNDS})))
    alone = kept(inputs, ["sound"])
    assert present(alone).tolist() == [[0, 1]] * 6
    assert not dict(alone.items())["image"].any()
    assert torch.equal(present(kept(alone, ["image", "sound"])), present(alone))
    assert modalities(said(IMAGES)) == () == modalities(Parts([IMAGES, SOUNDS]))


def test_drop_takes_one_of_several_parts_and_never_the_last() -> None:
    torch.manual_seed(0)
    inputs = both(said(Parts({name: torch.ones(900, 2) for name in "abc"})))
    some = drop(inputs, 0.4)
    lost = 3 - present(some).sum(1)
    assert set(lost.tolist()) == {0, 1}
    assert 300 < int(lost.sum()) < 420
    assert all(80 < int((present(some)[:, at] == 0).sum()) < 160 for at in range(3))
    assert torch.equal(torch.stack([part.any(1) for part in some.values()[:3]], 1).float(), present(some))
    once = kept(inputs, ["b"])
    assert torch.equal(present(drop(once, 1.0)), present(once))


def test_drop_is_for_samples_of_parts() -> None:
    with pytest.raises(ConfigError, match="drop takes parts"):
        drop(IMAGES, 0.5)


def test_tensors_of_a_part_have_its_name_in_their_path() -> None:
    names = ["encoders.image.0.weight", "sound.bias", "head.imagery", "mix.image.sound"]
    assert owners(names, ["image", "sound"]) == {"encoders.image.0.weight": 0, "sound.bias": 1}


def test_clients_that_hold_one_part_alone() -> None:
    data = atoll.data.from_arrays({"image": IMAGES.repeat(10, 1, 1, 1), "sound": SOUNDS.repeat(10, 1)},
                                  LABELS.repeat(10))  # fmt: skip
    whole = data.partition("iid", clients=6, seed=1, validation=2)
    found = atoll.data.lacking(whole, 0.5, seed=3)
    holds = []
    for client in range(6):
        rows = {split: both(found.samples(client, split).inputs) for split in ("train", "test", "validation")}  # type: ignore[union-attr]
        each = {tuple(row) for part in rows.values() for row in present(part).tolist()}
        assert len(each) == 1
        holds += each
        assert [found.held(client, split) for split in rows] == [whole.held(client, split) for split in rows]
    assert sorted(holds) in ([(0, 1), *[(1, 0)] * 2, *[(1, 1)] * 3], [(0, 1), (0, 1), (1, 0), *[(1, 1)] * 3])
    assert modalities(whole.example().inputs) == ()  # as it was


def test_who_lacks_a_part_follows_from_the_seed_and_is_judged_on_what_it_has() -> None:
    """An official test set has all parts; that of all clients' own samples lacks what they lack."""
    parts = {"image": IMAGES.repeat(10, 1, 1, 1), "sound": SOUNDS.repeat(10, 1)}
    official = ({"image": IMAGES, "sound": SOUNDS}, LABELS)
    for test in (None, official):
        data = atoll.data.from_arrays(parts, LABELS.repeat(10), test=test)
        whole = data.partition("iid", clients=6, seed=1, root=6)
        assert whole.test_set is not None
        drawn = set()
        for seed in range(6):
            found = atoll.data.lacking(whole, 0.5, seed=seed)
            assert found.test_set is not None and found.root is not None
            every = present(found.test_set.inputs)
            assert bool(every.all()) == (test is not None)
            assert present(found.root.inputs).all()
            held = [present(found.samples(client).inputs).sum(0).tolist() for client in range(6)]  # type: ignore[union-attr]
            drawn.add(tuple(0 in each for each in held))
            again = atoll.data.lacking(whole, 0.5, seed=seed)
            assert held == [present(again.samples(k).inputs).sum(0).tolist() for k in range(6)]  # type: ignore[union-attr]
        assert len(drawn) > 1


def test_parts_of_data_that_are_made_on_demand_are_not_taken_away() -> None:
    made = small().samples(0)
    assert made is not None
    data = atoll.data.from_function(lambda client: made, clients=4, classes=4)
    with pytest.raises(ConfigError, match="made on demand") as caught:
        atoll.data.lacking(data, 0.5, seed=0)
    assert "docs/modalities.md" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": "digits", "missing_parts": 0.5}, "takes parts of samples away"),
        ({"data": "digits", "augment": "drop:0.5"}, "drop takes parts"),
        ({"data": "digits", "model": "fused"}, "several parts by name"),
        ({"data": "digits", "model": "fused:early"}, "several parts by name|late"),
        ({"data": "digits", "fusion": "late"}, "several parts by name"),
        ({"data": "digits", "fusion": "late", "model": "cnn"}, "fusion = 'late' is of the model fused"),
        ({"data": "digits", "missing_parts": 1.5}, "missing_parts"),
    ],
)
def test_what_is_for_parts_is_refused_where_there_are_none(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(AtollError, match=said) as caught:
        prepare(runs=None, **settings)
    assert caught.value.hint


def test_fusion_is_a_short_word_for_the_model(tmp_path: Path) -> None:
    stated = atoll.Experiment.read(data="av-mnist", fusion="attention")
    assert stated.model == "fused:attention"
    (tmp_path / "run.toml").write_text(stated.to_toml(), encoding="utf-8")
    assert atoll.Experiment.read(tmp_path / "run.toml") == stated


def test_a_part_that_nobody_would_hold_is_refused() -> None:
    data = atoll.data.from_arrays({"image": IMAGES, "sound": SOUNDS}, LABELS).partition(
        "iid", clients=1, test=None
    )
    with pytest.raises(ConfigError, match="nobody of the 1 clients would hold"):
        atoll.data.lacking(data, 1.0, seed=0)


def small(seed: int = 0) -> atoll.FederatedData:
    """Two parts of which each tells half of the label."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (240,), generator=draw)
    parts = {"left": (y // 2).float()[:, None], "right": (y % 2).float()[:, None]}
    noisy = {
        name: part.repeat(1, 3) + 0.2 * torch.randn(240, 3, generator=draw) for name, part in parts.items()
    }
    return atoll.data.from_arrays(noisy, y).partition("iid", clients=8, seed=seed)


def test_accuracy_by_parts_says_what_each_part_is_worth() -> None:
    data = atoll.data.lacking(small(), 0.5, seed=1)
    model = partial(atoll.models.build, "fused", {"left": (3,), "right": (3,)}, 4)
    settings = {"rounds": 6, "lr": 0.5, "epochs": 3, "engine": "loop", "eval_every": 3}
    run = atoll.Federation(model, data, "fedavg", **settings).fit(progress=False)
    found = run.accuracy_by_parts
    assert list(found) == ["left", "right", "left + right"]
    assert run.to_dict()["accuracy_by_parts"] == found
    assert found["left + right"] == run.accuracy
    assert run.evaluation is not None
    assert run.evaluation.further == []
    assert run.history("accuracy.left")[-1][1] == found["left"]
    assert max(found["left"], found["right"]) + 0.1 < found["left + right"]
    assert "accuracy.left" in str(run)


def test_without_parts_there_is_no_such_figure() -> None:
    run = atoll.run(data="digits", rounds=1, runs=None, engine="loop", progress=False)
    assert run.accuracy_by_parts == {}
    assert "accuracy_by_parts" not in run.to_dict()


def test_a_model_is_chosen_for_parts_and_others_are_refused() -> None:
    networks = importlib.import_module("atoll.networks").networks
    assert isinstance(networks("auto", small())[0](), atoll.models.Fused)
    assert networks("fused:attention", small())[0]().fusion == "attention"
    with pytest.raises(ConfigError, match="reads one tensor") as caught:
        networks("cnn", small())
    assert "fused" in str(caught.value.hint)
