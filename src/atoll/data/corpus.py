"""A person's own texts: files, folders and JSON lines, cut into windows; instructions and pairs with their answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from atoll.errors import ConfigError, DataError
from atoll.parts import Parts

from .dataset import Dataset
from .samples import IntArray, Samples
from .tokens import Bytes, Tokenizer, tokenizer

__all__ = ["KINDS", "WINDOW", "from_texts", "kind_of"]

KINDS = ("text", "instructions", "pairs")
"""What may stand before the path: ``text:PATH`` and so on."""

WINDOW = 128
UNSEEN = 0.1
"""Of each client's text, at its end."""
_NO_LABEL = -1


class Piece(NamedTuple):
    """Tokens, and those of them that are to be predicted (`_NO_LABEL` in the place of others)."""

    tokens: IntArray
    labels: IntArray


def kind_of(data: str, kinds: Sequence[str] = KINDS) -> tuple[str, str] | None:
    """("text", PATH) of ``text:PATH`` and its like; None of anything else."""
    kind, colon, path = data.partition(":")
    return (kind.strip(), path.strip()) if colon and kind.strip() in kinds else None


def from_texts(
    kind: str,
    path: str | Path,
    *,
    client: str | None = None,
    tokens: str | None = None,
    window: int = WINDOW,
    packed: bool = False,
) -> Dataset:
    """Texts as samples of `window` tokens and, at each place, the token that comes next.

    Args:
        kind: "text": a file, JSON lines with a "text", or a folder of .txt files, which are the natural clients.
            Texts of a client follow each other, with a token that ends each; the last tenth is its test.
            "instructions": JSON lines with "prompt" and "response", of which only the response is to be predicted.
            "pairs": the same, for models that read the prompt whole and then write (`input_ids`, `attention_mask`,
            `decoder_input_ids`).
        path: of the file or folder.
        client: the key of JSON lines that names the client.
        tokens: "bytes" (the default), or the folder of a tokenizer.
        window: tokens of a sample. What is shorter is filled up, and what is filled up is not to be predicted.
        packed: instructions follow each other in a window, and are not filled up each to one.

    Raises DataError for what cannot be read or is too short, ConfigError for settings that do not fit.
    """
    name, read = f"{kind}:{path}", tokenizer(tokens)
    if packed and kind != "instructions":
        raise ConfigError("packed is for instructions", hint=f'leave it out, or data = "instructions:{path}"')
    owners = _documents(Path(path).expanduser(), kind, client, read, name)
    if kind == "pairs":
        rows, samples = _pairs(owners, read, window)
        data = Dataset(name, samples, classes=read.size)
        tests: list[str] = []
    elif kind == "instructions" and not packed:
        rows, filled = _filled(owners, read, window)
        data = Dataset(name, filled, classes=read.size)
        tests = []
    else:
        data, rows, tests = _streamed(owners, read, window, name)
    who = client or ("file" if Path(path).expanduser().is_dir() else None)
    if who is not None:
        data.columns, data.natural = {who: np.array(rows)}, who
        data.test_columns = {who: np.array(tests)} if data.test is not None else {}
    return data


# --- reading --------------------------------------------------------------------------------------------------------


def _documents(
    path: Path, kind: str, client: str | None, read: Bytes | Tokenizer, name: str
) -> dict[str, list[tuple[IntArray, IntArray]]]:
    """The (prompt, answer) of each text, by who it belongs to; the prompt of a plain text is empty."""
    if not path.exists():
        raise DataError(f"{name}: there is no such file", hint="paths start where atoll is started")
    found: dict[str, list[tuple[IntArray, IntArray]]] = {}
    for owner, prompt, answer in _texts(path, kind, client, name):
        found.setdefault(owner, []).append((read(prompt), read(answer)))
    if not found:
        raise DataError(
            f"{name}: there are no texts in it", hint="a folder holds .txt files, JSON lines a line each"
        )
    return found


def _texts(path: Path, kind: str, client: str | None, name: str) -> Iterator[tuple[str, str, str]]:
    lines = any(each in (".jsonl", ".ndjson") for each in path.suffixes)
    if kind != "text" and not lines:
        raise DataError(
            f"{name} is no .jsonl file",
            hint='write a line each: {"prompt": "...", "response": "..."}',
        )
    if lines:
        yield from _lines(path, ("text",) if kind == "text" else ("prompt", "response"), client, name)
        return
    if client is not None:
        raise ConfigError(
            f"client = {client!r} is a key of JSON lines, and {path} has none",
            hint="leave client out; the files of a folder are clients",
        )
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        yield file.stem if path.is_dir() else "", "", _decoded(file, name)


def _decoded(file: Path, name: str) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: {file} cannot be read: {error}", hint="texts are UTF-8") from error


def _lines(
    path: Path, keys: tuple[str, ...], client: str | None, name: str
) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(_decoded(path, name).splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}, line {number}: no JSON ({error})", hint="an object a line") from None
        for key in (*keys, *([client] if client else ())):
            if not isinstance(said, Mapping) or not isinstance(said.get(key), str | int):
                raise DataError(
                    f"{name}, line {number}: there is no {key!r}",
                    hint=f"each line has {', '.join((*keys, *([client] if client else ())))}",
                )
        *before, last = (str(said[key]) for key in keys)
        yield str(said[client]) if client else "", before[0] + "\n" if before else "", last


# --- samples --------------------------------------------------------------------------------------------------------


def _piece(prompt: IntArray, answer: IntArray, end: int) -> Piece:
    """A text with the token that ends it; the prompt is not to be predicted."""
    whole = np.concatenate([prompt, answer, [end]])
    labels = whole.copy()
    labels[: len(prompt)] = _NO_LABEL
    return Piece(whole, labels)


def _windows(stream: Piece, window: int, end: int) -> tuple[IntArray, IntArray]:
    """Inputs and targets [n, window] of a stream of tokens, the last one filled up; none that teaches nothing."""
    count = max(0, -(-(len(stream.tokens) - 1) // window))
    inputs = np.full(count * window, end, dtype=np.int64)
    targets = np.full(count * window, _NO_LABEL, dtype=np.int64)
    inputs[: len(stream.tokens) - 1] = stream.tokens[:-1]
    targets[: len(stream.tokens) - 1] = stream.labels[1:]
    x, y = inputs.reshape(count, window), targets.reshape(count, window)
    kept = (y >= 0).any(1)
    return x[kept], y[kept]


def _streamed(
    owners: Mapping[str, list[tuple[IntArray, IntArray]]], read: Bytes | Tokenizer, window: int, name: str
) -> tuple[Dataset, list[str], list[str]]:
    """All texts of a client in a row; the last ones are its test, and no window reaches into them."""
    parts: list[list[tuple[IntArray, IntArray]]] = [[], []]
    rows: list[list[str]] = [[], []]
    for owner, texts in owners.items():
        pieces = [_piece(*each, read.end) for each in texts]
        whole = Piece(*(np.concatenate(each) for each in zip(*pieces, strict=True)))
        if len(whole.tokens) <= 2:
            whose, count = f" of {owner}" if owner else "", len(whole.tokens) - 1
            raise DataError(
                f"{name}: the text{whose} has {count} token{'s' * (count != 1)}, and there is nothing to predict",
                hint="a text has two tokens at least, the second of which follows from the first",
            )
        at = len(whole.tokens) - int(UNSEEN * len(whole.tokens))
        for place, piece in enumerate((slice(None, at), slice(at, None))):
            x, y = _windows(Piece(whole.tokens[piece], whole.labels[piece]), window, read.end)
            parts[place].append((x, y))
            rows[place] += [owner] * len(x)
    train, test = (
        Samples(*(torch.from_numpy(np.concatenate(each)) for each in zip(*part, strict=True)))
        for part in parts
    )
    if not train.count:
        raise DataError(f"{name}: there is no response to learn from", hint="is response empty everywhere?")
    return Dataset(name, train, test if test.count else None, classes=read.size), rows[0], rows[1]


def _filled(
    owners: Mapping[str, list[tuple[IntArray, IntArray]]], read: Bytes | Tokenizer, window: int
) -> tuple[list[str], Samples]:
    """A sample for each instruction; of one that is too long, the prompt's end and the answer's beginning."""
    found, rows = [], []
    for owner, texts in owners.items():
        for prompt, answer in texts:
            room = max(window // 2, window - len(answer))
            x, y = _windows(_piece(prompt[-room:], answer, read.end), window, read.end)
            found.append((x[:1], y[:1]))
            rows.append(owner)
    x, y = (np.concatenate(each) for each in zip(*found, strict=True))
    return rows, Samples(torch.from_numpy(x), torch.from_numpy(y))


def _pairs(
    owners: Mapping[str, list[tuple[IntArray, IntArray]]], read: Bytes | Tokenizer, window: int
) -> tuple[list[str], Samples]:
    """Prompts and answers apart, each filled up to a window; the answer is written from the end token on."""
    rows = [owner for owner, texts in owners.items() for _ in texts]
    several = [each for texts in owners.values() for each in texts]
    shape = (len(several), window)
    prompts, mask = np.full(shape, read.end, np.int64), np.zeros(shape, np.bool_)
    before, targets = np.full(shape, read.end, np.int64), np.full(shape, _NO_LABEL, np.int64)
    for at, (prompt, answer) in enumerate(several):
        asked, told = prompt[-window:], np.append(answer, read.end)[:window]
        prompts[at, : len(asked)], mask[at, : len(asked)] = asked, True
        targets[at, : len(told)], before[at, 1 : len(told)] = told, told[:-1]
    parts: dict[str, Any] = {"input_ids": prompts, "attention_mask": mask, "decoder_input_ids": before}
    inputs = Parts({key: torch.from_numpy(value) for key, value in parts.items()})
    return rows, Samples(inputs, torch.from_numpy(targets))
