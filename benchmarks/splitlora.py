"""What a split language model learns, sends and gives away.

    python benchmarks/splitlora.py [--model gpt:2,32,2] [--before 400] [--write]

Tiny Shakespeare in bytes. A base is trained on all roles but the three with the most text, which are then three
clients of SplitLoRA: they have the embedding and the first blocks, a server has the rest. Perplexity is that of the
roles' unseen text. Whoever has the clients' part tries to read their text from activations
(`atoll.vertical.splitlora.attacks`), as they are and behind a codec, or clip and noise. `--write` stores
benchmarks/results/splitlora.md.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import atoll
from atoll import compress
from atoll.data import Dataset, Samples
from atoll.vertical.splitlora.attacks import nearest, recovered, search
from atoll.vertical.splitlora.cutting import cut, whole
from atoll.vertical.splitlora.texts import Text
from atoll.vertical.splitnn.embeddings import Blur, key_of

WINDOW, CLIENTS, READ = 80, 3, 2
ADAPTER = "lora:8,16"


def texts() -> tuple[list[bytes], bytes]:
    """The text of each client, and that of all others."""
    data = atoll.data.load(f"shakespeare:bytes,{WINDOW}")
    roles = data.columns["role"]
    sizes = {role: int((roles == role).sum()) for role in set(roles.tolist())}
    most = sorted(sizes, key=lambda role: (-sizes[role], role))[:CLIENTS]

    def said(rows: Any) -> bytes:
        return bytes(data.train.inputs[torch.from_numpy(rows)].flatten().tolist())

    rest = ~sum((roles == role for role in most), start=roles != roles)
    return [said(roles == role) for role in most], said(rest)


def base(model: str, text: bytes, steps: int) -> Any:
    """A model that has learned from this text."""
    windows, held = Text.of(text).divided(WINDOW, 0.05)
    parts = (Samples(w[:, :-1].contiguous(), w[:, 1:].contiguous()) for w in (windows, held))
    data = Dataset("others", *parts, classes=256)
    run = atoll.train(
        lambda: whole(model, WINDOW, 0), data, "ddp", workers=1, steps=steps, batch=32, optimizer="adamw:0.1", lr=3e-3,
        clip=1.0, threads=1, schedule=f"cosine:{steps}", every=steps, checkpoint=0, test=None,
    )  # fmt: skip
    return run.model


def given_away(part: torch.nn.Module, tokens: Tensor, blur: Blur, codec: str | None) -> tuple[float, float]:
    """The shares of tokens that the nearest embedding, and trying them all, have right."""
    with torch.no_grad():
        h = part(tokens)
        sent = blur.noised(blur.bound(h.flatten(0, 1)), key_of(0).at("audit"))
        if codec is not None:
            packing = compress.parse(codec)
            sent = packing.decode(packing.encode(sent, torch.zeros((), dtype=torch.int64)), sent.shape)
        sent = sent.view(h.shape)
    shown = _Bound(part, blur)
    return recovered(tokens, nearest(sent, part[0])), recovered(tokens, search(sent, shown))  # type: ignore[index]


class _Bound(torch.nn.Module):
    """The client's part with its clip, which whoever attacks knows as well."""

    def __init__(self, part: torch.nn.Module, blur: Blur) -> None:
        super().__init__()
        self.part, self.blur = part, blur

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.part(tokens)
        return self.blur.bound(h.flatten(0, 1)).view(h.shape)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gpt:2,32,2")
    parser.add_argument("--before", type=int, default=400, help="steps of the base")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clients, rest = texts()
    with tempfile.TemporaryDirectory() as place:
        file = str(Path(place) / "base.safetensors")
        trained = base(given.model, rest, given.before)
        save_file({name: value.clone() for name, value in trained.state_dict().items()}, file)
        names = [f"role{at}" for at in range(CLIENTS)]
        common: dict[str, Any] = {
            "model": given.model, "adapter": ADAPTER, "base": file, "window": WINDOW, "rounds": given.rounds,
            "batches": 10, "batch": 8, "lr": given.lr, "test": 0.2, "noise_seed": 0,
        }  # fmt: skip
        with torch.no_grad():
            held = torch.cat([Text.of(text).divided(WINDOW, 0.2)[1] for text in clients])
            logits = trained(held[:, :-1]).flatten(0, 1)
            before = float(torch.nn.functional.cross_entropy(logits, held[:, 1:].flatten()))
        lines = [
            f"Perplexity of the base on the clients' unseen text: {math.exp(before):.3f}.",
            "",
            "| cut | codec | clip, noise | epsilon of a window | perplexity | activations and gradients | adapters "
            "| nearest embedding | trying all | CPU s |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        print("\n".join(lines), flush=True)
        for below, codec, clip, noise in (
            (1, None, None, 0.0), (2, None, None, 0.0), (1, "int8", None, 0.0), (1, None, 1.0, 0.1),
            (1, None, 1.0, 10.0),
        ):  # fmt: skip
            began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            fitted = atoll.vertical.fit(
                dict(zip(names, clients, strict=True)), "splitlora", cut=below, codec=codec, clip=clip, noise=noise,
                **common,
            )  # fmt: skip
            sent = fitted.transcript.nbytes()
            across = sum(n for kind, n in sent.items() if "activation" in kind or "gradient" in kind)
            own = sent["splitlora.own"] + sent["splitlora.mean"]
            part = cut(given.model, WINDOW, ADAPTER, file, 0, below, client=True).module
            for name, value in fitted.halves[names[0]].model.part.params.items():
                part.get_parameter(name).data.copy_(value)
            tokens = Text.of(clients[0]).divided(WINDOW, 0.2)[0][:READ, :-1]
            near, tried = given_away(part, tokens, Blur(clip, noise), codec)
            how = fitted.plan.made()
            spent = f"{how.epsilon(len(clients[0]) // WINDOW, given.rounds):,.0f}" if noise else "none"  # type: ignore[attr-defined]
            used = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began
            lines.append(
                f"| {below} | {codec or 'float32'} | {'' if clip is None else f'{clip:g}, {noise:g}'} | {spent} "
                f"| {fitted.figures['test']['perplexity']:.3f} | {across / 1e6:.2f} MB | {own / 1e6:.2f} MB "
                f"| {100 * near:.1f} % | {100 * tried:.1f} % | {used:.0f} |"
            )
            print(lines[-1], flush=True)
    if given.write:
        about = (
            f"{given.model}, {ADAPTER}, {CLIENTS} clients, {given.rounds} rounds of 10 steps with 8 windows of {WINDOW}"
            f" bytes each, lr {given.lr:g}; a base of {given.before} steps on the other roles.\n\n"
        )
        Path(__file__).with_name("results").joinpath("splitlora.md").write_text(
            about + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
