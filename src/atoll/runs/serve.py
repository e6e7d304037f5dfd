"""The live page: a small server on this machine that shows the runs of a directory as they are written.

`serve` runs it here; `Dash` runs it beside a training process. Needs aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from atoll.errors import ConfigError, RunError
from atoll.runs.site import ANY, application, web

__all__ = ["PORT", "Dash", "serve"]

PORT = 8470
"""Where the page is looked for first: the same from day to day, so that an open page finds the server again."""


def serve(
    place: str | Path, host: str = "127.0.0.1", port: int = 0, ready: Callable[[str], None] | None = None
) -> None:
    """Serve the page until the process is interrupted or terminated.

    Args:
        place: a directory of runs, or one run.
        port: 0 takes a free one.
        ready: called with the address once it answers.

    Raises ConfigError where there is no such directory, or the address cannot be had.
    """
    site = application(place, host)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(site, host, port, ready))


async def _serve(site: web.Application, host: str, port: int, ready: Callable[[str], None] | None) -> None:
    runner = web.AppRunner(site, handle_signals=False, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    ended = asyncio.Event()
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OverflowError:
            raise ConfigError(f"port {port} is not a port", hint="a number from 1 to 65535") from None
        except OSError as error:
            raise _refusal(error, host, port) from None
        if ready is not None:
            name = "127.0.0.1" if host in ANY else f"[{host}]" if ":" in host else host
            ready(f"http://{name}:{runner.addresses[0][1]}/")
        await ended.wait()
    finally:
        await runner.cleanup()


def _refusal(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is taken", hint="choose another with --port; 0 takes a free one"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} may not be used here", hint="choose one above 1023 with --port")
    return ConfigError(
        f"cannot listen on {host}: {error.strerror or error}", hint="--host names an address of this machine"
    )


# --- beside a run -------------------------------------------------------------------------------------------


class Dash:
    """The server in a process of its own; it ends with `close`, or with the process that made it.

    `url` is where the page is. Raises ConfigError or RunError where it cannot be served.
    """

    def __init__(self, place: str | Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        command = [sys.executable, "-m", "atoll.runs.serve", str(place), host, str(port), str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        try:
            kind, text, hint = msgspec.json.decode(answer, type=tuple[str, str, str | None])
        except msgspec.DecodeError:
            self.close()
            raise RunError("the live page did not start", hint="atoll dash shows why") from None
        if kind != "ready":
            self.close()
            raise ConfigError(text, hint=hint)
        self.url = text

    def close(self) -> None:
        """End the server. Does nothing the second time."""
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Dash:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _beside(place: str, host: str, port: str, parent: str) -> None:
    """The process of a `Dash`: says on standard output how it went, and ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then closes this
    threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()

    def say(kind: str, text: str, hint: str | None = None) -> None:
        sys.stdout.buffer.write(msgspec.json.encode([kind, text, hint]) + b"\n")
        sys.stdout.flush()

    try:
        serve(place, host, int(port), lambda url: say("ready", url))
    except ConfigError as error:
        say("error", error.message, error.hint)


def _watch(parent: int) -> None:
    threading.Thread(target=_until_closed, daemon=True).start()
    while os.name != "posix" or os.getppid() == parent:  # workers of the run may hold the pipe after its end
        threading.Event().wait(0.5)
    os._exit(0)


def _until_closed() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    _beside(*sys.argv[1:])
