"""Twenty roles teach a small GPT: what do adapters of low rank learn, and what does averaging them cost?

Shows: a byte-level transformer of 0.87 million parameters that has read what all other roles of Shakespeare's plays
say, and twenty roles whose text stays with them. They train adapters (LoRA of rank 8, a tenth of the parameters), which
are averaged by FedIT, exactly by FedEx-LoRA, or halved by FedSA-LoRA, which shares A and leaves B with each role;
beside them all of the model by FedAvg, and every role alone. Judged is text of each role that nobody trained on.

Data: tiny Shakespeare (ATOLL_DATA says where it is).

Out: what the model writes before and after, perplexity by role, megabytes, and a picture of both.

    python examples/federated_gpt.py [--rounds 8] [--steps 5] [--epochs 3] [--out .]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import atoll

ROLES, WINDOW = 20, 64
DATA = f"shakespeare:bytes,{WINDOW},{ROLES}"


def gpt() -> nn.Module:
    """The model, as it is made."""
    return atoll.models.gpt(256, WINDOW)


def others() -> atoll.FederatedData:
    """What all other roles say, in one place."""
    everybody, ours = atoll.data.load(f"shakespeare:bytes,{WINDOW}"), atoll.data.load(DATA)
    rows = torch.from_numpy(np.flatnonzero(~np.isin(everybody.columns["role"], ours.columns["role"])))
    text = everybody.train
    made = atoll.data.from_arrays(text.inputs[rows], text.targets[rows], classes=256)
    return made.partition(atoll.data.IID(1), seed=0)


def written(model: nn.Module, prompt: str, length: int = 160, heat: float = 0.7) -> str:
    """What the model goes on with after the prompt."""
    stream = torch.Generator().manual_seed(0)
    text = list(prompt.encode())
    with torch.no_grad():
        for _ in range(length):
            logits = model.eval()(torch.tensor([text[-WINDOW:]]))[0, -1]
            text.append(int(torch.multinomial(torch.softmax(logits / heat, -1), 1, generator=stream)))
    return bytes(text).decode(errors="replace")


def picture(found: dict[str, tuple[dict[int, float], float]], names: Sequence[str], path: Path) -> None:
    """Perplexity by role, and its mean over what was sent."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), width_ratios=(3, 2))
    order = sorted(range(len(names)), key=lambda role: next(iter(found.values()))[0][role])
    for name, (each, sent) in found.items():
        (line,) = left.plot([each[role] for role in order], "o-", markersize=3, linewidth=0.8, label=name)
        mean = float(np.mean(list(each.values())))
        right.plot(max(sent, 1), mean, "o", color=line.get_color())
        many = sent > 100  # the words go to the left there
        where = {"xytext": (-5, 5) if many else (5, 5), "ha": "right" if many else "left"}
        right.annotate(name, (max(sent, 1), mean), textcoords="offset points", fontsize=8, **where)
    left.set_xticks(range(len(names)), [names[role].lower() for role in order], rotation=70, fontsize=7)
    left.set_ylabel("perplexity of unseen text")
    left.legend(fontsize=7)
    right.set(xscale="log", xlabel="MB sent in all (nothing: at the left)", ylabel="mean over roles")
    right.margins(x=0.25)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", default=".")
    given = parser.parse_args(arguments)
    inner = {
        "optimizer": "adamw",
        "batch_size": 8,
        "steps": given.steps,
        "schedule": f"cosine:{given.rounds}",
    }
    data = atoll.data.load(DATA).partition("natural", seed=0)
    first = atoll.FedAvg(optimizer="adamw", lr=1e-3, batch_size=16, schedule=f"cosine:{given.epochs}")
    prompt = "KING RICHARD:\nMy lord, "
    with tempfile.TemporaryDirectory() as place:
        start = str(Path(place) / "base.safetensors")
        base = atoll.Federation(
            gpt, others(), first, rounds=given.epochs, eval_every=0, engine="batched"
        ).fit()
        base.save(start)
        print(f"before: {written(base.model, prompt)}\n")
        ways: dict[str, tuple[atoll.Method, str | None]] = {
            "alone, adapters": (atoll.Local(lr=2e-3, **inner), "lora:8,16"),
            "FedAvg, all of it": (atoll.FedAvg(lr=3e-4, **inner), None),
            "FedIT": (atoll.FedIT(lr=2e-3, **inner), "lora:8,16"),
            "FedEx-LoRA": (atoll.FedEx(lr=2e-3, **inner), "lora:8,16"),
            "FedSA-LoRA": (atoll.FedSA(lr=2e-3, **inner), "lora:8,16"),
        }
        found = {}
        print("how                  perplexity   best role   worst role        sent")
        for name, (method, adapter) in ways.items():
            run = atoll.Federation(
                gpt,
                data,
                method,
                adapter=adapter,
                base=start,
                rounds=given.rounds,
                cohort=ROLES,
                eval_every=0,
                engine="batched",
            ).fit(progress=False)
            last = run.evaluation
            assert last is not None
            each = (last.each.get("personal") or last.each["clients"])["perplexity"]
            sent = sum(round.bytes_up + round.bytes_down for round in run.rounds) / 1e6
            values = list(each.values())
            print(
                f"{name:20} {np.mean(values):10.3f} {min(values):11.3f} {max(values):12.3f} {sent:8.1f} MB",
                flush=True,
            )
            found[name] = each, sent
            if name == "FedEx-LoRA":
                after = written(run.model, prompt)
    print(f"\nafter: {after}\n")
    path = Path(given.out) / "federated_gpt.png"
    picture(found, data.names, path)
    print(path)


if __name__ == "__main__":
    main()
