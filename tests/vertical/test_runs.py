"""Runs between parties: settings, one process and several, what breaks off and goes on, who is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.errors import AtollError, ConfigError, DataError
from atoll.vertical.figures import auc, figures, ks, lift
from atoll.vertical.fitting import Fitted, fit, play_one, run
from atoll.vertical.party import Party
from atoll.vertical.settings import Vertical, Where
from tests.vertical.tables import parties, written


def ports(names: Sequence[str] = ("guest", "host", "arbiter")) -> dict[str, int]:
    held = [socket.socket() for _ in names]
    for each in held:
        each.bind(("127.0.0.1", 0))
    found = {name: each.getsockname()[1] for name, each in zip(names, held, strict=True)}
    for each in held:
        each.close()
    return found


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random(60) < 0.3).astype(float)
    score = np.round(rng.random(60) + 0.3 * y, 1)  # with ties
    pairs = [(a > b) + 0.5 * (a == b) for a in score[y > 0] for b in score[y == 0]]
    assert auc(y, score) == pytest.approx(np.mean(pairs), abs=1e-12)
    apart = [abs(np.mean(score[y > 0] <= t) - np.mean(score[y == 0] <= t)) for t in score]
    assert ks(y, score) == pytest.approx(max(apart), abs=1e-12)
    assert lift(y, y) == pytest.approx(1 / y.mean())
    assert np.isnan(auc(np.ones(3), score[:3]))
    assert np.isnan(ks(np.ones(3), score[:3]))
    counts = rng.poisson(2.0, 50).astype(float)
    assert figures("poisson", counts, np.full(50, counts.mean()))["d2"] == pytest.approx(0)
    assert figures("regression", counts, counts) == {"rmse": 0.0, "r2": 1.0}
    assert figures("multiclass", np.array([0.0, 2.0]), np.eye(3)[[0, 1]]) == {"accuracy": 0.5}


# --- tables ---------------------------------------------------------------------------------------------------------


def columns(**more: Any) -> dict[str, Any]:
    return {"id": ["a", "b", "c"], "y": [0, 1, 1], "x": [1.0, float("nan"), 3.0], **more}


def test_a_table_is_read_with_its_gaps_and_labels() -> None:
    party = Party.read(columns(y=["no", "yes", "no"]), "id", "y")
    assert (list(party.ids), party.columns, party.labels) == (["a", "b", "c"], ("x",), ("no", "yes"))
    assert party.y is not None
    assert party.y.tolist() == [0.0, 1.0, 0.0]
    assert np.isnan(party.x[1, 0])


@pytest.mark.parametrize(
    ("table", "given", "problem"),
    [
        (columns(), {"id": "name"}, "no column 'name'"),
        (columns(), {"label": "target"}, "no column 'target'"),
        (columns(x=["1", "two", "3"]), {}, "column 'x' is text"),
        (columns(y=[1, 1, 1]), {}, "only one class: 1"),
        (columns(y=[0, 1, 2]), {}, "has 3 classes"),
        (columns(y=[0.0, float("nan"), 1.0]), {}, "has gaps"),
        (columns(y=[0.5, 1.0, 2.0]), {"task": "poisson"}, "no counts"),
        (columns(s=[1.0, 0.0, 2.0]), {"task": "poisson", "exposure": "s"}, "not above 0"),
        (columns(), {"columns": ["x", "y"]}, "y is not to learn from"),
        ({"id": [], "y": []}, {}, "no rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(table: Any, given: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        Party.read(table, **{"id": "id", "label": "y", **given})


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        Party.read(tmp_path / "none.csv", "id")


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (["protocol=secureboots"], "unknown protocol 'secureboots'"),
        (["tests=0.1"], "unknown key 'tests'"),
        (["glm.epoch=3"], "unknown key 'glm.epoch'"),
        (["glmm.epochs=3"], r"unknown table \[glmm\]"),
        (["party.host.file=x"], "unknown key 'party.host.file'"),
        (["crypto=rot13"], "crypto = 'rot13' is nothing for protocol = 'glm'"),
        (["test=1.5"], "test cannot be '1.5'"),
        (["protocol=splitnn"], "has no arbiter"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, sets: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Vertical.read(written(tmp_path), sets)


@pytest.mark.parametrize(
    ("protocol", "given", "cipher"),
    [
        ("glm", {}, "ckks"),
        ("glm", {"mode": "sshe"}, "ou"),
        ("secureboost", {}, "ou"),
        ("splitnn", {}, "none"),
        ("ftl", {}, "ckks"),
        ("psi", {}, "none"),
    ],
)
def test_every_protocol_has_a_cipher_of_its_own(protocol: str, given: dict[str, Any], cipher: str) -> None:
    names = ["guest", "host", *(["arbiter"] if protocol == "glm" and not given else [])]
    plan = Vertical(protocol=protocol, party={name: Where() for name in names}, given=given)
    assert plan.cipher == plan.case().crypto == cipher


def test_a_run_needs_a_guest_and_a_host() -> None:
    with pytest.raises(ConfigError, match="the parties are guest, and there must be a guest and a host"):
        Vertical(protocol="psi", party={"guest": Where()})


def test_a_file_repeats_itself(tmp_path: Path) -> None:
    plan = Vertical.read(written(tmp_path, epochs=3, l2=0.01), ["seed=4"])
    again = tmp_path / "again.toml"
    again.write_text(plan.to_toml())
    assert Vertical.read(again) == plan
    assert plan.fingerprint() != replace(plan, seed=5).fingerprint()


# --- one process ----------------------------------------------------------------------------------------------------


def test_parties_learn_together_what_neither_could_alone() -> None:
    both = parties()
    found = fit(both, "glm", arbiter=True, crypto="none", epochs=30, seed=1)
    assert found.figures["common"] == len(set(both["guest"].ids) & set(both["host"].ids))
    assert found.figures["auc"] > 0.95
    assert found.figures["auc"] == found.figures["test"]["auc"]
    again = fit(both, "glm", arbiter=True, crypto="none", epochs=30, seed=1)
    assert again.figures["auc"] == found.figures["auc"]
    alone = fit({**both, "host": replace(both["host"], x=both["host"].x * 0)}, "glm", arbiter=True, crypto="none",
                epochs=30, seed=1)  # fmt: skip
    assert alone.figures["auc"] < found.figures["auc"] - 0.1


def test_a_model_in_halves_predicts_rows_that_it_has_not_seen() -> None:
    found = fit(parties(), "glm", arbiter=True, crypto="none", epochs=30)
    new = parties(seed=9)
    ids, score = found.predict_proba(new)
    assert set(ids) == set(new["guest"].ids) & set(new["host"].ids)
    assert np.allclose(score.sum(1), 1)
    assert ids == sorted(ids)
    ids, told = found.predict(new)
    assert new["guest"].y is not None
    known = dict(zip(new["guest"].ids, new["guest"].y, strict=True))
    assert np.mean([(each == "yes") == (known[row] > 0) for row, each in zip(ids, told, strict=True)]) > 0.9
    with pytest.raises(ConfigError, match="the parties are guest"):
        found.predict_proba({"guest": new["guest"]})


def test_rows_without_a_common_id_are_said() -> None:
    both = parties()
    other = replace(both["host"], ids=[f"other {each}" for each in both["host"].ids])
    with pytest.raises(DataError, match="no row"):
        fit({**both, "host": other}, "glm", arbiter=True, crypto="none")


def test_a_run_leaves_halves_events_and_an_audit(tmp_path: Path) -> None:
    found = run(replace(Vertical.read(written(tmp_path, epochs=3)), runs=str(tmp_path / "runs")))
    assert found.folder is not None
    events = [json.loads(line) for line in (found.folder.path / "events.jsonl").read_text().splitlines()]
    kinds = [each["event"] for each in events]
    assert (kinds[0], kinds.count("round"), kinds[-2:]) == ("start", 3, ["crypto", "result"])
    said = events[-2]["said"]
    assert {each["kind"] for each in said} == set(events[-1]["bytes"])
    assert sum(each["nbytes"] for each in said) == sum(events[-1]["bytes"].values())
    assert all(each["tells"] for each in said)
    assert {p.name for p in found.folder.path.glob("*.half.safetensors")} == {
        "guest.half.safetensors", "host.half.safetensors",
    }  # fmt: skip
    text = (found.folder.path / "config.toml").read_text()
    (tmp_path / "again.toml").write_text(text)
    assert Vertical.read(tmp_path / "again.toml").given == {"epochs": 3}


# --- a process for each ---------------------------------------------------------------------------------------------


def together(
    plan: Callable[[str], Vertical],
    names: Sequence[str] = ("guest", "host", "arbiter"),
    secured: Any = None,
    resume: str | None = None,
) -> dict[str, Fitted | BaseException]:
    """All parties over sockets, a thread for each: what they have in the end, or what they raised."""
    found: dict[str, Fitted | BaseException] = {}

    def one(name: str) -> None:
        try:
            found[name] = play_one(
                plan(name), name, None, None if secured is None else secured(name), resume=resume
            )
        except AtollError as error:
            found[name] = error

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return found


def test_sockets_give_the_halves_of_one_process(tmp_path: Path) -> None:
    plan = replace(Vertical.read(written(tmp_path, ports=ports(), epochs=4)), runs=None)
    found, alone = together(lambda name: plan), run(plan)
    for name in ("guest", "host"):
        one = found[name]
        assert isinstance(one, Fitted), one
        assert list(one.halves) == [name]
        assert str(one.halves[name]) == str(alone.halves[name])
    guest = found["guest"]
    assert isinstance(guest, Fitted)
    assert guest.figures["test"] == alone.figures["test"]


def test_other_settings_are_refused_at_all_parties(tmp_path: Path) -> None:
    plan = replace(Vertical.read(written(tmp_path, ports=ports(), epochs=4)), runs=None)
    other = replace(plan, seed=1)
    found = together(lambda name: other if name == "host" else plan)
    assert "has other settings" in str(found["host"])
    assert "host" in str(found["guest"])
    assert all(isinstance(each, AtollError) for each in found.values())


def test_who_has_another_certificate_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    from atoll.network.authority import Authority
    from atoll.network.between import secured
    from tests.vertical.keys import party_keys

    authority = Authority.init(tmp_path / "ca")
    stranger = Authority.init(tmp_path / "other")
    names = ("guest", "host")
    plan = replace(
        Vertical.read(written(tmp_path, "splitnn", ports(names), epochs=1)), runs=None, timeout=5.0
    )
    keys = {name: party_keys(authority, name, tmp_path / name) for name in names}
    found = together(lambda name: plan, names, lambda name: secured(keys[name], name))
    assert all(isinstance(each, Fitted) for each in found.values()), found

    wrong = {**keys, "host": party_keys(stranger, "host", tmp_path / "host-2")}
    found = together(lambda name: plan, names, lambda name: secured(wrong[name], name))
    assert all(isinstance(each, AtollError) for each in found.values()), found

    node = party_keys(authority, "node-a", tmp_path / "node", role="node")
    with pytest.raises(ConfigError, match="is of node-a, a node"):
        secured(node, "node-a")
    with pytest.raises(ConfigError, match="is of guest, a party, and this is the party host"):
        secured(keys["guest"], "host")


def test_a_certificate_is_worth_its_own_name_and_role_only(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    from atoll.network.authority import Authority
    from atoll.network.between import secured
    from tests.vertical.keys import bare, party_keys

    names = ("guest", "host")
    plan = replace(
        Vertical.read(written(tmp_path, "splitnn", ports(names), epochs=1)), runs=None, timeout=4.0
    )
    authority = Authority.init(tmp_path / "ca")
    guest = party_keys(authority, "guest", tmp_path / "guest")
    # Another party of the same authority says that it is the host; and a node of that name does.
    mallory = bare(party_keys(authority, "mallory", tmp_path / "mallory"))
    node = bare(party_keys(authority, "host", tmp_path / "node", role="node"))
    for attacker, known in ((mallory, "mallory"), (node, "nobody")):
        held = {"guest": secured(guest, "guest"), "host": attacker}
        found = together(lambda name: plan, names, held.__getitem__)
        assert all(isinstance(each, AtollError) for each in found.values()), found
        assert f"host has a certificate of {known}" in str(found["guest"]), found


def test_parties_go_on_after_the_last_step_that_all_have(tmp_path: Path) -> None:
    base = replace(Vertical.read(written(tmp_path, ports=ports(), epochs=4)), keep="all")
    plan = {name: replace(base, runs=str(tmp_path / name)) for name in base.names}
    first = together(plan.__getitem__)
    wanted = {name: halves(tmp_path / name, name) for name in ("guest", "host")}
    assert all(isinstance(each, Fitted) for each in first.values()), first
    for number in (3, 4):  # the host lost its last two
        shutil.rmtree(next((tmp_path / "host").glob(f"*/checkpoints/round-{number:05d}")))
    again = together(plan.__getitem__, resume="last")
    assert all(isinstance(each, Fitted) for each in again.values()), again
    assert {name: halves(tmp_path / name, name) for name in wanted} == wanted
    for name in base.names:
        events = next((tmp_path / name).glob("*/events.jsonl")).read_text().splitlines()
        resumed = [event["round"] for event in map(json.loads, events) if event["event"] == "resume"]
        assert resumed == [2], name


# --- what breaks off, goes on ---------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "atoll", "vertical", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def reached(place: Path, number: int, seconds: float = 60) -> None:
    """Wait until a run there has so many rounds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for file in place.glob("*/events.jsonl"):
            if file.read_text().count('"event":"round"') >= number:
                return
        time.sleep(0.02)
    raise AssertionError(f"{place} has not come to round {number}")


def halves(place: Path, name: str) -> bytes:
    return next(place.glob(f"*/{name}.half.safetensors")).read_bytes()


@pytest.mark.parametrize("victim", ["host", "guest"])
@pytest.mark.slow
def test_a_party_that_is_killed_ends_the_run_and_all_go_on(tmp_path: Path, victim: str) -> None:
    file = written(tmp_path, ports=ports(), epochs=150)
    done = start("run", str(file), "--runs", str(tmp_path / "alone"), "--quiet")
    done.communicate(timeout=120)
    assert done.returncode == 0

    def join(*more: str) -> dict[str, subprocess.Popen[str]]:
        return {
            name: start(
                "join", str(file), "--as", name, "--plain", "--quiet", "--runs", str(tmp_path / name), *more
            )
            for name in ("guest", "host", "arbiter")
        }

    running = join()
    reached(tmp_path / victim, 30)
    running[victim].send_signal(signal.SIGKILL)
    for name, each in running.items():
        _, told = each.communicate(timeout=30)
        if name != victim:
            assert each.returncode == 1, told
            assert "is gone" in told or "has ended" in told, told
    running = join("--resume", "last")
    for each in running.values():
        _, told = each.communicate(timeout=120)
        assert each.returncode == 0, told
    for name in ("guest", "host"):
        assert halves(tmp_path / name, name) == halves(tmp_path / "alone", name)


def test_a_run_in_one_process_that_is_killed_goes_on_to_the_bit(tmp_path: Path) -> None:
    file = written(tmp_path, epochs=150)
    alone = start("run", str(file), "--runs", str(tmp_path / "alone"), "--quiet")
    broken = start("run", str(file), "--runs", str(tmp_path / "broken"), "--quiet")
    reached(tmp_path / "broken", 20)
    broken.send_signal(signal.SIGKILL)
    broken.communicate(timeout=30)
    again = start("run", "--resume", "last", "--runs", str(tmp_path / "broken"), "--quiet")
    for each in (alone, again):
        _, told = each.communicate(timeout=120)
        assert each.returncode == 0, told
    for name in ("guest", "host"):
        assert halves(tmp_path / "broken", name) == halves(tmp_path / "alone", name)
