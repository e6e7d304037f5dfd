"""A whole run beside the algorithm written out: batches, clipping, noise and denominators as the paper has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import atoll.data
from atoll import seeds
from atoll.contract import Plan
from atoll.dpsgd.records import from_stream, noise_key
from atoll.engines.reading import reading
from atoll.federation import Federation
from atoll.tensors import Tensors

CLIP, NOISE, LR, BATCH, EPOCHS, ROUNDS, SEED = 0.7, 0.5, 0.1, 4, 2, 2, 3
SIZES = (23, 13, 5, 1)


def made() -> tuple[nn.Module, atoll.data.FederatedData]:
    rng, clients = np.random.default_rng(7), {}
    for at, n in enumerate(SIZES):
        x = rng.normal(size=(n, 6)).astype(np.float32)
        rows = x, x[:, :3].argmax(1)
        clients[f"c{at}"] = {"train": rows, "test": rows}
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.GroupNorm(2, 8), nn.Linear(8, 3))
    return module, atoll.data.from_clients(clients, classes=3, validation=0.0)


def by_hand(module: nn.Module, data: atoll.data.FederatedData) -> Tensors:
    """Abadi et al. 2016, Algorithm 1, at each client, one sample at a time, and the average that samples weigh."""
    names, params = zip(*module.named_parameters(), strict=True)
    model = Tensors({name: param.detach().clone() for name, param in module.named_parameters()})
    for number in range(1, ROUNDS + 1):
        total = model.zeros()
        for client, n in enumerate(SIZES):
            module.load_state_dict(dict(model))
            samples, size = data.samples(client), min(BATCH, n)
            assert samples is not None
            plan = Plan(epochs=EPOCHS, batch_size=BATCH, poisson=True)
            read = reading(plan, n, seeds.rng(SEED, "order", number, client))
            assert len(read.index) == EPOCHS * -(-n // size)
            own = torch.tensor(seeds.addresses(SEED, "step", number, [client])[0])
            for step, (index, mask) in enumerate(zip(read.index, read.mask, strict=True)):
                moved = [torch.zeros_like(param) for param in params]
                for row in index[mask > 0]:
                    loss = F.cross_entropy(module(samples.inputs[[row]]), samples.targets[[row]])
                    found = torch.autograd.grad(loss, params)
                    norm = torch.cat([each.flatten() for each in found]).norm()
                    for each, gradient in zip(moved, found, strict=True):
                        each += gradient / max(1.0, float(norm) / CLIP)
                noise = from_stream(noise_key(seeds.fold(own, torch.tensor(step)), 1), model)
                with torch.no_grad():
                    for name, param, gradient in zip(names, params, moved, strict=True):
                        param -= LR / size * (gradient + NOISE * CLIP * noise[name])
            total = total + Tensors({k: v.detach().clone() for k, v in module.named_parameters()}) * float(n)
        model = total / float(sum(SIZES))
    return model


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_a_run_is_the_algorithm(engine: str) -> None:
    module, data = made()
    run = Federation(
        module, data, "fedavg", lr=LR, batch_size=BATCH, epochs=EPOCHS, rounds=ROUNDS, seed=SEED, engine=engine,
        eval_every=0, device="cpu", dp_sgd=f"{CLIP},{NOISE}",
    )  # fmt: skip
    first = run.state.params
    run.fit(progress=False)
    found, wanted = run.state.params, by_hand(module, data)
    assert (found - wanted).norm() <= 1e-5 * (wanted - first).norm()


def test_noise_of_steps_and_of_gradients_is_standard_normal_and_apart() -> None:
    """What a sum of squares, a fourth moment and products of neighbours say, within five standard errors."""
    own = torch.tensor(seeds.addresses(SEED, "step", 1, [0])[0])
    like = Tensors(weight=torch.zeros(2_000))
    drawn = torch.stack([
        from_stream(noise_key(seeds.fold(own, torch.tensor(step)), call), like).flat()
        for step in range(50)
        for call in (1, 2)
    ]).double()  # fmt: skip
    n = drawn.numel()
    assert abs(float(drawn.mean())) < 5 / n**0.5
    assert abs(float(drawn.square().mean()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float(drawn.pow(4).mean()) - 3) < 5 * (96 / n) ** 0.5
    for shift in (
        (1, 0),
        (2, 0),
        (0, 1),
    ):  # of another gradient of the step, of the next step, of another parameter
        assert abs(float((drawn * drawn.roll(shift, (0, 1))).mean())) < 5 / n**0.5
