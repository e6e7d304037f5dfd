"""What a node may still tell: the budget of its own noise, counted on its own disk before anything leaves."""

from __future__ import annotations

from pathlib import Path

from atoll.channel import Local
from atoll.contract import Population
from atoll.dpsgd.fits import check_method, examples, mechanism, private_task
from atoll.dpsgd.records import DPSGD
from atoll.errors import BudgetError, ConfigError
from atoll.network.here import Here
from atoll.network.models import models_of
from atoll.network.policy import Policy, chain_of, method_of
from atoll.network.wire import Plan, Task
from atoll.privacy import Event, Everyone, Gaussian, Laplace, Ledger, Poisson, Terms, check_delta
from atoll.privacy.budget import Budget

__all__ = ["Allowance"]


class Allowance:
    """The budget of a policy (`epsilon`, `delta`), over all runs whose tasks are charged to the ledger at `path`.

    It is about single records of this node, whatever of them is trained on: noise on whole updates (`local`) hides any
    change of the data, and so that of one record as well; `dp_sgd` hides one record that is there or not.

    Raises ConfigError where the plan has no noise of the node's own or delta promises nothing, BudgetError for a
    ledger that is damaged or in use, MissingExtraError without the extra.
    """

    def __init__(self, path: Path, policy: Policy, plan: Plan, here: Here) -> None:
        if policy.epsilon is None or policy.delta is None:
            raise ConfigError("the policy has no budget", hint="write epsilon and delta into it")
        self.epsilon, self.samples = policy.epsilon, here.size(here.number)
        check_delta(policy.delta, self.samples)
        self.method, self.rule, self.calls = method_of(plan), None, 1
        chain = chain_of(plan)
        transforms = () if chain is None else chain.transforms
        self.local = next((each for each in transforms if isinstance(each, Local) and each.multiplier), None)
        if self.local is None:
            self.rule = None if plan.dp_sgd is None else DPSGD.parse(plan.dp_sgd)
            if self.rule is None or not self.rule.noise:
                raise ConfigError(
                    f"epsilon = {self.epsilon:g}: the plan has no noise of this node's own",
                    hint="the coordinator's file must have local in its channel, or dp_sgd",
                )
            self.calls = _calls(self.rule, plan, here)
        # not how many samples there are: with new ones the ledger would be another
        self.ledger = Ledger.begin(path, Terms(level="record", delta=policy.delta, population=1))

    def event(self, task: Task) -> Event | None:
        """What the answer to a task tells; None where it has no step."""
        if self.local is not None:
            # everybody knows that the node answered: what is hidden is which data it has, and updates of other data
            # may lie two bounds apart
            kind = Gaussian if self.local.kind == "gaussian" else Laplace
            return kind(noise=self.local.multiplier / 2)
        assert self.rule is not None
        found, plan = mechanism(self.rule, self.method, self.samples, self.calls), self.method.plan()
        steps = found.steps
        if task.epochs is not None and plan.steps is None:
            size = min(plan.batch_size or self.samples, self.samples)
            steps = task.epochs * -(-self.samples // size)
        steps = steps if task.limit is None else min(steps, task.limit)
        if not steps:
            return None
        sampling = Poisson(found.rate) if found.rate < 1 else Everyone()
        return Gaussian(noise=found.noise, sampling=sampling, count=steps)

    def refuses(self, task: Task) -> str | None:
        """Why a task cannot be paid for, or None; asked before the work is done."""
        event = self.event(task)
        budget = Budget(self.epsilon, self.ledger.terms.delta, [each.event for each in self.ledger.charges])
        if event is None or budget.allows(event):
            return None
        return (
            f"epsilon = {self.epsilon:g} (delta = {self.ledger.terms.delta:g}): {self.spent():.3g} is spent, and the"
            " answer would be beyond"
        )

    def charge(self, task: Task, *, private: bool) -> None:
        """Pay for an answer. When this returns the charge is on the disk, and the answer may leave; not before.

        To be called for every answer that was made; not for one that was made and paid for, and is sent once more.
        `private` says whether its noise came from the operating system: what follows from the seed of the run, which
        the coordinator knows, hides nothing.

        Raises BudgetError, and charges nothing, where it may not leave.
        """
        if not private:
            raise BudgetError(
                "the noise of this answer follows from the run's seed, which the coordinator knows",
                hint="nothing leaves; draw it from the operating system",
            )
        if (why := self.refuses(task)) is not None:
            raise BudgetError(why, hint="raise epsilon in the policy, if you will, or leave the run")
        if (event := self.event(task)) is not None:
            self.ledger.charge(event, task.round, int(task.id.split("-")[2]))

    def spent(self) -> float:
        """The epsilon of all that was charged."""
        return self.ledger.spent().epsilon

    def close(self) -> None:
        """Let others use the ledger."""
        self.ledger.close()


def _calls(rule: DPSGD, plan: Plan, here: Here) -> int:
    """How many gradients of a batch a step takes.  Raises ConfigError where the method does not go with `dp_sgd`."""
    method = method_of(plan)
    tasks = models_of(plan, here)
    hidden = private_task(tasks[0], rule, *examples(here.own))
    state = method.setup(tasks[0], Population(1, tasks, here.example().inputs[:1], None, plan.seed))
    return check_method(method, hidden, state, here.own)
