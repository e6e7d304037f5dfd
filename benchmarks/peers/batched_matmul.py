"""The limit of the machine for the 2NN: every client of the cohort in one batched product, no autograd.

Forward and backward are written out for this one network, and each gradient goes straight into the weights
(`W <- W - lr * h^T g` is a single `baddbmm_`), so that no gradient is ever stored. The distance of a general
library to this script is what generality costs.

    python benchmarks/peers/batched_matmul.py W1 --rounds 12
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import accuracy, network
from workloads import SEED, Stopwatch, arrays, options, report

Layer = tuple[Tensor, Tensor]


def step(layers: list[Layer], x: Tensor, y: Tensor, lr: float) -> None:
    """One SGD step of every client, in place.

    Layers hold weights [clients, in, out] and biases [clients, 1, out]; x is [clients, batch, in] and y, the
    index of the right class, [clients, batch, 1].
    """
    (w1, b1), (w2, b2), (w3, b3) = layers
    h1 = torch.baddbmm(b1, x, w1).relu_()
    h2 = torch.baddbmm(b2, h1, w2).relu_()
    g3 = torch.baddbmm(b3, h2, w3).softmax(2)
    # Gradient of the mean cross-entropy: (softmax - one-hot) / batch.
    g3.scatter_add_(2, y, torch.full((), -1.0).expand(y.shape)).div_(x.shape[1])
    g2 = torch.bmm(g3, w3.transpose(1, 2)).mul_(h2 > 0)
    g1 = torch.bmm(g2, w2.transpose(1, 2)).mul_(h1 > 0)
    for (weight, bias), entering, gradient in zip(layers, (x, h1, h2), (g1, g2, g3), strict=True):
        weight.baddbmm_(entering.transpose(1, 2), gradient, alpha=-lr)
        bias.sub_(gradient.sum(1, keepdim=True), alpha=lr)


@torch.inference_mode()
def main() -> None:
    given = options(only=("W1",))
    work = given.work
    assert work.samples % work.batch == 0, "equal batches only"
    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    data = arrays(work)
    images = torch.from_numpy(data.x).reshape(-1, 784)
    labels = torch.from_numpy(data.y).reshape(-1)
    module = network(work)
    linear = [part for part in module if isinstance(part, torch.nn.Linear)]
    server = [(part.weight.t().clone(), part.bias[None].clone()) for part in linear]
    # One set of client weights and one batch, reused by every round and every step.
    local = [(w.new_empty(work.cohort, *w.shape), b.new_empty(work.cohort, *b.shape)) for w, b in server]
    x = images.new_empty(work.cohort * work.batch, 784)

    watch = Stopwatch()
    watch.start()
    for _ in range(given.rounds):
        cohort = rng.choice(work.clients, work.cohort, replace=False)
        for layer, received in zip(local, server, strict=True):
            for own, sent in zip(layer, received, strict=True):
                own.copy_(sent)
        for _ in range(work.epochs):
            orders = np.stack([rng.permutation(work.samples) + client * work.samples for client in cohort])
            batches = orders.reshape(work.cohort, -1, work.batch).transpose(1, 0, 2)
            for rows in torch.from_numpy(np.ascontiguousarray(batches)).flatten(1):
                torch.index_select(images, 0, rows, out=x)
                y = labels[rows].view(work.cohort, work.batch, 1)
                step(local, x.view(work.cohort, work.batch, 784), y, work.lr)
        # Clients of equal size: the weighted mean is the mean.
        server = [(w.mean(0), b.mean(0)) for w, b in local]
        watch.lap()

    for part, (w, b) in zip(linear, server, strict=True):
        part.weight.copy_(w.t())
        part.bias.copy_(b[0])
    report(
        "batched matmul (limit)",
        f"torch {torch.__version__}",
        work.name,
        watch,
        threads=given.threads,
        accuracy=accuracy(module, data),
        data=data.source,
    )


if __name__ == "__main__":
    main()
