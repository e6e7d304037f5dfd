"""Texts as bytes by role: what is tested was never seen, and belongs to who is tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.data import load
from atoll.data.text import next_tokens, windows
from atoll.errors import ConfigError, DataError


@given(st.integers(0, 60), st.integers(1, 9))
def test_windows_share_only_what_is_predicted_in_one_and_read_in_the_next(n: int, window: int) -> None:
    text = np.arange(n)
    found = windows(text, window)
    assert len(found) == max(0, (n - 1) // window)
    samples = next_tokens(found)
    read, predicted = samples.inputs.flatten().tolist(), samples.targets.flatten().tolist()
    assert len(set(read)) == len(read)
    assert predicted == [each + 1 for each in read]


def test_roles_are_tested_on_their_own_unseen_text(real: Path) -> None:
    data = load("shakespeare:bytes,64,5")
    assert data.classes == 256
    assert data.train.inputs.shape[1] == 64
    fed = data.partition("natural")
    assert len(fed) == 5
    for client, role in enumerate(fed.names):
        train, test = fed.samples(client), fed.samples(client, "test")
        assert train is not None
        assert test is not None
        assert train.count == int((data.columns["role"] == role).sum())
        assert test.count == int((data.test_columns["role"] == role).sum())
        read = bytes([*train.inputs.flatten().tolist(), int(train.targets[-1, -1])])
        unseen = bytes([*test.inputs.flatten().tolist(), int(test.targets[-1, -1])])
        assert unseen not in read
        assert 0.07 < len(unseen) / len(read + unseen) < 0.11
    assert fed.test_set is not None
    assert fed.test_set.count == sum(len(fed.samples(k, "test").targets) for k in range(5))  # type: ignore[union-attr]


def test_other_divisions_are_dealt_the_unseen_text(real: Path) -> None:
    data = load("shakespeare:bytes,64,3")
    fed = data.partition("iid", clients=4)
    assert data.test is not None
    assert sum(fed.held(k, "test") or 0 for k in range(4)) == data.test.count


def test_characters_are_what_they_were(real: Path) -> None:
    data = load("shakespeare")
    assert (data.train.count, data.test, data.classes) == (12132, None, 65)
    assert load("shakespeare:characters,20").train.inputs.shape[1] == 20


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shakespeare:words", "known: characters, bytes"),
        ("shakespeare:bytes,1", "window = '1' is not a whole number at least 2"),
        ("shakespeare:bytes,128,0", "roles = '0'"),
        ("shakespeare:bytes,100000", "lower minimum or window"),
        ("mnist:3", "takes no arguments"),
    ],
)
def test_what_is_not_there_is_refused(real: Path, name: str, said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        load(name)
