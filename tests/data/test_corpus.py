"""A person's own texts: all that is in them is predicted once, prompts and what is filled up never."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll.data import from_texts
from atoll.data.corpus import Piece, _windows
from atoll.data.tokens import Bytes
from atoll.errors import ConfigError, DataError
from atoll.parts import Parts


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def said(labels: torch.Tensor) -> list[str]:
    """What is to be predicted in each sample, the end of a text as "|"."""
    return [bytes(each[each >= 0].tolist()).decode().replace("\0", "|") for each in labels]


@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(1, 8))
def test_what_is_to_be_predicted_is_predicted_once(seed: int, length: int, window: int) -> None:
    tokens, labels = np.arange(length), np.random.default_rng(seed).integers(-1, 9, length).tolist()
    x, y = _windows(Piece(tokens, np.array(labels)), window, 99)
    assert x.shape == y.shape == (len(x), window)
    assert y[y >= 0].tolist() == [each for each in labels[1:] if each >= 0]
    assert (y >= 0).any(1).all()
    real = y >= 0
    assert [labels[k + 1] for k in x[real]] == y[real].tolist()


def test_files_of_a_folder_are_clients_and_their_ends_are_unseen(tmp_path: Path) -> None:
    for name, count in (("b", 50), ("a", 21)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{k:03d} " for k in range(count)))
    data = from_texts("text", tmp_path, window=16)
    assert data.natural == "file"
    fed = data.partition("natural")
    assert list(fed.names) == ["a", "b"]
    for client, count in ((0, 21), (1, 50)):
        train, test = fed.samples(client), fed.samples(client, "test")
        assert train is not None
        assert test is not None
        whole = "".join(f"{k:03d} " for k in range(count)) + "|"
        read = whole[0] + "".join(said(train.targets))
        rest = whole[len(read) :]
        assert "".join(said(test.targets)) == rest[1:]
        assert 0.05 < len(rest) / len(whole) < 0.12


def test_json_lines_name_their_client_and_texts_end(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [{"who": k % 2, "text": f"text {k}"} for k in range(6)])
    data = from_texts("text", path, client="who", window=8)
    fed = data.partition("natural")
    assert list(fed.names) == ["0", "1"]
    first = fed.samples(0)
    assert first is not None
    assert "".join(said(first.targets)).startswith("ext 0|text 2|")


def test_of_instructions_only_the_response_is_predicted(tmp_path: Path) -> None:
    rows = [{"prompt": f"{k} + {k} =", "response": str(2 * k)} for k in range(8)]
    path = lines(tmp_path / "i.jsonl", rows)
    data = from_texts("instructions", path, window=16)
    assert said(data.train.targets) == [f"{2 * k}|" for k in range(8)]
    assert bytes(data.train.inputs[3].tolist()).rstrip(b"\0") == b"3 + 3 =\n6"
    packed = from_texts("instructions", path, window=16, packed=True)
    assert packed.test is not None
    assert packed.train.count < 8
    assert "".join(said(packed.train.targets)) + "".join(said(packed.test.targets)) in "".join(
        f"{2 * k}|" for k in range(8)
    )
    assert ((packed.train.targets >= 0).sum(1) > 0).all()


def test_of_one_that_is_too_long_the_answer_stays(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "i.jsonl", [{"prompt": "p" * 50, "response": "yes"}, {"prompt": "q", "response": "r" * 50}]
    )
    data = from_texts("instructions", path, window=10)
    assert said(data.train.targets) == ["yes|", "r" * 9]


def test_pairs_are_read_whole_and_written_from_the_end_token_on(tmp_path: Path) -> None:
    data = from_texts("pairs", lines(tmp_path / "p.jsonl", [{"prompt": "ab", "response": "cd"}]), window=6)
    assert isinstance(data.train.inputs, Parts)
    parts = {name: part[0].tolist() for name, part in data.train.inputs.items()}
    a, b, c, d = (ord(each) for each in "abcd")
    assert parts["input_ids"] == [a, b, 10, 0, 0, 0]
    assert parts["attention_mask"] == [True] * 3 + [False] * 3
    assert parts["decoder_input_ids"] == [0, c, d, 0, 0, 0]
    assert data.train.targets[0].tolist() == [c, d, 0, -1, -1, -1]


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_a_run_on_instructions_counts_their_tokens(tmp_path: Path, engine: str) -> None:
    rows = [{"prompt": "?" * (k % 5), "response": "ab" * (1 + k % 3), "who": k % 2} for k in range(20)]
    path = lines(tmp_path / "i.jsonl", rows)
    run = atoll.run(
        data=f"instructions:{path}", client="who", window=12, model="gpt:1,8,2", rounds=1, lr=0.5, batch_size=4,
        engine=engine, runs=None, device="cpu",
    )  # fmt: skip
    known = run.to_dict()
    assert 1 < known["perplexity"] < 300
    assert known["evaluation"]["clients"]["perplexity"]["pooled"] == pytest.approx(
        known["perplexity"], rel=1e-5
    )


def test_bytes_are_utf8() -> None:
    assert Bytes()("é").tolist() == [0xC3, 0xA9]


@pytest.mark.parametrize(
    ("name", "content", "given", "words"),
    [
        ("a.txt", "x", {}, "the text has 1 token, and there is nothing to predict"),
        ("a.txt", "", {}, "the text has 0 tokens"),
        ("a.txt", "xyz", {"client": "who"}, "is a key of JSON lines"),
        ("a.txt", "xyz", {"kind": "instructions"}, "is no .jsonl file"),
        ("a.txt", "xyz", {"packed": True}, "packed is for instructions"),
        ("a.txt", "xyz", {"tokens": "/nowhere"}, "there is no /nowhere/tokenizer.json"),
        ("a.jsonl", "{", {}, "line 1: no JSON"),
        ("a.jsonl", '\n{"txt": ""}', {}, "line 2: there is no 'text'"),
        ("a.jsonl", '{"text": "abc"}', {"client": "who"}, "there is no 'who'"),
        ("a.jsonl", "[1]", {}, "there is no 'text'"),
        ("a.jsonl", "\n", {}, "there are no texts in it"),
    ],
)
def test_texts_that_are_none_are_refused(
    tmp_path: Path, name: str, content: str, given: dict[str, Any], words: str
) -> None:
    (tmp_path / name).write_text(content)
    kind = given.pop("kind", "text")
    with pytest.raises((ConfigError, DataError), match=words):
        from_texts(kind, tmp_path / name, **given)


def test_what_is_no_utf8_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="texts are UTF-8"):
        from_texts("text", tmp_path / "a.txt")
    with pytest.raises(DataError, match="there is no such file"):
        from_texts("text", tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": "digits", "window": 8}, "window is for texts"),
        ({"data": "digits", "packed": True}, "packed is for texts"),
        ({"data": "text:a.txt", "label": "y"}, "label is for data files, and data = .* is text"),
    ],
)
def test_settings_of_texts_are_for_texts(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        atoll.run(**settings)


def test_a_tokenizer_from_a_folder(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"to": 0, "be": 1, "?": 2, "</s>": 3}, unk_token="?")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("to be or not to be")
    data = from_texts("text", tmp_path / "a.txt", tokens=str(tmp_path), window=3)
    assert data.classes == 4
    assert data.train.inputs.tolist() == [[0, 1, 2], [2, 0, 1]]
    assert data.train.targets.tolist() == [[1, 2, 2], [0, 1, 3]]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "be"}')
    assert from_texts("text", tmp_path / "a.txt", tokens=str(tmp_path), window=3).train.targets[-1, -1] == 1
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "nothing"}')
    with pytest.raises(ConfigError, match="no token that ends a text"):
        from_texts("text", tmp_path / "a.txt", tokens=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        from_texts("text", tmp_path / "a.txt", tokens=str(tmp_path))
