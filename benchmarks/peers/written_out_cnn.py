"""The limit of the machine for the CNN: one client's step written out in the fastest forms that torch has, no autograd.

On one thread the two large products of a step, the second convolution and the first linear layer, are at the
processor's peak in floating-point operations and in reads of main memory; what is left is to spare it everything else:

* the first convolution, of one channel, is a product with the images' patches, and so is its gradient, which goes
  straight into the weights; a row of ones among the patches carries the bias;
* ReLU is taken of what max pooling leaves, and its gradient there: the same numbers from a quarter of the values;
* images have channels last throughout, weights too, and the first linear layer takes features in that order;
* ten rows times a wide matrix is `W @ x.T`, twice as fast as `x @ W.T` once W is larger than the cache.

Before it is timed, a step is compared with autograd's. Clients are shared out over the processes of torchrun, one
thread each.

    python benchmarks/peers/written_out_cnn.py W2 --rounds 12
    torchrun --standalone --nproc-per-node 2 benchmarks/peers/written_out_cnn.py W2 --rounds 12
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import accuracy, network
from workloads import SEED, Stopwatch, arrays, options, report

aten = torch.ops.aten
PADDED = 32  # 28 and two on each side


class Network:
    """All parameters in one flat tensor, in the layouts that the step wants."""

    shapes = ((26, 32), (64, 5, 5, 32), (64,), (512, 3136), (512,), (10, 512), (10,))

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat
        parts = flat.split([torch.Size(shape).numel() for shape in self.shapes])
        first, second, *rest = (part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))
        self.first, self.second = first, second.permute(0, 3, 1, 2)
        self.bias2, self.wide, self.bias3, self.last, self.bias4 = rest

    @classmethod
    def of(cls, module: nn.Sequential) -> Network:
        """The parameters of a module."""
        state = [part for part in module if isinstance(part, nn.Conv2d | nn.Linear)]
        one, two, three, four = state
        found = [
            torch.cat([one.weight.view(32, 25).t(), one.bias[None]]),
            two.weight.permute(0, 2, 3, 1),
            two.bias,
            three.weight.view(512, 64, 49).transpose(1, 2),
            three.bias,
            four.weight,
            four.bias,
        ]
        return cls(torch.cat([part.detach().reshape(-1) for part in found]))

    def into(self, module: nn.Sequential) -> None:
        """Write them into a module."""
        one, two, three, four = (part for part in module if isinstance(part, nn.Conv2d | nn.Linear))
        one.weight.data.copy_(self.first[:25].t().reshape(32, 1, 5, 5))
        one.bias.data.copy_(self.first[25])
        two.weight.data.copy_(self.second)
        three.weight.data.copy_(self.wide.view(512, 49, 64).transpose(1, 2).reshape(512, 3136))
        four.weight.data.copy_(self.last)
        for part, bias in ((two, self.bias2), (three, self.bias3), (four, self.bias4)):
            part.bias.data.copy_(bias)


class Step:
    """One SGD step of one client, in place; buffers are reused by every step."""

    def __init__(self, batch: int, dtype: torch.dtype = torch.float32) -> None:
        self.batch = batch
        self.patches = torch.ones(26, batch * 784, dtype=dtype)  # the last row stays one: it is the bias's
        self.taps = self.patches[:25].view(5, 5, batch, 28, 28)
        self.minus = torch.full((), -1.0, dtype=dtype).expand(batch, 1)
        self.h1 = torch.empty(batch * 784, 32, dtype=dtype)

    def __call__(self, net: Network, x: Tensor, y: Tensor, lr: float) -> None:
        """`x` are padded images, [batch, 32, 32]; `y` the index of the right class, [batch, 1]."""
        n = self.batch
        self.taps.copy_(x.as_strided(self.taps.shape, (PADDED, 1, PADDED * PADDED, PADDED, 1)))
        torch.mm(self.patches.t(), net.first, out=self.h1)
        h1 = self.h1.view(n, 28, 28, 32).permute(0, 3, 1, 2)
        p1, at1 = aten.max_pool2d_with_indices(h1, [2, 2], [2, 2])
        p1.relu_()
        h2 = aten.convolution(p1, net.second, net.bias2, [1, 1], [2, 2], [1, 1], False, [0, 0], 1)
        p2, at2 = aten.max_pool2d_with_indices(h2, [2, 2], [2, 2])
        features = p2.relu_().permute(0, 2, 3, 1).view(n, 3136)
        h3 = torch.addmm(net.bias3[:, None], net.wide, features.t()).relu_()  # [512, batch]
        g4 = torch.addmm(net.bias4, h3.t(), net.last.t()).softmax(1)
        # Gradient of the mean cross-entropy: (softmax - one-hot) / batch.
        g4.scatter_add_(1, y, self.minus).div_(n)
        g3 = _through_relu(torch.mm(g4, net.last), h3.t())  # [batch, 512]
        g2 = _through_relu(torch.mm(g3, net.wide), features).view(n, 7, 7, 64).permute(0, 3, 1, 2)
        net.last.addmm_(g4.t(), h3.t(), alpha=-lr)
        net.bias4.sub_(g4.sum(0), alpha=lr)
        net.wide.addmm_(g3.t(), features, alpha=-lr)
        net.bias3.sub_(g3.sum(0), alpha=lr)
        g2 = aten.max_pool2d_with_indices_backward(g2, h2, [2, 2], [2, 2], [0, 0], [1, 1], False, at2)
        g1, weight, bias = aten.convolution_backward(
            g2, p1, net.second, [64], [1, 1], [2, 2], [1, 1], False, [0, 0], 1, [True, True, True]
        )
        net.second.sub_(weight, alpha=lr)
        net.bias2.sub_(bias, alpha=lr)
        g1 = _through_relu(g1, p1)
        g1 = aten.max_pool2d_with_indices_backward(g1, h1, [2, 2], [2, 2], [0, 0], [1, 1], False, at1)
        net.first.addmm_(self.patches, g1.permute(0, 2, 3, 1).view(-1, 32), alpha=-lr)


def _through_relu(gradient: Tensor, positive: Tensor) -> Tensor:
    """The gradient before a ReLU, in place, from the one after it."""
    aten.threshold_backward.grad_input(gradient, positive, 0, grad_input=gradient)
    return gradient


def check(module: nn.Sequential, images: Tensor, labels: Tensor, lr: float, steps: int = 3) -> float:
    """How far some written-out steps are from those of autograd, as a share of how far these went, in double precision.

    Raises AssertionError beyond rounding.
    """
    module, images = copy.deepcopy(module).double(), images.double()
    slow, fast = copy.deepcopy(module), copy.deepcopy(module)
    net, step = Network.of(module), Step(len(images) // steps, torch.float64)
    for x, y in zip(images.chunk(steps), labels.chunk(steps), strict=True):
        step(net, x, y[:, None], lr)
        with torch.enable_grad():
            loss = F.cross_entropy(slow(x[:, None, 2:-2, 2:-2]), y)
        for parameter, gradient in zip(
            slow.parameters(), torch.autograd.grad(loss, list(slow.parameters())), strict=True
        ):
            parameter.sub_(gradient, alpha=lr)
    net.into(fast)
    apart = 0.0
    for old, one, other in zip(module.parameters(), slow.parameters(), fast.parameters(), strict=True):
        apart = max(apart, float((one - other).norm() / (one - old).norm()))
    assert apart < 1e-10, f"written-out steps are {apart:.1e} away from autograd's"
    return apart


@torch.no_grad()
def main() -> None:
    given = options(only=("W2",), threads=1)
    work = given.work
    assert work.samples % work.batch == 0, "equal batches only"
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    data = arrays(work)
    images = F.pad(torch.from_numpy(data.x).view(-1, 28, 28), (2, 2, 2, 2))
    labels = torch.from_numpy(data.y).reshape(-1)
    module = network(work)
    apart = check(module, images[:30], labels[:30], work.lr)
    server = Network.of(module)
    local, step = Network(server.flat.clone()), Step(work.batch)
    x = images.new_empty(work.batch, PADDED, PADDED)

    watch = Stopwatch()
    watch.start()
    for _ in range(given.rounds):
        cohort = rng.choice(work.clients, work.cohort, replace=False)
        orders = [
            rng.permuted(np.tile(np.arange(work.samples), (work.epochs, 1)), axis=1) + client * work.samples
            for client in cohort
        ]
        total = torch.zeros_like(server.flat)
        for order in orders[rank::processes]:
            local.flat.copy_(server.flat)
            for rows in torch.from_numpy(order).view(-1, work.batch):
                torch.index_select(images, 0, rows, out=x)
                step(local, x, labels[rows][:, None], work.lr)
            total += local.flat
        if processes > 1:
            torch.distributed.all_reduce(total)
        server.flat.copy_(total.div_(work.cohort))  # clients of equal size: the weighted mean is the mean
        watch.lap()

    server.into(module)
    if processes > 1:
        torch.distributed.destroy_process_group()
    if rank == 0:
        report(
            "written-out CNN (limit)",
            f"torch {torch.__version__}",
            work.name,
            watch,
            threads=given.threads,
            processes=processes,
            accuracy=accuracy(module, data),
            data=data.source,
            apart_from_autograd=apart,
        )


if __name__ == "__main__":
    main()
