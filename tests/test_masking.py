"""Masked language modelling: which tokens are hidden follows from the text and a stream, not from where it stands."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from atoll.data import from_clients
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.masking import Masking
from atoll.parts import Parts
from atoll.task import Task

RULE = Masking(0.15, 0)


def texts(n: int, t: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(1, 50, (n, t + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def test_hidden_tokens_are_to_be_predicted_and_no_others() -> None:
    x, y = texts(40, 128)
    shown, wanted = RULE(x, y, torch.tensor(7))
    assert isinstance(shown, torch.Tensor)
    chosen = wanted >= 0
    assert torch.equal(wanted[chosen], x[chosen])
    assert torch.equal(shown[~chosen], x[~chosen])
    assert float(chosen.double().mean()) == pytest.approx(0.15, abs=0.02)
    assert float((shown[chosen] == 0).double().mean()) == pytest.approx(0.8, abs=0.05)
    stay = (shown == x) & chosen
    assert float(stay.sum() / chosen.sum()) == pytest.approx(0.1, abs=0.04)
    assert bool((Masking(0.001)(x[:, :4], y[:, :4])[1] >= 0).any(1).all())  # at least one of each


def test_a_text_is_hidden_alike_wherever_it_stands() -> None:
    x, y = texts(6, 20)
    for key in (None, torch.tensor(3)):
        shown, wanted = RULE(x, y, key)
        alone, apart = RULE(x[4:5], y[4:5], key)
        assert torch.equal(shown[4:5], alone)
        assert torch.equal(wanted[4:5], apart)
        mapped = torch.vmap(lambda a, b: RULE(a, b, key)[1])(x.unsqueeze(1), y.unsqueeze(1))  # noqa: B023
        assert torch.equal(mapped[:, 0], wanted)
    assert not torch.equal(RULE(x, y, torch.tensor(3))[1], RULE(x, y, torch.tensor(4))[1])


def test_what_is_filled_up_is_not_hidden() -> None:
    x, y = texts(50, 30)
    y[:, 9:] = -1
    assert bool((Masking(0.9)(x, y)[1][:, 10:] < 0).all())


def test_of_parts_the_tokens_are_hidden() -> None:
    x, y = texts(3, 20)
    mask = torch.ones_like(x, dtype=torch.bool)
    shown, _ = RULE(Parts({"input_ids": x, "attention_mask": mask}), y)
    parts = dict(shown.items())  # type: ignore[union-attr]
    assert torch.equal(parts["attention_mask"], mask)
    assert not torch.equal(parts["input_ids"], x)


class Around(nn.Module):
    """Each token is predicted from its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(50, 16), nn.Linear(32, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self.embedding(tokens)
        sides = torch.cat([found.roll(1, -2), found.roll(-1, -2)], -1)
        logits: torch.Tensor = self.out(sides)
        return logits


def test_every_engine_learns_from_the_same_hidden_tokens() -> None:
    line = torch.arange(3, 43).repeat(6, 1)
    line[3:] = line[3:].flip(1)
    data = from_clients(
        {"a": (line[:3, :-1], line[:3, 1:]), "b": (line[3:5, :-1], line[3:5, 1:])}, test=None, classes=50
    )
    torch.manual_seed(0)
    module, found = Around(), []
    for engine in ("loop", "batched", "processes"):
        fed = Federation(
            module,
            data,
            "fedavg",
            rounds=2,
            lr=1.0,
            batch_size=2,
            loss="masked:0.2",
            engine=engine,
            device="cpu",
        )
        found.append(fed.fit())
    states = [run.model.state_dict() for run in found]
    assert all(torch.allclose(states[0][k], each[k], atol=1e-6) for each in states for k in states[0])
    task = Task(module, "masked:0.2")
    task.check(line[:1, :-1], line[:1, 1:], 50)
    shown, wanted = Masking(0.2)(line[:, :-1], line[:, 1:])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(module(shown).flatten(0, 1), wanted.flatten(), ignore_index=-1)
    measured = task.measure(*task.initial(), line[:, :-1], line[:, 1:])
    sums = task.metrics["perplexity"].total("perplexity", measured["perplexity"].double().numpy())
    assert task.metrics["perplexity"].value([sums], "perplexity") == pytest.approx(
        math.exp(float(loss)), rel=1e-5
    )


def test_the_text_and_what_is_refused() -> None:
    assert Masking.parse("masked:0.15,103") == Masking(0.15, 103)
    assert Masking.parse("cross_entropy") is None
    assert Masking.parse(RULE.text) == RULE
    for text in ("masked", "masked:0", "masked:1", "masked:x"):
        with pytest.raises(ConfigError, match="masked:SHARE"):
            Task(nn.Linear(2, 2), text)
    task = Task(nn.Linear(3, 2), "masked:0.5")
    with pytest.raises(ConfigError, match="none that it can read"):
        task.check(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), 2)
