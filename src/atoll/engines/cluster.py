"""The way to a Ray cluster: one that is there, or one of this machine alone that ends with who started it."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from atoll.engines.actor import packed, unpacked
from atoll.errors import ConfigError, MissingExtraError

__all__ = ["Cluster", "check"]

_REACHED = 5.0  # seconds in which a cluster answers a knock
_SETTINGS = b"\x04"
"""The type of the frame that HTTP/2, which gRPC speaks, begins with on both sides."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it tells nobody that it is used
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what Ray calls it: an instance that listens on the loopback alone
}


def check(address: str | None) -> None:
    """Raises MissingExtraError without Ray, ConfigError where nobody answers at the address."""
    try:
        importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError("ray", "ray", 'engine = "ray"') from None
    if address is None or address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"ray_address is {address!r}",
            hint='it is "auto", or as "10.0.0.1:6379"; left out, Ray is started here',
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED) as line:
            line.settimeout(_REACHED)  # Ray itself would wait for minutes
            line.sendall(_GREETING)
            if not os.environ.get("RAY_USE_TLS") and line.recv(4, socket.MSG_WAITALL)[3:] != _SETTINGS:
                raise OSError("what listens there is something else")
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> ConfigError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ConfigError(
        f"no Ray cluster can be reached at ray_address = {address!r}: {lines[0]}",
        hint="`ray status` on its head node shows whether it is up; left out, Ray is started here",
    )


class Cluster:
    """A connection, which engines of one process share; the last one to leave ends what was started here.

    Args:
        address: of the cluster's head, "host:port" or "auto"; None: an instance of this machine's own.
        cores: that the instance is to have.

    A process that has connected itself (`ray.init`) stays connected. Raises what `check` does, and ConfigError where
    what answers is no Ray cluster.
    """

    _users: int = 0
    _began: bool = False

    def __init__(self, address: str | None, cores: int) -> None:
        check(address)
        self.ray = _connected(address, cores)
        Cluster._users += 1
        self.open = True

    def put_data(self, data: Any) -> Any:
        """A reference to data whose tensors lie in the store, once a machine, and are read there."""
        import torch

        util = self.ray.util
        util.register_serializer(torch.Tensor, serializer=packed, deserializer=unpacked)
        try:
            return self.ray.put(data)
        finally:
            util.deregister_serializer(torch.Tensor)

    def close(self) -> None:
        """Leave."""
        if not self.open:
            return
        self.open = False
        Cluster._users -= 1
        if not Cluster._users and Cluster._began:
            Cluster._began = False
            self.ray.shutdown()


def _connected(address: str | None, cores: int) -> Any:
    with _surroundings(_LOCAL if address is None else {}):
        logging.getLogger("ray").setLevel(logging.ERROR)  # in a terminal that shows a run
        import ray

        if ray.is_initialized():
            return ray
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address is None:
                ray.init(
                    "local", num_cpus=cores, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet
                )
            else:
                ray.init(address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address or "local", error) from None
    Cluster._began = True
    return ray


@contextmanager
def _surroundings(wanted: dict[str, str]) -> Iterator[None]:
    """These environment variables, inside; Ray's own processes keep them."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
