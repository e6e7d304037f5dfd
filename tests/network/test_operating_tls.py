"""Who may look and who may stop a coordinator, over TLS; and what is told of those who may not."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from atoll.network.authority import Authority
from atoll.network.chain import lines
from atoll.network.identity import Identity
from atoll.network.tls import client_context, trusting_context
from tests.network.caller import Caller
from tests.network.cluster import Cluster
from tests.network.commands import command
from tests.network.warm import Forked, forked

ROLES = ("operator", "auditor", "node")


class Seen:
    """A coordinator that waits, and callers of every role, one of them revoked."""

    def __init__(self, place: Path) -> None:
        self.place = place
        authority = Authority.init(place / "ca")
        with Cluster(
            place, {"model": "logistic"}, names=("ann", "bob"), network={"ca": str(place / "ca")}
        ) as cluster:
            self.process = self.serve(cluster)
            self.address = f"127.0.0.1:{cluster.port}"
            for role in (*ROLES, "gone"):
                token = authority.invite(f"a-{role}", "auditor" if role == "gone" else role)
                asyncio.run(Identity(place / role).enrol("127.0.0.1", cluster.port, token))
            authority.revoke("a-gone")
            self.answers = {
                (role, path): self.ask(cluster.port, role, path)
                for role in (*ROLES, "gone", "stranger")
                for path in ("/", "/app.js", "/metrics", "/v1/status", "/client/x")
            }
            self.status = command("status", self.address, "--identity", str(place / "auditor"))
            self.nobody = command("status", self.address)
            self.plain = command("status", self.address, "--plain")
            self.fine = command("doctor", "--network", self.address, "--identity", str(place / "node"))
            self.wrong = command("doctor", "--network", self.address, "--identity", str(place / "gone"))
            self.without = command("doctor", "--network", self.address)
            self.refused = [
                command("stop", self.address, "--identity", str(place / each)) for each in ROLES[1:]
            ]
            self.running = self.process.poll() is None
            self.stopped = command("stop", self.address, "--identity", str(place / "operator"))
            self.exit = self.process.wait(30)
            self.away = command("status", self.address, "--identity", str(place / "auditor"))

    @staticmethod
    def serve(cluster: Cluster) -> Forked:
        words = ["serve", "run.toml", "--port", str(cluster.port), "--place", "coordinator", "--log-json"]
        process = forked(words, cluster.place, cluster.place / "coordinator.log", os.environ)
        cluster.processes["coordinator"] = process
        cluster.until("listening", "coordinator")
        return process

    def ask(self, port: int, role: str, path: str) -> int:
        held = Identity(self.place / ("auditor" if role == "stranger" else role))
        context = trusting_context(held.ca) if role == "stranger" else client_context(held)
        return Caller(port, context=context).ask("GET", path)[0]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tmp_path_factory.mktemp("tls"))


def test_the_page_is_for_every_role_and_for_no_stranger(seen: Seen) -> None:
    found = {who: seen.answers[who, "/"] for who in (*ROLES, "gone", "stranger")}
    assert found == {"operator": 200, "auditor": 200, "node": 200, "gone": 403, "stranger": 401}
    assert seen.answers["node", "/app.js"] == 404  # the run has not begun
    assert seen.answers["stranger", "/app.js"] == seen.answers["stranger", "/client/x"] == 401


def test_figures_are_for_those_who_watch(seen: Seen) -> None:
    found = {who: seen.answers[who, "/metrics"] for who in (*ROLES, "gone", "stranger")}
    assert found == {"operator": 200, "auditor": 200, "node": 403, "gone": 403, "stranger": 401}
    assert seen.answers["node", "/v1/status"] == 200


def test_status_and_its_refusals(seen: Seen) -> None:
    assert seen.status[0] == 0 and "waiting for nodes, 0 of 2 are there" in seen.status[1]
    assert seen.nobody[0] == 2 and "--identity" in seen.nobody[2]
    assert seen.plain[0] == 1
    assert seen.away[0] == 1 and f"nothing listens on {seen.address}" in seen.away[2]


def test_doctor_says_why(seen: Seen) -> None:
    assert seen.fine[0] == 0 and "knows this machine as a-node, node" in seen.fine[1]
    assert seen.wrong[0] == 1 and "a-gone was revoked" in seen.wrong[1]
    assert seen.without[0] == 1 and "no authority is known here" in seen.without[1]


def test_operators_stop_it_and_nobody_else(seen: Seen) -> None:
    assert [code for code, _, _ in seen.refused] == [2, 2]
    assert all("not for the role" in error for _, _, error in seen.refused)
    assert seen.running
    assert seen.stopped[0] == 0 and seen.exit == 0


def test_all_of_it_is_in_the_audit_log(seen: Seen) -> None:
    records = [each for each in lines(seen.place / "coordinator" / "audit.jsonl") if each is not None]
    issued = {
        each.facts["name"]: each.facts["role"] for each in records if each.event == "certificate-issued"
    }
    assert issued == {"a-operator": "operator", "a-auditor": "auditor", "a-node": "node", "a-gone": "auditor"}
    assert [each.facts for each in records if each.event == "operator"] == [
        {"name": "a-operator", "action": "stop"}
    ]
    refused = [each.facts for each in records if each.event == "refused"]
    assert any(each["problem"] == "revoked" and "a-gone" in each["message"] for each in refused)
    assert any(each["who"] == "a-node" and each["asked"] == "GET /metrics" for each in refused)


def test_logs_are_json(seen: Seen) -> None:
    found = [json.loads(line) for line in (seen.place / "coordinator.log").read_text().splitlines()]
    assert {"listening", "started", "certificate-issued", "operator", "stopped"} <= {
        each["event"] for each in found
    }
