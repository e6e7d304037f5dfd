"""The two networks of the workloads for the peers that run on PyTorch."""

from __future__ import annotations

import torch
from torch import nn
from workloads import Arrays, Workload


def network(work: Workload) -> nn.Module:
    """The module of a workload; it takes images [n, 1, 28, 28] and returns logits [n, 10]."""
    if work.network == "2nn":
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
        )
    else:
        module = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == work.parameters, f"{work.network}: {count} parameters instead of {work.parameters}"
    return module


@torch.inference_mode()
def accuracy(module: nn.Module, data: Arrays) -> float:
    """Share of the test images that the module labels right."""
    outputs = torch.cat([module(images) for images in torch.from_numpy(data.x_test).split(500)])
    return float((outputs.argmax(1) == torch.from_numpy(data.y_test)).double().mean())
