"""Clients that lie in federations: what the server makes of it, in every engine, and what it costs who is honest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import atoll
from atoll.attacks import Attack, SignFlip, drawn
from atoll.attacks.alie import most
from atoll.attacks.lying import Attacked, Lying, Scheming
from atoll.callbacks import Callback
from atoll.contract import Reply
from atoll.errors import ConfigError, DivergedError
from atoll.federation import Federation
from atoll.rounds.history import Round
from atoll.rounds.memories import MemoryStore
from atoll.tensors import Record, leaves

ENGINES = ("loop", "batched", "processes")


@cache
def data() -> Any:
    return atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=10, alpha=1.0), seed=0)


def federation(attack: Any = None, method: str = "fedavg", engine: str = "loop", **more: Any) -> Federation:
    usual = {
        "rounds": 2, "cohort": 8, "lr": 0.1, "batch_size": 40, "seed": 1, "device": "cpu", "eval_every": 0,
        "workers": 2, "attackers": None if attack is None else ["1", "4", "7"],
    }  # fmt: skip
    settings = {**usual, **more}
    return Federation(
        lambda: atoll.models.mlp(64, 12, 10), data(), method, engine=engine, attack=attack, **settings
    )


def params(made: Federation) -> Tensor:
    return made.state.params.flat()  # type: ignore[no-any-return]


def model(*args: Any, **more: Any) -> Tensor:
    made = federation(*args, **more)
    made.fit(progress=False)
    return params(made)


# --- one round, by hand ---------------------------------------------------------------------------------------------


@cache
def honest(method: str) -> tuple[Mapping[int, Reply], Tensor]:
    """What the clients of the first round would send, and the model that they were sent."""
    made = federation(method=method)
    cohort, _ = made.simulation.enlist(1)
    job = made.simulation.opened(made.state, cohort, 1).job
    assert job is not None
    job = replace(job, work=replace(job.work, reduction="each"))
    replies = made.engine.run(job, MemoryStore())[0].result()
    assert replies is not None
    return dict(zip(replies.clients, replies.each, strict=True)), params(made)


def rows(method: str = "fedavg") -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """The clients of the first round, what each of them would send, and what it counts for."""
    replies, _ = honest(method)
    vectors = [
        np.concatenate([v.double().numpy().ravel() for v in leaves(reply.values)])
        for reply in replies.values()
    ]
    return (
        list(replies),
        np.array(vectors),
        np.array([float(reply.weight) for reply in replies.values()]),
    )


@pytest.mark.parametrize(
    "attack", ["signflip:2", "scaling", "ipm:0.7", "alie", "alie:2", "minmax", "minsum:unit", "mimic:2"]
)
def test_the_server_averages_lies_as_if_they_were_updates(attack: str) -> None:
    clients, sent, weights = rows()
    liars = [client in (1, 4, 7) for client in clients]
    assert 0 < sum(liars) < len(liars)
    others = sent[[not lies for lies in liars]]
    mean, off = others.mean(0), others.std(0)
    apart = np.square(others[:, None] - others[None]).sum(2)

    def reach(p: NDArray[np.float64]) -> float:
        """Min-max by bisection, as the paper has it."""
        low, high = 0.0, 1e4
        for _ in range(80):
            middle = (low + high) / 2
            far = np.square(mean + middle * p - others).sum(1).max() > apart.max()
            low, high = (low, middle) if far else (middle, high)
        return low

    def room(p: NDArray[np.float64]) -> float:
        return float(np.sqrt((apart.sum(1).max() - np.square(others - mean).sum()) / (len(others) * p @ p)))

    unit = -mean / np.linalg.norm(mean)
    lies = {
        "signflip:2": -2 * sent,
        "scaling": sent * 10 / 3,
        "ipm:0.7": -0.7 * mean,
        "alie": mean - most(len(clients), sum(liars)) * off,
        "alie:2": mean - 2 * off,
        "minmax": mean - reach(-off) * off,
        "minsum:unit": mean + room(unit) * unit,
        "mimic:2": others[1],
    }[attack]
    told = np.where(np.array(liars)[:, None], np.broadcast_to(lies, sent.shape), sent)
    expected = weights @ told / weights.sum()
    made = federation(attack, rounds=1)
    before = params(made).double().numpy()
    made.fit(progress=False)
    np.testing.assert_allclose(params(made).double().numpy() - before, expected, atol=3e-6)


def test_a_lie_tells_as_much_of_control_variates() -> None:
    """SCAFFOLD's change and its control variates are one vector to a liar."""
    replies, _ = honest("scaffold")
    made = federation("signflip:3", "scaffold", rounds=1)
    before = params(made)
    made.fit(progress=False)
    signs = {client: -3.0 if client in (1, 4, 7) else 1.0 for client in replies}
    assert len({*signs.values()}) == 2
    control, update = (
        torch.stack([signs[k] * reply.values[name].flat() for k, reply in replies.items()]).sum(0)
        for name in ("control", "update")
    )
    torch.testing.assert_close(made.state.control.flat(), control / 10, atol=3e-6, rtol=1e-5)
    torch.testing.assert_close(params(made) - before, update / len(replies), atol=3e-6, rtol=1e-5)


def test_who_sends_its_own_update_tells_no_lie() -> None:
    assert torch.equal(model("scaling:1"), model())
    assert torch.equal(model("scaling:1", engine="processes"), model(engine="processes"))


def test_nobody_attacks_nobody_is_charged() -> None:
    made = federation()
    assert made.simulation.channel is None and made.engine.data is made.data
    assert "attackers" not in made.keeper._identity()


def test_a_lie_that_is_no_number_is_refused() -> None:
    made = federation("signflip:1e30", rounds=1, attackers=["4"])
    made.fit(progress=False)
    assert bool(params(made).isfinite().all())
    job = made.simulation.opened(made.state, made.simulation.enlist(2)[0], 2).job
    assert job is not None
    reducer = job.reducer()
    values = Record(update=made.state.params.map(lambda v: torch.full_like(v, 1e20)))
    for client in (3, 4):
        reducer.add(client, Reply(values, torch.tensor(1.0), Record()))
    found = reducer.result()
    assert found is not None and found.clients == [3]


def test_a_mean_does_not_survive_infinity() -> None:
    with pytest.raises(DivergedError):
        federation("infinity", rounds=4, eval_every=1).fit(progress=False)


# --- engines, rounds, runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "method"),
    [("signflip", "scaffold"), ("alie:1", "fedavg"), ("gaussian:0.01 + backdoor:0", "fedavg")],
)
def test_engines_agree(attack: str, method: str) -> None:
    found = [model(attack, method, engine) for engine in ENGINES]
    assert torch.equal(found[2], model(attack, method, "processes", workers=1))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found[0], model(method=method), atol=1e-3)


@pytest.mark.parametrize("attack", ["signflip", "minmax"])
def test_asynchronous_servers_are_lied_to_once_a_step(attack: str) -> None:
    clocked = {
        "devices": "lognormal:1",
        "pace": "buffered:4",
        "concurrency": 6,
        "rounds": 3,
        "method": "fedavg",
    }
    lied, plain = model(attack, **clocked), model(**clocked)
    assert not torch.allclose(lied, plain)
    assert torch.equal(lied, model(attack, **clocked))
    assert torch.equal(plain, model("scaling:1", **clocked))


def test_late_replies_are_lies_once() -> None:
    clocked = {"devices": "lognormal:2", "deadline": "share:0.6", "late": "keep", "rounds": 3}
    assert torch.equal(model(**clocked), model("scaling:1", **clocked))
    assert torch.equal(model("signflip", **clocked), model("signflip", **clocked))


class _Break(Callback):
    def on_round_end(self, federation: Federation, record: Round) -> None:
        if record.number == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("attack", ["backdoor:3 + scaling:2", "alie", "gaussian:0.01"])
def test_a_run_goes_on_to_the_same_bits(attack: str, tmp_path: Path) -> None:
    whole = federation(attack, rounds=3)
    whole.fit(progress=False)
    broken = federation(attack, rounds=3, runs=tmp_path, checkpoint=1, callbacks=[_Break()])
    with pytest.raises(KeyboardInterrupt):
        broken.fit(progress=False)
    again = federation(attack, rounds=3, runs=tmp_path).resume("last")
    again.fit(progress=False)
    assert torch.equal(params(again), params(whole))
    other = federation(attack, rounds=3, runs=tmp_path, attackers=["2"])
    with pytest.raises(ConfigError, match="attackers"):
        other.resume("last")


def test_what_is_written_down() -> None:
    made = federation("backdoor:0 + scaling", rounds=2, eval_every=1)
    run = made.fit(progress=False)
    start, partition = run.events()[:2]
    assert partition["attackers"] == [1, 4, 7]
    assert start["config"]["attack"] == "backdoor:0 + scaling" and start["config"]["attackers"] == [
        "1",
        "4",
        "7",
    ]
    last = [each for each in run.events() if each["event"] == "round"][-1]
    success = last["evaluation"]["overall"]["attack_success"]
    assert success == run.to_dict()["attack_success"] == run.attack_success
    assert run.to_dict()["metrics"]["attack_success"] == success
    assert [value for _, value in run.history("attack_success")][-1] == success
    assert start["metrics"]["attack_success"] == "lower"
    aimed = federation("backdoor:0 + scaling", rounds=2, eval_every=1, target="attack_success:1.0")
    assert aimed.fit(progress=False).target_round == 1
    assert "attack_success" in str(run) and "attackers" not in federation().fit(progress=False).events()[1]


def test_the_shares_of_triggered_samples_are_counted_right() -> None:
    made = federation("backdoor:0", rounds=2, attackers=0.4)
    run = made.fit(progress=False)
    test, target = made.data.test_set, 0
    assert test is not None and made.judge.wanted is not None
    assert isinstance(test.inputs, Tensor)
    rest = test.inputs[test.targets != target].clone()
    rest[..., -3:, -3:] = 1.0  # the brightest pixel of digits
    with torch.no_grad():
        share = float((run.model(rest).argmax(1) == target).double().mean())
    assert run.attack_success == pytest.approx(share)


# --- who ------------------------------------------------------------------------------------------------------------


def test_attackers_are_drawn_by_the_seed() -> None:
    found = drawn(0.3, data(), 5)
    assert len(found) == 3 == len(set(found)) and found == drawn("0.3", data(), 5) == drawn(3, data(), 5)
    assert len({drawn(0.3, data(), seed) for seed in range(8)}) > 4
    assert drawn("4, 2", data(), 0) == (2, 4) == drawn(["2", "4"], data(), 9)
    for seed in range(5):
        assert not {*drawn(3, data(), seed, never=(0, 1, 2))} & {0, 1, 2}


def test_newcomers_do_not_lie() -> None:
    made = federation("signflip", attackers=0.5, newcomers=4, cohort=4)
    assert len(made.simulation.attackers) == 3
    assert not {*made.simulation.attackers} & {*made.membership.newcomers}


def test_newcomers_cannot_be_named() -> None:
    newcomer = next(iter(federation(newcomers=4, cohort=4).membership.newcomers))
    with pytest.raises(ConfigError, match="is a newcomer, and takes part in no round") as error:
        federation("signflip", attackers=[str(newcomer)], newcomers=4, cohort=4)
    assert error.value.hint == "leave it out"


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"attack": "signflip", "attackers": 0.6}, "are 6 of 10 clients: against more than half", "at most 5"),
        ({"attack": "signflip", "attackers": 7}, "are 7 of 10 clients", "at most 5"),
        ({"attack": "signflip", "attackers": "6"}, "are 6 of 10 clients", "at most 5"),
        ({"attack": "signflip", "attackers": ["north"]}, "there is no client 'north'", ""),
        ({"attack": "signflip", "attackers": []}, "attackers names nobody", "0.2"),
        ({"attack": "signflip", "attackers": 1.5}, "attackers cannot be 1.5", "a whole number"),
        ({"attack": "signflip", "attackers": "1.5"}, "attackers = '1.5'", "0.2"),
        ({"attack": "signflop", "attackers": 2}, "unknown attack 'signflop'", "did you mean 'signflip'"),
        ({"attack": "signflip", "attackers": None}, "nobody is there to do it", "attackers=0.2"),
        ({"attackers": 2}, "nothing says what they do", "atoll explain attack"),
        ({"attack": "signflip + alie", "attackers": 2}, "attackers cannot send two things", "leave alie out"),
        ({"attack": "edge:1 + labelflip", "attackers": 2}, "cannot do two things to their data", "labelflip"),
        ({"attack": "backdoor", "attackers": 2}, "backdoor needs target", "backdoor:TARGET"),
        ({"attack": "backdoor:11", "attackers": 2}, "target = 11, and there are the classes 0 to 9", "backdoor:0"),
        ({"attack": "signflip:0", "attackers": 2}, "factor = '0' is not a number above 0", "signflip"),
        ({"attack": "labelflip:3", "attackers": 2}, "source = 3 and target = None", "labelflip:7,1"),
        ({"attack": [SignFlip], "attackers": 2}, "is no part of one", "Backdoor"),
        ({"attack": "alie", "attackers": 2, "method": "cfl"}, "CFL puts replies together otherwise", "labelflip"),
        ({"attack": "alie", "attackers": 2, "channel": "secagg"}, "the channel hides them", "labelflip"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(
    settings: dict[str, Any], says: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as error:
        federation(**settings)
    assert says in error.value.message
    assert hint in str(error.value.hint)


def test_poisoned_data_go_with_every_method_and_channel() -> None:
    for settings in ({"method": "cfl"}, {"channel": "secagg"}, {"method": "ditto"}):
        federation("labelflip", rounds=1, **settings).fit(progress=False)


@pytest.mark.parametrize("method", ["ditto", "local", "fedavg-ft"])
@pytest.mark.parametrize("attack", ["signflip", "alie"])
def test_clients_with_models_of_their_own_may_lie(method: str, attack: str) -> None:
    """What clients remember is found again by who judges it; a method that sends nothing has nothing to lie about."""
    run = federation(attack, method, rounds=1, eval_every=1).fit(progress=False)
    assert run.evaluation is not None and run.evaluation.personal
    if method == "local":
        plain = federation(method=method, rounds=1, eval_every=1).fit(progress=False).evaluation
        assert plain is not None and run.evaluation.personal == plain.personal


def test_objects_do_as_texts_do() -> None:
    text = federation("signflip:2")
    for given in (SignFlip(2.0), [SignFlip(2.0)], Attack([SignFlip(2.0)])):
        made = federation(given)
        assert made.settings.attack == "signflip:2" and made.simulation.channel == text.simulation.channel
    assert isinstance(text.simulation.channel, Attacked)


def test_only_lies_that_look_keep_the_round() -> None:
    for attack, kind in (("signflip", Lying), ("alie", Scheming)):
        made = federation(attack)
        job = made.simulation.opened(made.state, made.simulation.enlist(1)[0], 1).job
        assert job is not None and type(job.reducer()) is kind
