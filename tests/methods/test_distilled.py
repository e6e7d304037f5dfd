"""Methods that compare outputs on public inputs: FedMD and FedDF, against independent loops over plain modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atoll.data
from atoll.callbacks import Callback
from atoll.contract import Plan, Population
from atoll.data import FederatedData
from atoll.engines.reading import reading
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.methods import FedAvg, FedDF, FedMD, Local
from atoll.methods.parts.outputs import cuts
from atoll.results import Run
from atoll.rounds.cohort import Cohort, Cohorts
from atoll.rounds.history import Round
from atoll.seeds import rng
from atoll.task import Task
from atoll.tensors import Record, leaves

from .driver import blobs

ENGINES = ("batched", "processes")
PLAN: dict[str, Any] = {"lr": 0.1, "epochs": 2, "batch_size": 4}


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3))


def large() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def inputs(count: int = 10) -> Tensor:
    return torch.cat([client.inputs for client in blobs(count)])


def data(public: int = 10) -> FederatedData:
    """Five small clients that know `public` inputs besides."""
    made = {
        f"c{k}": {
            "train": (c.inputs.numpy(), c.targets.numpy()),
            "test": tuple(t.numpy() for t in c.test or ()),
        }
        for k, c in enumerate(blobs(9, 14, 5, 11, 8, tested=4))
    }
    divided = atoll.data.from_clients(made, classes=3)
    return divided.publish(inputs(public)) if public else divided


def fitted(method: Any, model: Any, engine: str = "loop", rounds: int = 2, **settings: Any) -> Federation:
    settings = {"cohort": 5, "workers": 1, "eval_every": 0, **settings}
    federation = Federation(
        model, settings.pop("data", None) or data(), method, rounds=rounds, engine=engine, device="cpu",
        **settings,
    )  # fmt: skip
    federation.fit()
    return federation


def equal(one: Record, other: Record) -> None:
    mine, others = leaves(one), leaves(other)
    assert len(mine) == len(others)
    for a, b in zip(mine, others, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def close(one: Record, other: Record) -> None:
    torch.testing.assert_close(leaves(other), leaves(one), rtol=1e-3, atol=1e-5)


def batches_of(federation: Federation, client: int, number: int) -> list[Tensor]:
    """The rows of each batch that a client reads in a round."""
    order = reading(
        Plan(2, None, 4), federation.data.size(client), rng(federation.seed, "order", number, client)
    )
    return [torch.from_numpy(i[m > 0]) for i, m in zip(order.index, order.mask, strict=True)]


def learn(module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], loss: Any, lr: float) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    for x, y in batches:
        optimizer.zero_grad()
        loss(module(x), y).backward()
        optimizer.step()


# --- FedMD ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mae", "mse"])
def test_fedmd_is_the_loop_of_the_paper(loss: Any) -> None:
    method = FedMD(**PLAN, alignment=6, digest_epochs=2, digest_batch=4, digest_loss=loss)
    federation = fitted(method, [small, large], rounds=3)
    models = [copy.deepcopy(federation.tasks[k % 2].module) for k in range(5)]
    for model in models:
        model.train()
    public, consensus = inputs(), torch.zeros(0)
    for number in (1, 2, 3):
        window = [((number - 2) * 6 + i) % 10 for i in range(6)]
        following = [((number - 1) * 6 + i) % 10 for i in range(6)]
        said = []
        for k, model in enumerate(models):
            if number > 1:
                known = public[window]
                parts = [(known[:4], consensus[:4]), (known[4:], consensus[4:])] * 2
                learn(model, parts, F.l1_loss if loss == "mae" else F.mse_loss, 0.1)
            own = federation.data.samples(k)
            assert own is not None
            mine = [(own.inputs[i], own.targets[i]) for i in batches_of(federation, k, number)]
            learn(model, mine, F.cross_entropy, 0.1)
            said.append(model(public[following]).detach())
        consensus = torch.stack(said).mean(0)
    torch.testing.assert_close(federation.state.consensus, consensus, rtol=1e-4, atol=1e-6)
    for k, model in enumerate(models):
        memory = federation.memories.get(k)
        assert memory is not None
        for name, value in model.named_parameters():
            torch.testing.assert_close(memory.params[name], value.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [large, normed])
def test_fedmd_that_digests_nothing_is_local(model: Any) -> None:
    for rounds, method in ((3, FedMD(**PLAN, digest_epochs=0)), (1, FedMD(**PLAN, digest_epochs=2))):
        alone, together = fitted(Local(**PLAN), model, rounds=rounds), fitted(method, model, rounds=rounds)
        for k in range(5):
            one, two = alone.memories.get(k), together.memories.get(k)
            assert one is not None and two is not None
            equal(one, two)
    digested = fitted(FedMD(**PLAN), model, rounds=2).memories.get(0)
    untouched = fitted(Local(**PLAN), model, rounds=2).memories.get(0)
    assert digested is not None and untouched is not None
    assert not torch.equal(digested.params.flat(), untouched.params.flat())


def test_fedmd_sends_outputs_and_nothing_else() -> None:
    federation = fitted(FedMD(**PLAN, alignment=6), [small, large], rounds=1)
    assert federation.history[0].bytes_up == 5 * 6 * 3 * 4
    assert fitted(FedMD(**PLAN), large, rounds=1).state.consensus.shape == (10, 3)  # at most all there are
    assert federation.history[0].refused == {}


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_consensus_is_the_plain_mean_of_the_cohort(rounds: int) -> None:
    federation = fitted(FedMD(**PLAN, alignment=4), [large, small], rounds=rounds, cohort=3)
    said = []
    for k in federation.history[-1].cohort:
        memory, task = federation.memories.get(k), federation.tasks[k % 2]
        assert memory is not None
        window = [((rounds - 1) * 4 + i) % 10 for i in range(4)]
        said.append(task.predict(memory.params, memory.buffers, inputs()[window])[0])
    torch.testing.assert_close(federation.state.consensus, torch.stack(said).mean(0))


def test_digesting_brings_outputs_together() -> None:
    gaps = []
    for epochs in (0, 30):
        method = FedMD(
            lr=0.02, optimizer="adam", batch_size=4, digest_epochs=epochs, digest_batch=5, digest_loss="mse"
        )
        federation = fitted(method, [small, large], rounds=2)
        said = []
        for k in range(5):
            memory = federation.memories.get(k)
            assert memory is not None
            said.append(federation.tasks[k % 2].predict(memory.params, memory.buffers, inputs())[0])
        gaps.append(float(torch.stack(said).var(0).mean()))
    assert gaps[1] < 0.5 * gaps[0], gaps


@pytest.mark.parametrize("engine", ENGINES)
def test_fedmd_is_the_same_in_every_engine(engine: str) -> None:
    method = FedMD(**PLAN, alignment=6, digest_epochs=2, digest_batch=4, digest_loss="mse", momentum=0.5)
    one, two = fitted(method, [normed, large]), fitted(method, [normed, large], engine)
    torch.testing.assert_close(two.state.consensus, one.state.consensus, rtol=1e-3, atol=1e-5)
    for k in range(5):
        memory, other = one.memories.get(k), two.memories.get(k)
        assert memory is not None and other is not None
        close(memory, other)


# --- FedDF ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "processes"])
@pytest.mark.parametrize("model", [large, normed])
def test_feddf_without_distillation_is_fedavg(model: Any, engine: str) -> None:
    average = fitted(FedAvg(**PLAN), model, engine, rounds=3).state
    state = fitted(FedDF(**PLAN, distill_steps=0), model, engine, rounds=3, data=data(0)).state
    equal(Record(params=average.params, buffers=average.buffers), state.students["0"])
    assert torch.equal(state.params.flat(), average.params.flat())


def test_without_distillation_each_architecture_is_averaged_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = fitted(FedDF(**PLAN, distill_steps=0), [small, large], rounds=2)
    for at, model in enumerate((small, large)):
        mine = [k for k in range(5) if k % 2 == at]
        alone = Federation(model, data(), FedAvg(**PLAN), rounds=2, cohort=5, engine="loop", device="cpu")
        monkeypatch.setattr(Cohorts, "enlist", lambda self, number, state, mine=mine: (Cohort(mine), state))
        alone.fit()
        close(
            federation.state.students[str(at)], Record(params=alone.state.params, buffers=alone.state.buffers)
        )


def test_feddf_is_the_loop_of_the_paper() -> None:
    before = fitted(FedDF(**PLAN, distill_steps=0), [small, large], rounds=1)
    method = FedDF(**PLAN, distill_steps=7, distill_batch=4, distill_lr=0.01)
    federation = fitted(method, [small, large], rounds=1)
    teachers = []
    for k in range(5):
        model = copy.deepcopy(federation.tasks[k % 2].module).train()
        own = federation.data.samples(k)
        assert own is not None
        learn(
            model,
            [(own.inputs[i], own.targets[i]) for i in batches_of(federation, k, 1)],
            F.cross_entropy,
            0.1,
        )
        teachers.append(model.eval())
    public = inputs()
    rows, order = method.reading(10, 0, 1)
    for number in (0, 1):
        start = before.state.students[str(number)]
        student = federation.tasks[number].load(start.params, start.buffers).train()
        optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
        for index in order:
            x = public[rows[index]]
            with torch.no_grad():
                taught = torch.softmax(torch.stack([teacher(x) for teacher in teachers]).mean(0), 1)
            optimizer.zero_grad()
            F.kl_div(torch.log_softmax(student(x), 1), taught, reduction="batchmean").backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        found = federation.state.students[str(number)].params
        for name, value in student.named_parameters():
            torch.testing.assert_close(found[name], value.detach(), rtol=1e-3, atol=1e-5)


class Noting(FedDF):
    """Notes in its state how far each student is from the ensemble, before and after distillation."""

    def refine(self, state: Record, population: Population) -> Record:
        refined = super().refine(state, population)
        assert population.public is not None
        wanted = self.ensemble(state.teachers, population.tasks, population.public).exp()

        def gaps(state: Record) -> Tensor:
            found = []
            for number, task in enumerate(population.tasks):
                student = state.students[str(number)]
                made = task.predict(student.params, student.buffers, population.public)[0]  # type: ignore[arg-type]
                found.append(F.kl_div(torch.log_softmax(made, 1), wanted, reduction="batchmean"))
            return torch.stack(found)

        return refined.replace(before=gaps(state), after=gaps(refined))


def test_distillation_brings_students_nearer_to_the_ensemble() -> None:
    method = Noting(**PLAN, distill_steps=200, distill_lr=0.01)
    state = fitted(method, [small, large], rounds=1, data=data(30)).state
    assert (state.after < 0.5 * state.before).all(), (state.before, state.after)
    assert "teachers" not in state  # they are forgotten


def test_the_teacher_is_the_mean_of_logits() -> None:
    task, x = Task(small()), inputs(4)
    params, buffers = task.initial()
    teachers = Record({str(k): Record(params=params * (1.0 + k), buffers=buffers) for k in range(2)})
    logits = torch.stack([task.predict(params * (1.0 + k), buffers, x)[0] for k in range(2)])
    wanted = FedDF().ensemble(teachers, [task], x).exp()
    torch.testing.assert_close(wanted, torch.softmax(logits.mean(0), 1))
    assert not torch.allclose(wanted, torch.softmax(logits, 2).mean(0), atol=1e-3)


def test_an_architecture_without_clients_keeps_its_student_and_is_distilled() -> None:
    start = fitted(FedDF(**PLAN, distill_steps=0), [small, large], rounds=1, cohort=1)
    (client,) = start.history[0].cohort
    away = str(1 - client % 2)
    params, _ = start.tasks[int(away)].initial()
    assert torch.equal(start.state.students[away].params.flat(), params.flat())
    taught = fitted(FedDF(**PLAN, distill_steps=3), [small, large], rounds=1, cohort=1)
    assert not torch.equal(taught.state.students[away].params.flat(), params.flat())


@pytest.mark.parametrize("engine", ENGINES)
def test_feddf_is_the_same_in_every_engine(engine: str) -> None:
    method = FedDF(**PLAN, distill_steps=5)
    one, two = fitted(method, [normed, large]), fitted(method, [normed, large], engine)
    close(one.state.students, two.state.students)
    run: Run = one.run()
    assert run.evaluation is not None
    assert run.evaluation.each["personal"]["accuracy"].keys() == set(range(5))


def test_batches_of_public_inputs_follow_from_the_round() -> None:
    method = FedDF(distill_steps=6, distill_batch=4)
    rows, order = method.reading(10, 0, 1)
    read = rows[order].flatten().tolist()
    assert sorted(read[:10]) == sorted(read[10:20]) == list(range(10))
    assert torch.equal(order, method.reading(10, 0, 1)[1])
    assert not torch.equal(rows[order], (again := method.reading(10, 0, 2))[0][again[1]])
    assert not torch.equal(order, method.reading(10, 1, 1)[1])
    assert method.reading(3, 0, 1)[1].shape == (6, 3)


def test_students_move_their_statistics_in_distillation() -> None:
    kept = fitted(FedDF(**PLAN, distill_steps=0), normed, rounds=1).state.buffers
    moved = fitted(FedDF(**PLAN, distill_steps=4), normed, rounds=1).state.buffers
    assert int(moved["1.num_batches_tracked"]) == int(kept["1.num_batches_tracked"]) + 4
    assert not torch.equal(moved["1.running_mean"], kept["1.running_mean"])


# --- both -----------------------------------------------------------------------------------------------------


class StopAfterTwo(Callback):
    def on_round_end(self, federation: Federation, record: Round) -> None:
        if record.number == 2:
            federation.stop()


@pytest.mark.parametrize("method", [FedMD(**PLAN), FedDF(**PLAN, distill_steps=3)])
def test_a_resumed_run_of_two_architectures_ends_as_the_undisturbed_one(method: Any, tmp_path: Path) -> None:
    whole = fitted(method, [normed, large], rounds=3, cohort=3)
    fitted(method, [normed, large], rounds=3, cohort=3, runs=tmp_path, callbacks=[StopAfterTwo()])
    again = Federation(
        [normed, large], data(), method, rounds=3, cohort=3, workers=1, eval_every=0, engine="loop",
        device="cpu", runs=tmp_path,
    ).resume()  # fmt: skip
    assert again.number == 2
    again.fit()
    equal(again.state, whole.state)
    for k in range(5):
        one, two = whole.memories.get(k), again.memories.get(k)
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            equal(one, two)


# --- what does not fit ----------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said() -> None:
    for method in (FedMD(), FedDF()):
        with pytest.raises(ConfigError, match=r"distils on public data, and there are none\n.*public=500"):
            Federation(large, data(0), method)
        with pytest.raises(ConfigError, match=r"model 1 gives \(4,\) an input, model 0 \(3,\)"):
            Federation([small, lambda: nn.Linear(6, 4)], data(), method)
    with pytest.raises(ConfigError, match=r"classes, and the loss is 'mse'\n.*fedmd"):
        FedDF().setup(Task(small(), "mse"), Population(2, public=inputs()))
    for kind, settings in (
        (FedMD, {"alignment": 0}),
        (FedMD, {"digest_epochs": -1}),
        (FedMD, {"digest_batch": 0}),
        (FedMD, {"digest_loss": "kl"}),
        (FedDF, {"distill_steps": -1}),
        (FedDF, {"distill_batch": 0}),
        (FedDF, {"distill_lr": 0.0}),
    ):
        with pytest.raises(ConfigError, match=f"{kind.__name__}: {next(iter(settings))} = "):
            kind(**settings)


def test_a_last_row_does_not_stand_alone() -> None:
    assert cuts(10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert cuts(9, 4) == [slice(0, 4), slice(4, 9)]
    assert cuts(1, 4) == [slice(0, 1)]
