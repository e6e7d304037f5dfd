"""Bottlenecks, prompts and prefixes: what they compute, by hand, and that every engine trains them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll.data
from atoll import models
from atoll.adapters import apply, merged
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.models.llama import llama
from atoll.tensors import nbytes

TOKENS = torch.arange(12).view(2, 6) % 11


def gpt() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return models.gpt(11, 6, 2, 8, 2)


def grouped() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return llama(11, 2, 16, 4, 2)


BOTH = pytest.mark.parametrize("model", [gpt, grouped])


def stirred(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator))
    return module


@BOTH
def test_a_bottleneck_stands_behind_each_part(model: Callable[[], nn.Module]) -> None:
    base, made = model(), apply(model(), "bottleneck:3")
    assert torch.equal(made(TOKENS), base(TOKENS))
    stirred(made)
    given = copy.deepcopy(made).double()
    x = given[0](TOKENS)  # type: ignore[index, operator]
    for block in list(given.children())[1:3]:
        names = ("attention", "wide") if "wide" in block._modules else ("attention", "gated")
        for name in names:
            part = block.get_submodule(name).forward  # without its hook
            own = block.get_submodule(f"after_{name}")
            h = part(block.get_submodule(f"before_{name}")(x))
            x = x + h + F.gelu(h @ own.down.t() + own.down_bias) @ own.up.t() + own.up_bias
    for layer in list(given.children())[3:]:
        x = layer(x)
    torch.testing.assert_close(given(TOKENS), x, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(made(TOKENS), base(TOKENS))
    with pytest.raises(ConfigError, match="cannot be merged"):
        merged(made)


@BOTH
def test_a_prompt_is_what_stands_before_the_text(model: Callable[[], nn.Module]) -> None:
    base, made = model(), stirred(apply(model(), "prompt:3"))
    embedded = base[0](TOKENS)  # type: ignore[index, operator]
    prompt = made.get_parameter("0.prompt")
    x = torch.cat([prompt.expand(2, -1, -1), embedded], 1)
    for layer in list(base.children())[1:]:
        x = layer(x)
    found = made(TOKENS)
    assert found.shape == base(TOKENS).shape
    torch.testing.assert_close(found, x[:, 3:], rtol=1e-5, atol=1e-6)


@BOTH
def test_a_prefix_is_looked_at_by_all(model: Callable[[], nn.Module]) -> None:
    """By hand in the first block: softmax over the prefix and all positions up to one's own."""
    made = stirred(apply(model(), "prefix:3")).double()
    block = list(made.children())[1]
    attention = block.attention
    assert isinstance(attention, nn.Module)
    x = torch.randn(
        1, 5, attention.query.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    found = attention(x)
    assert found.shape == x.shape
    if model is grouped:  # rotary positions: what is left is that the future is not seen, and the prefix is
        later = attention(torch.cat([x[:, :4], -x[:, 4:]], 1))
        torch.testing.assert_close(later[:, :4], found[:, :4])
    else:
        q, k, v = (getattr(attention, name).forward(x)[0] for name in ("query", "key", "value"))
        k, v = (
            torch.cat([getattr(attention, name).prefix, part]) for name, part in (("key", k), ("value", v))
        )
        heads: list[Tensor] = []
        for at in range(2):
            cut = slice(4 * at, 4 * at + 4)
            scores = q[:, cut] @ k[:, cut].t() / 2
            seen = torch.arange(8) < torch.arange(5)[:, None] + 4
            heads.append(torch.softmax(scores.masked_fill(~seen, -torch.inf), 1) @ v[:, cut])
        torch.testing.assert_close(
            found[0], attention.out.forward(torch.cat(heads, 1)), rtol=1e-10, atol=1e-10
        )
    with torch.no_grad():
        attention.value.prefix.mul_(2)
    assert not torch.allclose(attention(x), found)


@pytest.mark.parametrize("text", ["bottleneck:2", "prompt:2", "prefix:2", "lora:2"])
def test_engines_train_them_and_nothing_else_travels(text: str) -> None:
    generator = torch.Generator().manual_seed(2)
    made = {}
    for k, n in enumerate((5, 3)):
        x = torch.randint(0, 11, (n, 6), generator=generator)
        made[f"c{k}"] = (x, x.roll(-1, 1))
    data = atoll.data.from_clients(made, classes=11, test=None)
    found = {}
    for engine in ("loop", "batched", "processes"):
        run = Federation(
            lambda: models.gpt(11, 6, 1, 8, 2), data, adapter=text, rounds=2, batch_size=2, lr=0.5, engine=engine,
            device="cpu", eval_every=0,
        )  # fmt: skip
        told = run.fit(progress=False).to_dict()
        assert told["bytes_up"] == 4 * nbytes(run.state.params)
        assert all(name not in run.task.frozen for name in run.state.params)
        found[engine] = run.state.params
        start = run.task.initial()[0]
    assert (found["loop"] - start).norm() > 1e-3
    for engine in ("batched", "processes"):
        assert (found[engine] - found["loop"]).norm() <= 1e-5 * found["loop"].norm()


@pytest.mark.parametrize("text", ["bottleneck:2", "prompt:2", "prefix:2"])
def test_what_has_no_such_parts_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Sequential (has no attention|is no chain)") as error:
        apply(nn.Sequential(nn.Linear(3, 2)), text)
    assert "lora" in str(error.value.hint)
    with pytest.raises(ConfigError, match="at least 1"):
        apply(gpt(), text.replace("2", "0"))


@pytest.mark.parametrize("text", ["bottleneck:2", "prompt:2", "prefix:2"])
def test_over_halves_they_are_of_full_precision(text: str) -> None:
    made = stirred(apply(gpt().bfloat16(), text))
    assert {p.dtype for p in made.parameters() if p.requires_grad} == {torch.float32}
    assert made(TOKENS).dtype == torch.bfloat16


def test_attention_of_another_make_is_refused() -> None:
    class Block(nn.Module):
        """Torch's attention, under the name of ours."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)

    with pytest.raises(ConfigError, match="Block has no attention"):
        apply(Block(), "prefix:2")
