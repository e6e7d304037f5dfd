"""Rules in the place of a mean: in every engine, in rounds of every kind, and after a break."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import atoll
from atoll.channel import Momentum, Update
from atoll.channel.robust import Means, Robust, Several
from atoll.contract import Change, Channel, Job, Mean, Replies, Reply, Work
from atoll.data import Samples
from atoll.errors import ConfigError, RunError
from atoll.federation import Federation
from atoll.methods import FedAvg
from atoll.robust import Krum, aggregate, parse
from atoll.tensors import Record, leaves
from tests.contract.test_seams import bits, data, federation


def flat(state: Record) -> Tensor:
    return torch.cat([v.float().flatten() for v in leaves(state) if isinstance(v, Tensor)])


def robust(
    rule: Any = "trimmed:1", method: Any = "fedavg", engine: str = "loop", **settings: Any
) -> Federation:
    return federation(method, engine, aggregate=rule, **settings)


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("scaffold", "nnm + trimmed:1"),
        pytest.param("fedavg", "cclip:0.5,2", marks=pytest.mark.slow),
        pytest.param("fedavg", "bucket:2 + median", marks=pytest.mark.slow),
    ],
)
def test_engines_agree(method: str, rule: str) -> None:
    made = [robust(rule, method, engine) for engine in ("loop", "batched", "processes")]
    kept = [each.fit(progress=False).rounds[-1].clients["kept"] for each in made]
    for each, counted in zip(made[1:], kept[1:], strict=True):
        assert torch.allclose(flat(made[0].state), flat(each.state), rtol=1e-4, atol=1e-5)
        assert counted == pytest.approx(kept[0], abs=1e-3)


def test_workers_make_no_difference_to_a_bit() -> None:
    one, two = (robust("nnm + trimmed:1", engine="processes", workers=n) for n in (1, 2))
    assert one.fit(progress=False) and two.fit(progress=False)
    assert bits(one.state) == bits(two.state)


def test_the_mean_of_all_alike_is_that_of_equal_weights() -> None:
    settings: dict[str, Any] = {
        "rounds": 3,
        "cohort": 4,
        "seed": 5,
        "batch_size": 4,
        "engine": "loop",
        "device": "cpu",
    }
    plain = Federation(_network, data().weigh("equal"), **settings)
    made = Federation(_network, data(), aggregate="mean", **settings)
    assert plain.fit(progress=False) and made.fit(progress=False)
    assert torch.allclose(flat(plain.state), flat(made.state), atol=1e-6)


def _network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    )


@pytest.mark.parametrize("rule", ["cclip:0.5,2", "bucket:2 + median", "flame:0.01"])
def test_a_run_that_was_broken_off_ends_in_the_same_bits(rule: str, tmp_path: Path) -> None:
    whole = robust(rule, rounds=4)
    whole.fit(progress=False)
    robust(rule, rounds=2, runs=str(tmp_path), checkpoint=1).fit(progress=False)
    again = robust(rule, rounds=4, runs=str(tmp_path), checkpoint=1).resume("last")
    again.fit(progress=False)
    assert bits(again.state) == bits(whole.state)
    assert again.simulation.progress.told.step == 4
    if rule.startswith("cclip"):
        assert bits(again.simulation.progress.told.centre) == bits(whole.simulation.progress.told.centre)


@pytest.mark.parametrize("pace", ["buffered:4", "sync"])
def test_on_the_virtual_clock(pace: str) -> None:
    made = robust("median", devices="lognormal:1.0", pace=pace)
    last = made.fit(progress=False).rounds[-1]
    kept = np.array(last.clients["kept"], float)
    assert np.nansum(kept) == pytest.approx(4, abs=1e-3) and np.count_nonzero(kept == kept) == 4
    free = federation("fedavg", devices="lognormal:1.0", pace=pace)
    free.fit(progress=False)
    assert not torch.equal(flat(made.state), flat(free.state))


def test_other_transforms_come_before() -> None:
    made = robust("median", channel="momentum:0.5 | clip:0.01,0.5 | int8")
    run = made.fit(progress=False)
    norm = made.simulation.progress.told.inner["1"].norm
    assert float(norm) != pytest.approx(0.01)  # its quantile is followed
    assert "kept" in run.rounds[-1].clients
    assert run.to_dict()["robust"]["updates"] == 16
    assert "robust" not in federation("fedavg", rounds=1).fit(progress=False).to_dict()


# --- one step by hand -----------------------------------------------------------------------------------------------


def _learned(rule: Any, method: str = "scaffold") -> tuple[Federation, list[Record], Replies]:
    made = robust(rule, method)
    job = made.simulation.opened(made.state, made.simulation.enlist(1)[0], 1).job
    assert job is not None
    reducer, rng = job.reducer(), np.random.default_rng(1)
    values = []
    for client in job.clients:
        form = job.form(client)
        counters = {k: torch.tensor(client) for k in form.counters}
        random = {
            name: form[name].map(lambda v: torch.from_numpy(rng.normal(size=v.shape)).float())
            for name in ("update", "buffers", "control")
        }
        values.append(Record(random, counters=type(form.counters)(counters)))
        reducer.add(client, Reply(values[-1], torch.tensor(1.0), Record()))
    replies = reducer.result()
    assert replies is not None and made.simulation.channel is not None
    return made, values, made.simulation.channel.learn(made.simulation.progress.told, replies)[1]


def _vector(values: Record) -> Tensor:
    return torch.cat(
        [v.flatten() for name in ("update", "buffers", "control") for v in values[name].values()]
    )


@pytest.mark.parametrize("rule", ["krum:0", "geometric", "trimmed:1"])
def test_all_that_is_sent_is_one_vector(rule: str) -> None:
    _, values, replies = _learned(rule)
    wanted = aggregate(torch.stack([_vector(each) for each in values]), rule)
    assert torch.allclose(_vector(replies.mean), wanted, atol=1e-6)
    assert int(next(iter(replies.mean.counters.values()))) == max(
        replies.clients
    )  # the rule that the method declares
    assert replies.weight == 4 and sum(replies.kept.values()) == pytest.approx(4)


def test_rules_may_be_objects() -> None:
    made = robust([Krum(0)])
    assert made.settings.aggregate == "krum:0" == robust(Krum(0)).settings.aggregate


def test_replies_without_weight_are_left_out_and_too_few_teach_nothing() -> None:
    made = robust("trimmed:1")
    job = made.simulation.opened(made.state, made.simulation.enlist(1)[0], 1).job
    assert job is not None
    for idle, found in ((1, True), (2, False)):
        reducer = job.reducer()
        for at, client in enumerate(job.clients):
            reducer.add(client, Reply(job.form(client), torch.tensor(float(at >= idle)), Record()))
        replies = reducer.result()
        assert (replies is not None) == found
        if replies is not None:
            assert made.simulation.channel is not None
            kept = made.simulation.channel.learn(made.simulation.progress.told, replies)[1].kept
            assert sorted(kept) == sorted(job.clients[1:])


def test_updates_that_differ_in_form_are_said_to() -> None:
    made = robust("median")
    channel = made.simulation.channel
    assert channel is not None
    each = [Reply(Record(update=torch.zeros(n)), torch.tensor(1.0), Record()) for n in (2, 3)]
    with pytest.raises(RunError, match="differ in form"):
        channel.learn(channel.begin(), Replies([0, 1], 2.0, each=each))


def bare(rule: str, **more: Any) -> Robust:
    return Robust(Channel(), aggregation=parse(rule), **more)


def replies(*each: Record) -> Replies:
    counted = [Reply(values, torch.tensor(1.0), Record()) for values in each]
    return Replies([*range(len(each))], float(len(each)), each=counted)


def test_the_servers_data_stay_with_it() -> None:
    made = bare("fltrust", root=lambda job: Reply(Record(), torch.tensor(1.0), Record()))
    assert made.root is not None and copy.copy(made).root is None  # a copy is what workers get


def test_nobody_reports_more_than_a_share_of_one() -> None:
    """Of groups it is a mean, which nobody can bound any more."""
    each = [Record(update=torch.zeros(2), channel=Record(over=torch.tensor(v))) for v in (5.0, -3.0, 0.5)]
    made, given = bare("median"), replies(*each)
    assert float(made.learn(made.begin(), given)[1].mean.channel.over) == 1.5
    made, means = bare("groups:3 + median"), Means([0, 1, 2], 3.0, each=given.each, groups=[[0], [1], [2]])
    assert float(made.learn(made.begin(), means)[1].mean.channel.over) == 5.5


def test_whole_numbers_have_no_middle() -> None:
    made = bare("median")
    with pytest.raises(RunError, match="update of the replies holds whole numbers") as caught:
        made.learn(made.begin(), replies(Record(update=torch.tensor([1, 2]))))
    assert "'max'" in str(caught.value.hint)


def test_the_servers_own_update_has_the_form_of_the_others() -> None:
    made, given = bare("fltrust"), replies(*[Record(update=torch.ones(3))] * 3)
    given.beside = Reply(Record(update=torch.ones(2)), torch.tensor(1.0), Record())
    with pytest.raises(RunError, match="differ in form"):
        made.learn(made.begin(), given)


def test_what_would_be_added_up_comes_as_many_times() -> None:
    made = bare("median", rules=(("update", "sum"),))
    assert (
        made.learn(made.begin(), replies(*[Record(update=torch.ones(3))] * 4))[1].mean.update.tolist()
        == [4.0] * 3
    )


@pytest.mark.parametrize("change", [None, Change("update", since="params")])
def test_what_is_no_change_of_a_model_has_no_middle(change: Change | None) -> None:
    with pytest.raises(ConfigError, match="does not send that"):
        robust("median", type("Other", (FedAvg,), {"change": change})())


# --- groups ---------------------------------------------------------------------------------------------------------


def grouped(channel: str | None, rule: str = "groups:3 + median", **settings: Any) -> Federation:
    usual = {"rounds": 2, "cohort": 12, "seed": 5, "device": "cpu", "batch_size": 4, "engine": "loop"}
    network = lambda: torch.nn.Linear(6, 3)  # noqa: E731
    return Federation(
        network, data(range(9, 23)), "scaffold", aggregate=rule, channel=channel, **{**usual, **settings}
    )


def test_groups_behind_secure_aggregation_are_the_means_of_groups() -> None:
    plain, ideal, played = (grouped(channel) for channel in (None, "secagg:20", "secagg:20,protocol"))
    runs = [each.fit(progress=False) for each in (plain, ideal, played)]
    assert bits(ideal.state) == bits(played.state)
    for run in runs[1:]:
        kept = np.array(run.rounds[0].clients["kept"])
        assert len(kept) == 12 and kept.sum() == pytest.approx(12, abs=1e-3) and len(np.unique(kept)) <= 3
    plain, ideal = grouped(None), grouped("secagg:20")
    job = ideal.simulation.opened(ideal.state, ideal.simulation.enlist(1)[0], 1).job
    assert job is not None
    reducer, _ = ideal.engine.run(job, ideal.memories)
    replies = reducer.result()
    assert replies is not None and len(replies.each) == 3
    bare = plain.engine.run(
        plain.simulation.opened(ideal.state, plain.simulation.enlist(1)[0], 1).job, plain.memories
    )
    every = dict(zip(bare[0].clients, bare[0].replies, strict=True))
    for group, mean in zip(replies.groups, replies.each, strict=True):
        wanted = torch.stack([every[client].values.update.flat() for client in group]).mean(0)
        assert torch.allclose(mean.values.update.flat(), wanted, atol=1e-4)


@pytest.mark.parametrize(("rule", "enough"), [("median", True), ("trimmed:1", False)])
def test_a_group_of_too_few_is_left_out_and_the_others_stay(rule: str, enough: bool) -> None:
    made = grouped("secagg:20", f"groups:3 + {rule}")
    job = made.simulation.opened(made.state, made.simulation.enlist(1)[0], 1).job
    assert job is not None
    all_of_them: Any = made.engine.run(job, made.memories)[0]
    every = all_of_them.result()
    gone, fewer = every.groups[0][:2], job.reducer()
    for client, reply in zip(all_of_them.clients, all_of_them.replies, strict=True):
        if client not in gone:
            fewer.add(client, reply)
    found: Any = fewer.result()
    assert (found is not None) == enough
    if enough:
        assert found.groups == every.groups[1:]


def test_groups_must_hide() -> None:
    with pytest.raises(ConfigError, match="a sum of fewer than 3 hides nobody"):
        grouped("secagg", "groups:5 + median")
    with pytest.raises(ConfigError, match="trimmed:2 needs 2f"):
        grouped("secagg", "groups:3 + trimmed:2")


# --- the server's own data ------------------------------------------------------------------------------------------


def rooted(engine: str = "loop", **settings: Any) -> Federation:
    rng = np.random.default_rng(8)
    inputs = torch.from_numpy(rng.normal(size=(20, 6)).astype(np.float32))
    root = Samples(inputs, torch.from_numpy(rng.integers(0, 3, 20)))
    usual = {"rounds": 3, "cohort": 4, "seed": 5, "device": "cpu", "batch_size": 4, "aggregate": "fltrust"}
    return Federation(_network, data().entrust(root), "scaffold", engine=engine, **{**usual, **settings})


def test_the_server_trains_on_its_own_data_and_trusts_by_it(tmp_path: Path) -> None:
    made = [rooted(engine) for engine in ("loop", "processes")]
    for each in made:
        each.fit(progress=False)
    assert torch.allclose(flat(made[0].state), flat(made[1].state), rtol=1e-4, atol=1e-5)
    rooted(rounds=2, runs=str(tmp_path), checkpoint=1).fit(progress=False)
    again = rooted(runs=str(tmp_path), checkpoint=1).resume("last")
    again.fit(progress=False)
    assert bits(again.state) == bits(made[0].state)


def test_trust_in_one_step_by_hand() -> None:
    made = rooted()
    job = made.simulation.opened(made.state, made.simulation.enlist(1)[0], 1).job
    assert job is not None and made.simulation.channel is not None
    reducer, _ = made.engine.run(job, made.memories)
    replies = reducer.result()
    assert replies is not None and replies.beside is not None
    rows = torch.stack([_vector(each.values) for each in replies.each])
    wanted = aggregate(rows, "fltrust", beside=_vector(replies.beside.values))
    found = made.simulation.channel.learn(made.simulation.progress.told, replies)[1]
    assert torch.allclose(_vector(found.mean), wanted, atol=1e-6)
    assert set(found.kept) == set(job.clients)


def test_root_data_are_set_aside_and_kept(tmp_path: Path) -> None:
    digits = atoll.data.load("digits")
    divided = digits.partition("iid", clients=5, seed=1, root=50, public=20, test=None)
    assert divided.root is not None and divided.root.count == 50
    assert sum(divided.size(k) for k in range(5)) == digits.train.count - 70
    again = atoll.data.FederatedData.load(divided.save(tmp_path / "divided.npz"))
    assert again.root is not None and torch.equal(again.root.targets, divided.root.targets)
    assert divided.choose([1, 2]).root is divided.root
    with pytest.raises(ConfigError, match="sets 50 samples aside for the server, and nothing looks at them"):
        Federation(atoll.models.mlp(64, 10), divided, aggregate="median", device="cpu")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"method": "fedora"}, "puts replies together in a way of its own", "take fedavg"),
        ({"rule": "krum:2"}, "krum:2 needs 2f + 3 = 7 updates or more for f = 2, and there are 4", "f = 0 at most"),
        ({"rule": "trimmed:1", "pace": "fedasync:poly,0.5", "devices": "equal"}, "and there are 1", "cohort to 3"),
        ({"rule": "fltrust"}, "root", "root"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        robust(settings.pop("rule", "median"), **settings)
    assert message in caught.value.message and hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("channel", "message", "hint"),
    [
        ("secagg", "hides them from the server", "groups:4 + median"),
        ("clip:0.5 | noise:1.0", "hides what one client changes in a sum", "local:1.0"),
        ("auto:0.5", "chooses codecs by what clients say that they lose", "int8"),
    ],
)
def test_what_looks_at_sums_is_refused(channel: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Federation(
            lambda: torch.nn.Sequential(torch.nn.Linear(6, 99), torch.nn.Linear(99, 3)),
            data(), cohort=4, channel=channel, aggregate="median", device="cpu",
        )  # fmt: skip
    assert message in caught.value.message and hint in str(caught.value.hint)


def test_a_clipped_centre_is_where_the_last_one_was() -> None:
    rule = Robust(Channel(), aggregation=parse("cclip:1,1"))
    each = [Reply(Record(update=torch.full((1,), v)), torch.ones(()), Record()) for v in (8.0, 9.0, 10.0)]
    state, found = rule.begin(), []
    for _ in range(3):
        state, replies = rule.learn(state, Replies([0, 1, 2], 3.0, each=each))
        found.append(float(replies.mean.update))
    assert found == [1.0, 2.0, 3.0]  # a step of 1 at most from there


def test_a_rule_is_for_training_alone_and_all_count_the_same() -> None:
    made = robust("median")
    made.fit(progress=False)
    rule = made.simulation.channel
    assert isinstance(rule, Robust) and rule.equal
    work = Work(Record(), program="evaluate")
    job = Job(made.method, work, [0], 1, 0, channel=rule)
    assert type(rule.reducer(job, Mean())) is Mean
    assert type(rule.reducer(replace(job, work=Work(Record())), Mean())) is Several


def test_weights_of_the_data_must_be_equal() -> None:
    weighed = data().weigh({"site0": 2.0})
    with pytest.raises(ConfigError, match="counts all clients alike"):
        Federation(_network, weighed, "fedavg", cohort=4, aggregate="median", device="cpu")


# --- momentum -------------------------------------------------------------------------------------------------------


def test_momentum_is_a_mean_of_what_was_sent() -> None:
    plain, made = (
        federation("fedavg", rounds=1, cohort=7, channel=channel) for channel in (None, "momentum:0.9")
    )
    plain.fit(progress=False)
    made.fit(progress=False)
    assert bits(plain.state) == bits(made.state)  # at first it is what it is
    memory = made.memories.get(0)
    assert memory is not None and float(memory.channel["0"].begun) == 1
    twice, own = (
        Momentum(0.75, shapes=(((3,),),)),
        Record({"0": torch.tensor([4.0, 0.0, 8.0])}, begun=torch.tensor(1.0)),
    )
    update = Update(Record(u=torch.tensor([0.0, 4.0, 8.0])), torch.tensor(1.0), Record(), Record())
    sent, kept = twice.send(update, Record(), own, torch.tensor(0))
    assert sent.values.u.tolist() == kept["0"].tolist() == [3.0, 1.0, 8.0]
    _, kept = twice.send(update._replace(weight=torch.tensor(0.0)), Record(), own, torch.tensor(0))
    assert kept["0"].tolist() == [4.0, 0.0, 8.0]


@pytest.mark.parametrize("engine", ["batched", pytest.param("processes", marks=pytest.mark.slow)])
def test_momentum_in_every_engine(engine: str) -> None:
    made = [federation("scaffold", e, channel="momentum:0.9 | clip:1") for e in ("loop", engine)]
    for each in made:
        each.fit(progress=False)
    assert torch.allclose(flat(made[0].state), flat(made[1].state), rtol=1e-4, atol=1e-5)


def test_momentum_comes_first() -> None:
    with pytest.raises(ConfigError, match="a mean of the past is what is bounded"):
        federation("fedavg", channel="clip:1 | momentum:0.9")
    with pytest.raises(ConfigError, match="no differences that add up"):
        federation("fedamp", channel="momentum:0.9")
