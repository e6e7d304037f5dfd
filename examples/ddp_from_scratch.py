"""Data parallel training in plain PyTorch, and the same in Atoll: one model, to five digits.

Shows: the listing that every tutorial has, made right. What goes wrong most often is marked by a number:

    1. every epoch has an order of its own (`set_epoch`), and all workers know it: they draw from one address
    2. a batch is divided among the workers; no sample is repeated and none is left out, so that the last batch, which
       is short, may be divided unevenly. (`DistributedSampler` repeats samples instead, or drops some.)
    3. DDP averages gradients over workers: the mean over samples is (sum of a worker's losses) / (samples of all
       workers in this batch) x (number of workers). The mean of a worker's own losses is right for even parts only
    4. `batch` counts the samples of all workers: with more workers the algorithm is the same, and only faster
    5. workers begin with one model: DDP sends the first worker's
    6. a loss to be printed is summed over workers as the gradient is; so are the counts of a test, in evaluation mode
    7. test samples are nobody's training samples

Data: digits, in the package: 1,442 to train on, which batches of 50 do not divide, and 355 to test.

Out: both accuracies, and how far the two models' parameters are apart: not 1e-5, or the program fails.

    python examples/ddp_from_scratch.py [--workers 2] [--epochs 5] [--seed 0]
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, Sampler, TensorDataset

import atoll
from atoll import seeds

BATCH, LR, MOMENTUM = 50, 0.05, 0.9


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))


# --- by hand --------------------------------------------------------------------------------------------------------


class Divided(Sampler[list[int]]):
    """A worker's part of every batch of an epoch."""

    def __init__(self, samples: int, rank: int, workers: int, seed: int) -> None:
        self.samples, self.rank, self.workers, self.seed, self.epoch = samples, rank, workers, seed, 0

    def set_epoch(self, epoch: int) -> None:  # 1
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = seeds.rng(self.seed, "train.order", self.epoch).permutation(self.samples).tolist()
        for batch in BatchSampler(order, BATCH, drop_last=False):
            first, last = (round(len(batch) * at / self.workers) for at in (self.rank, self.rank + 1))
            yield batch[first:last]  # 2

    def __len__(self) -> int:
        return -(-self.samples // BATCH)


def summed(value: float) -> float:
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, rank: int, workers: int) -> float:
    model.eval()  # 6
    x, y = x[rank::workers], y[rank::workers]
    with torch.no_grad():
        return summed(float((model(x).argmax(1) == y).sum())) / summed(len(y))


def worker(rank: int, workers: int, start: nn.Module, epochs: int, seed: int, place: str) -> None:
    """One of the processes; the first writes the model down."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place}/meet",
        rank=rank,
        world_size=workers,
        timeout=timedelta(seconds=60),
    )
    dataset = atoll.data.load("digits")
    train, test = dataset.train, dataset.test  # 7
    sampler = Divided(train.count, rank, workers, seed)
    loader = DataLoader(TensorDataset(train.inputs, train.targets), batch_sampler=sampler)
    model = DistributedDataParallel(copy.deepcopy(start).train())  # 5
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        lost = 0.0
        for number, (x, y) in enumerate(loader):
            count = min(BATCH, train.count - number * BATCH)  # of all workers
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y, reduction="sum")
            (loss / count * workers).backward()  # 3
            optimizer.step()
            lost += loss.item()
        lost = summed(lost) / train.count  # 6
        if rank == 0:
            print(f"epoch {epoch + 1}: training loss {lost:.4f}", flush=True)
    found = accuracy(model.module, test.inputs, test.targets, rank, workers)
    if rank == 0:
        save_file(model.module.state_dict(), f"{place}/model.safetensors")
        Path(place, "accuracy").write_text(str(found))
    # The group ends with the process: with a file to meet at, taking it apart can wait for ever.


def by_hand(start: nn.Module, workers: int, epochs: int, seed: int) -> tuple[dict[str, Tensor], float]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the workers are all on this machine
    with tempfile.TemporaryDirectory() as place:
        torch.multiprocessing.start_processes(
            worker, (workers, start, epochs, seed, place), workers, start_method="fork"
        )
        return load_file(f"{place}/model.safetensors"), float(Path(place, "accuracy").read_text())


# --- in Atoll -------------------------------------------------------------------------------------------------------


def in_atoll(start: nn.Module, workers: int, epochs: int, seed: int) -> atoll.Trained:
    return atoll.train(
        start, atoll.data.load("digits"), "ddp", workers=workers, epochs=epochs, batch=BATCH,
        optimizer=f"sgd:{MOMENTUM}", lr=LR, seed=seed, threads=1,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    start = net()  # both begin with these parameters
    hand, found = by_hand(start, given.workers, given.epochs, given.seed)
    trained = in_atoll(start, given.workers, given.epochs, given.seed)

    theirs = trained.model.state_dict()
    apart = max(float((p - theirs[name]).abs().max()) for name, p in hand.items())
    print(f"by hand   {found:.2%} of the test samples")
    print(f"in Atoll  {trained.accuracy:.2%}")
    print(f"largest difference between two parameters: {apart:.1e}")
    assert apart < 1e-5, "the two listings are not the same algorithm"


if __name__ == "__main__":
    main()
