"""Whatever is lost, repeated or comes in another order, an attempt ends with the right sum or with none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.channel.secagg import AbortedError, Floors, OutOfTurnError, from_client, from_server, pack
from atoll.channel.secagg.messages import Boxes, Confirmation, Keys, Masked, Shares

from .cohort import cohort, terms

STAGES = {Keys: "keys", Boxes: "shares", Masked: "masked", Confirmation: "consistency", Shares: "unmask"}


class Attempt(RuleBasedStateMachine):
    """A network that may lose, repeat, delay and reorder messages, and clients that go away for good."""

    @initialize(
        shape=st.sampled_from(
            [(3, 2, 2, False), (5, 4, 4, True), (5, 4, 3, False), (7, 4, 3, False), (7, 4, 4, True)]
        )
    )
    def begin(self, shape: tuple[int, int, int, bool]) -> None:
        n, degree, threshold, active = shape
        self.terms = terms(n, 3, degree, threshold, active=active)
        self.made = cohort(self.terms, floors=Floors(cohort=2, active=active))
        self.server = self.made.server
        self.sent: list[tuple[str, bytes]] = [
            (node, pack(self.server.open())) for node in self.terms.nodes[:1]
        ]
        self.sent += [(node, self.sent[0][1]) for node in self.terms.nodes[1:]]
        self.answers: list[tuple[str, str, bytes]] = []  # of a node, in a stage
        self.taken: set[tuple[str, str]] = set()
        self.gone: set[str] = set()
        self.over = False

    def running(self) -> bool:
        return not self.over

    def ask(self, node: str, blob: bytes) -> None:
        """A message reaches a client, once more perhaps. An honest server never makes a client refuse."""
        if node in self.gone:
            return
        who = self.made.clients[node]
        due = who.due
        try:
            answer = who.receive(from_server(blob))
        except OutOfTurnError:
            assert who.due is due
        else:
            self.answers.append((node, STAGES[type(answer)], pack(answer)))

    def hand_in(self, node: str, stage: str, blob: bytes) -> None:
        fresh = stage == self.server.stage and (node, stage) not in self.taken
        assert self.server.deliver(node, from_client(blob)) == fresh
        if fresh:
            self.taken.add((node, stage))

    @precondition(running)
    @rule(data=st.data())
    def a_message_reaches_a_client(self, data: st.DataObject) -> None:
        self.ask(*data.draw(st.sampled_from(self.sent)))

    @precondition(lambda self: self.running() and self.answers)
    @rule(data=st.data())
    def an_answer_reaches_the_server(self, data: st.DataObject) -> None:
        self.hand_in(*data.draw(st.sampled_from(self.answers)))

    @precondition(running)
    @rule(data=st.data())
    def a_client_goes_away(self, data: st.DataObject) -> None:
        if len(self.gone) < len(self.terms.nodes) - self.terms.threshold + 1:
            self.gone.add(data.draw(st.sampled_from(self.terms.nodes)))

    @precondition(running)
    @rule(data=st.data())
    def a_stage_takes_its_course(self, data: st.DataObject) -> None:
        """All messages come, twice, in some order, and then the answers do; the stage is closed."""
        for node, blob in data.draw(st.permutations(self.sent)):
            self.ask(node, blob)
            self.ask(node, blob)
        for answer in data.draw(st.permutations(self.answers)):
            self.hand_in(*answer)
        self.close()

    @precondition(running)
    @rule()
    def nobody_waits_any_longer(self) -> None:
        self.close()

    @precondition(lambda self: self.over)
    @rule()
    def it_is_over(self) -> None:
        assert self.server.awaited == () and self.server.stage == ""

    def close(self) -> None:
        stage = self.server.stage
        here = {node for node, when in self.taken if when == stage}
        graph, number = self.terms.graph, {node: k for k, node in enumerate(self.terms.nodes)}
        sharers = {node for node, when in self.taken if when == ("keys" if stage == "keys" else "shares")}
        enough = len(here) >= self.terms.threshold and all(
            sum(self.terms.nodes[v] in here for v in graph.holders(number[node])) >= self.terms.threshold
            for node in sharers
        )
        if not enough:
            with pytest.raises(AbortedError) as caught:
                self.server.close()
            assert caught.value.stage == stage
            self.over = True
            return
        messages: dict[str, Any] = self.server.close()
        self.over = self.server.stage == ""
        self.sent += [(node, pack(message)) for node, message in messages.items()]
        if self.over:
            summed = {node for node, when in self.taken if when == "masked"}
            total, due = self.server.total, self.made.ideal(set(self.terms.nodes) - summed)
            assert set(total.nodes) == summed and np.array_equal(total.sums, due.sums)

    @invariant()
    def nothing_is_counted_twice(self) -> None:
        if hasattr(self, "server") and not self.over:
            here = {node for node, when in self.taken if when == self.server.stage}
            assert not here & set(self.server.awaited)


TestAttempt = Attempt.TestCase
TestAttempt.settings = settings(max_examples=40, stateful_step_count=16, deadline=None)
