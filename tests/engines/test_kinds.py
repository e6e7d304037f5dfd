"""Kinds of model beside the usual: half precision, layers without shapes, sequences that are packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atoll.data
from atoll.errors import ConfigError, EngineError
from atoll.federation import Federation

ENGINES = ("loop", "batched", "processes")


def data(inputs: Tensor | None = None) -> Any:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 6, generator=generator) if inputs is None else inputs
    return atoll.data.from_arrays(x, torch.arange(len(x)) % 3).partition("iid", clients=3, seed=0)


def fitted(model: Any, data: Any, engine: str, method: str = "fedavg") -> Federation:
    federation = Federation(
        model,
        data,
        method,
        rounds=2,
        lr=0.1,
        batch_size=8,
        engine=engine,
        eval_every=0,
        workers=1,
        device="cpu",
    )
    federation.fit()
    return federation


class Half(nn.Module):
    """Computes in bfloat16, with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.bfloat16()).float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedadam"])
def test_half_precision_stays_half(engine: str, method: str) -> None:
    state = fitted(Half, data(), engine, method).state
    assert {value.dtype for value in state.params.values()} == {torch.bfloat16}
    assert state.buffers["layers.1.running_mean"].dtype == torch.bfloat16
    wanted = fitted(Half, data(), "loop", method).state
    torch.testing.assert_close(state.params.flat(), wanted.params.flat(), rtol=0.1, atol=0.03)


def test_lazy_layers_get_their_shapes_from_the_data() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(3))
    federation = fitted(model, data(), "loop")
    assert federation.state.params["0.weight"].shape == (8, 6)
    assert isinstance(model[0], nn.LazyLinear)  # the caller's stays as it was
    made = [fitted(lambda: nn.Sequential(nn.LazyLinear(3)), data(), "loop").state for _ in range(2)]
    assert torch.equal(made[0].params.flat(), made[1].params.flat())
    with pytest.raises(ConfigError, match="the model cannot read the data"):
        fitted(nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2)), data(), "loop")


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4, padding_idx=0)
        self.layer = nn.LSTM(4, 5, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x != 0).sum(1).clamp(min=1).tolist()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.words(x), lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(self.layer(packed)[1][0][-1])  # type: ignore[no-any-return]


def test_packed_sequences_run_in_loop_and_processes() -> None:
    words = torch.randint(1, 9, (24, 7), generator=torch.Generator().manual_seed(1))
    for row in range(24):
        words[row, 1 + row % 7 :] = 0
    wanted = fitted(Packed, data(words), "loop").state
    found = fitted(Packed, data(words), "processes").state
    torch.testing.assert_close(found.params.flat(), wanted.params.flat())
    with pytest.raises(EngineError, match="packed sequences cannot be batched"):
        fitted(Packed, data(words), "batched")
    assert fitted(Packed, data(words), "auto").engine.describe().startswith(("processes", "loop"))
