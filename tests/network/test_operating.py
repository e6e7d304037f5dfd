"""A run as its operators see it: page, figures, status, audit log, SIGTERM; with a node whose answers are no good."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from atoll.network.auditlog import verify
from atoll.network.chain import lines
from tests.network.caller import Caller
from tests.network.cluster import Cluster
from tests.network.commands import command

RUN = {"model": "mlp:16", "rounds": 2, "seed": 3, "method": "fedavg"}
BAD = b"this is no record " * 100


def figures(text: bytes) -> dict[str, float]:
    """Prometheus' own parser reads them."""
    return {
        f"{sample.name}{''.join(f'/{value}' for value in sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


class Seen:
    """What was seen of a run from its beginning to its end."""

    def __init__(self, place: Path) -> None:
        with Cluster(place, RUN, names=("ann", "bob"), network={"client": str(place)}) as cluster:
            (place / "index.html").write_text("<!doctype html>hello")
            (place / "page.mjs").write_text("export {}")
            self.cluster, self.anybody = cluster, Caller(cluster.port)
            self.auditor = Caller(cluster.port, "ada", "auditor")
            self.address = f"127.0.0.1:{cluster.port}"
            cluster.start("coordinator")
            cluster.until("listening", "coordinator")
            self.waiting = self.anybody.ask("GET", "/")
            cluster.start("ann", "--log-json", "--device", "cpu")
            bob = Caller(cluster.port, "bob")
            bob.join(place / "bob.npz")
            task = bob.task()
            for _ in cluster.ticks(60, "ann's answer"):
                if self.auditor.get("/v1/status")["answers"]:
                    break
            self.during()
            self.refused = json.loads(bob.ask("PUT", bob.place(task, BAD), BAD)[1])
            self.stopping(bob)
            self.again(bob)

    def during(self) -> None:
        """Round 1 waits for bob."""
        ask = self.anybody.ask
        self.page = {
            path: ask("GET", path) for path in ("/", "/app.js", "/runs.json", "/client/", "/client/page.mjs")
        }
        self.beyond = [
            ask("GET", "/client/ann.npz")[0],
            ask("GET", "/client/..%2frun.toml")[0],
            ask("GET", "/x.js")[0],
        ]
        self.posted = ask("POST", "/", b"")[0]
        self.strange = ask("GET", "/", Host="evil.example")[0]
        self.status = self.auditor.get("/v1/status")
        self.shown = command("status", self.address, "--plain")
        self.told = command("status", self.address, "--plain", "--json")
        self.may = command("stop", "localhost.invalid:1", "--plain")
        self.metrics = figures(ask("GET", "/metrics")[1])
        self.unasked = self.auditor.ask("POST", "/v1/admin/stop", b"")[0]

    def stopping(self, bob: Caller) -> None:
        """SIGTERM while bob sends an answer of round 2."""
        task = bob.task()
        line = bob.line()
        line.putrequest("PUT", bob.place(task, BAD))
        for key, value in {**bob.headers, "Content-Length": str(len(BAD))}.items():
            line.putheader(key, value)
        line.endheaders(BAD[:1000])
        for _ in self.cluster.ticks(30, "the upload"):
            if self.auditor.get("/v1/status")["uploads"]:
                break
        self.uploads = self.auditor.get("/v1/status")["uploads"]
        process = self.cluster.processes["coordinator"]
        process.send_signal(signal.SIGTERM)
        for _ in self.cluster.ticks(10, "stopping"):
            if self.auditor.get("/v1/status")["state"] == "stopping":
                break
        self.late = Caller(self.cluster.port, "ann").ask("PUT", bob.place(task, b"x"), b"x")[0]
        time.sleep(2.0)  # longer than requests get that are not waited for
        line.send(BAD[1000:])
        answer = line.getresponse()
        self.drained = answer.status, json.loads(answer.read())
        line.close()
        since = time.monotonic()
        self.exit = process.wait(30)
        self.ended_in = time.monotonic() - since
        self.task = task

    def again(self, bob: Caller) -> None:
        """The same command."""
        self.cluster.start("coordinator")
        for _ in self.cluster.ticks(60, "the coordinator"):
            if self.cluster.status():
                break
        bob.join(self.cluster.place / "bob.npz")
        self.known = bob.ask("GET", f"/v1/task/{self.task['id']}/answer")[:2]
        self.end = self.cluster.wait(), self.cluster.wait("ann")

    def records(self) -> list[Any]:
        return list(lines(self.cluster.place / "coordinator" / "audit.jsonl"))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tmp_path_factory.mktemp("operating"))


class TestPage:
    def test_before_the_run_a_page_waits(self, seen: Seen) -> None:
        status, body, headers = seen.waiting
        assert status == 200 and b'http-equiv="refresh"' in body and b"0 of 2 are there" in body
        assert headers["Content-Type"].startswith("text/html")

    def test_then_it_is_the_runs(self, seen: Seen) -> None:
        assert all(status == 200 for status, _, _ in seen.page.values())
        assert b"app.js" in seen.page["/"][1]
        found = json.loads(seen.page["/runs.json"][1])
        assert len(found["runs"]) == 1 and found["only"] is not None
        assert "default-src 'none'" in seen.page["/"][2]["Content-Security-Policy"]

    def test_nobody_writes_and_no_other_host_is_answered(self, seen: Seen) -> None:
        assert seen.posted == 405
        assert seen.strange == 403

    def test_a_client_for_browsers_is_beside_it(self, seen: Seen) -> None:
        assert seen.page["/client/"][1] == b"<!doctype html>hello"
        assert seen.page["/client/page.mjs"][2]["Content-Type"].startswith("text/javascript")
        assert seen.beyond == [404, 404, 404]


class TestFigures:
    def test_metrics(self, seen: Seen) -> None:
        found = seen.metrics
        assert found["atoll_round"] == 0 and found["atoll_rounds"] == 2
        assert found["atoll_nodes_there"] == found["atoll_nodes_known"] == found["atoll_nodes_least"] == 2
        assert found["atoll_answers_total/accepted"] == 1 and found["atoll_tasks_open"] == 1
        assert found["atoll_state/running"] == 1 and found["atoll_state/paused"] == 0
        assert found["atoll_body_bytes_total/up"] > 1000 < found["atoll_body_bytes_total/down"]
        assert (
            found["atoll_phase_seconds_count/train-node"]
            == found["atoll_phase_seconds_bucket/+Inf/train-node"]
            == 1
        )
        assert found["atoll_journal_commits_total"] > 3 and found["atoll_journal_lag_seconds"] > 0
        assert found["process_resident_memory_bytes"] > 5e7

    def test_status_fits_a_screen(self, seen: Seen) -> None:
        code, out, _ = seen.shown
        assert code == 0
        assert all(len(line) <= 80 for line in out.splitlines())
        assert "round   0 of 2" in out and "1 accepted; refused: none" in out
        assert any(line.startswith("bob") and "1-0-0" in line for line in out.splitlines())
        nodes = json.loads(seen.told[1])["nodes"]
        assert [(each["name"], each["device"]) for each in nodes] == [("ann", "cpu"), ("bob", None)]
        assert any(line.startswith("ann") and " cpu " in line for line in out.splitlines())

    def test_only_operators_stop_it(self, seen: Seen) -> None:
        assert seen.unasked == 403
        assert seen.may[0] == 2 and "plain text stays on this machine" in seen.may[2]

    def test_nobody_there_is_said(self) -> None:
        code, _, error = command("status", "127.0.0.1:9", "--plain")
        assert code == 1 and "no answer from 127.0.0.1:9" in error


class TestSigterm:
    def test_uploads_are_shown(self, seen: Seen) -> None:
        assert seen.uploads == [{"node": "bob", "task": seen.task["id"], "received": 1000, "size": len(BAD)}]

    def test_what_was_under_way_is_taken_and_nothing_new(self, seen: Seen) -> None:
        status, answered = seen.drained
        assert status == 200 and answered["done"] and answered["refused"]
        assert seen.late == 503

    def test_it_ends_with_0_and_the_same_command_goes_on(self, seen: Seen) -> None:
        assert seen.exit == 0
        assert seen.known[0] == 200 and json.loads(seen.known[1]) == seen.drained[1]
        assert seen.end == (0, 0)
        assert "the same command goes on from here" in seen.cluster.log("coordinator")


class TestAuditLog:
    def test_its_chain_is_sound(self, seen: Seen) -> None:
        verdict = verify(seen.cluster.place / "coordinator" / "audit.jsonl")
        assert verdict.ok, verdict.problem

    def test_what_happened_is_there_in_order(self, seen: Seen) -> None:
        found = [(each.event, each.facts) for each in seen.records()]
        events = Counter(event for event, _ in found)
        assert events["begun"] == events["run-begun"] == events["run-stopped"] == events["run-resumed"] == 1
        assert events["started"] == events["joined"] == events["announced"] == events["returned"] == 2
        assert events["round-committed"] == 2 and events["run-ended"] == 1
        order = [event for event, _ in found]
        assert order.index("run-stopped") < order.index("run-resumed") < order.index("run-ended")
        assert order[order.index("run-ended") :][1:] in (["left"], [])

    def test_answers_and_calls(self, seen: Seen) -> None:
        records = seen.records()
        refused = [each.facts for each in records if each.event == "answer-refused"]
        assert [(each["node"], each["task"], each["size"]) for each in refused] == [
            ("bob", "1-0-0", len(BAD)),
            ("bob", "2-0-0", len(BAD)),
        ]
        assert {each["sha256"] for each in refused} == {hashlib.sha256(BAD).hexdigest()}
        assert refused[0]["reason"] == seen.refused["refused"]
        closed = [
            each.facts for each in records if each.event == "call-closed" and each.facts["program"] == "train"
        ]
        assert [each["counted"] for each in closed] == [["ann"], ["ann"]]
        asked = [
            each.facts for each in records if each.event == "call-opened" and each.facts["program"] == "train"
        ]
        assert {tuple(each["asked"]) for each in asked} == {("ann", "bob")}

    def test_models_are_named(self, seen: Seen) -> None:
        committed = [each.facts for each in seen.records() if each.event == "round-committed"]
        assert [each["round"] for each in committed] == [1, 2]
        assert all(re.fullmatch("[0-9a-f]{64}", each["model"]) for each in committed)
        assert committed[0]["model"] != committed[1]["model"]

    def test_a_refusal_is_there(self, seen: Seen) -> None:
        refused = [each.facts for each in seen.records() if each.event == "refused"]
        assert any(each["who"] == "ada" and each["problem"] == "forbidden" for each in refused)


def test_logs_of_a_node_are_json(seen: Seen) -> None:
    found = [json.loads(line) for line in seen.cluster.log("ann").splitlines() if line.startswith("{")]
    assert {"joined", "trained", "cut", "reached", "over"} <= {each["event"] for each in found}
    assert all(each.keys() == {"time", "event", "facts"} for each in found)
