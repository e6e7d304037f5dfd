"""Augmentation: what it does to images, that it is drawn anew, and the same in every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atoll
from atoll.data.augment import (
    augmentation,
    augmentations,
    band_shift,
    crop,
    flip,
    frequency_mask,
    noise,
    scale,
    shift,
    time_mask,
)
from atoll.errors import ConfigError

IMAGES = torch.arange(2 * 3 * 5 * 4, dtype=torch.float32).reshape(2, 3, 5, 4) + 1


def test_flip_mirrors_half_of_the_images() -> None:
    torch.manual_seed(0)
    turned = flip(IMAGES[:1].expand(400, 3, 5, 4))
    same, mirrored = ((turned == each).flatten(1).all(1) for each in (IMAGES[0], IMAGES[0].flip(-1)))
    assert bool((same ^ mirrored).all())
    assert 160 < int(mirrored.sum()) < 240


@pytest.mark.parametrize("images", [IMAGES, IMAGES[:, 0]], ids=["colour", "grey"])
def test_crop_moves_images_and_leaves_zeros(images: Tensor) -> None:
    torch.manual_seed(0)
    moved = crop(images[:1].expand(300, *images.shape[1:]), 2)
    padded = torch.nn.functional.pad(images[0], [2] * 4)
    windows = {(r, c): padded[..., r : r + 5, c : c + 4] for r in range(5) for c in range(5)}
    found = [next(at for at, window in windows.items() if torch.equal(each, window)) for each in moved]
    assert set(found) == set(windows)


def test_noise_has_its_deviation() -> None:
    torch.manual_seed(0)
    assert float((noise(torch.zeros(20000), 0.3)).std()) == pytest.approx(0.3, rel=0.02)


# --- recordings ----------------------------------------------------------------------------------------------------

SOUNDS = torch.arange(3 * 6 * 10, dtype=torch.float32).reshape(3, 6, 10) + 1


@pytest.mark.parametrize(("function", "axis"), [(shift, -1), (band_shift, -2)])
def test_shifts_move_along_one_axis_and_repeat_the_end(function: Any, axis: int) -> None:
    torch.manual_seed(0)
    size = SOUNDS.shape[axis]
    moved = function(SOUNDS[:1].expand(300, 6, 10), 3)
    wide = torch.nn.functional.pad(SOUNDS[:1], (3, 3) if axis == -1 else (0, 0, 3, 3), mode="replicate")[0]
    windows = [wide.narrow(axis, start, size) for start in range(7)]
    found = [next(at for at, window in enumerate(windows) if torch.equal(each, window)) for each in moved]
    assert set(found) == set(range(7))


@pytest.mark.parametrize(("mask", "axis", "size"), [(time_mask, -1, 10), (frequency_mask, -2, 6)])
def test_masks_hide_runs_of_every_length_anywhere(mask: Any, axis: int, size: int) -> None:
    torch.manual_seed(0)
    for inputs in (SOUNDS[:1].expand(900, 6, 10), SOUNDS[:1, None].expand(900, 1, 6, 10)):
        made = mask(inputs, 4)
        hidden = (made == 0).all(-2 if axis == -1 else -1).flatten(1)
        along = hidden.reshape(900, *(1,) * (made.ndim - 2 + axis + 1), size, *(1,) * (-1 - axis))
        assert torch.equal(made == 0, along.expand(made.shape))  # whole columns, or rows
        assert torch.equal(made[made != 0], inputs[made != 0])
        lengths = hidden.sum(1)
        assert torch.bincount(lengths, minlength=5).min() > 140  # 0 to 4, alike
        assert bool((hidden.long().diff(dim=1) == 1).sum(1).le(1).all())  # in a row
        assert bool(hidden.any(0).all())


def test_scale_gives_each_channel_a_factor() -> None:
    torch.manual_seed(0)
    factors = scale(SOUNDS[:1].expand(3000, 6, 10), 0.2) / SOUNDS[:1]
    assert torch.allclose(factors, factors[..., :1].expand_as(factors))
    assert float(factors[..., 0].mean()) == pytest.approx(1, abs=0.01)
    assert float(factors[..., 0].std()) == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize("what", ["shift:2", "time-mask:2", "frequency-mask:2", "scale:0.1"])
def test_tables_are_no_recordings(what: str) -> None:
    with pytest.raises(ConfigError, match=r"is for recordings(.|\n)*hint: leave it out for other inputs"):
        augmentation(what).check(torch.zeros(3, 8))
    with pytest.raises(ConfigError, match="is for recordings"):
        augmentation(what).check(torch.zeros(3, 4, 8, dtype=torch.int64))


@pytest.mark.parametrize(("what", "left"), [("shift:10", "10 steps"), ("frequency-mask:6", "6 bands")])
def test_what_would_leave_nothing_is_refused(what: str, left: str) -> None:
    with pytest.raises(ConfigError, match=f"{what} leaves nothing of {left}"):
        augmentation(what).check(SOUNDS)


def test_augmentations_are_read_as_they_are_listed() -> None:
    texts = [usage.partition("[")[0] for usage, _ in augmentations()]
    for word, value in (("SIGMA", "0.1"), ("STEPS", "2"), ("BANDS", "2"), ("CHANCE", "0.5")):
        texts = [text.replace(word, value) for text in texts]
    assert len(augmentation(" + ".join(texts)).functions) == len(texts)
    alone = [text for text in texts if not text.startswith("drop")]  # which is for inputs of several parts
    augmentation(" + ".join(alone)).check(SOUNDS.reshape(3, 1, 6, 10))


@pytest.fixture(scope="module")
def pictures() -> atoll.FederatedData:
    x = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return atoll.data.from_arrays(x, (x.flatten(1).sum(1) > 0).long()).partition("dirichlet:1", clients=3)


def fitted(data: atoll.FederatedData, method: str = "fedavg", **settings: Any) -> list[tuple[int, float]]:
    settings = {"rounds": 2, "lr": 0.1, "batch_size": 8, "seed": 3, **settings}

    def model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 2))

    return atoll.Federation(model, data, method, **settings).fit(progress=False).history("loss")


def test_batches_are_augmented_alike_in_every_engine(pictures: atoll.FederatedData) -> None:
    data = pictures.augment("crop:1 + shift:2 + band-shift:1 + time-mask:2 + frequency-mask:2 + scale:0.1")
    plain, *rest = (fitted(data, engine=engine) for engine in ("loop", "batched", "processes"))
    for other in rest:
        assert [value for _, value in other] == pytest.approx([value for _, value in plain], rel=1e-5)
    assert plain != fitted(pictures, engine="loop")
    assert plain == fitted(data, engine="loop")
    assert plain == fitted(data.choose([0, 1, 2]), engine="loop")
    assert fitted(data, "fedprox", engine="loop", mu=0.0) == plain


def test_a_batch_is_drawn_anew_and_only_in_training(pictures: atoll.FederatedData) -> None:
    seen: list[Tensor] = []

    def note(inputs: Tensor) -> Tensor:
        seen.append(torch.rand(len(inputs)))
        return inputs

    one = pictures.augment(note)
    drawn = len(seen)  # it was tried
    fitted(one, engine="loop", batch_size=None, cohort=3)
    assert len(seen) - drawn == 6  # three clients, two rounds, no evaluation
    assert len({float(each[0]) for each in seen[drawn:]}) == 6
    state = torch.get_rng_state()
    pictures.augment("noise:1")
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("flop", "flop"),
        ("noise", "noise"),
        ("noise:0", "sigma = '0' is not a number above 0"),
        (lambda x: x[:, :, 1:], "makes 1x1x5x6 of inputs of shape 1x1x6x6"),
        (lambda x: x + torch.zeros(7), "augment = '<lambda>': inputs of shape 1x6x6 gave RuntimeError"),
        (lambda x: None, "makes NoneType of inputs"),
    ],
)
def test_what_does_not_fit_is_said_at_once(pictures: atoll.FederatedData, what: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pictures.augment(what)


def test_the_name_of_an_augmentation() -> None:
    assert augmentation("crop:2+flip").text == "crop:2+flip"
    assert augmentation(flip).text == "flip"
