"""LoRA as a parametrisation: what it computes, what it shares, where it stands."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import atoll.data
from atoll import models
from atoll.adapters import LoRA, adapters, apply, chain, is_adapted, layers, merged, pairs, parse, product
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.task import Batch, Task
from atoll.tensors import Tensors


class Conv1D(nn.Module):
    """GPT-2's: a linear layer whose weight is [in, out]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / 3)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def every(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A layer of each kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Embedding(9, 6),
            nn.Flatten(),
            nn.Linear(18, 8),
            nn.ReLU(),
            Conv1D(8, 5),
            nn.Linear(5, 4, bias=False),
        ).to(dtype)


def trained(module: nn.Module) -> nn.Module:
    """The module with other factors, as after some training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator))
    return module


TOKENS = torch.arange(12).view(4, 3) % 9


def test_at_first_nothing_is_added() -> None:
    base = every()
    made = apply(base, "lora:2,4,*")
    assert torch.equal(made(TOKENS), base(TOKENS))
    assert [p.kind for p in pairs(made)] == ["embedding", "linear", "conv1d", "linear"]
    assert all(p.requires_grad == (".lora." in name) for name, p in made.named_parameters())
    assert all(p.requires_grad for p in base.parameters()) and not is_adapted(base)


def test_merged_is_applied() -> None:
    made = trained(apply(every(), "lora:2,4,*"))
    plain = merged(made)
    assert (
        not pairs(plain)
        and not is_adapted(plain)
        and plain.state_dict().keys() == every().state_dict().keys()
    )
    torch.testing.assert_close(plain(TOKENS), made(TOKENS), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(plain(TOKENS), every()(TOKENS))
    assert all(p.requires_grad for p in plain.parameters())
    again = apply(plain, "lora:1")  # which can be adapted once more
    assert torch.equal(again(TOKENS), plain(TOKENS))


def test_what_is_added_is_the_product_of_the_factors() -> None:
    made, base = trained(apply(every(), "lora:2,3,*")), every()
    params = Tensors({name: p.detach() for name, p in made.named_parameters() if p.requires_grad})
    weights = dict(base.named_parameters())
    for name, change in product(made, params).items():
        pair = next(each for each in pairs(made) if each.weight == name)
        dense = params[pair.B] @ params[pair.A] * 1.5
        assert torch.equal(change, dense.t() if pair.transposed else dense)
        with torch.no_grad():
            weights[name].add_(change)
    torch.testing.assert_close(base(TOKENS), made(TOKENS), rtol=1e-12, atol=1e-12)


def test_the_base_is_there_once() -> None:
    base = every()
    made = [apply(base, LoRA(rank)) for rank in (1, 2)]
    tasks = [Task(each, shares=True) for each in made]
    for name, p in base.named_parameters():
        for module in (*made, *(task.module for task in tasks)):
            assert module.get_parameter(name).data_ptr() == p.data_ptr()
        assert tasks[0].frozen[name].data_ptr() == p.data_ptr()
    assert Task(made[0]).frozen["2.weight"].data_ptr() != base.get_parameter("2.weight").data_ptr()


def test_draws_have_addresses() -> None:
    first, same, other = (apply(every(), "lora:4,8", seed=seed) for seed in (1, 1, 2))
    less = apply(every(), "lora:2,8", seed=1)
    before = torch.random.get_rng_state()
    name = pairs(first)[0].A
    assert torch.equal(first.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    assert torch.equal(first.get_parameter(name)[:2], less.get_parameter(name))
    assert float(first.get_parameter(name).detach().abs().max()) <= 18**-0.5
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_task_computes_what_the_module_does_and_what_is_given_wins() -> None:
    module = trained(apply(every(), "lora:2,4,*"))
    task = Task(module, shares=True)
    params, buffers = task.initial()
    outputs, _ = task.predict(params, buffers, TOKENS)
    assert torch.equal(outputs, module(TOKENS))
    change = Tensors({"2.weight": torch.zeros(8, 18, dtype=torch.float64)})
    given, _ = task.predict(Tensors({**params, **change}), buffers, TOKENS)
    assert torch.equal(given, task.over(change).predict(params, buffers, TOKENS)[0])
    assert not torch.equal(given, outputs) and torch.equal(task.predict(params, buffers, TOKENS)[0], outputs)
    batch = Batch(TOKENS, torch.arange(4), torch.ones(4), torch.tensor(0))
    gradient, _, _ = task.over(change).gradient(params, buffers, batch)
    assert gradient.keys() == params.keys()
    loaded = task.load(Tensors({**params, **change}), buffers)
    assert torch.equal(loaded(TOKENS), given) and not loaded.get_parameter("2.weight").any()
    same = [
        loaded.get_parameter(name).data_ptr() == p.data_ptr() for name, p in task.module.named_parameters()
    ]
    names = [name for name, _ in task.module.named_parameters()]
    assert {name for name, there in zip(names, same, strict=True) if there} == task.frozen.keys() - {
        "2.weight"
    }
    beneath = task.over(change).load(params, buffers)  # the task's own base is as it was
    assert torch.equal(beneath(TOKENS), given) and task.module.get_parameter("2.weight").any()


def test_gradients_are_those_of_the_merged_weight() -> None:
    """dL/dB = scale dL/dW A',  dL/dA = scale B' dL/dW."""
    module = trained(apply(every(), "lora:2,4,*"))
    task, plain = Task(module), Task(merged(module))
    batch = Batch(TOKENS, torch.arange(4), torch.ones(4), torch.tensor(0))
    (params, buffers), (whole, rest) = task.initial(), plain.initial()
    gradient, dense = task.gradient(params, buffers, batch)[0], plain.gradient(whole, rest, batch)[0]
    for pair in pairs(module):
        slope = dense[pair.weight].t() if pair.transposed else dense[pair.weight]
        torch.testing.assert_close(gradient[pair.B], 2 * slope @ params[pair.A].t(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient[pair.A], 2 * params[pair.B].t() @ slope, rtol=1e-9, atol=1e-12)


def test_halves_keep_factors_of_full_precision() -> None:
    made = trained(apply(every(torch.bfloat16), "lora:2,4,*"))
    assert {p.dtype for p in made.parameters() if p.requires_grad} == {torch.float32}
    assert made(TOKENS).dtype == torch.bfloat16


def test_targets() -> None:
    gpt = models.gpt(20, 8, 2, 16, 2)
    ends = {path.rpartition(".")[2] for path in layers(gpt)}
    assert ends == {
        "query",
        "key",
        "value",
        "out",
        "0",
        "2",
    }  # not the one that makes outputs
    assert list(layers(gpt, ["query"])) == ["1.attention.query", "2.attention.query"]
    assert list(layers(gpt, ["1.*.value", "attention.key"])) == [
        "1.attention.key", "1.attention.value", "2.attention.key",
    ]  # fmt: skip
    assert list(layers(gpt, ["token"])) == ["0.token"]
    assert list(layers(nn.Sequential(nn.Linear(3, 2)))) == ["0"]  # where there is no other
    assert parse("lora:4,8,query, value").targets == ("query", "value")
    assert [each.text for each in chain("lora:4,8 / lora:16")] == ["lora:4,8", "lora:16,32"]
    assert dict(adapters())["lora:RANK[,ALPHA,TARGETS,...]"]


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("lora:0", "rank = '0' is not a whole number at least 1", "write lora:RANK"),
        ("lora", "lora needs rank", "write lora:RANK"),
        ("lora:2,-1", "alpha = '-1'", "write lora"),
        ("lora:2,4,querry", "no layer of GPT is called 'querry'", "query"),
        ("lora:2,4,before_wide", "a LayerNorm", "there are"),
        ("lora:17", "rank 17 is above what 1.attention.query has", "at most 16"),
        ("lorra:2", "unknown adapter 'lorra'", "lora"),
    ],
)
def test_what_does_not_fit(text: str, says: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        apply(models.gpt(20, 8, 2, 16, 2), text)
    assert hint in str(error.value.hint)


def test_twice_is_refused_and_so_is_what_is_never_called() -> None:
    with pytest.raises(ConfigError, match="has an adapter already"):
        apply(apply(every(), "lora:1"), "lora:1")
    with pytest.raises(ConfigError, match="Conv2d has no linear layer"):
        apply(nn.Conv2d(1, 2, 3), "lora:1")
    for bad in ({"rank": 0}, {"rank": 1.5}, {"rank": 2, "alpha": 0.0}):
        with pytest.raises(ConfigError):
            LoRA(**bad)  # type: ignore[arg-type]
    attention = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    assert "self_attn.out_proj" not in layers(attention)  # whose weight torch's attention reads itself

    class Reads(nn.Module):
        """Uses the weight of a layer that it does not call."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.head(x @ self.layer.weight.t())
            return outputs

    data = atoll.data.from_clients({"a": (torch.randn(9, 6), torch.arange(9) % 3)}, classes=3, test=None)
    with pytest.raises(ConfigError, match="does not call its layer layer"):
        Federation(Reads, data, "fedit", adapter="lora:2")


def test_a_model_of_the_callers_own_stays_as_it_is() -> None:
    mine = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    before = copy.deepcopy(mine.state_dict())
    made = {"a": (torch.randn(12, 6), torch.arange(12) % 3)}
    data = atoll.data.from_clients(made, classes=3, test=0.2)
    run = Federation(mine, data, "fedex", adapter="lora:2", rounds=2, engine="loop", device="cpu").fit(
        progress=False
    )
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    assert all(p.requires_grad for p in mine.parameters())
    assert not torch.equal(merged(run.model).get_parameter("0.weight"), mine.get_parameter("0.weight"))
