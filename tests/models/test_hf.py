"""Models of transformers: what is refused without it, and, where it is installed, that models are what they say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import atoll
from atoll import own, seeds
from atoll.data import from_clients
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.models import build
from atoll.models.llama import Llama

GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 32,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
    "is_encoder_decoder": True, "decoder_start_token_id": 0,
}  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip


def folder(where: Path, config: dict[str, Any] | str, *others: str) -> str:
    """A folder with this configuration, and further files."""
    where.mkdir(exist_ok=True)
    (where / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name in others:
        (where / name).write_bytes(b"{}")
    return f"hf:{where}"


def words(size: int) -> str:
    """A tokenizer of so many words."""
    return json.dumps({"model": {"type": "WordLevel", "vocab": {f"w{k}": k for k in range(size)}}})


# --- without transformers -------------------------------------------------------------------------------------------


def test_a_path_is_no_code() -> None:
    assert own.named("hf:gpt2") == []
    assert own.named("hf:gpt2 + nets:Small") == ["nets:Small"]


@pytest.mark.parametrize(
    ("config", "others", "said"),
    [
        (None, (), "is no folder(.|\n)*nothing is fetched"),
        ("", (), "is no JSON"),
        ("{}", (), "does not say which model"),
        ("[]", (), "is no JSON object"),
        (GPT2, ("adapter_config.json",), "names another model(.|\n)*from_peft"),
        (GPT2, ("pytorch_model.bin",), "a pickle, which can run code(.|\n)*model.safetensors"),
    ],
)
def test_a_folder_that_is_none_is_refused(
    tmp_path: Path, config: Any, others: tuple[str, ...], said: str
) -> None:
    place = f"hf:{tmp_path / 'none'}" if config is None else folder(tmp_path / "m", config, *others)
    with pytest.raises(ConfigError, match=said):
        build(place, (8,), 64)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no config"):
        build(f"hf:{tmp_path}", (8,), 64)


def test_texts_are_read_with_the_tokenizer_in_the_folder(tmp_path: Path) -> None:
    place = folder(tmp_path / "m", GPT2)
    (tmp_path / "m" / "tokenizer.json").write_text(words(50))
    with pytest.raises(
        ConfigError, match=r"a tokenizer of 50 tokens, and the texts have 256(.|\n)*tokenizer"
    ):
        build(place, (8,), 256)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": []}', '{"added_tokens": [{}]}'])
def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    place = folder(tmp_path / "m", GPT2)
    (tmp_path / "m" / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=r"tokenizer.json is no") as error:
        build(place, (8,), 64)
    assert error.value.hint


# --- with it --------------------------------------------------------------------------------------------------------


@pytest.fixture
def library() -> Any:
    """transformers, which takes a while to import."""
    return pytest.importorskip("transformers")


def texts(size: int = 64, window: int = 12) -> Any:
    """Two clients' texts."""
    generator = torch.Generator().manual_seed(0)
    clients = {}
    for name, n in (("a", 6), ("b", 3)):
        tokens = torch.randint(1, size, (n, window + 1), generator=generator)
        clients[name] = (tokens[:, :-1], tokens[:, 1:])
    return from_clients(clients, test=None, classes=size)


@pytest.mark.slow
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_every_engine_trains_it_alike(library: Any, tmp_path: Path, config: dict[str, Any]) -> None:
    place, data, found = folder(tmp_path / "m", {**config, "attn_pdrop": 0.0}), texts(), []
    torch.manual_seed(1)
    module = build(place, (12,), 64)
    for engine in ("loop", "batched", "processes"):
        fed = Federation(module, data, "fedavg", rounds=1, lr=0.1, batch_size=4, engine=engine, device="cpu")
        found.append(fed.fit().model.state_dict())
    assert all(torch.allclose(found[0][k], each[k], atol=1e-5) for each in found for k in found[0])
    assert any(not torch.equal(found[0][k], v) for k, v in module.state_dict().items())


@pytest.mark.slow
def test_weights_are_drawn_by_the_seed_or_read(library: Any, tmp_path: Path) -> None:
    place = folder(tmp_path / "m", LLAMA)

    def made(seed: int) -> nn.Module:
        with seeds.scoped(seed):
            return build(place, (12,), 64)

    one, same, other = (made(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())
    made(3).save_pretrained(tmp_path / "m")  # type: ignore[operator]
    assert (tmp_path / "m" / "model.safetensors").is_file()
    kept, read = made(3).state_dict(), made(4).state_dict()
    assert all(torch.equal(value, read[name]) for name, value in kept.items())


@pytest.mark.slow
def test_what_does_not_fit_is_refused(library: Any, tmp_path: Path) -> None:
    place = folder(tmp_path / "m", GPT2)
    with pytest.raises(
        ConfigError, match="knows 64 tokens, and the texts have 256: the tokenizer does not fit"
    ):
        build(place, (8,), 256)
    with pytest.raises(ConfigError, match=r"reads 16 tokens, and a text has 20(.|\n)*window=16"):
        build(place, (20,), 64)
    with pytest.raises(ConfigError, match="does not know this model"):
        build(folder(tmp_path / "n", {"model_type": "of-nobody"}), (8,), 64)
    coded = {
        "model_type": "of-nobody",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="code of a folder is not run"):
        build(folder(tmp_path / "c", coded), (8,), 64)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_our_llama_is_transformers(library: Any, tmp_path: Path) -> None:
    theirs = build(folder(tmp_path / "m", LLAMA), (12,), 64)
    ours = Llama(64, 2, 32, 4, 2, hidden=48)
    names = {
        "0.weight": "model.embed_tokens.weight", "3.weight": "model.norm.weight", "4.weight": "lm_head.weight",
        **{
            f"{k + 1}.{here}.weight": f"model.layers.{k}.{there}.weight"
            for k in range(2)
            for here, there in (
                ("before_attention", "input_layernorm"), ("before_gated", "post_attention_layernorm"),
                ("attention.query", "self_attn.q_proj"), ("attention.key", "self_attn.k_proj"),
                ("attention.value", "self_attn.v_proj"), ("attention.out", "self_attn.o_proj"),
                ("gated.gate", "mlp.gate_proj"), ("gated.wide", "mlp.up_proj"), ("gated.out", "mlp.down_proj"),
            )
        },
    }  # fmt: skip
    state = theirs.state_dict()
    ours.load_state_dict({here: state[there] for here, there in names.items()})
    tokens = torch.randint(0, 64, (3, 12))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_model_that_looks_both_ways_learns_hidden_tokens(library: Any, tmp_path: Path) -> None:
    place, found = folder(tmp_path / "m", {**BERT, "hidden_dropout_prob": 0.0}), []
    torch.manual_seed(0)
    module = build(place, (12,), 64)
    assert type(module).__name__ == "BertForMaskedLM"
    for engine in ("loop", "batched"):
        fed = Federation(
            module,
            texts(),
            "fedavg",
            rounds=2,
            lr=0.1,
            batch_size=4,
            loss="masked:0.3",
            engine=engine,
            device="cpu",
        )
        found.append(fed.fit().model.state_dict())
    assert all(torch.allclose(found[0][k], found[1][k], atol=1e-5) for k in found[0])


@pytest.mark.slow
def test_a_model_reads_prompts_and_writes_answers(library: Any, tmp_path: Path) -> None:
    place = folder(tmp_path / "m", {**T5, "vocab_size": 256})
    rows = [{"prompt": f"{k}?", "response": "abc"[k % 3] * 2, "who": k % 2} for k in range(12)]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run = atoll.run(
        data=f"pairs:{tmp_path / 'p.jsonl'}", client="who", window=8, model=place, rounds=6, epochs=3, lr=0.3,
        batch_size=4, engine="loop", runs=None, device="cpu",
    )  # fmt: skip
    history = [value for _, value in run.history("perplexity")]
    assert history[-1] < 0.2 * history[0] < 0.2 * 400


@pytest.mark.slow
def test_a_run_in_words_has_its_perplexity(library: Any, tmp_path: Path) -> None:
    if not Path(os.environ.get("ATOLL_DATA", ""), "tinyshakespeare").is_dir():
        pytest.skip("ATOLL_DATA has no tinyshakespeare")
    place = folder(tmp_path / "m", {**GPT2, "vocab_size": 256, "n_positions": 32})
    run = atoll.run(
        data="shakespeare:bytes,32,3", model=place, adapter="lora:2,4", rounds=1, steps=2, batch_size=4, lr=0.1,
        engine="loop", runs=None, device="cpu",
    )  # fmt: skip
    assert 200 < run.to_dict()["perplexity"] < 320
    assert run.to_dict()["bytes_up"] < 3 * 4 * 2 * 2 * 5 * (16 + 64) * 4
