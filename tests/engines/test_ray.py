"""Ray itself: two nodes on the loopback, actors and nodes that are killed, and an instance that Atoll starts.

What does not need Ray's own processes is in `test_lost.py`.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import atoll
from atoll.codec import encode
from atoll.engines.ray import Actors
from atoll.errors import EngineError, RunError
from atoll.federation import Federation
from atoll.tensors import Record

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason='needs Ray: pip install "atoll[ray]"')

CONFIG = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 30_000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Ray's processes write into a home of their own, and tell nobody."""
    kept = dict(os.environ)
    home = tmp_path_factory.mktemp("home")
    source = Path(atoll.__file__).parents[1]
    tests = Path(__file__).parents[2]
    mine = {
        "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": f"{source}{os.pathsep}{tests}", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    os.environ.update(mine)
    yield mine
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="module")
def cluster(surroundings: dict[str, str]) -> Iterator[Any]:
    """Two nodes, of one core and of two; this process is connected with the first."""
    import ray  # reads the environment
    from ray.cluster_utils import Cluster

    small = {"include_dashboard": False, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.1"}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": CONFIG, **small})
    made.second = made.add_node(num_cpus=2, **small)
    ray.init(made.address, log_to_driver=False, logging_level="ERROR")
    made.ray = ray
    made.again = lambda: made.add_node(num_cpus=2, **small)
    yield made
    ray.shutdown()
    made.shutdown()


def digits() -> Any:
    return atoll.data.load("digits").partition(
        atoll.data.Dirichlet(clients=20, alpha=0.5), seed=0, validation=0.2
    )


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def straight() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def federation(
    engine: str, method: Any = "fedavg", model: Any = mlp, data: Any = None, **kw: Any
) -> Federation:
    settings = {"rounds": 3, "cohort": 10, "eval_every": 0, "device": "cpu", "workers": 3, **kw}
    return Federation(model, digits() if data is None else data, method, engine=engine, **settings)


def bits(fed: Federation) -> bytes:
    """State and memories."""
    memories = {str(k): memory for k in range(len(fed.data)) if (memory := fed.memories.get(k)) is not None}
    return encode(Record(state=fed.state, memories=Record(memories)))


def fitted(*given: Any, **kw: Any) -> bytes:
    fed = federation(*given, **kw)
    fed.fit()
    return bits(fed)


def test_an_instance_that_atoll_starts_gives_the_bits_of_processes(surroundings: dict[str, str]) -> None:
    import ray

    before = ray.is_initialized()
    assert fitted("ray", rounds=2, workers=2) == fitted("processes", rounds=2, workers=2)
    assert ray.is_initialized() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "model", "more"),
    [
        ("fedavg", mlp, {}),
        ("fedavg", cnn, {}),
        ("scaffold", mlp, {}),
        ("fedora", mlp, {}),
        ("fedma", mlp, {"rounds": 4}),
        ("local", [mlp, straight], {"cohort": 20}),
        ("fedavg", mlp, {"cohort": 20, "channel": "clip:0.5", "stragglers": 0.5}),
    ],
    ids=["mlp", "cnn", "scaffold", "fedora", "fedma", "two architectures", "channel"],
)
def test_every_kind_of_method_gives_the_bits_of_processes(
    cluster: Any, method: str, model: Any, more: Any
) -> None:
    wanted = fitted("processes", method, model, **{**more, "workers": 2})
    assert fitted("ray", method, model, **more) == wanted
    assert fitted("ray", method, model, **{**more, "workers": 1}) == wanted


@pytest.mark.slow
def test_the_number_of_actors_makes_no_difference(cluster: Any) -> None:
    wanted = fitted("processes", "fedavg", cohort=20)
    assert all(fitted("ray", "fedavg", cohort=20, workers=workers) == wanted for workers in (1, 2, 3, None))


def disturbed(fed: Federation, seed: int, kill: Callable[[Actors, int], None]) -> int:
    """Play all rounds; in each, at a random moment, somebody is killed. How often that was while work was under way."""
    chance, crew, struck = random.Random(seed), fed.engine.crew, 0  # type: ignore[attr-defined]
    assert isinstance(crew, Actors)
    plain, when, given = crew.give, [0], [0]

    def give(worker: int, *rest: Any) -> None:
        nonlocal struck
        plain(worker, *rest)
        given[0] += 1
        if given[0] == when[0]:
            time.sleep(chance.random() * 0.02)
            kill(crew, worker)
            struck += 1

    crew.give = give  # type: ignore[method-assign]
    with_end = fed.engine
    try:
        for _ in range(fed.rounds):
            when[0], given[0] = chance.randint(1, 10), 0
            fed.round()
    finally:
        with_end.close()
    return struck


@pytest.mark.slow
def test_actors_killed_in_mid_round_change_no_bit(cluster: Any) -> None:
    fed = federation("ray", "scaffold", rounds=8)
    assert disturbed(fed, 1, lambda crew, worker: cluster.ray.kill(crew.actors[worker].handle)) >= 8
    assert bits(fed) == fitted("processes", "scaffold", rounds=8)


@pytest.mark.slow
def test_a_node_killed_in_mid_round_changes_no_bit(cluster: Any) -> None:
    fed = federation("ray", "scaffold", rounds=8)

    def kill(crew: Actors, worker: int) -> None:
        cluster.remove_node(cluster.second, allow_graceful=False)
        cluster.second = cluster.again()

    assert disturbed(fed, 2, kill) >= 8
    assert bits(fed) == fitted("processes", "scaffold", rounds=8)


@pytest.mark.slow
def test_without_a_node_the_others_do_its_work(cluster: Any) -> None:
    fed = federation("ray", "fedavg", rounds=3)
    kept: list[Any] = []

    def kill(crew: Actors, worker: int) -> None:
        if not kept:
            cluster.remove_node(cluster.second, allow_graceful=False)
            kept.append(True)

    disturbed(fed, 3, kill)
    cluster.second = cluster.again()
    assert bits(fed) == fitted("processes", "fedavg", rounds=3)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("processes", "ray"), ("ray", "processes")])
def test_what_one_engine_began_the_other_ends(cluster: Any, tmp_path: Path, first: str, then: str) -> None:
    made: dict[str, Any] = {"method": "scaffold", "runs": tmp_path, "checkpoint": 1}
    fed = federation(first, rounds=2, **made)
    fed.fit()
    assert fed.folder is not None
    other = federation(then, rounds=4, **made).resume(fed.folder.path)
    assert other.engine.name == then
    other.fit()
    assert bits(other) == fitted("processes", "scaffold", rounds=4)


def _resident() -> int:
    """Bytes of memory of all actors."""
    found = 0
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::Actor" in (each / "cmdline").read_bytes():
                lines = (each / "status").read_text().splitlines()
                found += next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
        except (OSError, StopIteration):
            continue
    return found


class Million:
    """A client is its number."""

    def __call__(self, client: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(client)
        x = rng.normal(size=(20, 6)).astype(np.float32)
        return x, (x[:, 0] > 0).astype(np.int64)


@pytest.mark.slow
def test_a_million_lazy_clients_take_the_memory_of_a_thousand(cluster: Any) -> None:
    taken = {}
    for count in (1_000, 1_000_000):
        data = atoll.data.from_function(Million(), clients=count, classes=2, size=20)
        fed = federation("ray", "fedavg", lambda: nn.Linear(6, 2), data, cohort=200, rounds=8, workers=2)
        with_end = fed.engine
        try:
            for number in range(8):
                fed.round()
                if number == 3:
                    early = _resident()
            taken[count] = _resident()
        finally:
            with_end.close()
        assert early > 1 << 20 and taken[count] - early < 16 << 20
    assert taken[1_000_000] - taken[1_000] < 24 << 20
    assert len(cluster.ray.cloudpickle.dumps(data)) < 10_000


@pytest.mark.slow
def test_what_cannot_travel_is_said(cluster: Any) -> None:
    class Held(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 2)

        def __deepcopy__(self, memo: Any) -> Any:
            return self

        def __reduce__(self) -> Any:
            raise TypeError("this module stays here")

    data = atoll.data.from_function(Million(), clients=20, classes=2, size=20)
    with pytest.raises(EngineError, match=r"cannot be sent to other machines: .*stays here"):
        fitted("ray", "fedavg", Held, data)


class Deadly:
    """A client whose data end the process that reads them, where that is an actor."""

    def __call__(self, client: int) -> tuple[Any, Any]:
        if client == 3 and "default_worker" in " ".join(sys.argv):
            os._exit(1)
        return np.ones((4, 6), np.float32), np.zeros(4, np.int64)


@pytest.mark.slow
def test_clients_that_end_their_actors_end_the_run(cluster: Any) -> None:
    data = atoll.data.from_function(Deadly(), clients=6, classes=2, size=4)
    with pytest.raises(RunError, match="5 actors of the Ray cluster ended unexpectedly"):
        fitted("ray", "fedavg", lambda: nn.Linear(6, 2), data, cohort=6, workers=2)


# --- an instance of Atoll's own -------------------------------------------------------------------------------------


def _of_ray(place: str) -> list[int]:
    """Processes that Ray has started with this temporary directory."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if place in (each / "environ").read_bytes().decode(errors="replace"):
                found.append(int(each.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def _listening(pids: list[int]) -> set[str]:
    """Local addresses at which they listen, as /proc has them: hexadecimal, without the port."""
    inodes = set()
    for pid in pids:
        for each in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(each))
            except OSError:
                continue
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {
        fields[1].partition(":")[0]
        for fields in lines
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks into Linux's /proc")
def test_what_atoll_starts_listens_here_only_and_ends_with_it(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    place = f"/tmp/atoll-ray-{os.getpid()}"
    environment = {**os.environ, "RAY_TMPDIR": place, "OMP_NUM_THREADS": "1", "ATOLL_RUNS": str(tmp_path)}
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ADDRESS"):
        environment.pop(name, None)
    os.makedirs(place, exist_ok=True)
    sets = [
        f"--set={each}" for each in ("engine=ray", "workers=2", "rounds=100000", "cohort=10", "eval_every=0")
    ]
    command = [sys.executable, "-c", "from atoll.cli import main; main()", "run", "--json", *sets]
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert run.stdout is not None and run.stderr is not None
        for line in run.stdout:
            if '"event":"round"' in line:
                break
        mine = _of_ray(place)
        assert len(mine) > 4
        addresses = _listening(mine)
        assert addresses and addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 130, errors
        assert "Traceback" not in errors
    finally:
        run.kill()
    for _ in range(100):
        if not (left := _of_ray(place)):
            break
        time.sleep(0.1)
    shutil.rmtree(place, ignore_errors=True)
    assert not left, "nothing of Ray is left"
    assert not (Path.home() / ".config" / "ray").exists()


@pytest.mark.slow
def test_where_a_process_is_connected_it_stays_so(cluster: Any) -> None:
    fitted("ray", ray_address=cluster.address)
    assert cluster.ray.is_initialized()


@pytest.mark.slow
def test_a_wrong_address_is_one_screen_and_exit_code_2(surroundings: dict[str, str]) -> None:
    command = [sys.executable, "-c", "from atoll.cli import main; main()", "run", "--set=engine=ray"]
    ended = subprocess.run(
        [*command, "--set=ray_address=127.0.0.1:1"], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 2
    assert "no Ray cluster can be reached" in ended.stderr and len(ended.stderr.splitlines()) < 12
