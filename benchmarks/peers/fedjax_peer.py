"""FedJAX: the library's own federated averaging on its default backend (a compiled step, a loop).

    python benchmarks/peers/fedjax_peer.py W1 --rounds 12

XLA makes a pool of as many threads as the process may use cores; bind the process to cores to limit it.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fedjax
import haiku as hk
import jax
import numpy as np
from fedjax.algorithms import fed_avg
from fedjax.models import emnist

sys.path.insert(0, str(Path(__file__).parents[1]))
from workloads import SEED, Stopwatch, Workload, arrays, cores, options, report


def network(work: Workload) -> fedjax.Model:
    """The 2NN is FedJAX's own dense model; the CNN is McMahan's, which FedJAX does not ship."""
    if work.network == "2nn":
        return emnist.create_dense_model(only_digits=True, hidden_units=200)

    def forward(batch: dict[str, Any]) -> Any:
        pool = hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        layers = hk.Sequential(
            [
                hk.Conv2D(32, 5, padding="SAME"),
                jax.nn.relu,
                pool,
                hk.Conv2D(64, 5, padding="SAME"),
                jax.nn.relu,
                pool,
                hk.Flatten(),
                hk.Linear(512),
                jax.nn.relu,
                hk.Linear(10),
            ]
        )
        return layers(batch["x"])

    return fedjax.create_model_from_haiku(
        hk.transform(forward),
        sample_batch={"x": np.zeros((1, 28, 28, 1), np.float32), "y": np.zeros(1, np.int32)},
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits),
        eval_metrics={"accuracy": fedjax.metrics.Accuracy()},
    )


def main() -> None:
    given = options()
    work = given.work
    if given.threads != cores():
        raise SystemExit("--threads has no effect on XLA: bind the process to cores instead")
    data = arrays(work)
    population = fedjax.InMemoryFederatedData(
        {
            f"{client:03d}": {"x": np.moveaxis(x, 1, -1), "y": y.astype(np.int32)}
            for client, (x, y) in enumerate(zip(data.x, data.y, strict=True))
        }
    )
    model = network(work)
    params = model.init(jax.random.PRNGKey(SEED))
    count = sum(leaf.size for leaf in jax.tree_util.tree_leaves(params))
    assert count == work.parameters, f"{work.network}: {count} parameters instead of {work.parameters}"
    algorithm = fed_avg.federated_averaging(
        fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(work.lr),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
            batch_size=work.batch, num_epochs=work.epochs, drop_remainder=False, seed=SEED
        ),
    )
    sampler = fedjax.client_samplers.UniformGetClientSampler(population, work.cohort, SEED)
    state = algorithm.init(params)

    watch = Stopwatch()
    watch.start()
    for _ in range(given.rounds):
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)  # JAX returns before the work is done
        watch.lap()

    test = fedjax.ClientDataset({"x": np.moveaxis(data.x_test, 1, -1), "y": data.y_test.astype(np.int32)})
    scores = fedjax.evaluate_model(model, state.params, test.padded_batch(batch_size=500))
    report(
        "FedJAX",
        f"{version('fedjax')} (jax {jax.__version__})",
        work.name,
        watch,
        threads=given.threads,
        accuracy=float(scores["accuracy"]),
        data=data.source,
    )


if __name__ == "__main__":
    main()
