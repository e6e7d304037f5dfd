"""Rounds by hand: the server's half as a state machine, each client alone, and nothing between them but bytes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from atoll.codec import OWN, Form, decode, encode
from atoll.contract import Answer, Job, Mean, Order, Program, Reply, Work
from atoll.engines.client import Client
from atoll.errors import AtollError, CodecError
from atoll.federation import Federation
from atoll.machine import threads
from atoll.rounds.round import ServerRound
from atoll.task import architecture
from atoll.tensors import Record, Tensors, named_tensors
from atoll.testing.compared import copied, differs, distant
from atoll.testing.draws import states
from atoll.testing.report import Notes
from atoll.testing.watched import Padded, Watched, global_draw

__all__ = ["ByHand", "Unplayable"]

_KEEP = (
    "a record holds tensors, Tensors, records, numbers, text, true or false, and None; nothing else travels"
)


class Unplayable(Exception):
    """The method cannot be played on; what is wrong has been noted."""


class _Asked(NamedTuple):
    """An order that was carried out: by what, and what came of it."""

    order: Order
    program: Program
    memory: Record | None
    answer: Answer
    after: Record


class ByHand:
    """Plays a federation that has not begun, watching the method.

    Clients are asked in the reverse of their order, answers are delivered in a third one, and the state, every order,
    memory and answer goes through its bytes.
    """

    def __init__(self, federation: Federation, notes: Notes) -> None:
        self.federation, self.notes = federation, notes
        self.simulation, self.method = federation.simulation, federation.method
        device = torch.device("cpu")
        self.clients = [Client(task, federation.data, device) for task in federation.tasks]
        self.memories: dict[int, Record] = {}
        self.asked: list[_Asked] = []
        self.sent: set[str] = set()
        self.averaged = False
        self.changed = self.modelled = False
        self.state = Record()

    def play(self, rounds: int) -> None:
        """All rounds, then every client's judgement of its own model.

        Raises Unplayable where the method breaks off; the reason is noted.
        """
        self.number = 0
        try:
            with threads(1):
                before = states()
                state = self.method.setup(self.federation.task, self.simulation.population)
                global_draw(self.notes, "setup", before)
                self.state = self._stored(state, "the state")
                for self.number in range(1, rounds + 1):
                    self._round()
                self._judge()
        except Unplayable:
            raise
        except AtollError as error:
            if "reads" not in self.notes.problems:
                self.notes.wrong("runs", error.message, error.hint)
            raise Unplayable from error
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            where = f"round {self.number}, the server half" if self.number else "setup"
            self.notes.wrong("runs", f"{where}: {type(error).__name__}: {lines[0]}")
            raise Unplayable from error
        self._declared()

    # --- one round --------------------------------------------------------------------------------------------

    def _round(self) -> None:
        given, before, random = self.state, copied(self.state), states()
        cohort, _ = self.simulation.cohorts.enlist(self.number, self.simulation.progress.choice)
        round = ServerRound(
            self.method, self.simulation.population, given, cohort, self.number, self.federation.seed,
            name=self.federation.data.names.__getitem__,
        )  # fmt: skip
        global_draw(self.notes, "the server half", random)
        while round.job is not None:
            answers = [self._answer(round.job, order) for order in reversed(round.orders())]
            for answer in answers[1::2] + answers[::2]:
                self._deliver(round, answer)
            random = states()
            round.close()
            global_draw(self.notes, "the server half", random)
        name = differs(before, given)
        if name is not None:
            self.notes.wrong(
                "values",
                f"the server half changes its state in place: {name}",
                "give a new state: state.replace(...), with new tensors in it",
            )
        self.state = self._stored(round.state, "the state")

    def _answer(self, job: Job, order: Order) -> Answer:
        """What a client answers, both ways through bytes."""
        order = Order.of_record(self._stored(order.to_record(), "what a client receives"))
        memory = self.memories.get(order.client)
        answer = self._ask(order, job.program, memory)
        self._reply(job, answer)
        if order.program == "train" and self.method.change is not None:
            self._change(answer.reply, order, memory)
        return Answer.of_record(self._stored(answer.to_record(), "a reply"))

    def _ask(self, order: Order, program: Program, memory: Record | None) -> Answer:
        client = self.clients[architecture(order.client, len(self.clients))]
        watched = Watched(program, order.program, self.notes)
        answer, after = client.answer(order, watched, memory)
        after = self._stored(after, "a memory")
        first = program.remember(client.task, order.received) if memory is None else memory
        try:
            Form.of(first).check(after)
        except CodecError as error:
            self.notes.wrong(
                "memory",
                f"{watched.name}finish gives client {self._name(order)} a memory of another form: {error.message}",
                "remember makes every field that finish fills, of the same types and shapes",
            )
        self.asked.append(_Asked(order, program, memory, answer, after))
        return answer

    def _deliver(self, round: ServerRound, answer: Answer) -> None:
        assert round.job is not None
        found = round.deliver(answer)
        after = next(each.after for each in reversed(self.asked) if each.order.client == answer.client)
        if found.refused:
            name = self.federation.data.names[answer.client]
            hint = (
                "weights are scalar tensors, not negative: the samples used, unless the paper says otherwise"
            )
            if "weight" not in found.refused:
                hint = "finish sends what expects(state) or Work.forms promise; lower lr if numbers are not finite"
            self.notes.wrong("replies", f"the reply of client {name} is refused: {found.refused}", hint)
            raise Unplayable
        if after:
            self.memories[answer.client] = after

    def _judge(self) -> None:
        """Every client that has test data runs the program "personal"."""
        judge = self.simulation.judge.clients
        if not judge or not self.method.personalised:
            return
        sent = self.method.broadcast(self.state, judge)
        work = Work(sent.shared, sent.own, "personal", passes=sent.passes)
        job = Job(self.method, work, judge, self.number, self.federation.seed)
        for client in judge:
            self._ask(job.order(client), job.program, self.memories.get(client))

    # --- what is promised -------------------------------------------------------------------------------------

    def _stored(self, record: Record, what: str) -> Record:
        """The record that its bytes give."""
        try:
            found = decode(encode(record), limits=OWN)
        except CodecError as error:
            self.notes.wrong("codec", f"{what} cannot be written: {error.message}", error.hint or _KEEP)
            raise Unplayable from error
        name = differs(record, found)
        if name is not None:
            self.notes.wrong("codec", f"{what} changes in its bytes: {name}", _KEEP)
        return found

    def _reply(self, job: Job, answer: Answer) -> None:
        """Whether the reply's fields can be put together as they are declared."""
        values, reducer = answer.reply.values, job.reducer()
        names = self.federation.task.initial()[0].keys()
        self.sent |= values.keys()
        self.modelled |= any(isinstance(each, Tensors) and each.keys() == names for each in values.values())
        if not isinstance(reducer, Mean):
            return
        self.averaged = True
        for path, tensor in named_tensors(values):
            name = path.split(".")[0]
            if reducer.rule(name) == "mean" and not tensor.is_floating_point():
                self.notes.wrong(
                    "rules",
                    f"the reply's field {path} holds whole numbers, which have no mean",
                    f'declare what becomes of the field: rules = {{"{name}": "max"}} or "sum", or send floating point',
                )
                raise Unplayable

    def _change(self, reply: Reply, order: Order, memory: Record | None) -> None:
        """Whether the declared change can be taken from a reply."""
        change = self.method.change
        assert change is not None
        held = self.method.remember(self.federation.task, order.received) if memory is None else memory
        try:
            found = change.of(reply.values, order.received, held)
        except (KeyError, TypeError, AttributeError) as error:
            self.notes.wrong(
                "change",
                f"{change} cannot be taken: {type(error).__name__}: {error}",
                "`since` is a field of what clients receive, or with where='memory' of what they remember, "
                "with the tensors that `field` has",
            )
            raise Unplayable from error
        self.changed = self.changed or found is not None

    def _declared(self) -> None:
        """What was declared and never seen.

        A method whose own `finish` sends something else may leave what it inherits as it is, unless it sends a model.
        """
        change = self.method.change
        if change is not None and not self.changed and (self._says("change") or self.modelled):
            self.notes.wrong(
                "change",
                f"change names the field {change.field!r}, and no reply has it",
                f'name the one of {", ".join(sorted(self.sent))} that holds the update, change = Change("..."), '
                "or change = None if none does",
            )
        unknown = [name for name in self.method.rules if name not in self.sent]
        if unknown and self.averaged and self._says("rules"):
            self.notes.wrong(
                "rules",
                f"rules name the field {unknown[0]!r}, and no reply has it",
                f"fields that were sent: {', '.join(sorted(self.sent))}",
            )

    def _says(self, name: str) -> bool:
        """Whether a declaration is as new as what the replies are made by."""
        kinds = type(self.method).__mro__
        made = [next(at for at, kind in enumerate(kinds) if each in vars(kind)) for each in (name, "finish")]
        return made[0] <= made[1]

    def padded(self, tolerance: float) -> None:
        """Carry out all orders again on padded data, and note where something else comes of it."""
        for order, program, memory, answer, after in self.asked:
            client = self.clients[architecture(order.client, len(self.clients))]
            try:
                with threads(1):
                    again, memory = client.answer(order, Padded(program), memory)
                far = distant(
                    {"reply": answer.to_record().reply, "memory": after},
                    {"reply": again.to_record().reply, "memory": memory},
                    tolerance,
                )
                how = f"{far[0]} is off by {far[1]:.1e}" if far else ""
            except AtollError as error:
                how = error.message
            if how:
                self.notes.wrong(
                    "padding",
                    f"rows of mask 0 change what client {self._name(order)} answers: {how}",
                    "weigh rows by batch.mask: sum(x * mask) / mask.sum() instead of x.mean(), "
                    "and data.count or mask.sum() instead of len",
                )
                return

    def _name(self, order: Order) -> object:
        return self.federation.data.names[order.client]
