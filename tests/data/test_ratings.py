"""Ratings as clients: what is held out, what is no candidate, and what is wrong with a file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import atoll
from atoll.data import Ratings, from_ratings


def some(seed: int = 0, users: int = 6, items: int = 12) -> Ratings:
    rng = np.random.default_rng(seed)
    rows = [
        (u, i, float(rng.integers(1, 6)))
        for u in range(users)
        for i in rng.choice(items, rng.integers(5, items), replace=False)
    ]
    columns = dict(zip(("user", "item", "rating"), zip(*rows, strict=True), strict=True))
    return from_ratings({key: list(values) for key, values in columns.items()})


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([0, 0.2, 2, 100]))
def test_every_rating_is_in_one_split_and_what_is_known_is_no_candidate(
    seed: int, test: float, validation: float
) -> None:
    ratings = some(seed)
    data = ratings.lists(test=test, validation=validation, seed=seed)
    for user in range(len(data)):
        given_ = torch.zeros(len(ratings.items))
        mine = ratings.user == user
        given_[ratings.item[mine]] = torch.from_numpy(ratings.value[mine])
        train = data.samples(user)
        assert train.count == 1
        assert torch.equal(train.inputs, train.targets)
        assert (train.inputs > 0).any()
        found, before = train.targets[0].clone(), train.targets[0] > 0
        for split in ("validation", "test"):
            held = data.samples(user, split)
            if held is None:
                assert split == "validation" and not validation
                continue
            assert torch.equal(held.inputs, train.inputs)
            assert torch.equal(held.targets[0] < 0, before)
            part = held.targets[0].clamp(min=0)
            assert (part > 0).any()
            assert not ((part > 0) & (found > 0)).any()
            found, before = found + part, before | (part > 0)
        assert torch.equal(found, given_)


def test_likes_are_ratings_from_a_value_on_and_others_are_known_all_the_same() -> None:
    ratings = some()
    lists, likes = ratings.lists(seed=1), ratings.lists(liked=4, seed=1)
    for user in range(len(lists)):
        for split in ("train", "test"):
            stars, liked = (data.samples(user, split).targets for data in (lists, likes))
            due = torch.where(stars < 0, stars, (stars >= 4).float())
            assert torch.equal(liked, due)


def test_the_same_seed_holds_out_the_same() -> None:
    one, other, third = (some().lists(seed=seed).test_set.targets for seed in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("user,item\na,b\n", "there is no column 'rating', but 'user', 'item'", "rating=None"),
        ("user,item,rating\na,b,much\n", "data row 0 has the rating 'much'", "numbers above 0"),
        ("user,item,rating\na,b,0\n", "data row 0 has the rating 0", "add a constant"),
        ("user,item,rating\na,b,3\na,,4\n", "data row 1 has no user or no item", "leave such rows out"),
        ("user,item,rating\na,b,3\nc,b,3\na,b,4\n", "a rated b twice, and differently (data rows 0 and 2)", "keep"),
        ("user,item,rating\na,b,3\n", "0 users with 5 ratings or more", "two are needed"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(tmp_path: Path, content: str, message: str, hint: str) -> None:
    file = tmp_path / "ratings.csv"
    file.write_text(content)
    with pytest.raises(atoll.DataError, match=re.escape(message)) as caught:
        from_ratings(file)
    assert hint in str(caught.value.hint)


def test_a_rating_said_twice_counts_once_and_rare_users_are_left_out_and_counted() -> None:
    rows = [("a", k) for k in range(5)] * 2 + [("b", k) for k in range(6)] + [("c", 0)]
    ratings = from_ratings({"user": [u for u, _ in rows], "item": [i for _, i in rows]}, rating=None)
    assert (len(ratings.user), ratings.users, ratings.few) == (11, ["a", "b"], 1)


def test_nobody_likes_anything() -> None:
    with pytest.raises(atoll.DataError, match="no rating reaches liked = 9"):
        some().lists(liked=9)


def test_a_user_who_is_not_there() -> None:
    with pytest.raises(atoll.ConfigError, match="there is no user 'nobody' among the 6"):
        some().position("nobody")


def test_the_taste_is_the_head_and_learning_ranks(tmp_path: Path) -> None:
    """From one text each: the model, the loss, the figures, and a method that keeps the head at home."""
    data = some(users=8).lists(liked=3, seed=0)
    run = atoll.Federation(
        lambda: atoll.models.build("factors:3", (12,), 12), data, "fedrep", rounds=2, cohort=8, lr=0.5,
        batch_size=None, loss="listwise", metrics="ndcg@5, recall@5", engine="loop",
    ).fit(progress=False)  # fmt: skip
    assert 0 < run.evaluation.personal["ndcg@5"].mean <= 1
    assert run.rounds[0].bytes_up == 8 * 12 * 4 * 4  # items, three factors and a bias; no taste


# --- from settings --------------------------------------------------------------------------------------------------


def a_file(path: Path) -> str:
    ratings = some(users=8)
    rows = [
        f"{ratings.users[user]},{ratings.items[item]},{value:g}"
        for user, item, value in zip(ratings.user, ratings.item, ratings.value, strict=True)
    ]
    path.write_text("\n".join(["who,film,stars", *rows, "rare,1,5"]) + "\n")
    return f"{path}"


def test_likes_and_ratings_of_a_file_are_words_in_the_settings(tmp_path: Path) -> None:
    file = a_file(tmp_path / "mine.csv")
    named = {"client": "who", "item": "film", "seed": 3, "validation": 1, "runs": None}
    read = from_ratings(file, user="who", item="film", rating="stars")
    likes = atoll.Experiment.read(data=f"likes:{file}", label="stars", liked=4, **named)
    ratings = atoll.Experiment.read(data=f"ratings:{file}", label="stars", **named)
    rows = atoll.Experiment.read(data=f"likes:{file}", **named)
    asked = {"test": 0.25, "validation": 1, "seed": 3}
    for experiment, lists in (
        (likes, read.lists(liked=4, **asked)),
        (ratings, read.lists(**asked)),
        (rows, from_ratings(file, user="who", item="film", rating=None).lists(**asked)),
    ):
        data = experiment.divide(experiment.load())
        assert data.partition == "by user, without 1 of too few ratings"
        for split in ("train", "validation", "test"):
            for user in range(len(lists)):
                one, other = data.samples(user, split), lists.samples(user, split)
                assert one is not None
                assert other is not None
                assert torch.equal(one.inputs, other.inputs)
                assert torch.equal(one.targets, other.targets)
    assert (likes.model, likes.loss, likes.metrics) == ("factors", "listwise", "ndcg@10, recall@10")
    assert (ratings.model, ratings.loss, ratings.metrics) == ("factors", "rated", "rmse")
    run = likes.build().fit(progress=False)
    assert run.evaluation is not None
    assert 0 < run.evaluation.overall["ndcg@10"] <= 1
    assert atoll.Experiment.read(**{**likes.to_dict(), "model": "factors:3"}).model == "factors:3"


@pytest.mark.parametrize(
    ("given_", "message", "hint"),
    [
        ({"data": "digits", "item": "film"}, "item is for ratings", "likes:PATH"),
        ({"data": "digits", "liked": 4}, "liked is for ratings", "leave liked out"),
        ({"data": "ratings:f.csv", "liked": 4}, "are to be ratings", "likes:f.csv"),
        ({"data": "likes:f.csv", "label": "stars"}, "nothing says which of them are likes", "liked = 4"),
        ({"data": "likes:f.csv", "features": "a"}, "features is for data files", "leave features out"),
        ({"data": "likes:f.csv", "rate": 3}, "is a list of ratings", "leave rate out"),
        ({"data": "likes:f.csv", "window": 3}, "window is for texts", "leave window out"),
    ],
)
def test_settings_that_lists_do_not_have(given_: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(atoll.ConfigError, match=re.escape(message)) as caught:
        atoll.Experiment.read(**given_)
    assert hint in str(caught.value.hint)


def test_lists_are_clients_already(tmp_path: Path) -> None:
    named = {"client": "who", "item": "film", "runs": None}
    experiment = atoll.Experiment.read(data=f"likes:{a_file(tmp_path / 'mine.csv')}", clients=3, **named)
    with pytest.raises(atoll.ConfigError, match="clients already"):
        experiment.build()
