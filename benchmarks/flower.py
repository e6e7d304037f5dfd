"""What a round costs on a Flower network: Flower's own FedAvg and Atoll's, the same model, in turns on one SuperLink.

    python benchmarks/flower.py [--rounds 3] [--turns 2] [--write]

Three SuperNodes with handwritten digits, all on this machine. Both projects train the 2NN (64-200-200-10) for one local
epoch with batches of 32 and SGD, and judge it on their clients after every round. A round's time is that from the
beginning of the first to the end of the last, evaluation included, over their number: starting the apps is not in it.
With --write the figures go into benchmarks/results/flower.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.flower.loopback import Loopback  # noqa: E402

ATOLL = """from atoll.flower import client_app, server_app
server = server_app(model="mlp:200,200", classes=10, lr=0.1, nodes=["ann", "bob", "cat"])
client = client_app()
"""

FLOWER = """import time
import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

def net():
    return torch.nn.Sequential(torch.nn.Linear(64, 200), torch.nn.ReLU(), torch.nn.Linear(200, 200),
                               torch.nn.ReLU(), torch.nn.Linear(200, 10))

def read(message, context):
    torch.set_num_threads(1)
    found = np.load(context.node_config["data"])
    x = torch.from_numpy(found["x"]).float().reshape(len(found["x"]), -1)
    y, held = torch.from_numpy(found["y"]), len(found["x"]) // 5
    model = net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model, (x[held:], y[held:]), (x[:held], y[:held])

client = ClientApp()

@client.train()
def train(message, context):
    model, (x, y), _ = read(message, context)
    descent = torch.optim.SGD(model.parameters(), 0.1)
    for rows in torch.randperm(len(x)).split(32):
        descent.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        descent.step()
    told = MetricRecord({"num-examples": len(x)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": told})
    return Message(content=content, reply_to=message)

@client.evaluate()
def evaluate(message, context):
    model, _, (x, y) = read(message, context)
    right = float((model(x).argmax(1) == y).float().mean())
    told = MetricRecord({"acc": right, "num-examples": len(x)})
    return Message(content=RecordDict({"metrics": told}), reply_to=message)

server = ServerApp()

@server.main()
def main(grid, context):
    def noted(round, arrays):
        with open(context.run_config["atoll.times"], "a") as times:
            times.write(f"{time.time()}\\n")
    strategy = FedAvg(min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3)
    first = ArrayRecord(net().state_dict())
    strategy.start(grid, first, num_rounds=context.run_config["atoll.rounds"], evaluate_fn=noted)
"""


def ours(network: Loopback, turn: int, rounds: int) -> float:
    """Seconds a round of Atoll's FedAvg."""
    place = network.place / f"ours{turn}"
    project = network.project(
        ATOLL,
        method="fedavg",
        rounds=rounds,
        min_clients=3,
        quorum=3,
        eval_every=1,
        place=str(place),
        seed=turn,
    )
    assert network.ended(network.run(project), 900) == "finished:completed"
    (log,) = place.glob("runs/*/events.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    times = [each["time"] for each in events if each["event"] in ("begin", "round")]
    return (times[-1] - times[0]) / rounds


def theirs(network: Loopback, turn: int, rounds: int) -> float:
    """Seconds a round of Flower's."""
    times = network.place / f"theirs{turn}"
    project = network.project(FLOWER, rounds=rounds, times=str(times))
    assert network.ended(network.run(project), 900) == "finished:completed"
    found = [float(line) for line in times.read_text().splitlines()]
    return (found[-1] - found[0]) / rounds


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--turns", type=int, default=2)
    asked.add_argument("--write", action="store_true")
    given = asked.parse_args()
    found: dict[str, list[float]] = {"Flower's FedAvg": [], "Atoll's FedAvg": []}
    with tempfile.TemporaryDirectory() as place, Loopback(Path(place)) as network:
        network.start_all()
        for turn in range(given.turns):
            for name, play in (("Flower's FedAvg", theirs), ("Atoll's FedAvg", ours)):
                seconds = play(network, turn, given.rounds)
                found[name].append(seconds)
                print(f"turn {turn}: {name} {seconds:.1f} s a round", flush=True)
    pairs = zip(found["Flower's FedAvg"], found["Atoll's FedAvg"], strict=True)
    ratios = [one / other for one, other in pairs]
    lines = ["| | seconds a round, by turn | median |", "|---|---|---|"]
    for name, seconds in found.items():
        lines.append(
            f"| {name} | {', '.join(f'{one:.1f}' for one in seconds)} | {statistics.median(seconds):.1f} |"
        )
    lines.append(
        f"\nFlower's round took {', '.join(f'{each:.2f}' for each in ratios)} times as long as Atoll's."
    )
    print("\n".join(lines))
    if given.write:
        text = (
            f"# A round on a Flower network\n\n{__doc__}\n{given.rounds} rounds a turn.\n\n"
            + "\n".join(lines)
            + "\n"
        )
        (ROOT / "benchmarks" / "results" / "flower.md").write_text(text)


if __name__ == "__main__":
    main()
