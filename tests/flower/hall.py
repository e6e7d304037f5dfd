"""A grid whose SuperNodes answer in this process: Flower's own messages and apps, without its network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from atoll.flower import client_app
from tests.network.onethread import NAMES, clients

__all__ = ["Hall"]

Spoil = Callable[[str, Any], Any]
"""(the node's name, a message or a reply's content) -> what comes in its place."""


class Hall:
    """SuperNodes 1, 2, ... with data that a function of the app makes.

    Args:
        place: where each has its directory.
        names: what they say that they are called.
        reply: what becomes of the content of a reply on its way; as it is.
        message: the same of a message, before the app sees it.
    """

    def __init__(
        self,
        place: Path,
        names: Sequence[str] = NAMES,
        reply: Spoil = lambda name, content: content,
        message: Spoil = lambda name, content: content,
    ) -> None:
        self.names, self.reply, self.message = list(names), reply, message
        self.asked: list[str] = []
        self._waiting: dict[str, Any] = {}
        self._contexts = [
            Context(0, at, {"name": name, "place": str(place / str(at))}, RecordDict(), {})
            for at, name in enumerate(names, 1)
        ]
        self.app = client_app(data=_load)
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = (
            1  # as Flower's own processes begin
        )

    def get_node_ids(self) -> Iterable[int]:
        return range(1, len(self.names) + 1)

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
        found = []
        for each in messages:
            found.append(f"message {len(self.asked)}")
            self.asked.append(each.metadata.message_type)
            each.metadata.__dict__["_message_id"] = found[-1]
            self._waiting[found[-1]] = each
        return found

    def pull_messages(self, ids: Iterable[str]) -> Iterable[Any]:
        for each in [self._waiting.pop(key) for key in ids if key in self._waiting]:
            at = each.metadata.dst_node_id - 1
            each.content = self.message(self.names[at], each.content)
            reply = self.app(each, self._contexts[at])
            reply.content = self.reply(self.names[at], reply.content)
            yield reply


def _load(context: Any) -> Any:
    known = clients()
    found = known.get(str(context.node_config["name"]), known["ann"])
    return found.inputs, found.targets
