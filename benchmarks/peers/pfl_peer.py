"""pfl-research on one process, or on several under torchrun (its fastest way on a CPU).

    python benchmarks/peers/pfl_peer.py W1 --rounds 12
    torchrun --standalone --nproc-per-node 2 benchmarks/peers/pfl_peer.py W1 --rounds 12

pfl opens its process group when its PyTorch operations are imported, from what torchrun sets in the
environment, and shares each cohort out over the processes. It cuts a client's data into batches once and
keeps them: that is how its in-memory data sets work, and it spares pfl the shuffling that the others do.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import accuracy, network
from workloads import SEED, Stopwatch, Workload, arrays, cores, options, report


class Learner(nn.Module):
    """A network with the two methods that pfl asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.criterion = nn.CrossEntropyLoss()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.criterion(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class WithoutEvaluation(FederatedAveraging):
    """pfl always evaluates the cohort of round 0; nobody else does."""

    def get_next_central_contexts(self, *args: Any, **kwargs: Any) -> Any:
        contexts, model, metrics = super().get_next_central_contexts(*args, **kwargs)
        if contexts is not None:
            contexts = tuple(dataclasses.replace(context, do_evaluation=False) for context in contexts)
        return contexts, model, metrics


class Timer(TrainingProcessCallback):
    """Reads the clock at the end of every round; all processes have exchanged their sums by then."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self.watch.start()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.watch.lap()
        return False, Metrics()


def draws(work: Workload) -> Iterator[int]:
    """Clients one after the other, each cohort without repetition, the same in every process."""
    rng = np.random.default_rng(SEED)
    while True:
        yield from rng.choice(work.clients, work.cohort, replace=False).tolist()


def main() -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    given = options(threads=max(1, cores() // processes))
    work = given.work
    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - pfl draws from the global generator
    data = arrays(work)
    users = [
        PyTorchTensorDataset((torch.from_numpy(x), torch.from_numpy(y)), user_id=str(user))
        for user, (x, y) in enumerate(zip(data.x, data.y, strict=True))
    ]
    population = FederatedDataset(users.__getitem__, draws(work).__next__)
    learner = Learner(network(work))
    model = PyTorchModel(
        learner,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(learner.parameters(), lr=1.0),
    )
    timer = Timer()
    WithoutEvaluation().run(
        NNAlgorithmParams(
            central_num_iterations=given.rounds,
            evaluation_frequency=given.rounds + 1,
            train_cohort_size=work.cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(population, population, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=work.batch, local_num_epochs=work.epochs, local_learning_rate=work.lr
        ),
        callbacks=[timer],
        send_metrics_to_platform=False,
    )
    if processes > 1:
        torch.distributed.destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        report(
            "pfl",
            version("pfl"),
            work.name,
            timer.watch,
            threads=given.threads,
            processes=processes,
            accuracy=accuracy(learner.net, data),
            data=data.source,
        )


if __name__ == "__main__":
    main()
