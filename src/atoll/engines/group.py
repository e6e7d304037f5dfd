"""Some clients of a round, run together from begin to finish: what the batched engine does with a group.

What is the same for all of them stays a single tensor, what differs is stacked by client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from atoll.contract import ClientData, Job, Memories, Outcome, Reducer, Reply, misshapen, screen
from atoll.data import FederatedData, Samples
from atoll.draws import STREAMS, untouched
from atoll.engines import stages
from atoll.engines.client import failed
from atoll.engines.devices import Resident, stack
from atoll.engines.dims import OWN, SHARED, differs, own_dims, pick, pick_shared, powers, repeated
from atoll.engines.probe import probe
from atoll.engines.reading import Reading, gather, of_stage, stacked, step_keys, whole, whole_keys
from atoll.engines.replay import Play, Replays, Step, in_turn
from atoll.engines.steps import Steps, form, padded_width
from atoll.engines.widths import Stretch, stretches
from atoll.errors import AtollError, EngineError
from atoll.parts import each_part
from atoll.task import Batch, Task
from atoll.tensors import Record, leaves, map_leaves, to_device

__all__ = ["Group"]


class Host(Protocol):
    """What a group is given to work with, and leaves there for the next one."""

    task: Task
    data: FederatedData
    device: torch.device
    resident: Resident
    steps: Steps
    replays: Replays | None
    spread: dict[Any, Any]
    """Which leaves of a working state differ between clients, by program and form."""

    def pool(self, clients: Sequence[int], split: str) -> tuple[Samples, list[np.ndarray[Any, Any]]]:
        """Tensors on the device that hold these clients' samples, and the rows of each client in them."""


class Group:
    """Some clients of a round, run together.

    Args:
        orders: in which order each of them reads its data, the longest first.
        padded: whether short batches and splits are filled up with rows of mask 0.
    """

    def __init__(
        self,
        engine: Host,
        job: Job,
        clients: list[int],
        orders: list[Reading],
        memories: Memories,
        padded: bool,
    ) -> None:
        self.engine, self.job, self.clients, self.orders = engine, job, clients, orders
        self.memories, self.padded = memories, padded
        self.task, self.program, self.device = engine.task, job.program, engine.device

    def run(self) -> tuple[Reducer | None, list[Outcome]]:
        """The replies of the group, reduced (None: none can be used), and what became of each."""
        begun = time.perf_counter()
        found = untouched(self.work, self.where)
        return self.settle(*found[:2], begun, *found[2:])

    def work(self) -> tuple[Reply, Record, Record, Record]:
        """The replies, what is remembered after, and what was received and remembered before, all stacked."""
        self.stage = "begin"
        try:
            received, received_dims = self.received()
            memory, memory_dims = self.memory(received, received_dims)
            data, data_dims = self.data()
            dims = received_dims, memory_dims, data_dims
            local, local_dims = self.begin((received, memory, data), dims)
            self.stage = "step"
            local, local_dims = self.train(local, local_dims)
            self.stage = "finish"
            finish = vmap(partial(stages.finish, self.program, self.task), in_dims=(local_dims, data_dims))
            keys = whole_keys(self.job, self.clients, "finish").to(self.device)
            reply, after = finish(local, of_stage(data, keys))
        except torch.cuda.OutOfMemoryError:
            raise
        except AtollError as error:
            raise failed(self.where(), error) from error
        except RuntimeError as error:
            if "random operation" in str(error):  # what vmap says of a draw that nothing has intercepted
                raise EngineError(
                    f"{self.where()}: a call in it draws from the global random state", hint=STREAMS
                ) from error
            raise EngineError(
                f"{self.where()}: these clients cannot be batched: {str(error).splitlines()[0]}",
                hint='engine="processes" or engine="loop" run any model',
            ) from error
        except Exception as error:
            raise failed(self.where(), error) from error
        return reply, after, received, memory

    def where(self) -> str:
        """Whose work is being done, for errors."""
        names = [str(self.engine.data.names[client]) for client in sorted(self.clients)[:3]]
        more = f" and {len(self.clients) - 3} more" if len(self.clients) > 3 else ""
        some = "client" if len(self.clients) == 1 else "clients"
        return f"round {self.job.round}, {some} {', '.join(names)}{more}, {self.stage}"

    def width(self, rows: int) -> int:
        """How many rows so many are filled up to."""
        return padded_width(rows) if self.padded else rows

    # --- inputs -----------------------------------------------------------------------------------------------

    def received(self) -> tuple[Record, Any]:
        shared = to_device(self.job.work.shared, self.device)
        dims = map_leaves(lambda _: SHARED, shared)
        own = [self.job.work.own.get(client) for client in self.clients]
        if any(record is not None for record in own):
            stacked = stack([record or Record() for record in own], self.device)
            shared = shared.replace(**stacked)
            dims = dims.replace(**own_dims(stacked))
        return shared, dims

    def memory(self, received: Record, dims: Any) -> tuple[Record, Any]:
        known = [self.memories.get(client) for client in self.clients]
        alike = not self.job.work.own
        recalled = [
            stages.recall(self.program, self.task, received if alike else pick(received, dims, at), each)
            for at, each in enumerate(known)
        ]
        held = stack(recalled, self.device)
        return held, own_dims(held)

    def data(self) -> tuple[ClientData, Any]:
        count = torch.tensor([float(self.engine.data.size(c)) for c in self.clients], device=self.device)
        keys = whole_keys(self.job, self.clients, "begin").to(self.device)
        splits: dict[str, Batch] = {}
        for split in (split for split in self.program.reads if split != "public"):
            pool, rows = self.engine.pool(self.clients, split)
            width = self.width(max(1, max(len(r) for r in rows)))
            index = np.zeros((len(rows), width), np.int64)
            mask = np.zeros((len(rows), width), np.float32)
            for at, own in enumerate(rows):
                index[at, : len(own)] = own
                mask[at, : len(own)] = 1.0
            where = torch.from_numpy(index).to(self.device)
            splits[split] = Batch(
                pool.inputs[where],
                pool.targets[where],
                torch.from_numpy(mask).to(self.device),
                keys,
            )
        data = ClientData(count, keys, **splits)
        dims = own_dims(data)
        if "public" in self.program.reads:
            known = self.engine.data.public
            public = whole(known and self.engine.resident(known), keys, self.device)
            data = data._replace(public=public)
            alike = public and map_leaves(lambda _: SHARED, public)._replace(key=OWN)
            dims = dims._replace(public=alike)
        return data, dims

    # --- the client half --------------------------------------------------------------------------------------

    def begin(self, arguments: tuple[Any, ...], dims: tuple[Any, ...]) -> tuple[Record, Any]:
        """The working states, and which of their leaves differ between clients: found out the first time."""
        one = tuple(pick(a, d, 0) for a, d in zip(arguments, dims, strict=True))
        key = self.program, form(one), tuple(pytree.tree_leaves(dims))
        known = self.engine.spread.get(key)
        seen: list[Any] = []

        def begin(*arguments: Any) -> Record:
            local = stages.begin(self.program, self.task, *arguments)
            if known is None:
                seen.append(pytree.tree_map(lambda leaf: OWN if differs(leaf) else SHARED, local))
            return local

        if known is not None:
            return vmap(begin, in_dims=dims, out_dims=known)(*arguments), known
        local = vmap(begin, in_dims=dims)(*arguments)
        known = self.engine.spread[key] = seen[0]
        return pick_shared(local, known), known

    def train(self, local: Record, dims: Any) -> tuple[Record, Any]:
        counts = [len(order.index) for order in self.orders]
        if not counts or counts[0] == 0:
            return local, dims
        size, total = len(self.clients), counts[0]
        width = max(order.index.shape[1] for order in self.orders)
        if self.program.plan().batch_size is None:
            width = self.width(width)
        pool, rows = self.engine.pool(self.clients, "train")
        index, mask = stacked(self.orders, rows, width)
        where = torch.from_numpy(index).to(self.device).flatten(1).unbind()
        masks = torch.from_numpy(mask).to(self.device).unbind()
        keys = step_keys(self.job, self.clients, total).to(self.device).T.contiguous().unbind()

        def batch(t: int, among: int, masked: bool) -> list[Any]:
            """What the first clients of the stack read at a step."""
            lead = (among, width)
            inputs, targets = (
                each_part(lambda part: part.view(*lead, *part.shape[1:]), part)
                for part in gather(pool, where[t][: among * width])
            )
            return [inputs, targets, keys[t][:among], *([masks[t][:among]] if masked else [])]

        values, spec = pytree.tree_flatten(local)
        axes = pytree.tree_leaves(dims, is_leaf=lambda d: d is None)
        one = pytree.tree_unflatten([v[0] if a == 0 else v for v, a in zip(values, axes, strict=True)], spec)
        first = batch(0, size, bool((mask[0] == 0).any()))
        changed = self.engine.steps.changed(self.program, one, [part[0] for part in first])
        values = [
            repeated(v, size) if i in changed and axes[i] is None
            else v.clone() if i in changed else v
            for i, v in enumerate(values)
        ]  # fmt: skip
        axes = [OWN if i in changed else a for i, a in enumerate(axes)]
        dims = pytree.tree_unflatten(axes, spec)

        if not self.padded:
            values = self.uneven(values, axes, spec, changed, mask, batch)
            return pytree.tree_unflatten(values, spec), dims
        renewed = sum(values[i][0].numel() for i in changed)
        plan = stretches(counts, mask.min(axis=2) > 0, renewed)
        values = self.shrinking(values, axes, spec, changed, plan, batch)
        return pytree.tree_unflatten(values, spec), dims

    def shrinking(
        self,
        values: list[Any],
        axes: list[int | None],
        spec: Any,
        changed: set[int],
        plan: Sequence[Stretch],
        batch: Callable[[int, int, bool], list[Any]],
    ) -> list[Any]:
        """All steps, on a stack that shrinks as clients finish (see `widths`).

        What a client came to is kept aside where later steps go over its row.
        """
        dims, active = pytree.tree_unflatten(axes, spec), len(self.clients)
        reach = list(accumulate((stretch.width for stretch in reversed(plan)), max))[::-1]
        known: dict[tuple[int, bool], Play] = {}
        done: list[tuple[slice, dict[int, Tensor]]] = []
        for (width, masked), run in groupby(enumerate(plan), lambda each: each[1][3:]):
            whole = width == len(self.clients)
            start = [v if whole or a is None else v[:width] for v, a in zip(values, axes, strict=True)]
            now, held = start, values
            for at, (begin, end, there, *_) in run:
                rows = slice(there, min(active, reach[at]))
                if rows.start < rows.stop:
                    done.append((rows, {i: held[i][rows].clone() for i in changed}))
                active = there
                play = known.get((width, masked))
                if play is None:
                    state, example = pytree.tree_unflatten(now, spec), batch(begin, width, masked)
                    play = known[width, masked] = self.playing(state, dims, changed, example)
                now = held = play(now, (batch(t, width, masked) for t in range(begin, end)))
            for i in changed:
                if whole:
                    values[i] = now[i]
                elif now[i] is not start[i]:
                    values[i][:width] = now[i]
        for rows, kept in done:
            for i, value in kept.items():
                values[i][rows] = value
        return values

    def uneven(
        self,
        values: list[Any],
        axes: list[int | None],
        spec: Any,
        changed: set[int],
        mask: np.ndarray[Any, np.dtype[np.float32]],
        batch: Callable[[int, int, bool], list[Any]],
    ) -> list[Any]:
        """All steps without a padded row: clients whose batches have as many samples take a step together.

        Full batches, nearly all of them, have a captured step; the others are taken as written.
        """
        dims = pytree.tree_unflatten(axes, spec)
        size, most = len(self.clients), self.program.plan().batch_size
        plainly = vmap(self.engine.steps.step(self.program), in_dims=(dims, 0), out_dims=dims)
        known: dict[int, Play] = {}
        for t, samples in enumerate(mask.sum(2).astype(np.int64)):
            inputs, targets, keys = batch(t, size, False)
            for rows in sorted(set(samples.tolist()) - {0}):
                there = np.flatnonzero(samples == rows)
                parts = [len(there)] if rows != most or len(there) == size else powers(len(there))
                for own in np.split(there, np.cumsum(parts)[:-1]):
                    at = torch.from_numpy(own).to(self.device)
                    own_values = [v[at] if a == OWN else v for v, a in zip(values, axes, strict=True)]
                    short = [inputs[at, :rows], targets[at, :rows], keys[at]]
                    state = pytree.tree_unflatten(own_values, spec)
                    if rows != most:
                        new = pytree.tree_leaves(plainly(state, short))
                    else:
                        play = known.get(len(own))
                        if play is None:
                            play = known[len(own)] = self.playing(state, dims, changed, short)
                        new = play(own_values, [short])
                    for i in changed:
                        values[i][at] = new[i]
        return values

    def playing(self, local: Record, dims: Any, changed: set[int], batch: list[Any]) -> Play:
        """What takes a step for each of some batches, from states and with batches of these forms."""
        steps = self.engine.steps
        key = (self.program, "batched", form(local), tuple(pytree.tree_leaves(dims)), form(batch))

        def step() -> Step:
            function = vmap(steps.step(self.program), in_dims=(dims, 0), out_dims=dims)
            if not self.task.recurrent:
                return steps.find(key, function, local, batch)
            # Unrolled in time, a graph of thousands of operations: longer to trace than to run.
            spec = pytree.tree_structure(local)
            return lambda values, batch: pytree.tree_leaves(
                function(pytree.tree_unflatten(values, spec), batch)
            )

        replays = self.engine.replays
        return replays.find(key, step, changed) if replays else in_turn(step())

    # --- what comes back --------------------------------------------------------------------------------------

    def settle(
        self, reply: Reply, after: Record, begun: float, received: Record, memory: Record
    ) -> tuple[Reducer | None, list[Outcome]]:
        """Screen all replies together, and give the sound ones to a reducer as one stack."""
        size = len(self.clients)
        sent = (
            [self.job.sent(self.pick(reply, at).values, k) for at, k in enumerate(self.clients)]
            if self.job.varies
            else []
        )
        reply = self.job.weighed(self.clients, reply)
        sound = torch.isfinite(reply.weight) & (reply.weight >= 0)
        for value in leaves(reply.values):
            if value.is_floating_point() and value.numel():
                sound &= torch.isfinite(value.flatten(1).sum(1) if value.ndim > 1 else value)
        good = sound.tolist()
        metrics = {name: value.tolist() for name, value in reply.metrics.items()}
        weights = reply.weight.tolist()
        first = map_leaves(lambda v: v[0], reply.values)
        wrong = misshapen(first, self.job.form(self.clients[0]))
        codecs = [self.job.work.codec(client) for client in self.clients]
        nbytes = {k: self.job.nbytes(first, client) for k, client in zip(codecs, self.clients, strict=True)}
        changed = None if wrong else self.job.changed(reply.values, received, memory)
        probes = None if changed is None else probe(changed, self.job.cohort, stacked=True)
        ended = time.perf_counter()
        outcomes, accepted = [], []
        for at, client in enumerate(self.clients):
            reason = wrong
            if reason is None and not good[at]:
                reason = screen(self.pick(reply, at), self.job.form(client))
            if reason is None:
                accepted.append(at)
            sums = {name: values[at] for name, values in metrics.items()}
            sample = None if probes is None or reason else probes[at]
            size_of = sent[at] if sent else nbytes[codecs[at]]
            outcomes.append(Outcome(client, weights[at], sums, size_of, reason, begun, ended, sample))
        if not accepted:
            return None, outcomes
        if len(accepted) < size:
            keep = torch.tensor(accepted, device=self.device)
            reply = map_leaves(lambda v: v[keep], reply)
        part = self.job.reducer()
        part.add_stacked([self.clients[at] for at in accepted], reply)
        if after:  # put at the end: until here a lack of memory makes the group start again
            self.remembered(to_device(after, torch.device("cpu")), accepted)
        return part, outcomes

    def remembered(self, after: Record, accepted: list[int]) -> None:
        """Store memories, stacked in main memory: one copy of each leaf has brought them there for all clients."""
        for at in accepted:  # tensors of their own: one view that is in use would keep all of the stack
            self.memories.put(self.clients[at], map_leaves(lambda v, at=at: v[at].clone(), after))

    @staticmethod
    def pick(reply: Reply, at: int) -> Reply:
        return map_leaves(lambda v: v[at], reply)  # type: ignore[no-any-return]
