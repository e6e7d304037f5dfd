"""Is it worth replaying captured steps as CUDA graphs? The same step called as it is now, and replayed.

A step is what the batched engine does for one batch of every client: gather the rows from the data on the device, then
run the captured operations. As a graph it reads the rows' numbers from a static buffer, which is filled before each
replay, and leaves the new state where the old one was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_runner import NEEDS_CUDA, Case, Json, Part, Setting
from peers.networks import network
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree
from workloads import W1, W2, Workload

import atoll

BATCH = 10
POOL = 6000  # samples on the device from which batches are gathered

Step = Callable[[list[Any], list[Tensor]], list[Any]]


def captured_step(work: Workload, cohort: int, setting: Setting) -> tuple[Step, list[Any], set[int], int]:
    """A captured FedAvg step of a whole cohort: (step, its state's leaves, which of them it renews, operations)."""
    from atoll.engines.capture import capture  # these two are not public
    from atoll.purity import as_batched

    device = setting.device
    task, method = atoll.Task(network(work)), atoll.FedAvg(lr=work.lr, batch_size=BATCH)

    def there(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    state = method.setup(task, atoll.Population(cohort))
    received = pytree.tree_map(there, method.broadcast(state, range(cohort)).shared)
    count = torch.tensor(float(work.samples), device=device)
    with torch.no_grad():
        local = method.begin(task, received, atoll.Record(), atoll.ClientData(count, torch.tensor(0)))

    def step(local: atoll.Record, batch: list[Tensor]) -> atoll.Record:
        inputs, targets, key = batch
        return method.step(task, local, atoll.Batch(inputs, targets, torch.ones(BATCH, device=device), key))

    example = batch_of(setting, cohort)
    with torch.no_grad():
        after = pytree.tree_leaves(step(local, [each[0] for each in example]))
    leaves, spec = pytree.tree_flatten(local)
    changed = {at for at, (old, new) in enumerate(zip(leaves, after, strict=True)) if old is not new}
    leaves = [v.expand(cohort, *v.shape).clone() if at in changed else v for at, v in enumerate(leaves)]
    dims = pytree.tree_unflatten([0 if at in changed else None for at in range(len(leaves))], spec)
    together = vmap(step, in_dims=(dims, 0), out_dims=dims)
    with torch.no_grad(), as_batched():
        found = capture(together, pytree.tree_unflatten(leaves, spec), example)
    operations = sum(node.op.startswith("call") for node in found.module.graph.nodes)
    return found, leaves, changed, operations


def batch_of(setting: Setting, cohort: int) -> list[Tensor]:
    """Inputs, targets and random streams of one step of every client."""
    inputs = torch.rand(cohort, BATCH, 1, 28, 28)
    targets = torch.randint(0, 10, (cohort, BATCH))
    return [each.to(setting.device) for each in (inputs, targets, torch.arange(cohort))]


def replayed(work: Workload, cohort: int, setting: Setting) -> Json:
    """Milliseconds a step both ways, and how far the two states lie apart after the same steps."""
    count = 3 if setting.quick else 200
    cohort = min(cohort, 2) if setting.quick else cohort
    device = setting.device
    step, leaves, changed, operations = captured_step(work, cohort, setting)
    generator = torch.Generator().manual_seed(1)
    pool = torch.rand(POOL, 1, 28, 28, generator=generator).to(device)
    labels = torch.randint(0, 10, (POOL,), generator=generator).to(device)
    rows = torch.randint(0, POOL, (count, cohort * BATCH), generator=generator).to(device).unbind()
    keys = torch.arange(cohort, device=device)

    def once(state: list[Any], at: Tensor) -> list[Any]:
        inputs = pool.index_select(0, at).view(cohort, BATCH, 1, 28, 28)
        return step(state, [inputs, labels.index_select(0, at).view(cohort, BATCH), keys])

    def fresh() -> list[Any]:
        return [v.clone() if at in changed else v for at, v in enumerate(leaves)]

    plain = fresh()

    def as_it_is() -> None:
        nonlocal plain
        for at in rows:
            plain = once(plain, at)

    with torch.no_grad():
        row: Json = {"operations": operations}
        row["plain ms"] = 1000 * setting.median(as_it_is, 3) / count
        if not setting.cuda:
            return {**row, "graph ms": NEEDS_CUDA}
        static, where = fresh(), rows[0].clone()

        def in_place() -> None:
            new = once(static, where)
            for at in changed:
                if new[at] is not static[at]:
                    static[at].copy_(new[at])

        graph = graph_of(in_place)

        def as_graph() -> None:
            for at in rows:
                where.copy_(at)
                graph.replay()

        row["graph ms"] = 1000 * setting.median(as_graph, 3) / count
        row["ratio"] = row["plain ms"] / row["graph ms"]
        # The same few steps from the same state: the graph must do the same work.
        plain = fresh()
        for at in changed:
            static[at].copy_(leaves[at])
        for at in rows[:20]:
            plain = once(plain, at)
            where.copy_(at)
            graph.replay()
        apart = max(
            float((plain[at] - static[at]).norm() / plain[at].norm().clamp(min=1e-12)) for at in changed
        )
        row["apart"] = apart
    return row if apart < 1e-3 else {**row, "failed": f"the graph's state lies {apart:.1e} from the step's"}


def graph_of(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """`work` as a CUDA graph. It runs a few times before, on a stream of its own, so that libraries are set up."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def part(setting: Setting) -> Part:
    cases = [
        Case(f"{work.name} network, cohort {cohort}", partial(replayed, work, cohort), expect=12)
        for work in (W1, W2)
        for cohort in ((10,) if setting.quick else (10, 100))
    ]
    return Part("graph", "A captured step called as it is, and replayed as a CUDA graph", cases)
