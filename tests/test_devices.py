"""What a GPU would refuse or be slow at, told without one: see `tests/pretended.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atoll import purity
from atoll.task import Batch, Task
from tests.pretended import DEVICE, pretended


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(4, 5, num_layers=2, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        return self.head(self.rnn(x)[0][:, -1])  # type: ignore[no-any-return]


def sequences(device: str | torch.device = "cpu") -> Batch:
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(6, 3, 4, generator=generator), torch.arange(6) % 3
    return Batch(*(t.to(device) for t in (inputs, targets, torch.ones(6), torch.tensor(5))))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_leave_their_weights_alone(
    kind: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing weights for cuDNN asks for addresses, which the tensors of a function transform have not got."""
    task = Task(Recurrent(kind))
    params, buffers = task.initial()
    before = task.gradient(params, buffers, sequences())[0]
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda _: True)
    after = task.gradient(params, buffers, sequences())[0]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    monkeypatch.undo()
    outside = task.load(params, buffers)
    assert outside.rnn.flatten_parameters.__func__ is nn.RNNBase.flatten_parameters


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_spelt_out_where_a_gpu_trains_and_only_there(
    kind: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    spelt: list[str] = []
    plain = purity._recurrent

    def noted(pure: Any, name: str, *args: Any) -> tuple[Tensor, ...]:
        spelt.append(name)
        return plain(pure, name, *args)

    monkeypatch.setattr(purity, "_recurrent", noted)
    task = Task(Recurrent(kind))
    params, buffers = task.initial()
    task.gradient(params, buffers, sequences())
    assert not spelt
    with pretended():
        there = params.map(lambda t: t.to(DEVICE))
        task.predict(there, buffers, sequences(DEVICE).inputs)
        assert not spelt
        task.gradient(there, buffers, sequences(DEVICE))
    assert len(spelt) == 1
