"""The round loop, and the classic mistakes of hand-written federated averaging, each as a test that it is not made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import atoll.data
from atoll import models
from atoll.assembly import cohort_size
from atoll.callbacks import Callback
from atoll.contract import ClientData, Mean, Population, Reply, Rule
from atoll.errors import ConfigError, DivergedError, RunError
from atoll.federation import Federation
from atoll.measures import Target
from atoll.methods import FedAdam, FedAvg, FedSGD, Local, Scaffold
from atoll.rounds.choosing import Uniform
from atoll.rounds.cohort import Cohort
from atoll.rounds.history import Round
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors, leaves


def linear(inputs: int = 4, outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def data(sizes: Sequence[int] = (8, 20, 4), features: int = 4, classes: int = 3, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(features, classes))
    made = {}
    for at, n in enumerate(sizes):
        x = rng.normal(size=(n, features)).astype(np.float32)
        made[f"site{at}"] = {"train": (x, (x @ weights).argmax(1)), "test": (x, (x @ weights).argmax(1))}
    return atoll.data.from_clients(made, classes=classes)


def federation(
    model: Any = linear, population: Any = None, method: Any = None, **settings: Any
) -> Federation:
    settings = {"rounds": 3, "engine": "loop", "device": "cpu", "eval_every": 0, **settings}
    return Federation(model, population or data(), method or FedAvg(batch_size=4), **settings)


def reply(value: float, weight: float, **more: Any) -> Reply:
    return Reply(Record(w=torch.tensor([value]), **more), torch.tensor(weight), Record())


def reduced(*replies: Reply, **rules: Rule) -> Record:
    reduction = Mean(rules)
    for client, one in enumerate(replies):
        reduction.add(client, one)
    result = reduction.result()
    assert result is not None
    return result.mean


# --- averaging (1, 3, 15, 16) ---


def test_means_are_weighted_by_samples() -> None:
    assert float(reduced(reply(0.0, 1), reply(1.0, 9)).w) == pytest.approx(0.9, abs=1e-7)
    assert float(reduced(reply(2.0, 5), reply(4.0, 5)).w) == 3.0


def test_integers_never_pass_through_floats() -> None:
    counters = [reply(0.0, 1.0, steps=torch.tensor(10)) for _ in range(6)]
    mean = reduced(*counters, steps="max")
    assert mean.steps.dtype == torch.int64
    assert int(mean.steps) == 10
    large = 2**53 + 1
    assert (
        int(reduced(*[reply(0.0, 1.0, steps=torch.tensor(large)) for _ in range(3)], steps="max").steps)
        == large
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    many = [
        Reply(Record(w=torch.full((1,), 1e-3, dtype=dtype)), torch.tensor(1.0), Record()) for _ in range(1000)
    ]
    mean = reduced(*many).w
    assert mean.dtype == dtype  # what comes out has the type that came in
    assert float(mean) == pytest.approx(float(torch.tensor(1e-3, dtype=dtype)), rel=1e-5)


def test_a_mean_by_parts_is_the_mean_and_comes_in_client_order() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 50))
    parts = []
    for start in (6, 0, 3):
        part = Mean()
        for k in range(start, start + 3):
            part.add(k, Reply(Record(w=torch.from_numpy(values[k])), torch.tensor(float(k + 1)), Record()))
        parts.append(part)
    whole = Mean()
    for part in parts:
        whole.merge(part)
    result = whole.result()
    assert result is not None
    assert result.clients == list(range(9))
    assert result.weight == 45
    want = np.average(values, axis=0, weights=np.arange(1, 10))
    np.testing.assert_allclose(result.mean.w.numpy(), want, rtol=1e-12)


# --- buffers (2, 6, 7) ---


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def test_batchnorm_buffers_are_averaged_and_counters_kept() -> None:
    population = data(sizes=(8, 24))
    fed = federation(Counting, population, FedAvg(batch_size=None, lr=1e-9), cohort=2)
    fed.round()
    means = []
    for k in range(2):
        samples = population.samples(k)
        hidden = fed.task.load(*fed.task.initial()).body[0](samples.inputs)  # type: ignore[index]
        means.append(0.1 * hidden.mean(0))
    want = (8 * means[0] + 24 * means[1]) / 32
    torch.testing.assert_close(fed.state.buffers["body.1.running_mean"], want.detach(), rtol=1e-4, atol=1e-6)
    counter = fed.state.buffers["body.1.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert int(counter) == 1


def test_server_optimisers_leave_variances_positive() -> None:
    fed = federation(Counting, data(sizes=(9, 17, 5)), FedAdam(batch_size=4, server_lr=0.5), rounds=6)
    for _ in range(6):
        fed.round()
    assert float(fed.state.buffers["body.1.running_var"].min()) > 0


def test_frozen_parameters_stay_equal_to_the_bit() -> None:
    model = Counting()
    model.body[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    fed = federation(model, data(sizes=(9, 17, 5)))
    for _ in range(3):
        fed.round()
    body = fed.task.load(*fed.method.model(fed.state)).body
    assert torch.equal(model.body[0].weight, body[0].weight)  # type: ignore[union-attr,index]


# --- ownership and purity (4, 12, 13, 21) ---


def test_the_callers_model_and_replies_are_not_shared() -> None:
    model = linear()
    before = [p.detach().clone() for p in model.parameters()]
    fed = federation(model)
    received = fed.state.params
    fed.round()
    for mine, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(mine, old)
    pointers = {t.data_ptr() for t in received.values()}
    assert pointers.isdisjoint(t.data_ptr() for t in fed.state.params.values())
    assert [record.number for record in fed.run().rounds] == [1]


def test_evaluation_needs_no_gradient_and_means_are_per_sample() -> None:
    task = Task(Counting())
    params, buffers = task.initial()
    x, y = torch.randn(7, 4), torch.randint(0, 3, (7,))
    whole = task.totals(params, buffers, Batch(x, y, torch.ones(7), torch.tensor(0)))
    parts = [
        task.totals(params, buffers, Batch(x[s], y[s], torch.ones(len(x[s])), torch.tensor(0)))
        for s in (slice(0, 5), slice(5, 7))
    ]
    assert not whole.loss.requires_grad
    assert float(whole.loss) == pytest.approx(float(parts[0].loss + parts[1].loss), rel=1e-5)
    assert float(whole.count) == 7


def test_training_after_evaluation_is_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    one = federation(model, method=FedAvg(batch_size=4, lr=0.1), eval_every=1)
    two = federation(model, method=FedAvg(batch_size=4, lr=0.1), eval_every=0)
    for _ in range(3):
        one.round()
        one.evaluate()
        two.round()
    assert torch.equal(one.state.params.flat(), two.state.params.flat())


# --- weights, cohorts, empty and refused clients (5, 18, 19, 20, 22, 26) ---


def test_weights_are_samples_and_not_batches() -> None:
    method = FedAvg(batch_size=32, lr=0.1, epochs=2)
    task = Task(linear())
    received = method.broadcast(method.setup(task, Population(1)), [0]).shared
    for n, batches in ((1, 1), (33, 2)):
        whole = ClientData(torch.tensor(float(n)), torch.tensor(0))
        local = method.begin(task, received, Record(), whole)
        for _ in range(2):
            for rows in np.array_split(np.arange(n), batches):
                b = Batch(
                    torch.randn(len(rows), 4),
                    torch.zeros(len(rows), dtype=torch.int64),
                    torch.ones(len(rows)),
                    torch.tensor(0),
                )
                local = method.step(task, local, b)
        answer, _ = method.finish(task, local, whole)
        assert float(answer.weight) == n


def test_cohorts_are_distinct_nonempty_and_shared_between_methods() -> None:
    population = data(sizes=(5,) * 30)
    cohorts = [
        federation(population=population, method=m, cohort=0.01)
        .simulation.cohorts.enlist(1, Record())[0]
        .clients
        for m in (FedAvg(), FedSGD())
    ]
    assert cohorts[0] == cohorts[1]
    assert len(cohorts[0]) == 1
    ten = federation(population=population, cohort=10)
    drawn = [ten.simulation.cohorts.enlist(number, Record())[0].clients for number in range(1, 60)]
    assert all(len(set(cohort)) == 10 and cohort == sorted(cohort) for cohort in drawn)
    assert {k for cohort in drawn for k in cohort} == set(range(30))


@pytest.mark.parametrize(("population", "size"), [(4, 4), (20, 20), (21, 10), (1000, 10)])
def test_where_nothing_is_said_everybody_takes_part_if_they_are_few(population: int, size: int) -> None:
    assert cohort_size(None, population) == size


def test_cohorts_and_slow_clients_follow_the_seed() -> None:
    def drawn(seed: int, **settings: Any) -> list[Any]:
        settings = {"cohort": 10, "rounds": 3, "seed": seed, **settings}
        fed = federation(population=data(sizes=(5,) * 30), **settings)
        return [[record.cohort, record.dropped] for record in fed.fit().rounds]

    assert drawn(1, stragglers=0.3) == drawn(1, stragglers=0.3)
    assert all(len(d) == 3 and len(c) == 7 and not {*c} & {*d} for c, d in drawn(1, stragglers=0.3))
    whole = [drawn(seed) for seed in (1, 2)]
    assert all(one != other for one, other in zip(*whole, strict=True))
    slow = [[dropped for _, dropped in drawn(seed, cohort=30, stragglers=0.3)] for seed in (1, 2)]
    assert all(one != other for one, other in zip(*slow, strict=True))


@dataclass(frozen=True, kw_only=True)
class Spoiled(FedAvg):
    """Some clients send rubbish."""

    spoil: str = "nan"

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        answer, memory = super().finish(task, local, data)
        bad = data.count == 20.0
        if self.spoil == "nan":
            update = answer.values["update"].map(lambda t: torch.where(bad, torch.nan, t))
            return answer._replace(values=answer.values.replace(update=update)), memory
        if self.spoil == "zero":
            return answer._replace(weight=answer.weight * 0), memory
        if self.spoil == "field":
            return answer._replace(values=Record()), memory
        if self.spoil.startswith("weight"):
            wrong = float(self.spoil.removeprefix("weight "))
            return answer._replace(weight=torch.where(bad, wrong, answer.weight)), memory
        if self.spoil == "all":
            return answer._replace(
                values=answer.values.replace(update=answer.values["update"] * torch.inf)
            ), memory
        update = Tensors({name: t.flatten()[:-1] for name, t in answer.values["update"].items()})
        return answer._replace(values=answer.values.replace(update=update)), memory


class Chosen:
    """The same cohort in every round."""

    seed, choice = 0, Uniform()

    def __init__(self, clients: list[int]) -> None:
        self.clients = clients

    def enlist(self, number: int, state: Record) -> tuple[Cohort, Record]:
        return Cohort(self.clients), state


@pytest.mark.parametrize("engine", ["loop", "batched", "processes"])
def test_a_non_finite_reply_is_refused_named_and_counted(engine: str) -> None:
    spoiled = federation(method=Spoiled(batch_size=4), cohort=3, engine=engine)
    record = spoiled.round()
    spoiled.engine.close()
    assert list(record.refused) == [1]
    assert "non-finite" in record.refused[1]
    clean = federation(population=data(), method=FedAvg(batch_size=4), cohort=3, engine="loop")
    clean.simulation.cohorts = Chosen([0, 2])  # type: ignore[assignment]
    clean.round()
    torch.testing.assert_close(spoiled.state.params.flat(), clean.state.params.flat(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("weight", ["nan", "inf", "-3.0"])
def test_a_weight_that_is_none_is_refused(weight: str, engine: str) -> None:
    fed = federation(method=Spoiled(batch_size=4, spoil=f"weight {weight}"), cohort=3, engine=engine)
    record = fed.round()
    fed.engine.close()
    assert record.refused == {1: f"its weight is {weight}"}
    assert bool(torch.isfinite(fed.state.params.flat()).all())


@pytest.mark.parametrize(
    ("spoil", "engine", "words"),
    [
        *[
            ("shape", engine, r"update\.weight has shape \(11,\), not \(3, 4\)")
            for engine in ("loop", "batched", "processes")
        ],
        *[("field", engine, "it has no 'update'") for engine in ("loop", "batched")],
    ],
)
def test_a_misshapen_reply_is_refused_and_a_run_without_replies_ends(
    spoil: str, engine: str, words: str
) -> None:
    fed = federation(method=Spoiled(batch_size=4, spoil=spoil), cohort=3, engine=engine)
    before = fed.state.params.flat()
    with pytest.raises(Exception, match=words):
        fed.round()
    fed.engine.close()
    assert torch.equal(before, fed.state.params.flat())


def test_zero_total_weight_keeps_the_model() -> None:
    fed = federation(method=Spoiled(batch_size=4, spoil="zero"), cohort=3)
    before = fed.state.params.flat()
    record = fed.round()
    assert not record.refused
    assert torch.equal(before, fed.state.params.flat())


def test_divergence_ends_the_run_and_keeps_the_last_finite_model() -> None:
    fed = federation(method=Spoiled(batch_size=4, spoil="all"), cohort=3)
    with pytest.raises(DivergedError, match="round 1"):
        fed.fit()
    assert torch.isfinite(fed.state.params.flat()).all()
    explosive = federation(method=FedAvg(batch_size=4, lr=1e38), rounds=50)
    with pytest.raises(DivergedError):
        explosive.fit()
    assert torch.isfinite(explosive.state.params.flat()).all()
    assert isinstance(explosive.run().model, nn.Module)


def test_small_clients_train_with_batchnorm() -> None:
    fed = federation(Counting, data(sizes=(1, 5, 9)), FedAvg(batch_size=4, lr=0.1), cohort=3)
    before = fed.state.params.flat()
    record = fed.round()
    assert not record.refused
    assert not torch.equal(before, fed.state.params.flat())


def test_tied_weights_travel_once_and_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    fed = federation(model)
    assert "2.weight" not in fed.state.params
    run = fed.fit()
    assert run.model[2].weight is run.model[0].weight  # type: ignore[index]


# --- the loop itself ---


@dataclass(frozen=True, kw_only=True)
class Explodes(FedAvg):
    """Its fourth model is finite, and nothing that is computed with it."""

    def update(self, state: Record, replies: Any) -> Record:
        state = super().update(state, replies)
        return (
            state.replace(params=state.params.map(lambda v: v * 0 + 3e38)) if int(state.round) == 4 else state
        )


def test_a_model_that_cannot_be_judged_gives_way_to_the_last_that_could() -> None:
    running = federation(method=Explodes(batch_size=4), rounds=6, eval_every=2)
    played = running.play()
    states = [(next(played), running.state)[1] for _ in range(3)]
    with pytest.raises(DivergedError, match="round 4"):
        next(played)
    assert running.state is states[1]


def test_what_is_sent_to_a_client_alone_is_counted() -> None:
    running = federation(method="pfedhn", steps=2, cohort=2)
    before = running.state
    record = running.round()
    work = running.method.broadcast(before, record.cohort)
    assert work.own and record.bytes_down == sum(work.nbytes(client) for client in record.cohort) > 0


def test_another_method_takes_the_settings_that_it_knows() -> None:
    given = Federation(linear, data(), "fedprox", mu=0.5, lr=0.3, rounds=2, engine="loop", device="cpu")
    other = given.replace(method="fedavg")
    assert isinstance(other.method, FedAvg) and (other.method.lr, other.rounds) == (0.3, 2)
    assert given.replace(seed=3).method == given.method


@dataclass(frozen=True, kw_only=True)
class Breaks(Scaffold):
    """Fails once, at the last client of the second round."""

    def finish(self, task: Task, local: Record, data: ClientData) -> Any:
        if float(data.count) == 4 and len(broken) == 1:
            broken.append(2)
            raise RuntimeError("the machine was switched off")
        if float(data.count) == 4:
            broken.append(1)
        return super().finish(task, local, data)


broken: list[int] = []


def test_a_round_that_broke_off_leaves_nothing_behind() -> None:
    broken.clear()
    running = federation(method=Breaks(batch_size=4), cohort=3)
    whole = federation(method=Scaffold(batch_size=4), cohort=3)
    running.round()
    with pytest.raises(RunError, match="round 2, client site2, finish: RuntimeError: the machine"):
        running.round()
    assert running.number == 1
    running.round()
    whole.round(), whole.round()
    for mine, other in zip(leaves(running.state), leaves(whole.state), strict=True):
        assert torch.equal(mine, other) if isinstance(mine, Tensor) else mine == other


def test_learning_rates_follow_the_round() -> None:
    method = FedAvg(lr=1.0, schedule="step:2,0.1")
    state = method.setup(Task(linear()), Population(1))
    rates = [float(method.broadcast(state.replace(round=r), [0]).shared.lr) for r in range(5)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_targets_stop_a_run_and_callbacks_see_it() -> None:
    seen: list[str] = []

    class Watch(Callback):
        def on_start(self, federation: Federation) -> None:
            seen.append("start")

        def on_round_start(self, federation: Federation, number: int) -> None:
            seen.append(f"{number}?")

        def on_round_end(self, federation: Federation, record: Round) -> None:
            seen.append(f"{record.number}!")

        def on_end(self, federation: Federation, run: Any) -> None:
            seen.append("end")

    run = federation(rounds=50, eval_every=1, target="accuracy:0.1", callbacks=[Watch()]).fit()
    assert run.target_round == 1
    assert seen == ["start", "1?", "1!", "end"]
    assert run.to_dict()["target_round"] == 1
    with pytest.raises(ConfigError, match="does not measure"):
        federation(eval_every=1, target="auc:0.5").fit()
    with pytest.raises(ConfigError, match="MEASURE"):
        Target.parse("accuracy=0.9")


def test_evaluation_is_three_ways() -> None:
    fed = federation(
        population=data(sizes=(6, 18, 6)), method=Local(batch_size=4, lr=0.5), cohort=3, rounds=20
    )
    last = fed.fit().evaluation
    assert last is not None
    pooled = last.clients["accuracy"].pooled
    assert pooled == pytest.approx(last.overall["accuracy"])  # the clients' test data are the whole test set
    assert last.personal["accuracy"].mean > last.clients["accuracy"].mean
    each = last.each["personal"]["accuracy"]
    assert np.mean(list(each.values())) == pytest.approx(last.personal["accuracy"].mean)
    assert last.personal["accuracy"].min == min(each.values())


def test_a_million_lazy_clients_cost_what_a_cohort_costs() -> None:
    made: set[int] = set()

    def make(client: int) -> tuple[Tensor, Tensor]:
        made.add(client)
        g = torch.Generator().manual_seed(client)
        return torch.randn(6, 4, generator=g), torch.randint(0, 3, (6,), generator=g)

    population = atoll.data.from_function(make, clients=1_000_000, classes=3)
    for engine in ("loop", "batched"):
        made.clear()
        fed = federation(population=population, cohort=10, rounds=2, engine=engine)
        for _ in range(2):
            fed.round()
        assert len(made) <= 22


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds cannot be 0"),
        ({"cohort": 7}, "only 3"),
        ({"cohort": 0}, "cohort cannot be 0"),
        ({"engine": "warp"}, "engine cannot be 'warp'"),
        ({"device": "tpu9"}, "device"),
        ({"stragglers": 2.0}, "stragglers"),
        ({"mu": 0.1}, "no setting 'mu'"),
        ({"loss": "hinge"}, "unknown loss"),
        ({"model": lambda: nn.Linear(4, 2)}, "3 classes"),
        ({"model": lambda: nn.Linear(5, 3)}, "cannot read the data"),
        ({"loss": lambda o, t: nn.functional.cross_entropy(o, t)}, "per sample"),
    ],
)
def test_settings_that_do_not_fit_are_said_before_anything_runs(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        federation(**settings)


def test_settings_of_the_method_may_come_as_keywords() -> None:
    named = federation(method="fedprox", mu=0.5, lr=0.2)
    assert dataclasses.asdict(named.method)["mu"] == 0.5  # type: ignore[call-overload]
    assert federation(method=FedAvg(lr=0.3), epochs=4).method == FedAvg(lr=0.3, epochs=4)


# --- newcomers ----------------------------------------------------------------------------------------------


def newcomers(method: str, adapt: int = 1, **settings: Any) -> Federation:
    data = atoll.data.load("digits").partition("dirichlet:0.3", clients=12, validation=0.2)
    return Federation(
        lambda: models.mlp(64, 16, 10), data, method, rounds=3, cohort=5, newcomers=3, adapt=adapt,
        engine="batched", workers=1, lr=0.1, **settings,
    )  # fmt: skip


def test_newcomers_take_no_part_and_are_judged_apart() -> None:
    federation = newcomers("fedavg", adapt=0)
    run = federation.fit()
    apart = set(federation.membership.newcomers)
    assert len(apart) == 3
    assert not any(apart & set(each.cohort) for each in run.rounds)
    last = run.evaluation
    assert last is not None
    assert last.clients["accuracy"].clients == 9
    measured = federation.judge.measures
    values = []
    for k in apart:
        test = federation.data.samples(k, "test")
        assert test is not None
        values.append(measured(*federation.method.model(federation.state), test)["accuracy"].mean())
    assert last.newcomers["accuracy"].mean == pytest.approx(np.mean(values))
    assert last.value("newcomers") == last.newcomers["accuracy"].mean


def test_judging_newcomers_leaves_no_trace() -> None:
    for method in ("ditto", "fedora", "pfedhn"):
        one, two = newcomers(method), newcomers(method, adapt=3)
        one.fit()
        two.fit()
        for a, b in zip(leaves(one.state), leaves(two.state), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        assert all(one.memories.get(k) is None for k in one.membership.newcomers)
        found = [each.history[-1].evaluation for each in (one, two)]
        assert found[0] is not None
        assert found[1] is not None
        assert found[0].personal == found[1].personal
        assert found[0].newcomers != found[1].newcomers  # they trained, three rounds instead of one


def test_newcomers_must_be_some_of_the_clients() -> None:
    for wrong in (12, -1, 2.5):
        with pytest.raises(ConfigError, match=r"newcomers (= |cannot be )"):
            newcomers("fedavg").replace(newcomers=wrong)


# --- personal models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["local", "ditto", "apfl", "fedavg-ft", "fedbabu", "fedrep", "pfedhn-pc", "fedavg"]
)
def test_a_clients_model_is_the_one_that_was_judged(method: str) -> None:
    data = atoll.data.load("digits").partition("dirichlet:0.3", clients=4)
    federation = Federation(
        lambda: models.mlp(64, 16, 10), data, method, rounds=2, cohort=3, engine="loop", lr=0.1
    )
    last = federation.fit().evaluation
    assert last is not None
    judged = last.each["personal" if last.personal else "clients"]["accuracy"]
    for k, name in enumerate(data.names):
        model, test = federation.personal(name), data.samples(k, "test")
        assert test is not None
        with torch.no_grad():
            right = model(test.inputs).argmax(1) == test.targets
        assert float(right.float().mean()) == pytest.approx(judged[k])


def test_a_client_that_is_not_there_has_no_model() -> None:
    federation = Federation(lambda: models.mlp(64, 10), atoll.data.load("digits").partition("iid", clients=4))
    for wrong in (4, -1, "nobody"):
        with pytest.raises(ConfigError, match="there is no client"):
            federation.personal(wrong)


def test_models_of_methods_that_predict_in_other_ways() -> None:
    data = atoll.data.load("digits").partition("iid", clients=4, validation=0.2)
    for method in ("fedproto", "knn-per", "heterofl"):
        federation = Federation(
            lambda: models.mlp(64, 16, 10), data, method, rounds=1, engine="loop", eval_every=0
        )
        federation.fit()
        if method == "heterofl":
            with pytest.raises(ConfigError, match="this client's model is narrower than Sequential"):
                federation.personal(1)
        assert federation.personal(0)(torch.zeros(2, 64)).shape == (2, 10)


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"lr": "x"}, "FedAvg: lr cannot be 'x'", "lr takes a number"),
        ({"epochs": 1.5}, "FedAvg: epochs cannot be 1.5", "epochs takes a whole number"),
        ({"batch_size": "32"}, "batch_size cannot be '32'", "batch_size takes a whole number or full"),
        ({"nesterov": 1}, "nesterov cannot be 1", "nesterov takes true or false"),
        ({"method": "fedsgd", "lr": None}, "FedSGD: lr cannot be None", "lr takes a number"),
        ({"method": "fedprox", "mu": [1]}, "FedProx: mu cannot be [1]", "mu takes a number"),
    ],
)
def test_a_setting_of_another_type(given: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as found:
        atoll.Federation(
            lambda: atoll.models.logistic(64, 10),
            atoll.data.load("digits").partition("iid", clients=4),
            **given,
        )
    assert message in found.value.message
    assert found.value.hint == hint


def test_numbers_of_numpy_are_numbers() -> None:
    assert atoll.FedAvg(lr=np.float32(0.5), epochs=np.int64(2)).epochs == 2  # type: ignore[arg-type]
    assert atoll.FedAvg(lr=1).lr == 1


@pytest.mark.parametrize("model", ["mlp:8", 5, ["mlp:8", "mlp:8"]])
def test_a_model_that_is_none_is_named(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"neither an nn.Module nor a function.*\n.*models.build"):
        Federation(model, atoll.data.load("digits").partition("iid", clients=3), "fedproto", runs=None)
