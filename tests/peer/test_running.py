"""Peers that speak over sockets come to the models of the simulation, to the bit, also after one was broken off."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import atoll
from atoll import codec
from atoll.cli.peer import alike, checked, member_of
from atoll.errors import CodecError, ConfigError, RunError
from atoll.experiment import Experiment
from atoll.parties.framed import Address
from atoll.peer.circle import Circle
from atoll.peer.keeping import Book, Labels
from atoll.peer.member import Member
from atoll.peer.running import Seat, take_part
from atoll.peer.sayings import WithheldError
from atoll.tensors import Record
from tests.parties.test_wired import several

LABELS = Labels("method", "data", "model", 0, 0)
NAMES = ["0", "1", "2", "3"]


@pytest.fixture(autouse=True)
def _in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """All peers are in this process, whose random state each watches: they train one after the other."""

    async def done(work: Any, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return work(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", done)


def experiment(method: str, topology: str, **more: Any) -> Experiment:
    given = {
        "data": "digits",
        "clients": len(NAMES),
        "rounds": 4,
        "model": "mlp:12",
        "epochs": 1,
        "runs": None,
    }
    return Experiment.read(
        **{**given, "engine": "loop", "eval_every": 0, **more}, method=method, topology=topology
    )


def member(one: Experiment, number: int) -> Member:
    data = one.divide(one.load())
    return member_of(one, checked(one), data, number, [str(name) for name in data.names])


async def peer(
    one: Experiment,
    number: int,
    where: dict[str, Address],
    place: Path,
    tell: Any = lambda _: None,
    names: list[str] = NAMES,
    **more: Any,
) -> Member:
    """One peer, to its end."""
    made, name = member(one, number), names[number]
    seat = Seat(where[name], {k: v for k, v in where.items() if k != name}, **{"patience": 20.0, **more})
    labels = Labels(one.method, "digits", one.model, one.seed, one.rounds)
    await take_part(
        made, names, alike(one, made, names), labels, seat, place / name, tell=tell, every=one.eval_every
    )
    return made


def simulated(one: Experiment) -> Record:
    federation = one.build()
    federation.fit(progress=False)
    return federation.state.peers  # type: ignore[no-any-return]


def same(members: list[Member], rows: Record) -> bool:
    return all(torch.equal(each.own[name], rows[name][each.number]) for each in members for name in rows)


@pytest.mark.parametrize(
    ("method", "topology", "more"),
    [
        ("dpsgd", "ring", {}),
        ("dpsgd", "star", {}),
        ("dpsgd", "one-peer", {"mixing": "clipped:0.5"}),
        ("adpsgd", "complete", {}),
        ("choco", "ring", {}),
        ("gossip", "ring", {}),
        ("pushsum", "epidemic:1", {}),
        ("tracking", "ring", {}),
        ("d2", "ring", {}),
        ("moshpit", "grid:2", {}),
        ("dpsgd", "ring", {"engine": "processes", "batch_size": 10}),
        ("dpsgd", "ring", {"channel": "clip:0.2 | local:0.1"}),
        ("dpsgd", "related:1", {}),
        ("choco", "related:2,8,0.01", {}),
        ("dpsgd", "ring", {"mixing": "masked"}),
        ("tracking", "complete", {"mixing": "masked:64"}),
        ("pushsum", "exponential", {"mixing": "masked"}),
    ],
)
def test_the_models_are_those_of_the_simulation(
    method: str, topology: str, more: dict[str, Any], tmp_path: Path
) -> None:
    one = experiment(method, topology, **more)
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))

    async def all_() -> list[Member]:
        return await asyncio.gather(*(peer(one, at, where, tmp_path) for at in range(len(NAMES))))

    assert same(asyncio.run(asyncio.wait_for(all_(), 60)), simulated(one))


class _Broken(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "topology"), [("dpsgd", "ring"), ("choco", "ring"), ("dpsgd", "related:1")]
)
def test_who_is_broken_off_goes_on_to_the_bit(
    method: str, topology: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ends without a word in its third round, after the others have heard it, and comes back soon."""
    one = experiment(method, topology, rounds=6)
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))
    commit, armed = Book.commit, [True]

    def breaking(self: Book, round: int, *more: Any) -> None:
        if self.name == "2" and round == 3 and armed[0]:
            armed[0] = False
            raise _Broken
        commit(self, round, *more)

    monkeypatch.setattr(Book, "commit", breaking)

    async def twice() -> Member:
        with contextlib.suppress(_Broken):
            await peer(one, 2, where, tmp_path)
        assert not armed[0]
        return await peer(one, 2, where, tmp_path)

    async def all_() -> list[Member]:
        rest = (peer(one, at, where, tmp_path) for at in (0, 1, 3))
        return await asyncio.gather(*rest, twice())

    assert same(asyncio.run(asyncio.wait_for(all_(), 60)), simulated(one))


@pytest.mark.parametrize(("method", "mixing"), [("dpsgd", "plain"), ("choco", "plain"), ("dpsgd", "masked")])
def test_what_one_had_said_that_is_broken_off_is_said_again(
    method: str, mixing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ends without a word once its third round counts, and before a neighbour has heard what it said in that."""
    one = experiment(method, "ring", rounds=6, mixing=mixing)
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))
    commit, hear, armed = Book.commit, Circle.hear, [True]

    def breaking(self: Book, round: int, *more: Any) -> None:
        commit(self, round, *more)
        if self.name == "2" and round == 3 and armed[0]:
            armed[0] = False
            raise _Broken

    async def late(self: Circle, number: int, *given: Any, **more: Any) -> Any:
        while self.name == "1" and number == 3 and armed[0]:
            await asyncio.sleep(0.01)
        return await hear(self, number, *given, **more)

    monkeypatch.setattr(Book, "commit", breaking)
    monkeypatch.setattr(Circle, "hear", late)

    async def twice() -> Member:
        with contextlib.suppress(_Broken):
            await peer(one, 2, where, tmp_path)
        assert not armed[0]
        return await peer(one, 2, where, tmp_path)

    async def all_() -> list[Member]:
        rest = (peer(one, at, where, tmp_path) for at in (0, 1, 3))
        return await asyncio.gather(*rest, twice())

    assert same(asyncio.run(asyncio.wait_for(all_(), 60)), simulated(one))
    assert '"missing"' not in next((tmp_path / "1").glob("*/events.jsonl")).read_text()


@pytest.mark.parametrize(
    ("method", "mixing"),
    [("dpsgd", "plain"), pytest.param("dpsgd", "masked", marks=pytest.mark.slow), ("choco", "plain")],
)
def test_the_others_go_on_without_one_that_is_gone_and_take_it_in_again(
    method: str, mixing: str, tmp_path: Path
) -> None:
    one = experiment(method, "complete", rounds=40, eval_every=20, mixing=mixing)
    where, told = dict(zip(NAMES, several(len(NAMES)), strict=True)), list[str]()

    async def late() -> Member:
        first = asyncio.ensure_future(peer(one, 2, where, tmp_path))
        while not any('"round":3' in each.read_text() for each in (tmp_path / "2").glob("*/events.jsonl")):
            await asyncio.sleep(0.01)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        while not any('"round":8,' in each.read_text() for each in (tmp_path / "0").glob("*/events.jsonl")):
            await asyncio.sleep(0.01)
        assert any("2 is gone" in each for each in told)
        return await peer(one, 2, where, tmp_path, told.append)

    async def all_() -> list[Member]:
        rest = (peer(one, at, where, tmp_path, told.append, patience=0.3) for at in (0, 1, 3))
        return await asyncio.gather(*rest, late())

    members = asyncio.run(asyncio.wait_for(all_(), 120))
    assert any("goes on from round" in each for each in told), "; ".join(told)
    if method == "dpsgd":  # on the complete graph, all have one model after each round
        assert all(torch.equal(each.own.model, members[0].own.model) for each in members)
    else:  # all know what the others have said, though some of it was not heard
        for one_, other in itertools.permutations(members, 2):
            assert torch.equal(one_.known[other.number].known, other.own.known)
    log = next((tmp_path / "0").glob("*/events.jsonl")).read_text()
    assert '"missing":{"2":' in log and '"links":{' in log


def test_with_masks_whoever_misses_a_share_keeps_its_model_and_the_rest_go_on(tmp_path: Path) -> None:
    """One of five is gone for good: its neighbours lose one round, and then add up without it."""
    one = experiment("dpsgd", "complete", rounds=12, mixing="masked", clients=5)
    names = [*NAMES, "4"]
    where, told = dict(zip(names, several(len(names)), strict=True)), list[str]()

    async def brief() -> None:
        work = asyncio.ensure_future(peer(one, 4, where, tmp_path, names=names))
        while not any('"round":3' in each.read_text() for each in (tmp_path / "4").glob("*/events.jsonl")):
            await asyncio.sleep(0.01)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    async def all_() -> list[Member]:
        rest = (peer(one, at, where, tmp_path, told.append, names=names, patience=0.5) for at in range(4))
        *members, _ = await asyncio.gather(*rest, brief())
        return members  # type: ignore[return-value]

    members = asyncio.run(asyncio.wait_for(all_(), 120))
    assert any("4 is gone" in each for each in told)
    assert any("keeps what it has: nothing came of 4" in each for each in told), told
    # after a round in which all of four have added up, all have one model
    assert all(torch.equal(each.own.model, members[0].own.model) for each in members)
    assert '"missing":{"4":' in next((tmp_path / "0").glob("*/events.jsonl")).read_text()


def test_shares_of_whom_a_receiver_does_not_hear_or_of_one_alone_are_not_told() -> None:
    """Of peers on a ring: peer 0 hears 1 and 3, and nobody is part of another sum of its."""
    one = experiment("dpsgd", "ring", mixing="masked")
    made = member(one, 1)
    made.train(1)
    size = sum(value.numel() for value in made.offered.values())
    share = made.share(1, 0, made.offered, 0, [1, 3])
    assert share.dtype == torch.int32 and share.shape == (size,)
    for others in ([1], [1, 2], [1, 2, 3]):
        with pytest.raises(WithheldError, match="does not hear these"):
            made.share(1, 0, made.offered, 0, others)
    far = made.offered.replace(model=made.offered.model + 33)
    with pytest.raises(RunError, match="masks carry 32"):
        made.check(far)


def test_a_run_that_is_over_is_not_begun_again(tmp_path: Path) -> None:
    one = experiment("dpsgd", "ring", rounds=1)
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))

    async def all_() -> None:
        await asyncio.gather(*(peer(one, at, where, tmp_path) for at in range(len(NAMES))))

    asyncio.run(asyncio.wait_for(all_(), 60))
    with pytest.raises(ConfigError, match="0 has finished its run"):
        asyncio.run(peer(one, 0, where, tmp_path))


def test_who_is_related_is_not_known_before_all_have_come(tmp_path: Path) -> None:
    """Who waited in vain says so, and goes on when the last one is there; a lost directory is no harm."""
    one = experiment("dpsgd", "related:1", rounds=6)
    where = dict(zip(NAMES, several(len(NAMES)), strict=True))

    async def some() -> list[Any]:
        few = (peer(one, at, where, tmp_path, wait=0.3) for at in range(3))
        return await asyncio.gather(*few, return_exceptions=True)

    for error in asyncio.run(asyncio.wait_for(some(), 60)):
        assert isinstance(error, RunError) and "nothing came of" in error.message and "3" in error.message

    async def all_() -> list[Member]:
        return await asyncio.gather(*(peer(one, at, where, tmp_path) for at in range(len(NAMES))))

    assert same(asyncio.run(asyncio.wait_for(all_(), 60)), simulated(one))


def test_sketches_are_read_strictly_and_their_noise_is_a_secret(tmp_path: Path) -> None:
    one = experiment("dpsgd", "related:2,8,0.1")
    data = one.divide(one.load())

    def told(place: Path | None) -> Record:
        return member_of(one, checked(one), data, 0, NAMES, place).sketch()

    first = told(tmp_path / "a")
    assert torch.equal(first.sketch, told(tmp_path / "a").sketch)
    assert not torch.equal(first.sketch, told(tmp_path / "b").sketch)
    assert not torch.equal(first.sketch, told(None).sketch)
    made = member(one, 1)
    assert torch.equal(made.read_sketch(codec.encode(first), first).sketch, first.sketch)
    for wrong in (Record(), Record(sketch=first.sketch[1:]), Record(sketch=first.sketch / 0)):
        with pytest.raises(CodecError):
            made.read_sketch(codec.encode(wrong), first)


def test_noise_is_a_secret_and_drawn_once_for_a_round(tmp_path: Path) -> None:
    one = experiment("dpsgd", "ring", channel="clip:0.2 | local:0.5")
    data, names = one.divide(one.load()), NAMES

    def offers(place: Path | None) -> torch.Tensor:
        made = member_of(one, checked(one), data, 0, names, place)
        made.train(1)
        return made.offered.model  # type: ignore[no-any-return]

    first = offers(tmp_path / "a")
    assert torch.equal(first, offers(tmp_path / "a"))  # who is broken off says the same again, and no more
    assert not torch.equal(first, offers(tmp_path / "b"))
    assert not torch.equal(first, offers(None))
    assert (tmp_path / "a" / "noise.key").stat().st_mode & 0o077 == 0


def test_what_is_not_finite_is_not_mixed() -> None:
    one = experiment("dpsgd", "ring")
    first, second = member(one, 0), member(one, 1)
    for each in (first, second):
        each.train(1)
    bad = second.offered.replace(model=second.offered.model.clone())
    bad.model[3] = float("nan")
    body = second.message(bad, first=True).body
    with pytest.raises(atoll.AtollError, match="not finite"):
        first.read(1, body, True)
    with pytest.raises(atoll.AtollError):
        first.read(1, body[:-1], True)


@pytest.mark.parametrize("method", ["dpsgd", "choco"])
def test_what_has_another_form_is_not_mixed(method: str) -> None:
    one = experiment(method, "ring")
    first, second = member(one, 0), member(one, 1)
    for each in (first, second):
        each.train(1)
    fine = second.message(second.offered, first=True).body
    sent = codec.decode(fine)
    name = next(iter(sent))
    wrongs = [Record(), sent.replace(more=torch.zeros(1)), sent.replace(**{name: torch.zeros(3)})]
    if method == "choco":  # the right shapes, and places that lie outside
        places = torch.full_like(sent.change.places, 32767)
        wrongs.append(sent.replace(change=sent.change.replace(places=places)))
    for wrong in wrongs:
        with pytest.raises(CodecError):
            first.read(1, codec.encode(wrong), False)
    assert first.read(1, fine, False)


def test_another_run_at_a_place_is_not_gone_on_with(tmp_path: Path) -> None:
    one, other = experiment("dpsgd", "ring"), experiment("dpsgd", "ring", seed=1)
    made = member(one, 0)
    assert (
        len({alike(each, made, NAMES) for each in (one, other, experiment("dpsgd", "ring", rounds=5))}) == 3
    )
    with Book(tmp_path, alike(one, made, NAMES), made, NAMES, LABELS, []):
        pass
    with pytest.raises(ConfigError), Book(tmp_path, alike(other, made, NAMES), made, NAMES, LABELS, []):
        pass


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"method": "fedavg"}, "needs a server"),
        ({"devices": "lognormal:1.5"}, "is for a simulation"),
        ({"cohort": 2}, "is for a simulation"),
    ],
)
def test_what_is_for_a_server_or_a_simulation_is_refused(more: dict[str, Any], problem: str) -> None:
    given = {"data": "digits", "method": "dpsgd", **more}
    with pytest.raises(ConfigError, match=problem):
        checked(Experiment.read(**given))
