"""Folders of recordings and pictures: what is read from which file, and what is refused by name."""

from __future__ import annotations

import tracemalloc
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atoll.data import as_federated, from_audio_folder, from_image_folder
from atoll.data.media import media_of
from atoll.data.sound import log_mel
from atoll.data.wav import read_wav
from atoll.errors import ConfigError, DataError
from atoll.experiment import Experiment


def write(path: Path, values: Any, rate: int = 8000, width: int = 2, channels: int = 1) -> Path:
    """A WAV file of whole numbers, `channels` of them for each step of time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.asarray(values, np.int64).reshape(-1) + (128 if width == 1 else 0)
    content = numbers.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content)
    return path


def tone(seed: int, samples: int = 600) -> Any:
    return np.random.default_rng(seed).integers(-9000, 9000, samples)


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Two clients with two classes of three recordings each."""
    for k, name in enumerate(("ann", "bob")):
        for label in ("10", "9"):
            for take in range(3):
                write(tmp_path / "spoken" / name / label / f"{take}.wav", tone(k + 10 * take))
    return tmp_path / "spoken"


def inputs(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


# --- WAV -------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_any_width(tmp_path: Path, width: int) -> None:
    most = 2 ** (8 * width - 1)
    values = [-most, most - 1, 0, most // 2, -most // 4, 1, -1]
    found, rate = read_wav(write(tmp_path / "x.wav", values, 11025, width))
    assert rate == 11025
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor(values, dtype=torch.float64).div(most).float(), atol=0)


def test_channels_are_averaged(tmp_path: Path) -> None:
    found, _ = read_wav(write(tmp_path / "x.wav", [[8192, 0], [-16384, 16384], [100, 300]], channels=2))
    assert found.tolist() == [0.125, 0, 200 / 32768]


def test_what_is_no_recording_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.wav", tone(0)).read_bytes()
    floating = whole[:20] + b"\3" + whole[21:]
    for name, content, message in (
        ("text", b"these are words", "no sound that can be read"),
        ("nothing", b"", "ends within its header"),
        ("header", whole[:30], "no sound that can be read"),
        ("short", whole[:-101], "ends after 549 of 600 samples"),
        ("floating", floating, r"unknown format: 3(.|\n)*PCM of 8, 16, 24 or 32 bit"),
    ):
        (tmp_path / f"{name}.wav").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.wav: (.|\n)*{message}"):
            read_wav(tmp_path / f"{name}.wav")
    with pytest.raises(DataError, match="there is no sound in it"):
        read_wav(write(tmp_path / "zero.wav", []))
    wide = bytearray(whole)
    wide[32:36] = (8).to_bytes(2, "little") + (64).to_bytes(2, "little")  # whole numbers of 64 bit
    (tmp_path / "wide.wav").write_bytes(wide)
    with pytest.raises(
        DataError, match=r"wide.wav: (.|\n)*numbers of 64 bit(.|\n)*PCM of 8, 16, 24 or 32 bit"
    ):
        read_wav(tmp_path / "wide.wav")


def test_a_header_that_promises_more_than_there_is_costs_no_memory(tmp_path: Path) -> None:
    lie = bytearray(write(tmp_path / "x.wav", tone(0)).read_bytes())
    lie[4:8] = lie[40:44] = (2**32 - 4).to_bytes(4, "little")
    (tmp_path / "x.wav").write_bytes(lie)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="ends after 600 of 2,147,483,646 samples"):
            read_wav(tmp_path / "x.wav")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rate", [1, 15_999, 2**31 - 1])
def test_rates_that_nobody_has_are_refused_before_they_cost_memory(spoken: Path, rate: int) -> None:
    write(spoken / "bob" / "9" / "2.wav", tone(0), rate)
    with pytest.raises(DataError, match=rf"bob/9/2.wav: (.|\n)*{rate:,} Hz cannot be resampled to 16,000 Hz"):
        from_audio_folder(spoken, rate=16000, seconds=0.1)


def test_a_link_to_nowhere_is_no_recording_that_is_left_out(spoken: Path) -> None:
    (spoken / "ann" / "9" / "3.wav").symlink_to(spoken / "gone.wav")
    with pytest.raises(DataError, match=r"ann/9/3.wav: this is no sound that can be read(.|\n)*No such file"):
        from_audio_folder(spoken)


# --- folders of recordings -------------------------------------------------------------------------


def test_a_folder_for_each_client_and_class(spoken: Path) -> None:
    data = from_audio_folder(spoken)
    assert (data.name, data.natural, data.classes) == ("spoken", "client", 2)
    assert data.columns["client"].tolist() == ["ann"] * 6 + ["bob"] * 6
    assert (
        data.train.targets.tolist() == [1, 1, 1, 0, 0, 0] * 2
    )  # classes that are numbers have their order: 9, 10
    first, _ = read_wav(spoken / "ann" / "10" / "0.wav")
    assert torch.equal(inputs(data.train.inputs)[0], log_mel(first, 8000))
    waves = inputs(from_audio_folder(spoken, waves=True).train.inputs)
    assert torch.equal(waves[0, 0], 8 * first)
    fed = as_federated(spoken)
    assert list(fed.names) == ["ann", "bob"]
    assert Experiment.read(data=str(spoken), waves=True).load().train.inputs.shape == (12, 1, 600)  # type: ignore[union-attr]


def test_classes_alone_are_one_dataset_and_a_test_split_is_kept(spoken: Path, tmp_path: Path) -> None:
    alone = from_audio_folder(spoken / "ann", name="ann")
    assert (alone.name, alone.natural, alone.test) == ("ann", None, None)
    for at, label in enumerate(("yes", "no")):
        for take in range(2):
            write(tmp_path / "split" / "train" / label / f"{take}.wav", tone(take))
        write(tmp_path / "split" / "test" / label / "0.wav", tone(at + 5))
    kept = from_audio_folder(tmp_path / "split")
    assert kept.test is not None
    assert (kept.train.targets.tolist(), kept.test.targets.tolist()) == ([0, 0, 1, 1], [0, 1])


def test_each_client_is_tested_on_its_own_recordings(spoken: Path, tmp_path: Path) -> None:
    for split, takes in (("train", 2), ("test", 1)):
        for name in ("ann", "bob"):
            for label in ("a", "b"):
                for take in range(takes):
                    write(tmp_path / "kept" / split / name / label / f"{take}.wav", tone(take))
    fed = from_audio_folder(tmp_path / "kept").partition("natural")
    assert [(fed.size(k), fed.held(k, "test")) for k in range(2)] == [(4, 2), (4, 2)]


def test_rates_and_lengths_become_one_where_that_is_asked(spoken: Path) -> None:
    write(spoken / "bob" / "9" / "2.wav", tone(0, 1700), 16000)
    with pytest.raises(
        DataError, match=r"ann/10/0.wav has 8,000 Hz, (.|\n)*bob/9/2.wav 16,000 Hz(.|\n)*rate=16000"
    ):
        from_audio_folder(spoken)
    with pytest.raises(
        DataError, match=r"600 samples at 8,000 Hz, (.|\n)*bob/9/2.wav 850 samples(.|\n)*seconds=1"
    ):
        from_audio_folder(spoken, rate=8000)
    data = from_audio_folder(spoken, rate=8000, seconds=0.1, waves=True)
    x = inputs(data.train.inputs)
    assert x.shape == (12, 1, 800)
    assert not x[:-1, :, 600:].any()
    assert bool(x[-1, 0, 700:].any())
    assert data.description == (
        "recordings of 0.1 s at 8,000 Hz, 1 resampled by windowed sincs, 1 cut, 11 filled up with silence"
    )
    for wrong in ({"rate": 0}, {"seconds": 0.0}, {"seconds": float("nan")}):
        with pytest.raises(ConfigError, match="both are above 0"):
            from_audio_folder(spoken, **wrong)


def test_stated_classes_fit_a_folder_that_lacks_some(spoken: Path) -> None:
    assert from_audio_folder(spoken / "ann", classes="9,10,11").classes == 3
    with pytest.raises(DataError, match="labels that are not in classes: 9"):
        from_audio_folder(spoken, classes=["10", "11"])
    with pytest.raises(ConfigError, match=r"have names: 9, 10(.|\n)*classes=\"9,10\""):
        from_audio_folder(spoken, classes=2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["x.wav"], r"x.wav lies in no folder of a class(.|\n)*a folder for each class"),
        (["a/b/c/x.wav"], "lies deeper than that"),
        (["a/x.wav", "a/y.wav"], "there is one class, 'a', and nothing to tell apart"),
        (["a/x.wav", "b/x.wav", "b/y.wav"], "of the class 'a' there is one recording to train on"),
        (
            ["a/x.wav", "a/y.wav", "b/z/x.wav"],
            r"a/x.wav lies in a folder of a class, and (.|\n)*b/z/x.wav in one of a c",
        ),
        (["a/x.wav", "a/y.wav", "b/"], "b: there is no recording in it"),
        (["a/x.wav", "a/y.mp3"], r"y.mp3: recordings are read from .wav files(.|\n)*ffmpeg -i y.mp3 y.wav"),
        (["a/x.wav", "b/y.png"], "holds recordings and pictures"),
        (
            ["train/a/x.wav", "train/a/y.wav", "test/b/x.wav"],
            "of the class 'b' there are no recordings to train on",
        ),
    ],
)
def test_folders_that_are_none_of_data_say_why(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        if name.endswith("/"):
            (tmp_path / "f" / name).mkdir()
        else:
            write(tmp_path / "f" / name, tone(0))
    with pytest.raises(DataError, match=message):
        Experiment.read(data=str(tmp_path / "f")).load()


def test_what_else_lies_in_a_folder_is_no_sound(spoken: Path, tmp_path: Path) -> None:
    (spoken / "README.txt").write_text("who speaks")
    (spoken / ".cache" / "x").mkdir(parents=True)
    (spoken / "ann" / "9" / "._0.wav").write_bytes(b"not a sound")
    assert from_audio_folder(spoken).train.count == 12
    assert media_of(spoken) == "audio"
    (spoken / "sites.csv").write_text("a,b\n1,2\n")
    assert media_of(spoken) is None  # tables are clients, as ever
    with pytest.raises(DataError, match="there is no folder"):
        from_audio_folder(tmp_path / "nowhere")


# --- folders of pictures -------------------------------------------------------------------------


def test_pictures(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for take in range(2):
            pixels = rng.integers(0, 256, (6, 4), dtype=np.uint8)
            (tmp_path / "p" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "p" / label / f"{take}.png")
    grey = from_image_folder(tmp_path / "p")
    assert inputs(grey.train.inputs).shape == (4, 1, 6, 4)
    assert torch.equal(inputs(grey.train.inputs)[-1, 0], torch.from_numpy(pixels) / 255)
    assert grey.train.targets.tolist() == [0, 0, 1, 1]
    Image.fromarray(rng.integers(0, 256, (5, 4, 4), dtype=np.uint8), "RGBA").save(
        tmp_path / "p" / "dog" / "2.png"
    )
    with pytest.raises(
        DataError, match=r"cat/0.png has 6 x 4 pixels, (.|\n)*dog/2.png 5 x 4 pixels(.|\n)*pixels=28x32"
    ):
        Experiment.read(data=str(tmp_path / "p")).load()
    data = Experiment.read(data=str(tmp_path / "p"), pixels="6x4").load()
    assert inputs(data.train.inputs).shape == (5, 3, 6, 4)  # type: ignore[union-attr]
    assert torch.equal(inputs(data.train.inputs)[0, 2], inputs(grey.train.inputs)[0, 0])  # type: ignore[union-attr]
    assert inputs(from_image_folder(tmp_path / "p", pixels=8).train.inputs).shape == (5, 3, 8, 8)
    for size in ("big", "0", "1x2x3"):
        with pytest.raises(ConfigError, match="is no size of pictures"):
            from_image_folder(tmp_path / "p", pixels=size)
    (tmp_path / "p" / "dog" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"dog/3.png: this is no picture that can be read"):
        from_image_folder(tmp_path / "p", pixels=8)


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Two classes of two grey pictures."""
    Image = pytest.importorskip("PIL.Image")
    for label in ("cat", "dog"):
        (tmp_path / "seen" / label).mkdir(parents=True)
        for take in range(2):
            pixels = np.random.default_rng(take).integers(0, 256, (9, 7), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "seen" / label / f"{take}.png")
    return tmp_path / "seen"


def test_a_picture_of_more_pixels_than_is_decent_is_refused(
    seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image = pytest.importorskip("PIL.Image")
    for most in (40, 10):  # what Pillow warns of, and what it refuses: above, and above twice as many
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(
            DataError, match=r"cat/0.png: this is no picture(.|\n)*63 pixels(.|\n)*fewer pixels"
        ):
            from_image_folder(seen, pixels=4)


def test_a_picture_of_sixteen_bits_is_not_cut_to_eight(seen: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    Image.fromarray(np.full((9, 7), 40_000, np.uint16)).save(seen / "dog" / "2.png")
    with pytest.raises(
        DataError, match=r"dog/2.png: (.|\n)*more than 8 bits a pixel(.|\n)*save it anew, in 8 bits"
    ):
        from_image_folder(seen)


def test_grey_pictures_are_resized_as_if_they_had_colours(seen: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    alone = inputs(from_image_folder(seen, pixels="5x4").train.inputs)
    Image.new("RGB", (4, 5)).save(seen / "dog" / "2.png")
    beside = from_image_folder(seen, pixels="5x4")
    assert torch.equal(inputs(beside.train.inputs)[:4], alone.expand(4, 3, 5, 4))
    assert beside.description == "pictures of 5 x 4 pixels, 4 resized"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"data": "digits", "rate": 8000},
            "rate is for a folder of recordings, and data = 'digits' is a name",
        ),
        ({"data": "text:x", "pixels": 3}, "pixels is for a folder of pictures, and data = 'text:x' is text"),
        ({"data": "spoken-digits", "waves": True}, "hint: leave waves out, or data = spoken-digits:waves"),
    ],
)
def test_keys_of_folders_are_for_folders(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.read(**given)


def test_a_file_has_no_rate(tmp_path: Path, spoken: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,0\n2,1\n")
    with pytest.raises(ConfigError, match="rate is for a folder of recordings or pictures"):
        Experiment.read(data=str(tmp_path / "t.csv"), label="b", rate=8).load()
    with pytest.raises(ConfigError, match="a folder of recordings has no option 'label'"):
        Experiment.read(data=str(spoken), label="b").load()
