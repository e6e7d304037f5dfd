"""Models that start from numbers in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import atoll
from atoll.errors import ConfigError
from atoll.models import begin_from

SETTINGS: dict[str, Any] = {
    "data": "digits",
    "model": "mlp:8",
    "clients": 4,
    "progress": False,
    "eval_every": 0,
}


def test_a_run_goes_on_from_what_another_has_learned(tmp_path: Path) -> None:
    first = atoll.run(**SETTINGS, rounds=2, runs=str(tmp_path))
    assert first.folder is not None
    for start in (first.folder.path, first.folder.path / "model.safetensors"):
        run = atoll.run(**SETTINGS, rounds=1, lr=1e-12, base=str(start), runs="none")
        for one, other in zip(run.model.parameters(), first.model.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_an_adapter_is_trained_over_the_base_of_a_file(tmp_path: Path) -> None:
    first = atoll.run(**SETTINGS, rounds=2, runs="none")
    first.save(tmp_path / "base.safetensors")
    run = atoll.run(
        **SETTINGS, rounds=1, base=str(tmp_path / "base.safetensors"), adapter="lora:2", runs="none"
    )
    base = dict(first.model.named_parameters())
    assert any("lora" in name for name, _ in run.model.named_parameters())
    for name, value in run.model.named_parameters():
        if "lora" not in name:
            assert torch.equal(value, base[name])


def test_what_is_read_is_mapped_and_the_model_that_was_given_stays(tmp_path: Path) -> None:
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_file({"weight": module.weight.half(), "bias": module.bias}, tmp_path / "m.safetensors")
    begin_from(other, tmp_path / "m.safetensors")
    assert torch.equal(other.weight, module.weight.half().float())
    assert torch.equal(other.bias, module.bias)
    given = atoll.models.mlp(64, 8, 10)
    before = given[1].weight.clone()
    run = atoll.run(**SETTINGS, rounds=1, runs="none")
    run.save(tmp_path / "base.safetensors")
    data = atoll.data.load("digits").partition(atoll.data.IID(4), seed=0)
    atoll.Federation(given, data, atoll.FedAvg(lr=0.1), base=str(tmp_path / "base.safetensors"))
    assert torch.equal(given[1].weight, before)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"no tensors", "cannot be read"),
        ({"weight": torch.zeros(2, 3)}, "lacks bias"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "has also more"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"weight is \[3, 2\] there"),
        ({"weight": torch.zeros(2, 3, dtype=torch.int64), "bias": torch.zeros(2)}, "weight is torch.int64"),
    ],
)
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "m.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content, path)
    with pytest.raises(ConfigError, match=said) as raised:
        begin_from(nn.Linear(3, 2), path)
    assert raised.value.hint


def test_several_models_have_no_file_in_common() -> None:
    with pytest.raises(ConfigError, match="one model"):
        atoll.run(
            data="digits", model="mlp:8 + mlp:4", method="fedmd", public=100, rounds=1, base="x", runs="none"
        )
