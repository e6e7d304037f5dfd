"""Texts of nodes: read there as the run's file says, to the bits of the simulation that has them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.data import FederatedData, from_clients
from atoll.data.corpus import from_texts
from atoll.deployed import stand_in
from atoll.errors import ConfigError, DataError
from atoll.experiment import Experiment
from atoll.federation import Federation
from atoll.network.predicting import at_node
from tests.network.onethread import OneThread

SAID = {
    "ann": "the quick brown fox jumps over the lazy dog. " * 3,
    "bob": "pack my box with five dozen jugs. " * 3,
    "cat": "how vexingly quick daft zebras jump! " * 4,
}
SETTINGS: dict[str, Any] = {
    "data": "text",
    "window": 8,
    "model": "gpt:1,8,2",
    "classes": None,
    "batch_size": 4,
}


def served(place: Path, how: Mapping[str, Any] | None = None, **settings: Any) -> OneThread:
    made = OneThread(place, {**SETTINGS, **settings}, how=how)
    made.suffix = ".txt"
    for name, text in SAID.items():
        (place / f"{name}.txt").write_text(text)
    return made


def twin(made: OneThread, data: FederatedData) -> Federation:
    experiment = Experiment.read(made.file, data="text:nodes", runs=None)
    found = experiment.federate(experiment.divide(data))
    found.fit(progress=False)
    return found


def test_texts_are_read_where_they_lie(tmp_path: Path) -> None:
    made = served(tmp_path).play()
    held = {name: from_texts("text", tmp_path / f"{name}.txt", window=8) for name in SAID}
    due = twin(made, from_clients(held, classes=256, seed=3))
    assert torch.equal(made.federation.state.params.flat(), due.state.params.flat())
    found, other = (each.history[-1].evaluation for each in (made.federation, due))
    assert found is not None and other is not None
    assert found.clients["perplexity"].pooled == pytest.approx(other.clients["perplexity"].pooled, rel=1e-5)
    # a simulation of the folder has the files as clients, and learns the same
    (folder := tmp_path / "all").mkdir()
    for name, text in SAID.items():
        (folder / f"{name}.txt").write_text(text)
    whole = from_texts("text", folder, window=8).partition("natural", seed=3)
    assert torch.equal(twin(made, whole).state.params.flat(), due.state.params.flat())
    text = made.nodes["ann"].work.text
    assert "tokens of text; to predict: the token that comes next" in text
    with pytest.raises(ConfigError, match="texts, which are no rows"):
        at_node(tmp_path / "ann", {})


def test_instructions_are_lines(tmp_path: Path) -> None:
    made = OneThread(tmp_path, {**SETTINGS, "data": "instructions", "packed": True, "rounds": 1})
    made.suffix = ".jsonl"
    for name in SAID:
        lines = [json.dumps({"prompt": f"say {name}", "response": f"{name}, {k} times"}) for k in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    made.play()
    (_,) = made.federation.history


def folder(place: Path, words: str) -> str:
    """A tokenizer of these words."""
    tokenizers = pytest.importorskip("tokenizers")
    read = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: k for k, word in enumerate(["<eos>", "?", *words.split()])}, unk_token="?"
        )
    )
    read.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    place.mkdir()
    read.save(str(place / "tokenizer.json"))
    return str(place)


def test_a_tokenizer_is_everybodys(tmp_path: Path) -> None:
    """By its hash: whoever has none, or another one, is told so before anything is read."""
    due, other = folder(tmp_path / "due", "the quick fox"), folder(tmp_path / "other", "the fox quick")
    ends = folder(tmp_path / "ends", "the quick fox")  # the same, but for which token ends a text
    (tmp_path / "ends" / "tokenizer_config.json").write_text('{"eos_token": "fox"}')
    given = {"tokenizer": due, "window": 2, "rounds": 1}
    served(tmp_path / "run", {"tokenizer": due}, **given).play()
    for at, (wrong, says) in enumerate(
        ((None, "which this node has not named"), (other, "has the hash"), (ends, "has the hash"))
    ):
        with pytest.raises(ConfigError, match=says):
            served(tmp_path / f"wrong {at}", {"tokenizer": wrong}, **given).play()
    with pytest.raises(ConfigError, match="reads texts as bytes"):
        served(tmp_path / "bytes", {"tokenizer": due}).play()
    with pytest.raises(ConfigError, match="reads no texts"):
        OneThread(tmp_path / "rows", {}, how={"tokenizer": due}).play()


def test_what_are_no_texts_is_refused(tmp_path: Path) -> None:
    made = served(tmp_path)
    made.suffix = ".npz"
    with pytest.raises(DataError, match=r"cannot be read.*"):
        made.play()


@pytest.mark.parametrize(
    ("said", "due"),
    [
        ("text", "text:nodes"), ("pairs:chats.jsonl", "pairs:nodes"), ("mnist", "nodes.csv"), (None, "nodes.csv"),
        ("a.csv", "nodes.csv"),
    ],
)  # fmt: skip
def test_what_a_file_says_of_data(said: str | None, due: str) -> None:
    assert stand_in(said) == due
