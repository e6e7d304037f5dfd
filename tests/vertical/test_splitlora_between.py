"""SplitLoRA between parties that may differ or lie: what is sent is bounded and blurred, what does not fit refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from atoll.errors import CodecError, ConfigError, DivergedError
from atoll.parties import Link, Played, play
from atoll.tensors import Record
from atoll.vertical import Case, Vertical
from atoll.vertical.protocol import Progress
from atoll.vertical.splitlora import SplitLoRA, Text
from atoll.vertical.splitlora.cutting import Part, cut, whole
from atoll.vertical.splitlora.messages import BEGIN, CUT, MEAN, OWN, TARGETS
from tests.vertical.test_splitlora import BATCH, MODEL, NORTH, SMALL, SOUTH, WINDOW, batches, learn, written

WIDTH = 16
CASE = Case("binary", hosts=("north",))
Role = Callable[[Link], Any]


def made(**given: Any) -> SplitLoRA:
    return SplitLoRA(**{**SMALL, **given})


def server(how: SplitLoRA, case: Case = CASE, told: list[Any] | None = None) -> Role:
    heard = [] if told is None else told
    progress = Progress(tell=lambda *said: heard.append(said))
    return lambda link: how.server(link, case, progress)


def client(
    how: SplitLoRA, text: bytes = NORTH, case: Case = CASE, told: list[Any] | None = None, test: float = 0.2
) -> Role:
    heard = [] if told is None else told
    progress = Progress(tell=lambda *said: heard.append(said))
    return lambda link: how.client(link, Text.of(text), case, test, progress)


def sent(played: Played, what: str, sender: str = "north") -> list[Tensor]:
    return [
        each.x
        for who, _, kind, each in played.transcript.said
        if (who, kind) == (sender, f"splitlora.{what}")
    ]


# --- what a client lets out -------------------------------------------------------------------------------------------


def test_no_activation_that_is_sent_is_longer_than_the_clip() -> None:
    how = made(clip=0.02, rounds=1)
    played = play({"guest": server(how), "north": client(how)}, keep=True)
    for what in ("activation", "asked"):
        found = torch.cat(sent(played, what))
        assert float(found.norm(dim=1).max()) == pytest.approx(0.02, rel=1e-5)


def test_noise_is_on_all_that_is_sent_and_never_the_same() -> None:
    """Adapters hardly move here, so that what differs is noise: of each message, client and run another one."""
    names, texts = ("north", "south"), (NORTH, NORTH)
    case = Case("binary", hosts=names)

    def noise(**given: Any) -> dict[tuple[str, str], list[Tensor]]:
        found = []
        for each in ({}, {"noise": 0.5, **given}):
            how = made(clip=2.0, lr=1e-12, batches=3, rounds=2, average=0, optimizer="sgd", **each)
            roles = {name: client(how, text, case) for name, text in zip(names, texts, strict=True)}
            found.append(play({"guest": server(how, case), **roles}, keep=True))
        plain, noised = found
        return {
            (what, name): [
                a - b for a, b in zip(sent(noised, what, name), sent(plain, what, name), strict=True)
            ]
            for what in ("activation", "asked")
            for name in names
        }

    drawn = noise(noise_seed=1)
    assert torch.cat([value for each in drawn.values() for value in each]).std() == pytest.approx(
        1.0, rel=0.05
    )
    messages = [value.flatten()[: WIDTH * WINDOW] for each in drawn.values() for value in each]
    messages += [
        each[0].flatten()[: WIDTH * WINDOW] for _ in range(2) for each in [noise()["activation", "north"]]
    ]
    alike = torch.corrcoef(torch.stack(messages)) - torch.eye(len(messages))
    assert float(alike.abs().max()) < 0.6


def test_the_epsilon_that_is_told_is_of_as_many_times_as_a_window_is_sent() -> None:
    how, told = made(clip=1.0, noise=30.0, batches=5), []
    play({"guest": server(how), "north": client(how, SOUTH, told=told)})
    count = len(Text.of(SOUTH).divided(WINDOW, 0.2)[0])
    often = math.ceil(5 * BATCH / count)
    assert [figures for _, _, figures in told] == [
        {"epsilon north": pytest.approx(how.epsilon(count, rounds * often))} for rounds in (1, 2, 3)
    ]
    read = Counter(tuple(row) for step in batches("north", SOUTH, how) for row in step.tolist())
    distinct = Counter(tuple(row) for row in Text.of(SOUTH).divided(WINDOW, 0.2)[0].tolist())
    assert max(read[row] / distinct[row] for row in read) <= 3 * often


def test_windows_that_are_judged_on_are_not_learned_from() -> None:
    train, test = Text.of(bytes(range(41))).divided(8, 0.4)
    windows = [list(range(at, at + 9)) for at in range(0, 40, 8)]
    assert train.tolist() == windows[:3] and test.tolist() == windows[3:]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_parties_with_other_bases_part_at_once(tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    save_file({name: value.clone() for name, value in whole(MODEL, WINDOW, 7).state_dict().items()}, file)
    with pytest.raises(ConfigError, match="north has other settings or another base") as caught:
        play({"guest": server(made()), "north": client(made(base=str(file)))})
    assert "base=seed 0" in str(caught.value.hint)


async def begins(link: Link, how: SplitLoRA, train: int = 5, test: int = 0) -> None:
    await link.send("guest", BEGIN, Record(train=train, test=test, terms=how.terms(CASE)))


async def steps(link: Link, tokens: Tensor, h: Tensor) -> None:
    await link.send("guest", TARGETS, Record(tokens=tokens))
    await link.send("guest", CUT["activation", None], Record(x=h))


@pytest.mark.parametrize(
    ("train", "test", "rows", "window", "activations", "adapters", "problem"),
    [
        (0, 0, 4, WINDOW, 4 * WINDOW, None, "says that it has 0 and 0 windows"),
        (5, -1, 4, WINDOW, 4 * WINDOW, None, "says that it has 5 and -1 windows"),
        (5, 0, 4, WINDOW + 1, 4 * WINDOW + 4, None, r"targets of \[4, 9\]"),
        (5, 0, 0, WINDOW, 0, None, r"targets of \[0, 8\]"),
        (5, 0, BATCH + 1, WINDOW, (BATCH + 1) * WINDOW, None, r"targets of \[5, 8\]"),
        (5, 0, 4, WINDOW, 3 * WINDOW, None, r"splitlora.activation of \[24, 16\], and \[32, 16\] is due"),
        (5, 0, 4, WINDOW, 4 * WINDOW, 7, "sent 7 numbers of adapters"),
    ],
)  # fmt: skip
def test_a_client_that_says_what_cannot_be_is_refused(
    train: int, test: int, rows: int, window: int, activations: int, adapters: int | None, problem: str
) -> None:
    how = made(rounds=1, batches=1)

    async def liar(link: Link) -> None:
        await begins(link, how, train, test)
        await steps(link, torch.zeros(rows, window, dtype=torch.uint8), torch.zeros(activations, WIDTH))
        await link.receive("guest", CUT["gradient", None])
        await link.send("guest", OWN, Record(adapters=torch.zeros(adapters or 0)))
        await link.receive("guest", MEAN)

    with pytest.raises(CodecError, match=problem):
        play({"guest": server(how), "north": liar})


def test_a_server_whose_mean_has_other_numbers_is_refused() -> None:
    how = made(rounds=1, batches=1)

    async def liar(link: Link) -> None:
        await link.receive("north", BEGIN)
        await link.receive("north", TARGETS)
        h = (await link.receive("north", CUT["activation", None])).x
        await link.send("north", CUT["gradient", None], Record(x=torch.zeros_like(h)))
        own = (await link.receive("north", OWN)).adapters
        await link.send("north", MEAN, Record(adapters=own[1:]))
        await link.receive("north", TARGETS)

    with pytest.raises(CodecError, match="guest sent 575 numbers of adapters, and 576 are due"):
        play({"guest": liar, "north": client(how)})


def test_numbers_that_leave_the_finite_ones_are_said() -> None:
    with pytest.raises(DivergedError, match="activations of north are not finite"):
        learn(NORTH, lr=1e30)
    how = made(rounds=1, batches=1)

    async def loud(link: Link) -> None:
        await begins(link, how)
        await steps(link, torch.zeros(4, WINDOW, dtype=torch.uint8), torch.full((4 * WINDOW, WIDTH), 3e38))
        await link.receive("guest", CUT["gradient", None])

    with pytest.raises(DivergedError, match="the loss is nan in round 1"):
        play({"guest": server(how), "north": loud})


def test_a_half_of_other_adapters_or_another_optimiser_is_refused() -> None:
    def part(adapter: str = "lora:2,8", solver: str = "sgd:0.9") -> Part:
        return Part(cut(MODEL, WINDOW, adapter, None, 0, 1, client=True).module, solver, 0.1, 0)

    part().load(part().record())
    for other in (part("lora:3,8"), part(solver="adamw")):
        with pytest.raises(CodecError, match="the half has other adapters"):
            part().load(other.record())


@pytest.mark.parametrize(
    "given",
    [
        {"window": 0}, {"rounds": 0}, {"batches": 0}, {"batch": 0}, {"average": -1}, {"lr": 0.0}, {"lr": math.inf},
        {"clip": 0.0}, {"clip": math.inf}, {"clip": 1.0, "noise": -1.0}, {"clip": 1.0, "noise": math.inf},
        {"delta": 0.0}, {"delta": 1.0}, {"optimizer": "none"}, {"model": "lstm"},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(given: dict[str, Any]) -> None:
    def halved() -> None:
        how = made(**given)
        cut(how.model, how.window, how.adapter, None, 0, how.cut, client=True)

    with pytest.raises(ConfigError, match=next(reversed(given))):
        halved()


@pytest.mark.parametrize(
    "sets",
    [
        "id=name", "label=z", "exposure=e", "features.steps=impute:mean", "ecdh=nacl", "reveal=guest",
        "party.north.id=n",
    ],
)  # fmt: skip
def test_what_is_for_rows_in_common_is_refused(tmp_path: Path, sets: str) -> None:
    with pytest.raises(ConfigError, match=r"is for tables|texts have none"):
        Vertical.read(written(tmp_path), [sets])


def test_halves_predict_no_rows() -> None:
    fitted = learn(NORTH, rounds=1, batches=1)
    with pytest.raises(ConfigError, match="'splitlora' learns no model that predicts rows"):
        fitted.predict_proba({"guest": None, "north": None})  # type: ignore[dict-item]
