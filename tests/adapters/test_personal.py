"""What a client predicts with where the server changes the base beneath the adapters."""

from __future__ import annotations

import pytest
import torch

from atoll.data import from_clients
from atoll.federation import Federation
from atoll.models import gpt


@pytest.mark.parametrize("method", ["fedex", "flora", "fedit"])
def test_it_is_the_global_model(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(9, (4, 5), generator=generator) for _ in range(2)]
    data = from_clients({f"c{k}": (x, x.roll(-1, 1)) for k, x in enumerate(texts)}, classes=9, test=None)
    federation = Federation(
        lambda: gpt(9, 5, 1, 8, 2),
        data,
        method,
        adapter="lora:2,4",
        rounds=2,
        lr=0.5,
        engine="loop",
        device="cpu",
    )
    run = federation.fit(progress=False)
    with torch.no_grad():
        torch.testing.assert_close(federation.personal(1)(texts[0]), run.model(texts[0]))
