"""SplitLoRA: one model in two parts; what crosses the cut, what is averaged, what goes on where it broke off."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from atoll import adapters, codec, seeds
from atoll.contract import Plan
from atoll.engines.reading import reading
from atoll.errors import ConfigError, DataError
from atoll.runs.checkpoint import list_checkpoints
from atoll.vertical import Case, Vertical, fit, run
from atoll.vertical.fitting import Fitted
from atoll.vertical.splitlora import SplitLoRA, Text
from atoll.vertical.splitlora.attacks import nearest, recovered, search
from atoll.vertical.splitlora.cutting import cut, whole
from tests.vertical.test_runs import ports, start, together

MODEL, WINDOW, BATCH = "gpt:2,16,2", 8, 4
SMALL: dict[str, Any] = {
    "model": MODEL, "adapter": "lora:2,8", "window": WINDOW, "batch": BATCH, "rounds": 3, "batches": 2, "lr": 0.05,
    "optimizer": "sgd:0.9",
}  # fmt: skip
NORTH, SOUTH = b"the quick brown fox jumps over the lazy dog. " * 6, b"pack my box with five dozen jugs. " * 8


def learn(*texts: bytes, **given: Any) -> Fitted:
    names = ("north", "south", "east")
    return fit(dict(zip(names, texts, strict=False)), "splitlora", **{"test": 0.2, **SMALL, **given})


def batches(name: str, text: bytes, how: SplitLoRA, test: float = 0.2) -> list[Tensor]:
    """The windows that a client reads, step by step."""
    train, _ = Text.of(text).divided(how.window, test)
    found = []
    for round in range(how.rounds):
        rng = seeds.rng(0, f"splitlora.order {name}", round)
        read = reading(Plan(steps=how.batches, batch_size=how.batch), len(train), rng)
        found += [train[rows[mask > 0]] for rows, mask in zip(read.index, read.mask, strict=True)]
    return found


def uncut(how: SplitLoRA, steps: list[Tensor]) -> nn.Module:
    """The whole model with adapters, trained by torch alone."""
    module = adapters.apply(whole(how.model, how.window, 0), how.adapter, 0)
    trained = [p for p in module.parameters() if p.requires_grad]
    momentum = float(how.optimizer.partition(":")[2] or 0)
    solver = (
        torch.optim.AdamW(trained, how.lr, weight_decay=0.01)
        if how.optimizer == "adamw"
        else torch.optim.SGD(trained, how.lr, momentum)
    )
    for windows in steps:
        solver.zero_grad()
        logits = module(windows[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        solver.step()
    return module


def farthest(fitted: Fitted, module: nn.Module, clients: tuple[str, ...] = ("north",)) -> float:
    """The largest difference of the halves' adapters from those of a whole model."""
    due = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    above = dict(fitted.halves["guest"].model.part.params)
    worst = 0.0
    for client in clients:
        held = {**above, **fitted.halves[client].model.part.params}
        assert held.keys() == due.keys()
        worst = max(worst, *(float((held[name] - due[name]).abs().max()) for name in due))
    return worst


# --- one model in two parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd:0.9", "adamw"])
def test_a_cut_model_learns_as_the_uncut_one(at: int, optimizer: str) -> None:
    given = {"optimizer": optimizer, "cut": at, **({"lr": 1e-3} if optimizer == "adamw" else {})}
    how = SplitLoRA(**{**SMALL, **given})
    start, one = uncut(how, []), uncut(how, batches("north", NORTH, how))
    fitted = learn(NORTH, **given)
    assert farthest(fitted, one) < 1e-6
    assert farthest(fitted, start) > 1e-3
    _, test = Text.of(NORTH).divided(WINDOW, 0.2)
    with torch.no_grad():
        loss = F.cross_entropy(one(test[:, :-1]).flatten(0, 1), test[:, 1:].flatten())
    assert fitted.figures["test"]["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    again = how.joined(0, fitted.halves["north"].model, fitted.halves["guest"].model)
    with torch.no_grad():
        assert torch.allclose(again(test[:, :-1]), one(test[:, :-1]), rtol=0, atol=1e-5)


def test_plain_steps_and_their_mean_are_the_uncut_models_step_on_all_batches() -> None:
    """Three clients whose adapters are averaged after every step, with as many windows each."""
    texts = [NORTH[at : at + 200] for at in (0, 17, 40)]
    given: dict[str, Any] = {"optimizer": "sgd", "batches": 1, "rounds": 5, "average": 1}
    how = SplitLoRA(**{**SMALL, **given})
    each = [batches(name, text, how) for name, text in zip(("north", "south", "east"), texts, strict=True)]
    one = uncut(how, [torch.cat(step) for step in zip(*each, strict=True)])
    fitted = learn(*texts, **given)
    assert farthest(fitted, one, ("north", "south", "east")) < 1e-6
    apart = learn(*texts, **{**given, "average": 0})
    below = [apart.halves[name].model.part.params.flat() for name in ("north", "south")]
    assert float((below[0] - below[1]).abs().max()) > 1e-4


def test_what_crosses_the_cut_is_as_long_as_it_must_be() -> None:
    """Up and down B T d numbers a step and client, and B T targets; nothing is said of the rest of the model."""
    steps, tokens, width = 3 * 2, BATCH * WINDOW, 16
    for wire, size in ((None, 4), ("bf16", 2), ("fp16", 2)):
        sent = learn(NORTH, SOUTH, codec=wire, test=0.0).transcript.nbytes()
        end = "" if wire is None else f".{wire}"
        assert (
            sent[f"splitlora.activation{end}"]
            == sent[f"splitlora.gradient{end}"]
            == 2 * steps * tokens * width * size
        )
        assert sent["splitlora.targets"] == 2 * steps * tokens
        below = cut(MODEL, WINDOW, "lora:2,8", None, 0, 1, client=True).below
        assert sent["splitlora.own"] == sent["splitlora.mean"] == 2 * 3 * below * 4
        assert sum(sent[kind] for kind in sent if kind.startswith("splitlora.")) < sum(sent.values()) + 1


@pytest.mark.parametrize("given", [{"codec": "int8"}, {"clip": 2.0, "noise": 0.01, "noise_seed": 1}])
def test_what_is_done_to_activations_changes_them(given: dict[str, Any]) -> None:
    plain, other = learn(NORTH), learn(NORTH, **given)
    a, b = (each.halves["guest"].model.part.params.flat() for each in (plain, other))
    assert not torch.equal(a, b) and float((a - b).abs().max()) < 0.5


def test_noise_has_its_epsilon() -> None:
    """Of a window whose T activations move together by sqrt(T) clips."""
    how = SplitLoRA(clip=1.0, noise=50.0, window=16)
    assert how.epsilon(1000, 1) < how.epsilon(1000, 4)
    assert how.epsilon(1000, 1) == pytest.approx(SplitLoRA(clip=1.0, noise=100.0, window=64).epsilon(1000, 1))


# --- the base -------------------------------------------------------------------------------------------------------


@cache
def base() -> dict[str, Tensor]:
    with seeds.scoped(7, "base"):
        module = whole(MODEL, WINDOW, 7)
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_base_is_read_from_a_file_and_each_part_has_its_own(tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    save_file(base(), file)
    plain = adapters.apply(whole(MODEL, WINDOW, 7), "lora:2,8", 0)
    tokens = torch.arange(WINDOW)[None]
    lower, upper = (cut(MODEL, WINDOW, "lora:2,8", str(file), 0, 1, client=each) for each in (True, False))
    with torch.no_grad():
        assert torch.equal(upper.module(lower.module(tokens)), plain(tokens))
    for name, value in [*lower.module.named_parameters(), *upper.module.named_parameters()]:
        assert torch.equal(value, plain.get_parameter(name))
    assert learn(NORTH, base=str(file)).figures["test"] != learn(NORTH).figures["test"]


def test_what_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        learn(NORTH, base=str(tmp_path / "none"))
    file = tmp_path / "base.safetensors"
    save_file({**base(), "5.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(ConfigError, match="not of this model"):
        learn(NORTH, base=str(file))
    file.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"is no .safetensors file"):
        learn(NORTH, base=str(file))


# --- runs -----------------------------------------------------------------------------------------------------------


NAMES = ("guest", "north", "south")


def written(place: Path, at: dict[str, int] | None = None, **more: Any) -> Path:
    """A file that describes a run, beside its texts; parties listen at these ports."""
    (place / "north.txt").write_bytes(NORTH)
    (place / "south.txt").write_bytes(SOUTH)
    lines = ['protocol = "splitlora"', f'runs = "{place / "runs"}"', 'keep = "all"']
    for name in NAMES:
        lines.append(f"[party.{name}]")
        lines += [] if name == "guest" else [f'data = "{place / name}.txt"']
        lines += [] if at is None else [f'address = "127.0.0.1:{at[name]}"']
    lines.append("[splitlora]")
    lines += [
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        for key, value in {**SMALL, **more}.items()
    ]
    file = place / "run.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def same(one: Fitted, other: Fitted, names: tuple[str, ...] = NAMES) -> bool:
    """Whether halves are the same to the bit."""
    return all(codec.encode(one.halves[name]) == codec.encode(other.halves[name]) for name in names)


def test_a_file_describes_a_run_that_goes_on_to_the_bit(tmp_path: Path) -> None:
    made = run(Vertical.read(written(tmp_path, optimizer="adamw")))
    assert made.folder is not None
    shutil.rmtree(list_checkpoints(made.folder.path)[-1][1])
    again = run(Vertical.read(made.folder.path / "config.toml"), resume=made.folder.path)
    assert same(again, made) and again.figures["test"] == made.figures["test"]
    events = [json.loads(line) for line in (made.folder.path / "events.jsonl").read_text().splitlines()]
    assert [each["round"] for each in events if each["event"] == "resume"] == [2]
    assert set(events[-1]["test"]) == {"loss", "perplexity", "accuracy"}
    assert events[-1]["perplexity"] == events[-1]["test"]["perplexity"]
    (tmp_path / "north.txt").write_bytes(SOUTH)
    shutil.rmtree(list_checkpoints(made.folder.path)[-1][1])
    with pytest.raises(ConfigError, match="north has another text"):
        run(Vertical.read(made.folder.path / "config.toml"), resume=made.folder.path)


def test_parties_over_tls_come_to_the_same(tmp_path: Path) -> None:
    """A thread for each, with a base from a file: what is drawn is drawn in processes of their own elsewhere."""
    pytest.importorskip("aiohttp")
    from atoll.network.authority import Authority
    from atoll.network.between import secured
    from tests.vertical.keys import party_keys

    save_file(base(), tmp_path / "base.safetensors")
    file = written(tmp_path, ports(NAMES), base=str(tmp_path / "base.safetensors"))
    plan = replace(Vertical.read(file), runs=None)
    authority = Authority.init(tmp_path / "ca")
    keys = {name: party_keys(authority, name, tmp_path / name) for name in NAMES}
    found, alone = together(lambda name: plan, NAMES, lambda name: secured(keys[name], name)), run(plan)
    for name in NAMES:
        one = found[name]
        assert isinstance(one, Fitted), one
        assert list(one.halves) == [name] and same(one, alone, (name,))
    guest = found["guest"]
    assert isinstance(guest, Fitted) and guest.figures["test"] == alone.figures["test"]


@pytest.mark.slow
def test_a_process_for_each_comes_to_the_same(tmp_path: Path) -> None:
    file = written(tmp_path, ports(NAMES))
    running = [
        start("join", str(file), "--as", name, "--plain", "--quiet", "--runs", str(tmp_path / f"at-{name}"))
        for name in NAMES
    ]
    for each in running:
        _, said = each.communicate(timeout=300)
        assert each.returncode == 0, said
    alone = run(replace(Vertical.read(file), runs=None))
    for name in NAMES:
        (half,) = (tmp_path / f"at-{name}").glob(f"*/{name}.half.safetensors")
        assert half.read_bytes() == codec.encode(alone.halves[name])


def test_a_base_that_others_do_not_have_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    save_file(base(), file)
    how = SplitLoRA(**SMALL, base=str(file))
    before = how.terms(Case("binary"))
    save_file({name: value + 1 for name, value in base().items()}, file)
    assert how.terms(Case("binary")) != before


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (["splitlora.cut=3"], "gpt:2,16,2 has 2 blocks"),
        (["splitlora.cut=0"], "cut = 0 must be 1 or more"),
        (["splitlora.model=mlp:8"], "cannot be cut"),
        (["splitlora.noise=1.0"], "there is no clip"),
        (["splitlora.adapter=lora:0"], "rank"),
        (["splitlora.codec=sign"], "codec = 'sign'"),
        (["task=regression"], "task = 'regression' is for tables"),
        (["party.guest.data=x.csv"], "the guest is a server"),
        (["party.north.columns=a"], "texts have none"),
        (["crypto=ou"], "crypto = 'ou' is nothing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, sets: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(Vertical.read(written(tmp_path), sets))


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 1 tokens, too few"):
        learn(b"a")
    with pytest.raises(DataError, match="too few for windows of 8 to learn from and to judge on"):
        learn(b"a" * 17)
    with pytest.raises(DataError, match="is empty"):
        learn(b"")
    with pytest.raises(DataError, match="there is no such file"):
        run(Vertical.read(written(tmp_path), [f"party.north.data={tmp_path / 'none.txt'}"]))


# --- what activations give away -------------------------------------------------------------------------------------


def test_whoever_has_the_clients_part_reads_its_text() -> None:
    """Place by place, each token; the nearest embedding is right where blocks add little; noise is against both."""
    module = whole(MODEL, WINDOW, 0)
    lower = nn.Sequential(module[0], module[1])
    tokens, _ = Text.of(NORTH).divided(WINDOW, 0.2)
    tokens = tokens[:3, :-1]
    with torch.no_grad():
        h = lower(tokens)
    assert recovered(tokens, search(h, lower)) == 1.0
    assert recovered(tokens, nearest(module[0](tokens).detach(), module[0])) == 1.0
    assert recovered(tokens, nearest(h, module[0])) > 0.5
    noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(0)) * 10 * h.norm(dim=-1).mean()
    for guess in (search(h + noise, lower), nearest(h + noise, module[0])):
        assert recovered(tokens, guess) < 0.3
