"""The recommender: it beats the most popular items and users alone, and says what is wrong with a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_examples import start

ROW = r"^(guessing|popular|Local|shared items|and FEDORA|centralised) +([\d.]+) +([\d.]+) +([\d.]+)"


def played(out: Path, *arguments: str) -> tuple[dict[str, list[float]], str]:
    """NDCG@10, recall@10 and NDCG@10 of cold users by way, and all that is printed."""
    code, text, err = start("recommender/run", "--quick", "--out", str(out), *arguments)
    assert code == 0, err
    assert (out / "recommender.png").read_bytes().startswith(b"\x89PNG")
    rows = {name: [float(each) for each in rest] for name, *rest in re.findall(ROW, text, re.MULTILINE)}
    assert len(rows) == 6
    return rows, text


@pytest.mark.slow
def test_sharing_items_beats_the_popular_and_users_alone(tmp_path: Path) -> None:
    rows, text = played(tmp_path, "--for", "user 3")
    for figure in (0, 1, 2):  # also for users who never trained
        assert rows["shared items"][figure] > max(
            rows[way][figure] for way in ("popular", "Local", "guessing")
        )
    assert rows["and FEDORA"][0] > rows["popular"][0]
    assert len(text.split("for user 3: ")[1].splitlines()[0].split(", ")) == 10


@pytest.mark.slow
def test_ratings_are_learned_as_well(tmp_path: Path) -> None:
    rows, text = played(tmp_path, "--explicit")
    assert rows["shared items"][0] > max(rows["popular"][0], rows["Local"][0])
    assert "rmse" in text


def test_your_own_file(tmp_path: Path) -> None:
    lines = [f"u{u},i{(u + k) % 12},{1 + (u * k) % 5}" for u in range(12) for k in range(6 + u % 3)]
    file = tmp_path / "ratings.csv"
    file.write_text("\n".join(["user,item,rating", *lines]) + "\n")
    _, text = played(tmp_path, "--ratings", str(file), "--rounds", "2", "--liked", "2")
    assert re.search(r"^12 users, 12 items, 84 ratings", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("user,item\na,b\n", (), "there is no column 'rating'"),
        ("user,item,rating\na,b,3\na,b,4\n", (), "a rated b twice, and differently"),
        (None, ("--for", "nobody"), "there is no user 'nobody'"),
        (None, ("--liked", "9"), "no rating reaches liked = 9"),
    ],
)
def test_mistakes_are_one_screen(
    tmp_path: Path, content: str | None, arguments: tuple[str, ...], message: str
) -> None:
    if content is not None:
        (tmp_path / "ratings.csv").write_text(content)
        arguments = ("--ratings", str(tmp_path / "ratings.csv"))
    code, _, err = start("recommender/run", "--quick", "--out", str(tmp_path), *arguments)
    assert code == 2
    assert message in err
    assert "hint: " in err
    assert "Traceback" not in err
