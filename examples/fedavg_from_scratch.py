"""Federated averaging in plain PyTorch, and the same in Atoll: one model, to five digits.

Shows: the listing that every tutorial has, made right. What goes wrong most often is marked by a number:

    1. every client begins with the server's model, not with what the client before has made of it
    2. an optimiser's state (momentum) is a client's and a round's: a new one each time
    3. who takes part, and who reads what in which order, follows from (seed, round, client), so that no client's draws
       depend on how much the others have drawn
    4. the last batch of an epoch may be short: it is trained on, and its loss is the mean of what is there
    5. replies are averaged by the samples that they learned from, not by clients; only of those who took part
    6. test samples are nobody's training samples, and nothing (no stopping, no choice) is decided by them
    7. judging is done in evaluation mode and without gradients, over samples, not as a mean of batches' means

Data: digits, in the package: 1,442 to train on, divided among 30 clients who have few kinds of digit each, 355 to test.

Out: both accuracies, and how far the two models' parameters are apart: not 1e-5, or the program fails.

    python examples/fedavg_from_scratch.py [--rounds 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll
from atoll import seeds

CLIENTS, COHORT, EPOCHS, BATCH, LR, MOMENTUM = 30, 10, 2, 16, 0.05, 0.9


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


# --- by hand --------------------------------------------------------------------------------------------------------


def train_client(server: nn.Module, x: Tensor, y: Tensor, seed: int, number: int, client: int) -> nn.Module:
    """What a client makes of the server's model in a round."""
    model = copy.deepcopy(server).train()  # 1
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)  # 2
    rng = seeds.rng(seed, "order", number, client)  # 3: a NumPy generator of this address
    for _ in range(EPOCHS):
        order = torch.from_numpy(rng.permutation(len(y)))
        for rows in order.split(BATCH):  # 4
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model


@torch.no_grad()
def average(models: list[nn.Module], samples: list[int]) -> dict[str, Tensor]:
    """sum_k n_k w_k / sum_k n_k"""
    states = [model.state_dict() for model in models]
    return {
        name: sum(state[name] * (n / sum(samples)) for state, n in zip(states, samples, strict=True))  # 5
        for name in states[0]
    }


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()  # 7
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(100), y.split(100), strict=True))
    return right / len(y)


def by_hand(start: nn.Module, data: atoll.FederatedData, rounds: int, seed: int) -> nn.Module:
    server = copy.deepcopy(start)
    for number in range(1, rounds + 1):
        cohort = sorted(
            seeds.rng(seed, "cohort", number).choice(CLIENTS, COHORT, replace=False).tolist()
        )  # 3
        models, samples = [], []
        for client in cohort:
            own = data.samples(client)
            models.append(train_client(server, own.inputs, own.targets, seed, number, client))
            samples.append(own.count)
        server.load_state_dict(average(models, samples))
    return server


# --- in Atoll -------------------------------------------------------------------------------------------------------


def in_atoll(start: nn.Module, data: atoll.FederatedData, rounds: int, seed: int) -> atoll.Run:
    method = atoll.FedAvg(lr=LR, epochs=EPOCHS, batch_size=BATCH, momentum=MOMENTUM)
    return atoll.Federation(start, data, method, rounds=rounds, cohort=COHORT, seed=seed, eval_every=0).fit(
        progress=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    start = net()  # both begin with these parameters
    dataset = atoll.data.load("digits")
    data = dataset.partition(atoll.data.Dirichlet(clients=CLIENTS, alpha=0.3), seed=given.seed)
    test = dataset.test  # 6: a split of its own, and looked at once, in the end

    hand = by_hand(start, data, given.rounds, given.seed)
    run = in_atoll(start, data, given.rounds, given.seed)

    theirs = run.model.state_dict()
    apart = max(float((p - theirs[name]).abs().max()) for name, p in hand.state_dict().items())
    print(f"by hand   {accuracy(hand, test.inputs, test.targets):.2%} of {len(test.targets)} test samples")
    print(f"in Atoll  {run.evaluation.overall['accuracy']:.2%}")
    print(f"largest difference between two parameters: {apart:.1e}")
    assert apart < 1e-5, "the two listings are not the same algorithm"


if __name__ == "__main__":
    main()
