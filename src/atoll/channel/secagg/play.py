"""One attempt within one process, over the bytes that a network would carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from atoll.channel.secagg.client import Client
from atoll.channel.secagg.encoding import Total
from atoll.channel.secagg.messages import FromServer, from_client, from_server, pack
from atoll.channel.secagg.server import Server

__all__ = ["exchange"]


def exchange(
    server: Server,
    clients: Mapping[str, Client],
    answers: Callable[[str, str], bool] = lambda stage, node: True,
) -> Total:
    """The total of what clients have contributed.

    `answers(stage, node)` says whether a node still answers in a stage; who does not has dropped out.
    Raises AbortedError where too few do, RefusedError where a client refuses.
    """
    invitation: FromServer = server.open()
    sent = dict.fromkeys(server.terms.nodes, invitation)
    while stage := server.stage:
        for node, message in sent.items():
            if answers(stage, node):
                answer = clients[node].receive(from_server(pack(message)))
                server.deliver(node, from_client(pack(answer)))
        sent = server.close()
    return server.total
