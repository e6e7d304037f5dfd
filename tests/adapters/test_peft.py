"""LoRA of peft and Atoll's own: the same numbers, before training and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from atoll.adapters import from_peft, pairs, to_peft
from atoll.data import FederatedData, from_clients
from atoll.errors import ConfigError
from atoll.federation import Federation

# peft asks what this transformers calls otherwise by now
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

NAMES = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}


def texts() -> FederatedData:
    generator = torch.Generator().manual_seed(0)
    clients = {}
    for name, n in (("a", 6), ("b", 3)):
        tokens = torch.randint(1, 64, (n, 13), generator=generator)
        clients[name] = (tokens[:, :-1], tokens[:, 1:])
    return from_clients(clients, test=None, classes=64)


def model(kind: str, **more: Any) -> Any:
    """A small model of transformers with LoRA of peft, whose factors are random."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        base, targets = transformers.GPT2LMHeadModel(config), ["c_attn"]
    else:
        config = transformers.LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1,
        )  # fmt: skip
        base, targets = transformers.LlamaForCausalLM(config), ["q_proj", "v_proj"]
    given = {
        "r": 2, "lora_alpha": 4, "target_modules": targets, "init_lora_weights": False,
        "fan_in_fan_out": kind == "gpt2", **more,
    }  # fmt: skip
    return peft.get_peft_model(base, peft.LoraConfig(**given))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_they_give_the_same_numbers(kind: str) -> None:
    theirs = model(kind).eval()
    ours = from_peft(theirs).eval()
    tokens = torch.randint(0, 64, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=1e-6, rtol=1e-5)
    assert {p.data_ptr() for p in ours.parameters() if not p.requires_grad} <= {
        p.data_ptr() for p in theirs.parameters()
    }
    found = []
    for module in (theirs, ours):
        fed = Federation(
            module, texts(), "fedavg", rounds=2, lr=0.5, batch_size=4, engine="loop", device="cpu"
        )
        found.append(dict(fed.fit().model.named_parameters()))
    began = dict(ours.named_parameters())
    for pair in pairs(ours):
        layer = pair.weight.removesuffix(".weight")
        for own, name in ((pair.A, NAMES["A"]), (pair.B, NAMES["B"])):
            other = found[0][f"base_model.model.{layer}.{name}"]
            torch.testing.assert_close(found[1][own], other, atol=1e-6, rtol=1e-4)
            assert not torch.equal(found[1][own], began[own])


@pytest.mark.slow
def test_factors_go_back_where_they_came_from() -> None:
    theirs = model("llama")
    ours = from_peft(theirs)
    with torch.no_grad():
        for name, value in ours.named_parameters():
            if value.requires_grad:
                value.add_(1.0 if name.endswith("A") else -1.0)
    to_peft(ours, theirs)
    tokens = torch.randint(0, 64, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval()(tokens).logits, theirs.eval()(tokens).logits, atol=1e-6, rtol=1e-5
        )
    with pytest.raises(ConfigError, match="not the same"):
        to_peft(nn.Linear(2, 2), theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lora_dropout": 0.1}, "dropout"),
        ({"rank_pattern": {"q_proj": 3}}, "different ranks"),
        ({"use_dora": True}, "more than two factors"),
        ({"modules_to_save": ["lm_head"]}, "is trained, too"),
    ],
)
def test_what_is_more_than_lora_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_peft(model("llama", **more))


@pytest.mark.slow
def test_factors_of_another_form_go_nowhere() -> None:
    """A rank of one would fit any, as torch copies."""
    theirs = model("llama")
    for other in ({"r": 1, "lora_alpha": 2}, {"lora_alpha": 8}):
        with pytest.raises(ConfigError, match=r"of rank [12] and scale"):
            to_peft(from_peft(model("llama", **other)), theirs)
    theirs.merge_adapter()
    with pytest.raises(ConfigError, match="in its weight already"):
        from_peft(theirs)


def test_what_is_no_model_of_peft_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no LoRA of peft(.|\n)*lora:8,16"):
        from_peft(nn.Linear(2, 2))
