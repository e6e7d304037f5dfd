"""The commands that only tell: methods, data, doctor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atoll import __version__
from atoll.clock import kinds
from atoll.data.augment import augmentations
from atoll.methods import METHODS
from atoll.rounds.adapting import rules
from atoll.rounds.choosing import choices
from atoll.rounds.paces import pace, paces

from .conftest import Atoll


def test_version(atoll: Atoll) -> None:
    assert atoll("--version").out == f"atoll {__version__}\n"


def test_methods(atoll: Atoll) -> None:
    out = atoll("methods").out
    assert all(name in out for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_its_settings(atoll: Atoll, name: str) -> None:
    done = atoll("methods", name)
    assert done.code == 0
    assert f"settings of {name}" in done.out
    assert "rounds to play" in done.out
    assert "typing." not in done.out
    assert "<class" not in done.out


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        ("devices", kinds),
        ("choose", choices),
        ("adaptive", rules),
        ("pace", paces),
        ("augment", augmentations),
    ],
)
def test_kinds_of_settings_are_listed(
    atoll: Atoll, setting: str, known: Callable[[], list[tuple[str, str]]]
) -> None:
    assert setting in atoll("explain").out
    done = atoll("explain", setting)
    words = " ".join(done.out.split())
    assert done.code == 0
    for usage, line in known():
        assert usage in words
        assert line.split()[0] in words
        assert len(line) > 20


def test_brackets_in_lines_are_words(atoll: Atoll) -> None:
    assert "A [rank, in] and B [out, rank]" in " ".join(atoll("explain", "adapter").out.split())


def test_a_setting_without_kinds_says_which_have_some(atoll: Atoll) -> None:
    done = atoll("explain", "device")
    assert done.code == 2
    assert "'device'" in done.err
    assert "did you mean 'devices'?" in done.err


def test_paces_are_read_as_they_are_listed() -> None:
    for usage, _ in paces():
        start = usage.partition("[")[0].replace("SIZE", "10")
        assert pace(start).text == start
        for tail in (",0.5", ",0.5,0.3") if "A,ALPHA" in usage else ():
            assert pace(start + tail).text == start + tail


def test_data_list(atoll: Atoll) -> None:
    out = atoll("data", "list").out
    assert "digits" in out
    assert "mnist-by-writer" in out
    audio = atoll("data", "list", "--task", "audio").out
    assert "spoken-digits" in audio and "synthetic" in audio
    assert "mnist" not in audio
    unknown = atoll("data", "list", "--task", "audi")
    assert unknown.code == 2
    assert "no data of the task 'audi'" in unknown.err and "did you mean 'audio'?" in unknown.err


def test_data_describe(atoll: Atoll) -> None:
    out = atoll("data", "describe", "digits", "--partition", "shards:2", "--clients", "12").out
    assert "digits, shards:2" in out
    assert "clients  12" in out


def test_data_describe_a_file(atoll: Atoll, tmp_path: Path) -> None:
    file = tmp_path / "patients.csv"
    rows = [f"{age},{age % 3},{age % 2},{'ab'[age % 2]}" for age in range(40, 80)]
    file.write_text("\n".join(["age,stage,sick,ward", *rows]) + "\n")
    out = atoll("data", "describe", str(file), "--label", "sick", "--client", "ward").out
    assert "clients  2" in out
    done = atoll(
        "run",
        "-q",
        "--set",
        f"data={file}",
        "--set",
        "label=sick",
        "--set",
        "client=ward",
        "--set",
        "rounds=1",
    )
    assert done.code == 0, done.err


def test_data_get_what_is_built_in(atoll: Atoll) -> None:
    assert "nothing to download" in atoll("data", "get", "digits").out


def test_doctor(atoll: Atoll) -> None:
    out = atoll("doctor").out
    for word in ("atoll", "python", "torch", "cores", "gpu", "engines", "data", "readable"):
        assert any(line.startswith(f"{word} ") for line in out.splitlines()), word
    assert "digits" in out
