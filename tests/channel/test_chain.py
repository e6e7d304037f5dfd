"""Chains of transforms: what they do to updates in every engine, what they refuse, and what they cost nobody."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import atoll
from atoll.callbacks import Callback
from atoll.channel import Chain, Clip, Noise, SecAgg, Setting, channel
from atoll.channel.chain import Sending
from atoll.channel.transform import Transform, Update
from atoll.contract import Change, Job, Reply, Work
from atoll.errors import CodecError, ConfigError, RunError
from atoll.federation import Federation
from atoll.methods import FedAvg
from atoll.rounds.choosing import Ask, Poisson
from atoll.rounds.history import Round
from atoll.tensors import Record, Tensors, leaves

ENGINES = ("loop", "batched", "processes")


@cache
def data(weights: str | None = None) -> Any:
    made = atoll.data.load("digits").partition(atoll.data.Dirichlet(clients=12, alpha=0.5), seed=0)
    return made if weights is None else made.weigh(weights)


def federation(
    channel: Any = None, method: str = "fedavg", engine: str = "loop", weights: str | None = None, **more: Any
) -> Federation:
    usual = {"rounds": 2, "cohort": 5, "lr": 0.1, "seed": 1, "device": "cpu", "eval_every": 0, "workers": 2}
    settings = {**usual, **more}
    return Federation(
        lambda: atoll.models.mlp(64, 16, 10),
        data(weights),
        method,
        engine=engine,
        channel=channel,
        **settings,
    )


def model(channel: Any = None, *args: Any, **more: Any) -> Tensor:
    made = federation(channel, *args, **more)
    made.fit(progress=False)
    return made.state.params.flat()  # type: ignore[no-any-return]


# --- texts and orders -----------------------------------------------------------------------------------------------


def test_a_chain_reads_as_it_is_written() -> None:
    for text in (
        "clip:0.5",
        "clip:0.5,0.5",
        "clip:0.1,0.5,0.3 | noise:1.5",
        "clip:1 | noise:1,3 | secagg:16",
    ):
        assert channel(text).text == text  # type: ignore[attr-defined]
    made = Chain([Clip(0.5), Noise(1.0)])
    assert channel("clip:0.5 | noise:1.0") == made == channel([Clip(0.5), Noise(1.0)])
    assert hash(made) == hash(channel(made.text))
    assert channel("secagg:20,protocol,range=0.5") == Chain([SecAgg(20, "protocol", 0.5)])


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("noise:1 | clip:2", "noise needs clip before it", "clip:0.5 | noise:1"),
        ("clip:1 | secagg | noise:1", "noise stands behind secagg", "noise:1 | secagg:16"),
        ("secagg | clip:1", "clip stands behind secagg", "clip:1 | secagg:16"),
        ("clip:1 | clip:2", "clip stands in it twice", "once"),
        ("clip:0", "norm = 0.0 must be above 0", "inf"),
        ("clip:1,1.5", "quantile = 1.5", None),
        ("clip:inf,0.5", "cannot be where an adaptive bound begins", "0.1"),
        ("clip:1 | noise:-1", "multiplier = -1.0 must be 0 or above", None),
        ("clip:nan", "norm = 'nan' is not", None),
        ("clap:3", "unknown channel 'clap'", "did you mean 'clip'?"),
        ("clip:1 |", "a name is missing", None),
        ("secagg:99", "bits = 99", "16"),
        ("secagg:16,sometimes", 'is not "ideal" or "protocol"', None),
    ],
)
def test_what_cannot_be_is_refused_at_once(text: str, says: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as error:
        channel(text)
    assert says in str(error.value)
    assert hint is None or hint in str(error.value.hint)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"channel": "clip:inf | noise:1"}, "without a bound"),
        ({"method": "fedfomo"}, "needs each client's reply"),
        ({"choose": "importance"}, "both say who is asked"),
        ({"choose": "oort", "sampling": "fixed"}, "looks at what single clients answered"),
        ({"choose": "weighted", "sampling": "fixed"}, "what that gives away"),
        ({"devices": "equal", "pace": "buffered:3"}, "asynchronous"),
        ({"devices": "equal", "late": "keep", "deadline": 60}, "kept for later"),
        ({"devices": "equal", "over_select": 1.5}, "depends on others"),
        ({"adaptive": "adacomm"}, "learns from clients' losses"),
        ({"channel": "secagg", "cohort": 2}, "hides nobody"),
        ({"channel": "secagg", "weights": "size"}, "weights of their own"),
        ({"channel": "clip:0.1,0.5 | noise:1", "cohort": 3}, "too few for a bound that adapts"),
    ],
)
def test_what_would_undo_it_is_refused_before_anything_runs(settings: dict[str, Any], says: str) -> None:
    given = {"channel": "clip:1 | noise:1", "cohort": 5, **settings}
    made = _validated() if given.get("method") == "fedfomo" else data()
    if given.pop("weights", None):
        made = made.weigh({str(name): 1.0 + k for k, name in enumerate(made.names)})
    with pytest.raises(ConfigError, match=says):
        Federation(lambda: atoll.models.mlp(64, 10), made, **given)


def _validated() -> Any:
    x, y = torch.randn(60, 64), torch.arange(60) % 10
    parts = {f"site{k}": {"train": (x[k::3], y[k::3])} for k in range(6)}
    return atoll.data.from_clients(parts, classes=10, validation=4)


def test_whole_numbers_cannot_be_blurred_or_summed() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    for text in ("clip:1 | noise:1", "secagg"):
        with pytest.raises(ConfigError, match="counts its batches") as error:
            Federation(network, data(), cohort=5, channel=text)
        assert "GroupNorm" in str(error.value.hint)
    Federation(network, data(), cohort=5, channel="clip:1")


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedadam", "ditto"])
def test_a_bound_that_nothing_reaches_and_no_noise_change_no_bit(method: str) -> None:
    assert torch.equal(model("clip:inf", method), model(None, method))
    assert torch.equal(model("clip:inf | noise:0", method), model(None, method, weights="equal"))


@pytest.mark.parametrize("text", ["clip:0.2", "clip:0.2 | noise:0.5,7", "clip:0.1,0.5 | noise:0.1,7"])
def test_engines_agree(text: str) -> None:
    alone = model(text)
    for engine in ENGINES[1:]:
        torch.testing.assert_close(model(text, engine=engine), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_sums_of_whole_numbers_are_the_same_to_the_bit_in_every_engine(method: str) -> None:
    # training itself differs in the last bits: what differs must be no more than one step of one number
    models = [model("secagg:16", method, engine=engine) for engine in ENGINES]
    for other in models[1:]:
        torch.testing.assert_close(other, models[0], rtol=0, atol=2 / 2**16)
    plain = model(None, method)
    assert 0 < float((models[0] - plain).abs().max()) < 0.01


# --- bounds ---------------------------------------------------------------------------------------------------------


def sent(transform: Transform, values: Record, weight: float = 1.0, told: Record | None = None) -> Update:
    update = Update(values, torch.tensor(weight), Record(), Record())
    return transform.send(update, told or transform.begin(), Record(), torch.tensor(5))[0]


@given(
    parts=st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5), min_size=1, max_size=4),
    norm=st.floats(0.01, 100),
)
def test_all_that_is_sent_has_one_bound(parts: list[list[float]], norm: float) -> None:
    values = Record({f"field{k}": Tensors(w=torch.tensor(part)) for k, part in enumerate(parts)})
    found = sent(Clip(norm), values)
    flat, before = (torch.cat([v.flatten() for v in leaves(v)]) for v in (found.values, values))
    assert float(flat.double().norm()) <= norm * (1 + 1e-5)
    inside = float(before.double().norm()) <= norm * (1 - 1e-5)
    if inside:
        assert torch.equal(flat, before)
        assert float(found.metrics.clipped) == 0


def test_a_clip_acts_on_control_variates_too() -> None:
    """Clipping the difference of the model alone would leave SCAFFOLD's control variates unbounded."""
    seen: list[float] = []

    class Watching(Clip):
        def send(self, update: Update, told: Record, own: Record, key: Tensor) -> tuple[Update, Record]:
            found, own = super().send(update, told, own, key)
            seen.append(math.sqrt(sum(float(v.square().sum()) for v in leaves(found.values))))
            assert len(found.values) > 2
            return found, own

    model([Watching(0.01)], "scaffold", rounds=1)
    assert len(seen) == 5
    assert max(seen) == pytest.approx(0.01, rel=1e-4)


def test_an_adaptive_bound_follows_the_quantile_to_five_percent() -> None:
    generator = torch.Generator().manual_seed(0)
    clip = Clip(0.1, quantile=0.3, rate=0.2)
    state = clip.begin()
    for _ in range(200):
        norms = torch.randn(400, generator=generator).exp()
        inside = (norms <= state.norm).sum()
        state, _ = clip.learn(state, Record(), Record(inside=inside), 400)
    exact = math.exp(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.3)).item())
    assert float(state.norm) == pytest.approx(exact, rel=0.05)


# --- noise ----------------------------------------------------------------------------------------------------------


def fitted(text: str, cohort: int = 10, seed: int = 0, equal: bool = False, heaviest: float = 1.0) -> Chain:
    expected = Record(update=Tensors(w=torch.zeros(1000)))
    made = channel(text)
    assert isinstance(made, Chain)
    return made.fitted(FedAvg(), expected, Setting(cohort, heaviest, seed, equal))


def job(chain: Chain, clients: int = 10, number: int = 1) -> Job:
    told = chain.tell(chain.begin())
    shared = Record(channel=told) if told else Record()
    expected = Record(update=Tensors(w=torch.zeros(1000)))
    return Job(FedAvg(), Work(shared), range(clients), number, 3, expected, channel=chain)


def reply(chain: Chain, value: float | Tensor, weight: float = 1.0, number: int = 0) -> Reply:
    values = Record(update=Tensors(w=torch.zeros(1000) + value))
    around = Sending(FedAvg(), Change("update"), chain.transforms)
    told = chain.tell(chain.begin())
    received = Record(channel=told) if told else Record()
    plain = Reply(values, torch.tensor(weight), Record())
    return around.send(plain, received, Record(), Record(), torch.tensor(number))[0]


def released(chain: Chain, replies: list[Reply], number: int = 1) -> Tensor:
    reducer = job(chain, len(replies), number).reducer()
    for client, each in enumerate(replies):
        reducer.add(client, each)
    found = reducer.result()
    assert found is not None
    return chain.learn(chain.begin(), found)[1].mean.update["w"]  # type: ignore[no-any-return]


def test_noise_has_the_deviation_it_says_and_a_fixed_denominator() -> None:
    chain = fitted("clip:0.5 | noise:2.0,1", cohort=10)
    for came in (0, 4, 10, 13):
        value = released(chain, [reply(chain, 0.001)] * came) * 10
        assert float(value.mean()) == pytest.approx(came * 0.001, abs=4 * 1.0 / math.sqrt(1000))
        assert float(value.std()) == pytest.approx(2.0 * 0.5, rel=0.1)
    assert not torch.equal(released(chain, [], 1), released(chain, [], 2))


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_one_client_more_moves_the_sum_by_no_more_than_the_bound(method: str) -> None:
    """Sensitivity by construction: what all send with and without one of them, before noise."""
    norm, cohort = 0.05, 5

    def total(clients: list[int]) -> Tensor:
        made = federation(f"clip:{norm} | noise:0", method, rounds=1, sampling="fixed")
        round = made.simulation.opened(made.state, made.simulation.cohorts.enlist(1, Record())[0], 1)
        assert round.job is not None
        job = replace(round.job, clients=clients, weights=dict.fromkeys(clients, 1.0))
        reducer, _ = made.engine.run(job, made.memories)
        found = reducer.result()
        assert found is not None
        return torch.cat([v.flatten() for v in leaves(found.mean)]) * cohort

    for left in (0, 3):
        everybody, others = total([0, 1, 2, 3]), total([k for k in range(4) if k != left])
        moved = float((everybody - others).norm())
        assert 0.5 * norm < moved <= norm * (1 + 1e-4)


def test_secret_noise_is_never_the_same_and_seeded_noise_always() -> None:
    assert not torch.equal(model("clip:0.5 | noise:1"), model("clip:0.5 | noise:1"))
    assert torch.equal(model("clip:0.5 | noise:1,4"), model("clip:0.5 | noise:1,4"))
    assert not torch.equal(model("clip:0.5 | noise:1,4"), model("clip:0.5 | noise:1,5"))


def test_an_adaptive_bound_takes_its_share_of_the_noise() -> None:
    made = fitted("clip:0.1,0.5 | noise:1.0", cohort=100).noise
    assert made is not None
    assert made.blur == 5.0
    assert made.on_updates == pytest.approx((1 - (2 * 5.0) ** -2) ** -0.5)


def test_coins_are_independent_and_make_a_cohort_on_average() -> None:
    def ask(number: int) -> Ask:
        return Ask(number, 0, 0, 3, 12, lambda k: k >= 0, lambda k: k, lambda k: k * 0.0)

    draws = [Poisson().draw(Record(), ask(number)).clients for number in range(4000)]
    counts = torch.tensor([float(len(each)) for each in draws])
    assert float(counts.mean()) == pytest.approx(3.0, rel=0.05)
    assert float(counts.var()) == pytest.approx(12 * 0.25 * 0.75, rel=0.1)
    together = sum(0 in each and 1 in each for each in draws) / len(draws)
    assert together == pytest.approx(1 / 16, rel=0.2)
    assert any(not each for each in draws)


def test_a_round_in_which_nobody_is_asked_still_blurs() -> None:
    made = federation("clip:0.5 | noise:1,2", cohort=1, rounds=6)
    before, empty = made.state.params.flat(), 0
    for record in made.play():
        after = made.state.params.flat()
        assert not torch.equal(after, before)
        before, empty = after, empty + (not record.cohort)
    assert empty


# --- sums -----------------------------------------------------------------------------------------------------------


def test_the_server_is_given_whole_numbers_and_their_sum_is_exact() -> None:
    chain = fitted("secagg:16", heaviest=40.0)
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(1000, generator=generator) * 0.2 for _ in range(10)]
    weights = [float(1 + 4 * k) for k in range(10)]
    replies = [reply(chain, v, w, k) for k, (v, w) in enumerate(zip(values, weights, strict=True))]
    for each in replies:
        assert all(not v.is_floating_point() for v in leaves(each.values))
        assert float(each.weight) == 1.0  # what a client counts for is hidden as well
    shares = torch.tensor([float(each.values.channel.weight) for each in replies])
    torch.testing.assert_close(shares / 256, torch.tensor(weights) / 40, atol=1 / 500, rtol=0)
    found = released(chain, replies)
    mean = sum(s * v for s, v in zip(shares, values, strict=True)) / shares.sum()
    assert float((found - mean).abs().max()) < 2 / (2**16 - 1)
    assert abs(float((found - mean).mean())) < 1e-6 * 20  # rounded without bias


def test_what_lies_outside_is_cut_off_and_counted() -> None:
    chain = fitted("secagg:16,range=0.5")
    far = reply(chain, torch.tensor([0.6] * 3 + [0.1] * 997))
    assert int(far.values.channel.cut) == 1
    assert int(reply(chain, 0.5).values.channel.cut) == 0
    found = released(chain, [far] * 3)
    assert float(found[0]) == pytest.approx(0.5, abs=1e-4)
    assert float(found[9]) == pytest.approx(0.1, abs=1e-4)
    assert fitted("clip:0.05 | secagg:16").transforms[1].range == 0.05  # type: ignore[attr-defined]


def test_sums_that_the_ring_cannot_hold_are_refused() -> None:
    fitted("secagg:20", cohort=16)
    with pytest.raises(ConfigError, match="need 33 bits") as error:
        fitted("secagg:20", cohort=17)
    assert "set bits to 19" in str(error.value.hint)
    fitted("secagg:20", cohort=4096, equal=True)


@pytest.mark.parametrize(("value", "weight"), [(math.nan, 1.0), (math.inf, 1.0), (0.1, 1e6), (0.1, math.nan)])
def test_a_client_does_not_hide_what_would_spoil_the_sum(value: float, weight: float) -> None:
    chain = fitted("secagg:16")
    made = reply(chain, torch.tensor([0.0] * 999 + [value]), weight)
    assert not float(made.weight) >= 0  # which the server refuses


@pytest.mark.parametrize("how", ["ideal", "protocol"])
def test_a_sum_of_two_is_not_taken(how: str) -> None:
    chain = fitted(f"secagg:16,{how}")
    for came in range(4):
        reducer = job(chain, 3).reducer()
        for client in range(came):
            reducer.add(client, reply(chain, 0.1, number=client))
        assert (reducer.result() is None) == (came < 3)


def test_clients_without_samples_count_for_nothing() -> None:
    chain = fitted("secagg:16")
    found = [reply(chain, 0.3, 0.0), *[reply(chain, 0.1, 1.0)] * 2]
    assert int(found[0].values.channel.weight) == 0
    assert float(released(chain, found)[5]) == pytest.approx(0.1, abs=1e-4)


# --- runs -----------------------------------------------------------------------------------------------------------


class StopAfter(Callback):
    def on_round_end(self, federation: Federation, record: Round) -> None:
        if record.number == 2:
            federation.stop()


@pytest.mark.parametrize("text", ["clip:0.1,0.5 | noise:0.1,3", "clip:0.1,0.5 | noise:0.1,3 | secagg:16"])
def test_a_run_goes_on_with_what_its_channel_knew(text: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 4, "checkpoint": 1}
    whole = federation(text, **settings)
    whole.fit(progress=False)
    federation(text, **settings, runs=tmp_path, callbacks=[StopAfter()]).fit(progress=False)
    again = federation(text, **settings, runs=tmp_path).resume()
    again.fit(progress=False)
    assert torch.equal(again.state.params.flat(), whole.state.params.flat())
    assert again.simulation.progress.told == whole.simulation.progress.told
    with pytest.raises(ConfigError, match="channel"):
        federation("clip:0.2", **settings, runs=tmp_path).resume()


def test_replies_of_which_all_are_refused_are_no_step_of_noise() -> None:
    with pytest.raises(RunError, match="finite"):
        model("clip:0.5 | noise:1", lr=1e30)


def test_coins_on_the_virtual_clock_keep_whoever_they_draw() -> None:
    """Not the quickest of them, whose place depends on others; and a round without anybody is no pause."""
    made = federation("clip:0.5 | noise:1,2", cohort=2, rounds=12, devices="lognormal:1")
    drawn = federation("clip:0.5 | noise:1,2", cohort=2, rounds=12)
    plain = [list(record.cohort) for record in drawn.play()]
    before, timed = made.state.params.flat(), []
    for record in made.play():
        after = made.state.params.flat()
        assert not torch.equal(after, before)
        before = after
        timed.append(list(record.cohort))
        assert record.clock is not None
        assert record.clock.used == len(record.cohort)
    assert timed == plain
    assert max(map(len, timed)) > 2 and [] in timed


def test_what_is_told_beside_an_update_must_have_its_form() -> None:
    """Which would be added to what others tell, where updates travel unpacked as well."""
    chain = channel("clip:0.5,0.5").settled(Setting(cohort=3))
    assert isinstance(chain, Chain)
    job = Job(FedAvg(), Work(Record()), [0], 1, 0, channel=chain)
    update = Record(update=Tensors(w=torch.ones(2)))
    fine = update.replace(channel=Record(inside=torch.ones(())))
    assert chain.opened(fine, job, 0) == fine
    for wrong in (
        update,
        update.replace(channel=Record(inside=torch.ones(3))),
        update.replace(channel=Record()),
    ):
        with pytest.raises(CodecError, match="tells of itself"):
            chain.opened(wrong, job, 0)
    plain = Chain([Clip(0.5)])
    with pytest.raises(CodecError, match="tells of itself"):
        plain.opened(fine, replace(job, channel=plain), 0)
