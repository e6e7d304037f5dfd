"""Processes that write until they are killed, for tests of what is on the disk then."""

from __future__ import annotations

import subprocess
import sys

HARNESS = """
import os, random, select, signal, sys, time
rng = random.Random({seed})
{body}
for turn in range({times}):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write(turn, lambda line: os.write(writing, f"{{line}}\\n".encode()))
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(1)
    os.close(writing)
    select.select([reading], [], [], 20)  # it has begun
    time.sleep(rng.uniform(0, {longest}))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = b""
    while piece := os.read(reading, 1 << 16):
        said += piece
    os.close(reading)
    *whole, _ = said.decode().split("\\n")
    print("\\n".join(whole), flush=True)
    after(turn)
"""


def killed(body: str, *, times: int, longest: float, seed: int = 0) -> list[str]:
    """What processes said, one after another, of which each was killed at a moment of its own.

    `body` defines write(turn, say), which each of them runs, and after(turn), which runs when it is dead.
    """
    script = HARNESS.format(body=body, times=times, longest=longest, seed=seed)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
