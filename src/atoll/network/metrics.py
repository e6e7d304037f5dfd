"""What a coordinator tells Prometheus: counts and gauges of its run, computed when they are asked for."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from atoll import __version__
from atoll.errors import MissingExtraError
from atoll.network.coordinator import Coordinator
from atoll.network.notebook import BUCKETS, Histogram
from atoll.network.witness import Witness

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError:
    raise MissingExtraError("prometheus-client", "network", "a coordinator") from None

__all__ = ["KIND", "STATES", "Metrics"]

KIND = "text/plain; version=0.0.4; charset=utf-8"

STATES = ("waiting", "running", "paused", "over", "stopped", "failed")


class Metrics(Collector):
    """The metrics of one coordinator. Words of labels are from closed sets, but for methods' own programs."""

    def __init__(self, coordinator: Coordinator, witness: Witness) -> None:
        self.coordinator, self.witness = coordinator, witness
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """All of them in the text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        coordinator, desk, book = self.coordinator, self.coordinator.desk, self.coordinator.notebook
        yield InfoMetricFamily(
            "atoll", "The software and the run.", {"version": __version__, "run": coordinator.run}
        )
        yield _gauge(
            "atoll_round", "The last round that counts.", getattr(coordinator.federation, "number", 0)
        )
        yield _gauge("atoll_rounds", "Rounds that are planned.", coordinator.office.plan.rounds)
        yield self._state()
        numbers = [int(fact["number"]) for fact in coordinator.nodes().values()]
        yield _gauge("atoll_nodes_known", "Nodes that have joined at some time.", len(numbers))
        yield _gauge("atoll_nodes_there", "Nodes that are there now.", sum(map(desk.there, numbers)))
        yield _gauge("atoll_nodes_least", "Nodes without which no round begins.", coordinator.office.least)
        yield _gauge("atoll_tasks_open", "Tasks that nodes are asked now.", desk.tasks())
        uploads = self.witness.uploads()
        yield _gauge("atoll_uploads", "Answers that are arriving.", len(uploads))
        missing = sum(max(0, each.size - each.received) for each in uploads)
        yield _gauge("atoll_uploads_bytes", "Bytes of them that have not come yet.", missing)
        yield _counter("atoll_answers", "Answers, by what became of them.", "outcome", book.answers)
        yield _counter(
            "atoll_requests_refused", "Requests, by why they were refused.", "problem", book.refusals
        )
        found = {"up": book.received, "down": book.sent}
        yield _counter("atoll_body_bytes", "Bytes of bodies, up from nodes and down to them.", "way", found)
        yield self._phases(dict(book.phases))
        journal = coordinator.journal
        yield CounterMetricFamily("atoll_journal_commits", "Commits of the journal.", journal.commits)
        yield _gauge(
            "atoll_journal_lag_seconds", "How long the last commit's first fact waited.", journal.lag
        )
        yield _gauge("atoll_audit_records", "The number of the audit log's last record.", book.log.head.seq)
        yield _gauge("process_resident_memory_bytes", "Memory of the coordinator.", _memory())
        if book.epsilon is not None:
            yield _gauge("atoll_epsilon", "Privacy that is spent at most.", book.epsilon)

    def _state(self) -> Metric:
        now = _word(self.coordinator.desk.state)
        family = GaugeMetricFamily("atoll_state", "What the run is doing: 1 for that.", labels=["state"])
        for state in STATES:
            family.add_metric([state], float(state == now))
        return family

    @staticmethod
    def _phases(phases: dict[str, Histogram]) -> Metric:
        family = HistogramMetricFamily(
            "atoll_phase_seconds",
            "Rounds; calls, by program; PROGRAM-node, from a node's taking of a task to its answer.",
            labels=["phase"],
        )
        for phase, histogram in sorted(phases.items()):
            total, buckets = 0, []
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), histogram.counts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            family.add_metric([phase], buckets, histogram.sum)
        return family


def _word(state: str) -> str:
    if "paused" in state:
        return "paused"
    if "waiting" in state:
        return "waiting"
    first = re.split(r"\W", state, maxsplit=1)[0]
    return first if first in STATES else "running"


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for word, value in sorted(dict(values).items()):
        family.add_metric([word], value)
    return family


def _memory() -> float:
    """Bytes of this process that are in memory; where nobody says, the most there ever were."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(most if sys.platform == "darwin" else most << 10)
    return float(pages * resource.getpagesize())
