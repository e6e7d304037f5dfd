"""How fast a language model is fine-tuned: GPT-2's size, random weights, LoRA in bfloat16, beside a loop by hand."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from gpu_runner import Case, Json, Part, Setting
from torch import nn
from workloads import SEED

import atoll
from atoll import adapters
from atoll.federation import Federation
from atoll.models import GPT

ADAPTER, LR = "lora:8,16", 1e-3
ENGINES = ("loop", "processes")
"""Attention in bfloat16 cannot be batched over clients, and captured steps of one client are the CPU's."""


def model(setting: Setting) -> nn.Module:
    """GPT-2's smallest, 124 million parameters, the output layer being the embedding; a small one in a dry run."""
    torch.manual_seed(SEED)
    net = GPT(256, 32, 2, 32, 2) if setting.quick else GPT(50257, 1024, 12, 768, 12)
    net[-1].weight = net[0].token.weight
    return net


def texts(setting: Setting) -> tuple[torch.Tensor, int, int]:
    """Random texts [n, t + 1], how many make a batch, and how many batches a round has."""
    batch, steps, (window, size) = (2, 3, (32, 256)) if setting.quick else (8, 20, (1024, 50257))
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(size, (batch * steps, window + 1), generator=generator), batch, steps


def peak(setting: Setting) -> float | None:
    """MiB that were held on the device at most since this was asked last; None on a CPU."""
    if not setting.cuda:
        return None
    found = torch.cuda.max_memory_allocated(setting.device) / 2**20
    torch.cuda.reset_peak_memory_stats(setting.device)
    return found


def by_hand(setting: Setting) -> Json:
    """What anybody would write: the trained parameters, AdamW, autocast."""
    tokens, batch, steps = texts(setting)
    net = adapters.apply(model(setting), ADAPTER, SEED).to(setting.device).train()
    x, y = tokens[:, :-1].to(setting.device), tokens[:, 1:].to(setting.device)

    def round() -> None:
        local = copy.deepcopy(net)
        optimizer = torch.optim.AdamW([p for p in local.parameters() if p.requires_grad], lr=LR)
        for at in range(0, len(x), batch):
            optimizer.zero_grad()
            with torch.autocast(setting.device.type, torch.bfloat16):
                logits = local(x[at : at + batch])
                loss = F.cross_entropy(logits.flatten(0, 1), y[at : at + batch].flatten())
            loss.backward()
            optimizer.step()

    peak(setting)
    seconds = setting.median(round, 3)
    return {"tokens/s": x.numel() / seconds, "MiB": peak(setting), "s a step": seconds / steps}


def ours(engine: str, setting: Setting) -> Json:
    """The same as a federation of one client."""
    yard = by_hand(setting)
    tokens, batch, steps = texts(setting)
    data = atoll.data.from_clients(
        {"a": (tokens[:, :-1], tokens[:, 1:])}, test=None, classes=256 if setting.quick else 50257
    )
    federation = Federation(
        model(setting), data, "fedavg", adapter=ADAPTER, precision="bfloat16", optimizer="adamw", lr=LR,
        batch_size=batch, steps=steps, engine=engine, workers=1, device=str(setting.device), eval_every=0, seed=SEED,
    )  # fmt: skip
    peak(setting)
    try:
        seconds = setting.median(federation.round, 3)
    finally:
        federation.engine.close()
    rate, most = tokens[:, 1:].numel() / seconds, peak(setting)
    return {
        "tokens/s": rate, "by hand tokens/s": yard["tokens/s"], "ratio": yard["tokens/s"] / rate,
        "MiB": most, "by hand MiB": yard["MiB"],
    }  # fmt: skip


def part(setting: Setting) -> Part:
    """A row for each engine that a device has."""
    engines = [each for each in ENGINES if each != "processes" or not setting.cuda]
    return Part(
        "text",
        "GPT-2's size (124 M), LoRA of rank 8 in bfloat16, 8 x 1,024 tokens a batch, beside a loop by hand",
        [Case(engine, partial(ours, engine), expect=45.0) for engine in engines],
    )
