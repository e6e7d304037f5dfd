"""The model that one client would predict with, as a module."""

from __future__ import annotations

import torch
from torch import nn

from atoll.contract import Channel, Job, Memories, Method, Order, Work
from atoll.data import FederatedData
from atoll.engines import stages
from atoll.engines.client import Client
from atoll.errors import ConfigError
from atoll.machine import threads
from atoll.task import Task
from atoll.tensors import Record, to_device

__all__ = ["model_of", "personal_model"]


def personal_model(
    method: Method,
    state: Record,
    client: int,
    task: Task,
    data: FederatedData,
    memories: Memories,
    device: torch.device,
    round: int,
    seed: int,
    channel: Channel | None = None,
) -> nn.Module:
    """What the client's program "personal" predicts with, fine-tuned if that is the method; on the CPU, in `eval` mode.

    For methods without models of the client's own it is the global model. Where a method predicts otherwise than by
    its model alone, this is the model. Raises ConfigError where the client's model is narrower than the module.
    """
    sent = method.broadcast(state, [client])
    job = Job(
        method,
        Work(sent.shared, sent.own, "personal", passes=sent.passes),
        [client],
        round,
        seed,
        channel=channel,
    )
    return model_of(job, job.order(client), task, data, memories.get(client), device)


def model_of(
    job: Job, order: Order, task: Task, data: FederatedData, memory: Record | None, device: torch.device
) -> nn.Module:
    """The same of an order of a job whose program judges: "personal", or "evaluate" for the global model it is sent.

    `memory` is what is stored of the order's client, None before its first round.
    """
    method, channel = job.method, job.channel
    with threads(1):
        local = Client(task, data, device).working(order, job.program, memory)
    local = local if channel is None else local.inner
    if "params" in local:
        found = local.params, local.buffers
    else:
        received = to_device(order.received, device)
        held = stages.recall(job.program, task, received, memory)
        found = method.personal(received, held if channel is None else held.method)
    params, buffers = (part.map(lambda value: value.cpu()) for part in found)
    whole = {**task.frozen, **task.initial()[0], **task.initial()[1]}  # some servers change the base, too
    if any(value.shape != whole[name].shape for name, value in {**params, **buffers}.items()):
        raise ConfigError(
            f"{type(method).__name__}: this client's model is narrower than {type(task.module).__name__}",
            hint="take the global model, run().model",
        )
    return task.load(params, buffers).eval()
