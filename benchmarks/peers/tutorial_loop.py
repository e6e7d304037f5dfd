"""The loop of the tutorials: a module copied for each client, DataLoader, torch.optim.SGD, a weighted mean.

    python benchmarks/peers/tutorial_loop.py W1 --rounds 12

It needs nothing but PyTorch, so it runs in Atoll's own environment.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import accuracy, network
from workloads import SEED, Stopwatch, Workload, arrays, options, report


def train(module: nn.Module, data: TensorDataset, work: Workload) -> dict[str, torch.Tensor]:
    """Local training of one client on its own copy of the model."""
    local = copy.deepcopy(module)
    optimizer = torch.optim.SGD(local.parameters(), lr=work.lr)
    criterion = nn.CrossEntropyLoss()
    for _ in range(work.epochs):
        for x, y in DataLoader(data, batch_size=work.batch, shuffle=True):
            optimizer.zero_grad()
            criterion(local(x), y).backward()
            optimizer.step()
    return local.state_dict()


def average(states: list[dict[str, torch.Tensor]], sizes: list[int]) -> dict[str, torch.Tensor]:
    """Mean of the clients' weights, each counted by its number of samples."""
    total = sum(sizes)
    return {
        name: torch.stack(
            [state[name] * (size / total) for state, size in zip(states, sizes, strict=True)]
        ).sum(0)
        for name in states[0]
    }


def main() -> None:
    given = options()
    work = given.work
    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    data = arrays(work)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    clients = [TensorDataset(*pair) for pair in zip(x, y, strict=True)]
    module = network(work)

    watch = Stopwatch()
    watch.start()
    for _ in range(given.rounds):
        cohort = [clients[client] for client in rng.choice(work.clients, work.cohort, replace=False)]
        states = [train(module, client, work) for client in cohort]
        module.load_state_dict(average(states, [len(client) for client in cohort]))
        watch.lap()
    report(
        "tutorial loop",
        f"torch {torch.__version__}",
        work.name,
        watch,
        threads=given.threads,
        accuracy=accuracy(module, data),
        data=data.source,
    )


if __name__ == "__main__":
    main()
