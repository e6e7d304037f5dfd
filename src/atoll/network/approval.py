"""What a person reads before the first byte of a model leaves: what goes, what stays, how often, under which name."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from atoll.channel import Chain, Clip, Local, Noise, SecAgg, Shrink, Transform
from atoll.contract import Method, Population
from atoll.dpsgd.records import DPSGD
from atoll.errors import AtollError
from atoll.network.here import Here, describe
from atoll.network.policy import Policy, chain_of, judges, method_of
from atoll.network.wire import Plan
from atoll.task import Task
from atoll.tensors import leaves
from atoll.thrift import Thrift

__all__ = ["approval"]

CPU = torch.device("cpu")
WIDTH = 80
"""Columns of the text."""


def approval(
    plan: Plan, here: Here, policy: Policy, tasks: tuple[Task, ...], device: torch.device = CPU
) -> str:
    """The text, in lines of at most 80 columns; `tasks` are the plan's models (`models_of`)."""
    method, chain = method_of(plan), chain_of(plan)
    parts = [
        (
            "This node",
            [
                f"name: {here.names[here.number]}, client {here.number}",
                *describe(here),
                f"computes on: {_called(device)}{_how(tasks[0].thrift)}",
            ],
        ),
        ("What leaves this machine", [*_leaves(plan, here, policy, method, chain, tasks, device)]),
        (
            "What stays",
            [
                "The samples, and the file they are in. No code comes from the coordinator.",
                "What the method remembers of this client between rounds, and models of its own.",
            ],
        ),
        ("How often", [*_often(plan, policy, method)]),
        ("What this node's policy says", [*_allowed(policy)]),
    ]
    return "\n".join(f"{title}\n{_listed(lines)}" for title, lines in parts) + "\n"


def _called(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _how(thrift: Thrift) -> str:
    """What a node does in a way of its own."""
    said = [f" in {thrift.precision}"] if thrift.precision != "float32" else []
    said += [f" batches in {thrift.accumulate} goes"] if thrift.accumulate > 1 else []
    said += [" blocks twice"] if thrift.recompute else []
    return "".join(f",{each}" for each in said)


def _listed(lines: Sequence[str]) -> str:
    folded = (
        textwrap.fill(line, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
        for line in lines
    )
    return "\n".join(folded)


def _leaves(
    plan: Plan,
    here: Here,
    policy: Policy,
    method: Method,
    chain: Chain | None,
    tasks: tuple[Task, ...],
    device: torch.device,
) -> Iterator[str]:
    counts = ", ".join(
        f"{held:,} ({split})"
        for split in ("train", "validation", "test")
        if (held := here.held(here.number, split))
    )
    yield f"The form of a sample, and how many there are: {counts}."
    yield f"That the node is there, and that it computes on {device}."
    size = _numbers(plan, here, method, tasks)
    yield f"For each round it is asked for: an update of the model {plan.model} by {plan.method}, {size:,} numbers."
    if here.public is not None and "public" in method.reads:
        yield f"What this node's model makes of {here.public.count:,} inputs that everybody knows."
    transforms = () if chain is None else chain.transforms
    for each in transforms:
        yield f"Through {each.text}: {_does(each)}."
    rule = None if plan.dp_sgd is None else DPSGD.parse(plan.dp_sgd)
    if rule is not None:
        how = f"gradients are shortened to {rule.clip:g}, sample by sample, with noise of {rule.noise or 0:g}"
        yield f"Trained with dp_sgd: {how} in each step."
    elif not transforms:
        yield "It goes as it is: the coordinator sees it, and may learn about single samples from it."
    if chain is None or not chain.equal:
        yield "What the update weighs, which tells how many samples it was made from."
    if policy.metrics:
        what = "sums of the training loss, and of how many samples" if rule is None else "how many samples"
        yield f"With it: {what}. Nothing hides these."
    else:
        yield "No losses, counts or figures: the coordinator cannot show how training goes here."
    for name in method.programs():
        if not judges(name) and policy.programs_allow(name):
            yield f"What the program {name} of {plan.method} makes of the samples, as it is."
    if policy.evaluate and policy.metrics:
        judged = ["loss", *tasks[0].metrics]
        yield f"When models are judged here: sums over this node's test samples ({', '.join(judged)})."
        rows = [name for name, metric in tasks[0].metrics.items() if metric.whole is not None]
        if rows:
            yield f"For {', '.join(rows)}: each test sample's label and what the model made of it."


def _does(each: Transform) -> str:
    """What a transform is to the one whose update it is."""
    if isinstance(each, Clip):
        return "shortened to this length" if each.quantile is None else "shortened to a length that moves"
    if isinstance(each, Local):
        return "noise is added here, before it leaves"
    if isinstance(each, Noise):
        return "the coordinator promises to add noise to the sum"
    if isinstance(each, SecAgg):
        return "the coordinator sees the sum over the nodes and nothing else of it"
    if isinstance(each, Shrink):
        return "packed into fewer bytes" + ", and what that loses is kept here" * each.feedback
    return {"skellam": "a share of noise is added here", "he": "encrypted"}.get(each.name, "changed")


def _often(plan: Plan, policy: Policy, method: Method) -> Iterator[str]:
    most = plan.rounds if policy.most_rounds is None else min(plan.rounds, policy.most_rounds)
    yield f"At most {most:,} rounds. A new plan is shown, and asked for, again."
    steps = method.plan()
    work = f"{steps.epochs} passes over the data" if steps.steps is None else f"{steps.steps} steps"
    work = work.replace("1 passes", "1 pass") if steps.epochs == 1 else work
    yield f"In each: {work}" + ("." if policy.most_epochs is None else f", never over {policy.most_epochs}.")
    if policy.epsilon is not None:
        yield f"Until epsilon = {policy.epsilon:g} (delta = {policy.delta:g}) is spent, over all runs."


def _allowed(policy: Policy) -> Iterator[str]:
    found = policy.stated()
    if not found:
        yield "Nothing: there is no policy, and all that the plan says is done."
    for key, value in found.items():
        yield f"{key} = {value}"


def _numbers(plan: Plan, here: Here, method: Method, tasks: tuple[Task, ...]) -> int:
    """How many numbers an update has: those of the reply that the method expects, or of the model."""
    params, buffers = tasks[here.number % len(tasks)].initial()
    try:
        public = None if here.public is None else here.public.inputs
        known = Population(len(here), tasks, here.example().inputs[:1], public, plan.seed)
        expected = method.expects(method.setup(tasks[0], known))
    except AtollError:  # it takes more to set up than a node knows
        expected = None
    found = 0 if expected is None else sum(v.numel() for v in leaves(expected) if isinstance(v, Tensor))
    return found or params.size() + buffers.size()
