"""One client after another with captured steps. Worker processes run this."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from atoll.contract import Order, Program
from atoll.engines import stages
from atoll.engines.capture import Captured
from atoll.engines.client import Client
from atoll.engines.reading import gather, stacked, step_keys, the_order
from atoll.engines.steps import Steps, padded_width, whole_batch
from atoll.tensors import Record

__all__ = ["Sequential"]


class Sequential(Client):
    """A client runner whose steps are captured."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps = Steps(self.task)
        self.padded = True
        """Whether short batches are filled up with rows of mask 0, and captured; else they are taken as written."""

    def train(self, order: Order, program: Program, local: Record) -> Record:
        if (
            self.task.recurrent
        ):  # torch's recurrent kernels are whole layers: nothing to gain, and long to trace
            return super().train(order, program, local)
        client = order.client
        read = the_order(order, program.plan(), self.task, self.data)
        count, width = read.index.shape
        if count == 0:
            return local
        size = program.plan().batch_size
        width = padded_width(width if size is None else max(width, size))
        train = self.data.samples(client)
        assert train is not None
        rows, pool = self.data.rows(client), self.data.pool()
        if rows is not None and pool is not None:
            train = pool
        else:
            rows = np.arange(train.count)
        index, mask = (torch.from_numpy(each).squeeze(1) for each in stacked([read], [rows], width))
        full = mask.all(1).tolist()
        each = zip(
            index.unbind(), step_keys(order, [client], count)[0].unbind(), mask.unbind(), full, strict=True
        )
        leaves, spec = pytree.tree_flatten(local)
        owned: Set[int] = frozenset()  # which leaves may be overwritten
        current: Captured | None = None  # the step that they are laid out for
        captured: dict[bool, Captured] = {}
        for at, key, real, whole in each:
            step = captured.get(whole)
            if step is not current or step is None:
                leaves, current = leaves if current is None else current.plain(leaves), None
            if not whole and not self.padded:
                now = pytree.tree_unflatten(leaves, spec)
                few = whole_batch([*gather(train, at[real > 0]), key])
                leaves, owned = pytree.tree_leaves(stages.step(program, self.task, now, few)), frozenset()
                continue
            batch: list[Any] = [*gather(train, at), key]
            if not whole:
                batch.append(real)
            if step is None:
                now = pytree.tree_unflatten(leaves, spec)
                step = captured[whole] = self.steps.single(program, now, batch)
            if current is None:
                leaves, owned, current = step.own(leaves, owned), owned | step.changed, step
            leaves = step(leaves, batch)
        result = pytree.tree_unflatten(leaves if current is None else current.plain(leaves), spec)
        assert isinstance(result, Record)
        return result
