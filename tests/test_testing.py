"""The bench for methods: it passes what keeps the contract, and names each promise that a wrong method breaks."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import atoll
from atoll import seeds
from atoll.contract import Change, ClientData, Method, Population, Replies, Reply, Rule, Work
from atoll.methods import CFL, Ditto, FedAvg, FedBN, FedDF, FedMD, Fedora, FedProx, HeteroFL, PFedHN, Scaffold
from atoll.task import Batch, Task
from atoll.tensors import Record, Tensors
from atoll.testing import CHECKS, Report, check


def found(method: Method, *engines: str, **settings: Any) -> Report:
    return check(method, engines=engines, raises=False, **{"rounds": 2, **settings})


def wrong(method: Method, *engines: str, **settings: Any) -> dict[str, str]:
    """The problems by name."""
    report = found(method, *engines, **settings)
    return {each.name: f"{each.problem}; {each.hint}" for each in report.problems}


# --- methods that are right ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        FedProx(gamma=0.5, batch_size=8),
        Scaffold(option=1, batch_size=8),
        Ditto(),
        Fedora(),
        FedMD(),
        PFedHN(steps=2),
        CFL(),
        FedBN(),
        HeteroFL(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_that_span_the_contract_keep_it(method: Method) -> None:
    report = found(method)
    assert report.ok, str(report)
    assert all(each.ok for each in report.findings)


def test_fedavg_keeps_it_in_all_engines_and_every_finding_is_printed() -> None:
    report = check(FedAvg())
    assert [each.name for each in report.findings] == list(CHECKS)
    lines = str(report).splitlines()
    assert lines[0].startswith("FedAvg: all is well")
    assert all(re.match(r"  .{9} (ok |not checked: this system cannot fork)", line) for line in lines[1:])


@pytest.mark.parametrize("method", [FedAvg(optimizer="adam", lr=0.001), FedDF()], ids=["clients", "server"])
def test_what_adam_makes_of_rounding_is_no_finding(method: Method) -> None:
    report = found(method, "batched", rounds=3)
    assert report.ok, str(report)


def test_an_authors_own_model_and_data_are_taken() -> None:
    rng = np.random.default_rng(0)
    data = [
        (rng.normal(size=(n, 4)).astype(np.float32), rng.normal(size=n).astype(np.float32)) for n in (9, 1, 5)
    ]
    assert check(FedAvg(batch_size=4), lambda: nn.Linear(4, 1), data, engines=[]).ok
    report = check(FedAvg(), lambda: nn.Linear(7, 1), data, engines=[], raises=False)
    assert "the model cannot read the data" in str(report["runs"].problem)
    assert report["codec"].skipped and not report["codec"].ok


def test_several_architectures_are_taken() -> None:
    models = [lambda: nn.Linear(6, 3), lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))]
    assert check(FedMD(), models, engines=["batched"], rounds=2).ok


def test_arguments_that_mean_nothing_are_errors() -> None:
    with pytest.raises(atoll.ConfigError, match="did you mean 'batched'"):
        check(FedAvg(), engines=["batchd"])
    with pytest.raises(atoll.ConfigError, match="2 or more"):
        check(FedAvg(), rounds=1)


# --- methods that are wrong: one for each promise -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Undocumented(FedAvg):
    """A setting that the docstring does not mention."""

    strength: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Unwritable(FedAvg):
    """A setting that TOML cannot hold.

    Args:
        pull: a function.
    """

    pull: Any = len


@dataclass(frozen=True, kw_only=True)
class Unhashable(FedAvg):
    """A list.

    Args:
        layers: their names.
    """

    layers: list[str] = field(default_factory=list)


class Undecorated(FedAvg):
    """No dataclass of its own.

    Args:
        pull: how strongly.
    """

    pull: float = 0.1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Undocumented, "does not say what strength means"),
        (Unwritable, "pull = .* is a builtin_function_or_method, which TOML cannot hold"),
        (Unhashable, "cannot be hashed"),
        (Undecorated, "Undecorated is no dataclass.*frozen=True"),
    ],
)
def test_settings(kind: type[FedAvg], message: str) -> None:
    problems = wrong(kind())
    assert re.search(message, problems["settings"])
    assert problems.keys() <= {"settings", "runs"}  # what cannot be written cannot be run either


class Failing(FedAvg):
    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        if not float(local.steps) > 1:
            raise ZeroDivisionError("no spread")
        return reply, memory


def test_runs() -> None:
    report = found(Failing())
    assert re.search(
        r"round 1, client \w+, finish: ZeroDivisionError: no spread", str(report["runs"].problem)
    )
    assert report["resume"].skipped
    assert "not checked: the method could not be played" in str(report)


class Reading(FedAvg):
    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        start = task.totals(received.params, received.buffers, data.train)  # type: ignore[arg-type]
        return super().begin(task, received, memory, data).replace(start=start)


def test_reads() -> None:
    problems = wrong(Reading())
    assert list(problems) == ["reads"]
    assert "begin looks at data.train" in problems["reads"]
    assert "reads = ('train',)" in problems["reads"]


class InPlace(FedAvg):
    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        received.params["0.weight"].mul_(0.9)
        return super().begin(task, received, memory, data)


class StateInPlace(FedAvg):
    def update(self, state: Record, replies: Replies) -> Record:
        for name, value in state.params.items():
            value.add_(replies.mean.update[name])
        return state


def test_values() -> None:
    problem = wrong(InPlace())["values"]
    assert "begin changes received.params.0.weight in place" in problem
    problem = wrong(StateInPlace())["values"]
    assert re.search(r"the server half changes its state in place: params\.", problem)


class GlobalDraw(FedAvg):
    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        return gradient.map(lambda value: value + 0.1 * torch.randn_like(value)), local


class ServerDraw(FedAvg):
    def update(self, state: Record, replies: Replies) -> Record:
        state = super().update(state, replies)
        return state.replace(params=state.params * (1 + 0.01 * float(np.random.rand())))  # noqa: NPY002


def test_draws() -> None:
    """What is drawn from torch in clients' work, and from whatever on the server, has a stream."""
    assert not wrong(GlobalDraw(), "batched")
    assert not wrong(ServerDraw())


class Growing(FedAvg):
    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        return super().step(task, local, batch).replace(taken=int(local.get("taken", 0)) + 1)


def test_steps() -> None:
    assert "step changes the form of the working state: taken is new" in wrong(Growing())["steps"]


class OtherForm(FedAvg):
    def expects(self, state: Record) -> Record:
        return super().expects(state).replace(norm=torch.zeros(()))


class NegativeWeight(FedAvg):
    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        return reply._replace(weight=-reply.weight), memory


def test_replies() -> None:
    problems = wrong(OtherForm())
    assert list(problems) == ["replies"]
    assert "it has no 'norm'" in problems["replies"] and "expects(state)" in problems["replies"]
    assert re.search(r"its weight is -\d", wrong(NegativeWeight())["replies"])


class Counting(FedAvg):
    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        return reply._replace(values=reply.values.replace(taken=local.steps.long())), memory


class UnknownRule(FedAvg):
    rules: ClassVar[Mapping[str, Rule]] = {**FedAvg.rules, "taken": "sum"}


class OtherRule(FedAvg):
    rules: ClassVar[Mapping[str, Rule]] = {**FedAvg.rules, "buffers": "median"}  # type: ignore[dict-item]


def test_rules() -> None:
    problems = wrong(Counting())
    assert list(problems) == ["rules"]
    assert "field taken holds whole numbers" in problems["rules"] and '{"taken": "max"}' in problems["rules"]
    assert "rules name the field 'taken', and no reply has it" in wrong(UnknownRule())["rules"]
    assert "rules say 'median' of the field buffers" in wrong(OtherRule())["rules"]


class NoChange(FedAvg):
    change: ClassVar[Change | None] = Change("delta")


class NoSince(FedAvg):
    change: ClassVar[Change | None] = Change("update", since="model")


def test_change() -> None:
    assert "change names the field 'delta', and no reply has it" in wrong(NoChange())["change"]
    problems = wrong(NoSince())
    assert list(problems) == ["change"]
    assert "cannot be taken: KeyError: 'model'" in problems["change"]


class OtherMemory(FedAvg):
    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        return reply, memory.replace(last=local.params)


def test_memory() -> None:
    problem = wrong(OtherMemory())["memory"]
    assert re.search(r"finish gives client \w+ a memory of another form: .*last.* is not expected", problem)


class Unwritten(FedAvg):
    def setup(self, task: Task, population: Population) -> Record:
        return super().setup(task, population).replace(losses=[1.0, 2.0])


def test_codec() -> None:
    problems = wrong(Unwritten())
    assert list(problems) == ["codec"]
    assert "the state cannot be written" in problems["codec"] and "losses" in problems["codec"]


class Unmasked(FedAvg):
    reads: ClassVar[tuple[str, ...]] = ("train",)  # type: ignore[assignment]

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        assert data.train is not None
        reply, memory = super().finish(task, local, data)
        outputs, _ = task.predict(local.params, local.buffers, data.train.inputs)
        loss = task.judged(outputs, data.train.targets).loss.mean()
        return reply._replace(values=reply.values.replace(loss=loss)), memory


def test_padding() -> None:
    problems = wrong(Unmasked(), "batched")
    assert list(problems) == ["padding"]  # the mean is not used: the model stays the loop's
    assert re.search(r"answers: reply.sent.loss is off by .*batch\.mask", problems["padding"])


class Constant(FedAvg):
    def update(self, state: Record, replies: Replies) -> Record:
        state = super().update(state, replies)
        noise = seeds.normal(torch.tensor(7), (8, 6))
        return state.replace(params=Tensors(state.params, **{"0.weight": state.params["0.weight"] + noise}))


class ConstantGenerator(FedAvg):
    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        noise = torch.rand((), generator=torch.Generator().manual_seed(3))
        return state.replace(params=state.params * noise)


class ConstantNumpy(FedAvg):
    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        return state.replace(params=state.params * np.random.default_rng(5).random())


@dataclass(frozen=True, kw_only=True)
class Addressed(FedAvg):
    """Draws as it should: on the server, before training, in a step."""

    def setup(self, task: Task, population: Population) -> Record:
        state = super().setup(task, population)
        drawn = seeds.rng(population.seed, "scale").random()
        own = torch.Generator().manual_seed(seeds.address(population.seed, "more"))
        return state.replace(params=state.params * (drawn + torch.rand((), generator=own)))

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        return local.replace(scale=seeds.uniform(data.key, ()))

    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        noise = seeds.normal(seeds.fold(batch.key, 1000), ())
        return gradient * (1 + 0.1 * noise * local.scale), local


def test_seed() -> None:
    assert "seeds.uniform draws from the address" in wrong(Constant())["seed"]
    assert "torch.Generator draws from the address 3" in wrong(ConstantGenerator())["seed"]
    assert "numpy.random.default_rng draws from the address (5,)" in wrong(ConstantNumpy())["seed"]
    assert not wrong(Addressed(), "batched")


class Remembering(FedAvg):
    """Remembers where no checkpoint sees it."""

    rounds: ClassVar[list[int]] = []

    def setup(self, task: Task, population: Population) -> Record:
        self.rounds.clear()
        return super().setup(task, population)

    def update(self, state: Record, replies: Replies) -> Record:
        self.rounds.append(1)
        return super().update(state, replies).replace(momentum=torch.tensor(0.5) ** len(self.rounds))


class NeverForgetting(Remembering):
    def setup(self, task: Task, population: Population) -> Record:
        return FedAvg.setup(self, task, population).replace(momentum=torch.ones(()))


def test_resume() -> None:
    problems = wrong(Remembering())
    assert list(problems) == ["resume"]
    assert "resumed after round 1 ends otherwise, first in state.momentum" in problems["resume"]


def test_global_state_makes_equal_runs_differ() -> None:
    assert "two runs with the same seed differ" in wrong(NeverForgetting())["seed"]


class Ordered(FedAvg):
    """Whoever is asked next starts from what the last one sent."""

    last: ClassVar[list[Tensor]] = []

    def broadcast(self, state: Record, cohort: Sequence[int]) -> Work:
        self.last.clear()
        return super().broadcast(state, cohort)

    def begin(self, task: Task, received: Record, memory: Record, data: ClientData) -> Record:
        local = super().begin(task, received, memory, data)
        start = self.last[-1] if self.last else torch.ones(())
        return local.replace(params=local.params * start)

    def finish(self, task: Task, local: Record, data: ClientData) -> tuple[Reply, Record]:
        reply, memory = super().finish(task, local, data)
        self.last.append(1 - 0.1 * torch.tanh(reply.values.update.norm()))
        return reply, memory


def test_by_hand() -> None:
    problem = wrong(Ordered())["by hand"]
    assert re.search(
        r"asked alone and in another order come to something else, first in state\.params", problem
    )


class Branching(FedAvg):
    def gradient(self, task: Task, local: Record, batch: Batch) -> tuple[Tensors, Record]:
        gradient, local = super().gradient(task, local, batch)
        return (gradient * 0.5 if gradient.norm() > 1 else gradient), local


class Counted(FedAvg):
    """Counts rows by their number, not by the mask: right in the loop."""

    def step(self, task: Task, local: Record, batch: Batch) -> Record:
        after = super().step(task, local, batch)
        return after.replace(params=after.params * (1 - 0.01 * batch.inputs.shape[0]))


@pytest.mark.parametrize("engine", ["batched", "processes"])
def test_engines(engine: str) -> None:
    problems = wrong(Branching(), engine)
    assert list(problems) == [engine]


def test_a_step_that_counts_padded_rows_is_told_though_engines_spare_it_them() -> None:
    assert list(wrong(Counted(batch_size=4), "batched")) == ["padding"]


# --- what the author sees -------------------------------------------------------------------------------------


def test_an_assertion_lists_all_that_is_wrong() -> None:
    with pytest.raises(AssertionError) as error:
        check(NoChange(), engines=[], rounds=2)
    text = str(error.value)
    assert text.startswith("NoChange: 1 of 15 findings are wrong")
    assert re.search(
        r"change +WRONG +change names the field 'delta'.*\n +hint: name the one of buffers, counters, update that",
        text,
    )
    with pytest.raises(atoll.ConfigError, match="did you mean 'change'"):
        found(NoChange())["chang"]


def test_the_bench_leaves_random_states_and_the_method_alone() -> None:
    method = FedAvg()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the legacy state is what must not change
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    usual = np.random.default_rng
    found(method)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002
    assert np.random.default_rng is usual
    assert dataclasses.asdict(method) == dataclasses.asdict(FedAvg())


def test_a_finding_in_another_program_says_which() -> None:
    class Spoiling(Ditto):
        def personal(self, received: Record, memory: Record) -> Any:
            params, buffers = super().personal(received, memory)
            params["0.weight"].mul_(2.0)
            return params, buffers

    assert re.search(r'program "personal", begin changes \S+0\.weight in place', wrong(Spoiling())["values"])


# --- the page that teaches it ---------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def blocks() -> list[str]:
    """The programs on the page, in order."""
    return re.findall(r"<!-- run by [^>]* -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def defined(source: str) -> dict[str, Any]:
    module = ModuleType("page")  # dataclasses look their module up
    sys.modules["page"] = module
    exec(source, vars(module))
    return vars(module)


def test_the_worked_example_is_a_method_that_is_right_and_keeps_the_papers_formula() -> None:
    kind = defined(blocks()[0])["FedExP"]
    assert len(blocks()[0].splitlines()) < 60
    state = Record(params=Tensors(w=torch.tensor([1.0, 1.0])), buffers=Tensors(), round=0)
    state = state.replace(before=state.params)
    updates = [torch.tensor([3.0, 0.0]), torch.tensor([-1.0, 2.0])]  # of clients with 1 and 3 samples
    reducer = kind(eps=0.5).reducer(Work(Record()))
    for client, (update, weight) in enumerate(zip(updates, (1.0, 3.0), strict=True)):
        values = Record(
            update=Tensors(w=update), square=update.dot(update), buffers=Tensors(), counters=Tensors()
        )
        reducer.add(client, Reply(values, torch.tensor(weight), Record()))
    replies = reducer.result()
    new = kind(eps=0.5).update(state, replies)
    eta = (0.25 * 9 + 0.75 * 5) / (2 * (1.5**2 + 0.5))  # of the mean update (0, 1.5)
    torch.testing.assert_close(new.params["w"], torch.tensor([1.0, 1.0 + 1.5 * eta]))
    torch.testing.assert_close(kind().model(new)[0]["w"], torch.tensor([1.0, 1.0 + 0.75 * eta]))
    large = kind(eps=1e9).update(state, replies)
    torch.testing.assert_close(large.params["w"], torch.tensor([1.0, 2.5]))  # never less than FedAvg's step


@pytest.mark.slow
def test_the_worked_example_runs_as_it_stands_and_draws_its_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the extra plots")
    (tmp_path / "own.py").write_text(blocks()[0])
    done = subprocess.run(
        [sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "FedExP: all is well" in done.stdout
    accuracy = {
        name: float(value) for name, value in re.findall(r"^ (Fed\S+) .*?2 +([\d.]+) ±", done.stdout, re.M)
    }
    assert accuracy["FedExP"] > accuracy["FedAvg"] + 3
    for line in re.findall(r"^ Fed.*±.*$", PAGE.read_text("utf-8"), re.M):
        assert line.split()[0] in accuracy
    assert (tmp_path / "figures" / "comparison-accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_seams_on_the_page_do_what_they_say() -> None:
    clip, median = defined(blocks()[1])["Clip"], defined(blocks()[2])["MedianFedAvg"]
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 3, n)) for n in (9, 4, 7)]
    moved = {}
    for engine in ("loop", "batched"):
        federation = atoll.Federation(
            lambda: nn.Linear(4, 3), data, FedAvg(lr=1.0), rounds=1, engine=engine, device="cpu", eval_every=0,
            channel=clip(0.05),
        )  # fmt: skip
        start = federation.state.params
        federation.round()
        moved[engine] = float((federation.state.params - start).norm())
    assert 0.01 < moved["loop"] <= 0.05 + 1e-6
    assert moved["batched"] == pytest.approx(moved["loop"], rel=1e-4)
    assert check(median(), engines=["batched"], rounds=2).ok
    reducer = median().reducer(Work(Record()))
    for client, value in enumerate((1.0, 2.0, 900.0)):
        reducer.add(client, Reply(Record(w=torch.tensor([value])), torch.tensor(1.0), Record()))
    assert float(reducer.result().mean.w) == 2.0


def test_the_page_lists_every_finding() -> None:
    text = PAGE.read_text("utf-8")
    for name, kept in CHECKS.items():
        assert f"| `{name}` | {kept} |" in text
