"""The small Llama: what it looks at, what rotary positions and groups are, and that every engine trains it alike."""

from __future__ import annotations

import pytest
import torch

from atoll.data import from_clients
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.models import build, llama
from atoll.models.llama import Norm, rotated


def test_it_predicts_a_token_at_each_position_from_those_before() -> None:
    module = llama(11, layers=2, width=16, heads=2).eval()
    tokens = torch.randint(0, 11, (3, 6))
    other = tokens.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 11
    logits, changed = module(tokens), module(other)
    assert logits.shape == (3, 6, 11)
    assert torch.allclose(logits[:, :4], changed[:, :4], atol=1e-6)
    assert not torch.allclose(logits[:, 4:], changed[:, 4:], atol=1e-3)
    assert module(torch.randint(0, 11, (2, 50))).shape == (2, 50, 11)  # no positions are learnt
    assert sum(p.numel() for p in llama().parameters()) == 791_680


def test_products_of_rotated_vectors_depend_on_their_distance_alone() -> None:
    q, k = torch.randn(1, 8, dtype=torch.double), torch.randn(1, 8, dtype=torch.double)
    found = rotated(q.expand(9, 8)) @ rotated(k.expand(9, 8)).T
    for distance in range(-8, 9):
        line = found.diagonal(distance)
        assert torch.allclose(line, line[:1].expand_as(line), atol=1e-6)
    assert torch.equal(rotated(q)[:1], q)
    assert torch.allclose(rotated(q.expand(9, 8)).norm(dim=-1), q.norm().expand(9))


def test_heads_of_a_group_share_their_key() -> None:
    module = llama(5, layers=1, width=16, heads=4, groups=1)
    assert module[1].attention.key.weight.shape == (4, 16)
    assert llama(5, layers=1, width=16, heads=4)[1].attention.value.weight.shape == (8, 16)
    whole, few = llama(5, layers=1, width=16, heads=4, groups=4), module
    state = {
        name: value.repeat(4, 1) if name.endswith(("key.weight", "value.weight")) else value
        for name, value in few.state_dict().items()
    }
    whole.load_state_dict(state)
    tokens = torch.randint(0, 5, (2, 7))
    assert torch.allclose(whole(tokens), few(tokens), atol=1e-6)


def test_the_norm_is_torchs() -> None:
    x, norm = torch.randn(3, 8), Norm(8)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    assert torch.allclose(norm(x), torch.rms_norm(x, (8,), norm.weight, 1e-5))


@pytest.mark.parametrize(
    ("text", "words"), [("llama:1,12,4", "even size"), ("llama:1,16,4,3", "cannot share 3 keys")]
)
def test_sizes_that_do_not_divide_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(text, (6,), 11)


def test_every_engine_trains_it_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    clients = {}
    for name, n in (("a", 8), ("b", 5)):
        tokens = torch.randint(0, 11, (n, 7), generator=generator)
        clients[name] = (tokens[:, :-1], tokens[:, 1:])
    data = from_clients(clients, test=None, classes=11)
    torch.manual_seed(0)
    module, found = llama(11, layers=1, width=16, heads=2), []
    for engine in ("loop", "batched", "processes"):
        fed = Federation(module, data, "fedavg", rounds=1, lr=0.1, batch_size=4, engine=engine, device="cpu")
        found.append(fed.fit().model.state_dict())
    assert all(torch.allclose(found[0][k], each[k], atol=1e-6) for each in found for k in found[0])
    assert any(not torch.equal(found[0][k], v) for k, v in module.state_dict().items())
