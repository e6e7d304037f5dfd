"""What turns texts into whole numbers: their bytes, or a tokenizer from a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from atoll.errors import ConfigError, MissingExtraError

from .samples import IntArray

__all__ = ["BYTES", "Bytes", "Tokenizer", "tokenizer"]

BYTES = 256
"""How many bytes there are."""

_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")


class Bytes:
    """Each byte of a text, as UTF-8 has it, is a token; 0, which no text has, ends one."""

    size = BYTES
    end = 0
    sha256 = None

    def __call__(self, text: str) -> IntArray:
        """The tokens of a text."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)


class Tokenizer:
    """A `tokenizer.json`, as `tokenizers` reads it.

    Raises ConfigError where there is none that can be read, or where it has no token that ends a text.
    """

    def __init__(self, path: Path) -> None:
        what = f"tokenizer = {str(path)!r}"
        file = path if path.name.endswith(".json") else path / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(
                f"{what}: there is no {file}",
                hint="name a folder with a tokenizer.json, which save_pretrained of a fast tokenizer writes, or bytes",
            )
        try:
            from tokenizers import Tokenizer as Read
        except ImportError:
            raise MissingExtraError("tokenizers", "hf", "a tokenizer of Hugging Face") from None
        try:
            self._read: Any = Read.from_str(file.read_text("utf-8"))
        except Exception as error:
            raise ConfigError(
                f"{what}: {file} cannot be read: {error}", hint="is it a tokenizer.json of `tokenizers`?"
            ) from error
        self.size = int(self._read.get_vocab_size(with_added_tokens=True))
        self.end = self._end(file.parent, what)

    def __call__(self, text: str) -> IntArray:
        """The tokens of a text, without those that a tokenizer adds around one."""
        return np.array(self._read.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    @property
    def sha256(self) -> str:
        """Of all that decides how a text becomes tokens."""
        return hashlib.sha256(f"{self._read.to_str()} {self.end}".encode()).hexdigest()

    def _end(self, folder: Path, what: str) -> int:
        """The token that ends a text: the one that the folder names, or one of the usual names."""
        said = _named(folder / "tokenizer_config.json", "eos_token") or _named(
            folder / "tokenizer_config.json", "sep_token"
        )
        for name in [said] if said else _ENDS:
            found = self._read.token_to_id(name)
            if found is not None:
                return int(found)
        raise ConfigError(
            f"{what} has no token that ends a text",
            hint=f'name it in tokenizer_config.json: {{"eos_token": ...}}; usual ones are {", ".join(_ENDS)}',
        )


def _named(file: Path, key: str) -> str | None:
    """A token that a tokenizer's configuration names."""
    try:
        known = json.loads(file.read_text("utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None
    return known.get("content") if isinstance(known, dict) else known


def tokenizer(text: str | None) -> Bytes | Tokenizer:
    """The tokenizer of a setting: "bytes", or a path.  Raises ConfigError."""
    return Bytes() if text in (None, "bytes") else Tokenizer(Path(str(text)).expanduser())
