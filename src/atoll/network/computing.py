"""What a node's worker computes on: looked at before anybody is asked for anything."""

from __future__ import annotations

import re
import subprocess
import sys

from atoll.errors import ConfigError

__all__ = ["usable"]

_NAME = re.compile(r"cuda(:[0-9]{1,3})?")


def usable(device: str) -> None:
    """Raises ConfigError for a device that is none, or that cannot be used here.

    A process of its own looks for GPUs: a node's has no torch.
    """
    if device in ("auto", "cpu"):
        return
    if not _NAME.fullmatch(device):
        raise ConfigError(
            f"--device {device!r} is no device", hint="auto, cpu, cuda, or one of several: cuda:1"
        )
    command = [sys.executable, "-m", "atoll.network.computing", device]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        why = found.stdout.strip() or found.stderr.strip().rpartition("\n")[2]
        raise ConfigError(
            f"--device {why}", hint="auto takes a GPU where there is one, and the CPU elsewhere"
        )


def main(device: str) -> int:
    """Look, and print why it cannot be used."""
    from atoll.assembly import device_named

    try:
        device_named(device)
    except ConfigError as error:
        print(error.message.removeprefix("device "))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
