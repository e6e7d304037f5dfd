"""Models of `transformers` from a folder: a configuration alone has random weights, safetensors beside it give them.

Nothing is fetched, and no code but that of `transformers` runs: no pickled weights, no modules of the folder's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from atoll.errors import ConfigError, MissingExtraError

__all__ = ["from_folder"]

_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER = "adapter_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def from_folder(path: str, window: int, vocabulary: int) -> nn.Module:
    """The model in a folder, for texts of this window and vocabulary, in single precision.

    Args:
        path: a folder with a `config.json`, or that file. Without weights beside it they are drawn.
        window: tokens in a text.
        vocabulary: how many tokens there are.

    Raises ConfigError where there is no such model, or one that does not fit, MissingExtraError without `transformers`.
    """
    what = f"model = 'hf:{path}'"
    folder, known = _read(Path(path).expanduser(), what)
    _is_read(folder, vocabulary, what)
    transformers = _library()
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ConfigError(
            f"{what}: transformers does not know this model: {_line(error)}",
            hint=f"known model types are those of transformers {transformers.__version__}; code of a folder is not run",
        ) from error
    _fits(config, window, vocabulary, what)
    config.use_cache = False  # of what was generated before: nothing is, in training
    kind = getattr(transformers, _kind(transformers, config, known))
    try:
        if not any((folder / each).is_file() for each in _WEIGHTS):
            made = kind.from_config(config, trust_remote_code=False)
        else:
            made = kind.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
    except Exception as error:
        raise ConfigError(
            f"{what} cannot be made: {_line(error)}", hint="are all its files there?"
        ) from error
    module: nn.Module = made.float()
    return module


def _read(path: Path, what: str) -> tuple[Path, Mapping[str, Any]]:
    """The folder, and its configuration.  Raises ConfigError where there is none, or pickled weights alone."""
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        there = "has no config.json" if folder.is_dir() else "is no folder"
        raise ConfigError(
            f"{what}: {folder} {there}",
            hint="name a folder as save_pretrained writes it: config.json, and model.safetensors unless weights are to"
            " be drawn; nothing is fetched",
        )
    pickled = [each for each in _PICKLED if (folder / each).is_file()]
    if pickled and not any((folder / each).is_file() for each in _WEIGHTS):
        raise ConfigError(
            f"{what}: its weights are in {pickled[0]}, a pickle, which can run code and is not read",
            hint="write them as model.safetensors: save_pretrained of a recent transformers does, where you trust them",
        )
    if (folder / _ADAPTER).is_file():
        raise ConfigError(
            f"{what}: {folder / _ADAPTER} names another model, in whose place transformers would read that one",
            hint="name the folder of the model itself, and set adapter; a model of peft in hand is for from_peft",
        )
    known = _json(folder / "config.json", what)
    if "model_type" not in known:
        raise ConfigError(
            f"{what}: {folder / 'config.json'} does not say which model it is",
            hint='it has "model_type": "gpt2", for example',
        )
    return folder, known


def _json(path: Path, what: str) -> dict[str, Any]:
    """What a file of the folder says.  Raises ConfigError where that is no JSON object."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{what}: {path} is no JSON: {error}", hint="write it again, as save_pretrained does"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{what}: {path} is no JSON object", hint="write it again, as save_pretrained does")
    return found


def _library() -> Any:
    """`transformers`, which may fetch nothing."""
    for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[key] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "hf", "a model of Hugging Face") from None
    return transformers


def _kind(transformers: Any, config: Any, known: Mapping[str, Any]) -> str:
    """Which sort of model it is: from text to text, one that fills gaps, or one that predicts the next token."""
    named = " ".join(known.get("architectures") or ())
    if config.is_encoder_decoder:
        return "AutoModelForSeq2SeqLM"
    gaps = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(
        config, "is_decoder", False
    )
    if "ForMaskedLM" in named or (gaps and "CausalLM" not in named and "LMHead" not in named):
        return "AutoModelForMaskedLM"
    return "AutoModelForCausalLM"


def _is_read(folder: Path, vocabulary: int, what: str) -> None:
    """Raise ConfigError where there is a tokenizer in the folder, and texts are not read with it."""
    own = _tokens(folder, what)
    if own is not None and own != vocabulary:
        raise ConfigError(
            f"{what} has a tokenizer of {own:,} tokens, and the texts have {vocabulary:,}",
            hint=f'read them with it: tokenizer = "{folder}"',
        )


def _fits(config: Any, window: int, vocabulary: int, what: str) -> None:
    """Raise ConfigError where texts have tokens that the model does not know, or are too long for it."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if (size := getattr(text, "vocab_size", vocabulary)) < vocabulary:
        raise ConfigError(
            f"{what} knows {size:,} tokens, and the texts have {vocabulary:,}: the tokenizer does not fit",
            hint="take the tokenizer that belongs to the model: tokenizer = FOLDER",
        )
    longest = getattr(text, "max_position_embeddings", None)
    if longest is not None and window > longest:
        raise ConfigError(
            f"{what} reads {longest:,} tokens, and a text has {window:,}", hint=f"set window={longest}"
        )


def _tokens(folder: Path, what: str) -> int | None:
    """How many tokens the tokenizer in a folder has; None where there is none.  Raises ConfigError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    known = _json(path, what)
    try:
        words = known.get("model", {}).get("vocab", {})
        ids = set(words.values()) if isinstance(words, dict) else set(range(len(words)))
        return len(ids | {each["id"] for each in known.get("added_tokens") or ()})
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{what}: {path} is no tokenizer: {_line(error)}", hint="is it a tokenizer.json of `tokenizers`?"
        ) from error


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
