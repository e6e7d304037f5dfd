"""Models of several parts: what is not there counts for nothing, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atoll.errors import ConfigError
from atoll.models import Fused, build

SHAPES = {"image": (1, 16, 16), "sound": (3, 16), "table": (4,)}
FUSIONS = ("late", "attention")


def samples(rows: int = 5) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(rows, *shape, generator=draw) for name, shape in SHAPES.items()}


def made(fusion: str) -> Fused:
    torch.manual_seed(0)
    module = build(f"fused:{fusion}", SHAPES, 7)
    assert isinstance(module, Fused)
    return module


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_stands_in_an_absent_part_changes_no_bit(fusion: str) -> None:
    module, parts = made(fusion), samples()
    here = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0]], dtype=torch.float32)

    def came(parts: dict[str, Tensor]) -> list[Tensor]:
        module.zero_grad()
        logits = module(here, **parts)
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]

    other = {name: part.clone() for name, part in parts.items()}
    for at, name in enumerate(parts):
        other[name][here[:, at] == 0] = float("nan") if at else 1e6
    assert all(map(torch.equal, came(parts), came(other)))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_encoder_of_a_part_that_nobody_has_gets_no_gradient(fusion: str) -> None:
    module, parts = made(fusion), samples()
    module(torch.tensor([[1.0, 0.0, 1.0]]).expand(5, 3), **parts).square().sum().backward()
    moved = {
        name.split(".")[1] for name, p in module.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {"image", "table"} <= moved
    assert all(not p.grad.any() for p in module.encoders["sound"].parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_part_that_is_not_given_is_not_there(fusion: str) -> None:
    module, parts = made(fusion).eval(), samples()
    with torch.no_grad():
        some = module(image=parts["image"], table=parts["table"])
        told = module(torch.tensor([[1.0, 0.0, 1.0]]).expand(5, 3), **parts)
    assert torch.equal(some, told)


def test_late_fusion_is_the_mean_of_the_logits_that_are_there() -> None:
    module, parts = made("late").eval(), samples()
    with torch.no_grad():
        both = module(image=parts["image"], table=parts["table"])
        each = [module(**{name: parts[name]}) for name in ("image", "table")]
    assert torch.allclose(both, (each[0] + each[1]) / 2, atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_without_any_part_all_samples_get_the_same(fusion: str) -> None:
    with torch.no_grad():
        found = made(fusion)(torch.zeros(5, 3), **samples())
    assert torch.equal(found, found[:1].expand_as(found))


def test_fused_reads_parts_by_name() -> None:
    with pytest.raises(ConfigError, match="several parts by name"):
        build("fused", (1, 16, 16), 10)
    with pytest.raises(ConfigError, match="late"):
        build("fused:early", SHAPES, 10)
