"""A parameter server: one process with one thread, which has a part of the model and talks to all workers."""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll import codec
from atoll.distributed.free import frames
from atoll.distributed.free.counted import Counted
from atoll.distributed.free.frames import Frame, Refused
from atoll.distributed.free.gate import Gate
from atoll.distributed.free.peer import Peer
from atoll.distributed.free.room import Room
from atoll.distributed.free.shard import Shard
from atoll.distributed.free.tickets import Clocks, Tickets
from atoll.tensors import Record

__all__ = ["Plan", "Server"]

_STRANGERS = 16  # connections that have yet to show the token


@dataclass(frozen=True)
class Plan:
    """What a server has to know of the run.

    Args:
        workers: how many there are.
        room: makes of a descriptor that a worker has handed over the memory that it has in common with all servers.
        part: of the parameters that this server has.
        begin: the shard of a state [n], as the keeper sends it.
        form, limit: the form of that state, and the bytes that it takes at most.
        bound: on the gap between clocks (`Gate`).
        shared: whether any worker may read any part of a batch.
        first: whether this one says what workers read, where clocks do not.
        steps, every: of the run, and between two reports.
        lr: the step size of a step.
        present: the share of a step's samples that these workers have.
        timeout: seconds for workers to come.
    """

    workers: int
    room: Callable[[int], Room]
    part: slice
    begin: Callable[[Record], Shard]
    form: codec.Form
    limit: int
    bound: float
    shared: bool
    first: bool
    steps: int
    every: int
    lr: Callable[[int], float]
    present: Callable[[int, list[int]], float]
    timeout: float


class Server:
    """Gradients in, parameters out, until the keeper of the run says that it is over.

    A worker has one gradient under way: its next is not welcome before the answer to the last. A worker that is gone
    is forgotten, with a gradient that was not whole or waited; it, or another in its place, may come at any time.
    """

    def __init__(self, plan: Plan, door: socket.socket, token: bytes) -> None:
        self.plan, self.token = plan, token
        self.gate = Gate(plan.bound)
        self.shard: Shard | None = None
        self.work: Clocks | Tickets | None = None
        self._selector = selectors.DefaultSelector()
        self._door = door
        self._selector.register(door, selectors.EVENT_READ)
        self._peers: dict[int, Peer] = {}
        self._early: list[tuple[Peer, int, int]] = []  # those that have come before the keeper
        self._waiting: dict[int, Frame] = {}
        self._rooms: dict[int, Room] = {}
        self._buffers = torch.zeros(0, dtype=torch.uint8)
        self._asked: int | None = None
        self._keeper: Peer | None = None
        self._over = False
        self._deadline = math.inf
        self._figures = Counted()

    # --- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until it is over.  Raises ConnectionError where the keeper of the run is gone before."""
        try:
            while not self._over:
                patience = None if math.isinf(self._deadline) else max(0.0, self._deadline - time.monotonic())
                for key, events in self._selector.select(patience):
                    if key.fileobj is self._door:
                        self._welcome()
                    else:
                        self._talk(key.data, events)
                if time.monotonic() > self._deadline:
                    self._late()
        finally:
            self._door.close()
            for key in list(self._selector.get_map().values()):
                if key.data is not None:
                    key.data.close()
            self._selector.close()

    def _welcome(self) -> None:
        try:
            connection, _ = self._door.accept()
        except BlockingIOError:
            return
        strangers = [key for key in self._selector.get_map().values() if key.data and key.data.worker is None]
        if len(strangers) >= _STRANGERS:
            connection.close()
            return
        self._selector.register(connection, selectors.EVENT_READ, Peer(connection, self.token))

    def _talk(self, peer: Peer, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                peer.flush()
                self._listen(peer)
            if events & selectors.EVENT_READ and (found := peer.read()) is not None:
                self._hear(peer, *found)
        except (EOFError, OSError):
            self._gone(peer)

    def _listen(self, peer: Peer) -> None:
        """Be told when there is something to read, or room for what is left to send."""
        self._selector.modify(
            peer.socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.full else 0), peer
        )

    def _say(self, peer: Peer, frame: Frame, payload: bytes = b"") -> None:
        peer.write(frame, payload)
        if peer.full:
            self._listen(peer)

    def _gone(self, peer: Peer) -> None:
        self._selector.unregister(peer.socket)
        peer.close()
        if peer is self._keeper:
            raise ConnectionError("the keeper of the run is gone")
        if peer.worker is None or self._peers.get(peer.worker) is not peer:
            self._early = [each for each in self._early if each[0] is not peer]
            return
        worker = peer.worker
        del self._peers[worker]
        self._waiting.pop(worker, None)
        if self.work is not None and self.shard is not None:
            self.shard.forget(worker)
            self.work.leave(worker)
            self._settle()

    def _late(self) -> None:
        """Those that have not come are not waited for."""
        self._deadline = math.inf
        assert self.work is not None
        for worker in range(self.plan.workers):
            if worker not in self._peers:
                self.work.leave(worker)
        self._settle()

    # --- what is said -------------------------------------------------------------------------------------------

    def _hear(self, peer: Peer, frame: Frame, body: memoryview) -> None:
        if frame.kind == frames.HELLO:
            self._meet(peer, frame)
        elif frame.kind == frames.PUSH:
            self._take(peer, frame)
        elif frame.kind == frames.LOAD:
            self._begin(peer, frame, body)
        elif frame.kind == frames.ASK:
            peer.expects = {frames.END: 0}
            self._asked = frame.step
            self._settle()
        else:
            self._over = True

    def _meet(self, peer: Peer, frame: Frame) -> None:
        """A stranger has shown the token."""
        if frame.worker == self.plan.workers and self._keeper is None:
            peer.worker, self._keeper = frame.worker, peer
            peer.expects = {frames.LOAD: self.plan.limit}
            return
        if frame.worker >= self.plan.workers or frame.worker in self._peers or frame.step > self.plan.steps:
            raise Refused(f"there is no place for a worker {frame.worker}")
        if peer.descriptor is None:
            raise Refused("a worker has no memory to compute in")
        self._rooms[frame.worker] = self.plan.room(peer.descriptor)
        peer.let_go()
        peer.worker, peer.expects = frame.worker, {}
        self._peers[frame.worker] = peer
        if self.work is None:
            self._early.append((peer, frame.worker, frame.step))
        else:
            self._admit(peer, frame.worker, frame.step)

    def _admit(self, peer: Peer, worker: int, step: int) -> None:
        assert self.work is not None
        room = self._rooms[worker]
        if self.plan.first:
            room.buffers.copy_(self._buffers)
        self.work.enter(worker, step)
        if len(self._peers) == self.plan.workers:
            self._deadline = math.inf
        self._answer(worker)
        self._settle()

    def _begin(self, peer: Peer, frame: Frame, body: memoryview) -> None:
        plan = self.plan
        peer.expects = {frames.ASK: 0, frames.END: 0}
        state = codec.decode(bytes(body), plan.form)
        self.shard, self._buffers = plan.begin(state), state.buffers
        if self.gate.waits:
            self.work = Clocks(self.gate, plan.workers, frame.step, plan.steps, plan.every)
        else:
            self.work = Tickets(plan.workers, frame.step, plan.steps, plan.every, plan.shared, plan.first)
        self._deadline = time.monotonic() + plan.timeout
        self._figures = Counted()
        for early in self._early:
            self._admit(*early)
        self._early = []

    def _take(self, peer: Peer, frame: Frame) -> None:
        """A worker's gradient is here."""
        assert self.work is not None
        if not self.work.due(frame) or frame.samples < 0:
            raise Refused(f"worker {frame.worker} has no part {frame.part} of step {frame.step} to read")
        peer.expects = {}
        self._waiting[frame.worker] = frame
        self._figures.add(frame, frames.HEAD + frame.size)
        self.work.arrive(frame)
        self._settle()

    # --- what comes of it ---------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Apply what need not wait, answer those who gave it, and hand over the state where that is due."""
        work, shard = self.work, self.shard
        if work is None or shard is None:
            return
        while True:
            if work.report and self._asked is None:
                self._figures.pause()
                return
            if self._asked is not None and (work.report or self._asked == 0):
                self._hand_over()
            ready = sorted(worker for worker in self._waiting if work.open(worker))
            if not ready:
                return
            step = min(self._waiting[worker].step for worker in ready)
            group = [worker for worker in ready if self._waiting[worker].step == step]
            if not work.together:
                group = group[:1]
            scale = 1.0 if work.complete(step) else self.plan.present(step, work.present(step))
            shard.apply(group, [self._gradient(worker) for worker in group], self.plan.lr(step), 1.0 / scale)
            for worker in group:
                work.applied(self._waiting.pop(worker))
            for worker in group:
                self._answer(worker)

    def _gradient(self, worker: int) -> Tensor:
        room = self._rooms[worker]
        if self.plan.first and len(self._buffers):
            self._buffers.copy_(room.buffers)
        return room.gradient[self.plan.part]

    def _answer(self, worker: int) -> None:
        """The newest parameters, and what to read next."""
        assert self.shard is not None and self.work is not None
        peer, shard = self._peers[worker], self.shard
        step, part = self.work.next(worker)
        shard.give(worker, self._rooms[worker].params[self.plan.part])
        size = shard.params.nbytes
        peer.expects = {frames.PUSH: size} if step >= 0 else {}
        with suppress(OSError):  # of its end the loop hears soon
            self._say(peer, Frame(frames.GO, worker, part, 0, step, shard.version, size=size))

    def _hand_over(self) -> None:
        assert self.shard is not None and self.work is not None and self._keeper is not None
        shard, self._asked = self.shard, None
        record = Record(
            params=shard.params,
            state=shard.state,
            buffers=self._buffers,
            stale=shard.stale,
            delay=shard.delay,
            widest=self.gate.widest,
            **self._figures.taken(),
        )
        blob = codec.encode(record)
        shard.stale.zero_()
        shard.delay = 0
        self.work.reported()
        self._keeper.expects = {frames.ASK: 0, frames.END: 0}
        self._say(self._keeper, Frame(frames.WHOLE, size=len(blob)), blob)
