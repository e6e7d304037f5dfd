"""From the bytes that a node sent to its answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from atoll.codec import Limits, decode, viewed
from atoll.contract import Answer, Job
from atoll.errors import CodecError
from atoll.network.sums import chain_of
from atoll.tensors import Record, nbytes

__all__ = ["answer_of"]


def answer_of(blob: Any, job: Job, client: int, most: int, copied: bool = True) -> Answer:
    """The answer to a job that these bytes are; its tensors are their own, or views of a writable buffer.

    What the client has packed is opened, once all of it has the sizes and types that it must have. Raises CodecError
    where the bytes are no answer of this client's.
    """
    found = (decode if copied else viewed)(blob, limits=Limits(nbytes=most))
    reply = found.get("reply")
    fine = (
        found.keys() == {"client", "reply"}
        and found.client == client
        and isinstance(reply, Record)
        and reply.keys() == {"sent", "weight", "metrics"}
        and isinstance(reply.sent, Record)
        and isinstance(reply.metrics, Record)
        and isinstance(reply.weight, Tensor)
        and reply.weight.numel() == 1
        and reply.weight.is_floating_point()
        and all(isinstance(each, Tensor | int | float) for each in reply.metrics.values())
    )
    if not fine:
        raise CodecError(
            "these bytes are a record, and no answer of this client", hint="encode an `Answer` of its own"
        )
    answer, chain = Answer.of_record(found), chain_of(job.channel)
    if chain is None or job.work.program != "train":
        return answer
    came = nbytes(answer.reply.values)
    values = chain.opened(answer.reply.values, job, client)
    return answer._replace(reply=answer.reply._replace(values=values), nbytes=came if job.varies else None)
