"""`atoll peer` as people use it: processes that speak over TLS, are killed, and are started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atoll.cli.main import main
from atoll.experiment import Experiment
from atoll.network.authority import Authority
from atoll.tensors import Record
from tests.network.warm import Forked, forked
from tests.parties.test_wired import several
from tests.vertical.keys import party_keys

RUN = """
data = "digits"
clients = {count}
method = "{method}"
topology = "{topology}"
mixing = "{mixing}"
rounds = {rounds}
model = "mlp:12"
eval_every = 0
engine = "processes"
"""


class Street:
    """Peers as processes, with keys of one authority."""

    def __init__(
        self,
        place: Path,
        count: int,
        rounds: int,
        method: str = "dpsgd",
        topology: str = "ring",
        mixing: str = "plain",
    ) -> None:
        self.place, self.names = place, [f"phone-{at}" for at in range(count)]
        self.where = dict(zip(self.names, several(count), strict=True))
        authority = Authority.init(place / "ca")
        self.keys = {name: party_keys(authority, name, place / "keys" / name) for name in self.names}
        self.file = place / "run.toml"
        listed = "".join(f'{name} = ""\n' for name in self.names)
        text = RUN.format(count=count, rounds=rounds, method=method, topology=topology, mixing=mixing)
        self.file.write_text(f"{text}[peers]\n{listed}")
        self.running: dict[str, Forked] = {}

    def start(self, name: str, *more: str) -> None:
        """One peer, which knows the address of the first one, and of nobody else (the first knows the second's)."""
        first = self.names[0] if name != self.names[0] else self.names[1]
        command = [
            "peer", str(self.file), "--name", name, "--listen", str(self.where[name]),
            "--neighbours", str(self.where[first]), "--keys", str(self.keys[name]), "--place", str(self.of(name)),
            *more,
        ]  # fmt: skip
        self.running[name] = forked(command, self.place, self.place / f"{name}.log", os.environ)

    def of(self, name: str) -> Path:
        return self.place / "peers" / name

    def log(self, name: str) -> str:
        path = self.place / f"{name}.log"
        return path.read_text() if path.is_file() else ""

    def reached(self, name: str, number: int, seconds: float = 300) -> None:
        """Wait until a peer has come so far."""
        until = time.monotonic() + seconds
        while not any(
            f'"round":{number},' in each.read_text() for each in self.of(name).glob("*/events.jsonl")
        ):
            assert time.monotonic() < until, self.log(name)
            time.sleep(0.02)

    def kill(self, name: str) -> None:
        self.running[name].send_signal(signal.SIGKILL)
        self.running.pop(name).wait(10)

    def ended(self, seconds: float = 180) -> dict[str, int]:
        return {name: process.wait(seconds) for name, process in self.running.items()}

    def model(self, name: str) -> dict[str, torch.Tensor]:
        (found,) = self.of(name).glob("*/model.safetensors")
        return load_file(found)

    def close(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
                process.wait(10)


def simulated(street: Street) -> Sequence[Record]:
    """The peers' models in a simulation."""
    federation = Experiment.read(street.file, runs=None).build()
    federation.fit(progress=False)
    sent = federation.method.broadcast(federation.state, range(len(street.names))).own
    return [sent[at].params for at in range(len(street.names))]


def same(street: Street) -> bool:
    return all(
        torch.equal(street.model(name)[key], value)
        for name, params in zip(street.names, simulated(street), strict=True)
        for key, value in params.items()
    )


@pytest.mark.parametrize("mixing", ["plain", "masked"])
def test_processes_over_tls_come_to_the_simulation_though_one_is_killed(mixing: str, tmp_path: Path) -> None:
    street = Street(tmp_path, 3, rounds=30, mixing=mixing)
    try:
        for name in street.names:
            street.start(name)
        street.reached("phone-1", 4)
        street.kill("phone-1")
        secret, told = (street.of("phone-1") / f"masks.{each}" for each in ("key", "told"))
        if mixing == "masked":
            assert secret.stat().st_mode & 0o077 == 0
            assert told.read_text().count("told ") >= 6  # of three rounds at least, to two neighbours
        street.start("phone-1")
        assert street.ended() == dict.fromkeys(street.names, 0), [*map(street.log, street.names)]
    finally:
        street.close()
    assert "goes on after round" in street.log("phone-1")
    assert same(street)
    assert not secret.exists() and not told.exists()  # it is over


def test_who_is_stopped_while_it_waits_says_how_to_go_on(tmp_path: Path) -> None:
    street = Street(tmp_path, 2, rounds=3)
    try:
        street.start("phone-0")
        until = time.monotonic() + 60
        while "waiting for phone-1" not in street.log("phone-0"):
            assert time.monotonic() < until, street.log("phone-0")
            time.sleep(0.02)
        street.running["phone-0"].send_signal(signal.SIGINT)
        assert street.ended(30) == {"phone-0": 130}
    finally:
        street.close()
    assert "left; the same command goes on from here" in street.log("phone-0")
    assert "Traceback" not in street.log("phone-0")


@pytest.mark.slow
def test_eight_of_whom_one_is_killed_for_good_and_one_comes_back(tmp_path: Path) -> None:
    street = Street(tmp_path, 8, rounds=200, topology="exponential")
    try:
        for name in street.names:
            street.start(name, "--patience", "3")
        street.reached("phone-2", 5)
        street.kill("phone-2")
        street.kill("phone-5")
        street.reached("phone-0", 12)
        street.start("phone-5", "--patience", "3")
        assert set(street.ended(400).values()) == {0}, [*map(street.log, street.names)]
    finally:
        street.close()
    assert "phone-2: nothing came in" in street.log("phone-1") + street.log("phone-3")
    assert "goes on from round" in street.log("phone-5")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "topology", "mixing"),
    [
        ("dpsgd", "exponential", "plain"),
        ("choco", "exponential", "plain"),
        ("tracking", "exponential", "masked"),
        ("dpsgd", "related:2", "plain"),
    ],
)
def test_eight_over_tls_are_the_simulation(method: str, topology: str, mixing: str, tmp_path: Path) -> None:
    street = Street(tmp_path, 8, rounds=6, method=method, topology=topology, mixing=mixing)
    try:
        for name in street.names:
            street.start(name)
        assert set(street.ended(400).values()) == {0}, [*map(street.log, street.names)]
    finally:
        street.close()
    assert same(street)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--plain"], "where does phone-0 listen"),
        (["--plain", "--listen", "127.0.0.1:9"], "phone-0 knows nobody"),
        (["--listen", "127.0.0.1:9", "--neighbours", "127.0.0.1:10"], "say --keys DIR"),
        (["--plain", "--listen", "0.0.0.0:9", "--neighbours", "127.0.0.1:10"], "plain text stays"),
        (["--plain", "--set", "method=fedavg"], "topology is a setting of"),
        (["--plain", "--set", "topology=rink"], "did you mean 'ring'"),
        (["--plain", "--set", "cohort=2"], "is for a simulation"),
        (["--plain", "--set", "topology=related:2"], "cannot have 2 others each"),
        (["--plain", "--set", "mixing=masked"], "peer 0 hears peer 1 alone"),
        (
            ["--plain", "--set", "mixing=masked", "--set", "method=choco"],
            "what each neighbour offers by itself",
        ),
        (["--plain", "--set", "mixing=mask"], "did you mean 'masked'"),
        (["--plain", "--set", "channel=secagg"], "mixing=masked"),
        (["--plain", "--set", "channel=topk:0.1"], "method=choco"),
        (["--plain", "--name", "stranger"], "--name stranger: the peers are phone-0"),
    ],
)
def test_mistakes_end_with_one_screen(
    more: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    text = RUN.format(count=2, rounds=1, method="dpsgd", topology="ring", mixing="plain")
    file.write_text(text + '[peers]\nphone-0 = ""\nphone-1 = ""\n')
    with pytest.raises(SystemExit) as found:
        main(["peer", str(file), "--name", "phone-0", "--place", str(tmp_path / "p"), *more])
    said = capsys.readouterr().err
    assert found.value.code == 2 and problem in said and "hint" in said, said
    assert "Traceback" not in said
