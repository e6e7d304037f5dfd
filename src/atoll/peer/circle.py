"""A peer among others: what it says to them, what it hears from them, and who of them is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Self, TypeVar

from atoll.errors import AtollError, CodecError, ConfigError
from atoll.network.telling import said
from atoll.parties.framed import LOOPBACK, Address, Secured, ended, frame, framed, greet, introduced, watched
from atoll.parties.link import PartyError
from atoll.peer.line import GONE
from atoll.peer.others import Lines, Other, ended_of
from atoll.peer.sayings import BEFORE, Sayings, Spoken, WithheldError
from atoll.peer.words import Absent, Here, Known, Later, No, Said, There, Wanted, Word, known, opened, packed

__all__ = ["Circle", "Other"]

_POLL = 10.0  # seconds for which a question that has no answer yet is kept
_AGAIN = 0.2  # seconds between two tries to reach somebody
_REVIVE = 2.0  # seconds between two tries to reach somebody who is gone
_WORDS = 1 << 20  # most bytes of a body that is no model
T = TypeVar("T")


class Circle:
    """The others, as one peer sees them.

    Whoever wants to know what another said in a round asks it, and asks again until it is told, or until nothing was
    heard from there for `patience` seconds: then that one is gone, and counts as absent until it is heard again.

    Args:
        name: this peer; `names` are all of the run, in the order of their numbers.
        run: a hash of what all must have alike.
        listen: where it listens; `address` is by which others call it, where that is another one.
        known: where some of the others listen: by name, or addresses alone, whose owners say who they are.
        secured: TLS; None sends in the clear, which goes only to this machine.
        patience: seconds of silence after which another one is gone.
        deadline: seconds after which nobody waits for one that is there, but slow; None: for ever.
        begins: the first round in which this one takes part.
        key: its public key for masks, which all are told.
        tell: hears who comes and goes.

    Raises ConfigError for plain text beyond this machine.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        run: str,
        listen: Address,
        known: Mapping[str, Address],
        strangers: Sequence[Address] = (),
        *,
        address: Address | None = None,
        secured: Secured | None = None,
        patience: float = 60.0,
        deadline: float | None = None,
        begins: int = 1,
        key: bytes = b"",
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        if secured is None:
            far = [each for each in (listen, *known.values(), *strangers) if each.host not in LOOPBACK]
            if far:
                raise ConfigError(
                    f"{far[0]} is another machine, and plain text stays on this one",
                    hint="leave --plain out, and say --keys DIR",
                )
        self.name, self.run, self.listen, self.secured = name, run, listen, secured
        self.patience, self.deadline, self.tell = patience, deadline, tell
        self.begins = self.round = begins
        self.key = key
        self.others = {each: Other(known.get(each)) for each in names if each != name}
        self.lines = Lines(name, self.others, secured)
        self._own = address or listen
        self._strangers = list(strangers)
        self.sayings = Sayings()
        self._without: dict[str, int] = {}
        """By the name of who has given this one up, the round it was in."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(
                self._listen, self.listen.host, self.listen.port,
                ssl=None if self.secured is None else self.secured.server,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(
                f"{self.name} cannot listen at {self.listen}: {error.strerror or error}",
                hint="choose another --listen HOST:PORT",
            ) from None
        self._keep(asyncio.create_task(self._revive()))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in self.others:
            await self.lines.drop(name)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what this one says -----------------------------------------------------------------------------------

    async def say(self, number: int, to: Sequence[str], spoken: Spoken) -> None:
        """Have others told what this peer says in a round; `to` are those who will ask for it."""
        await self.sayings.put(number, to, spoken, lambda name: self.others[name].gone)

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._keep(task)
        try:
            async with asyncio.timeout(_POLL):
                other = await introduced(self.name, reader, writer, self.secured)
                if other not in self.others:
                    raise PartyError(f"{other} called, and is no peer of this run")
                await greet(self.name, writer)
            watched(writer)
            while True:
                head, body = await frame(reader, _WORDS)
                reply, payload = await self._reply(other, opened(head), body)
                if isinstance(reply, Said):  # it counts once it is on its way
                    self.others[other].sent += len(payload)
                blob = packed(reply)
                writer.write(framed(blob, len(payload)))
                writer.write(payload)
                await writer.drain()
                if isinstance(reply, Said):
                    self.sayings.fetched(reply.of, other)
        except GONE as error:
            if isinstance(error, PartyError):
                self.tell(said("refused", f"refused: {error.message}"))
        except (asyncio.CancelledError, AtollError):  # asyncio would tell of the first as a failure
            pass
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await ended(writer, 1.0)  # an answer may be on its way

    async def _reply(self, other: str, word: Word, body: bytes) -> tuple[Word, bytes]:
        if isinstance(word, Here):
            if word.run != self.run:
                return No("it has other settings: method, model, topology, seed and peers must be alike"), b""
            gone = self.others[other].gone
            self._met(other, word, known(body))
            return There(self.begins, self.round, gone, self.key), self._known()
        if not isinstance(word, Wanted):
            return No("that is no question"), b""
        self.others[other].round = word.round
        found = await self.sayings.of(word.of, self._never, _POLL)
        if found is not None:
            try:
                told = await found.spoken.to(other, word.whole, body)
            except WithheldError as error:
                return await self._withheld(other, error), b""
            return Said(word.of, self.round, found.since), told
        if self._never(word.of):
            return Absent(self.begins, self.round), b""
        return Later(self.round), b""

    async def _withheld(self, other: str, error: WithheldError) -> Word:
        if not error.until:
            self.tell(said("withheld", f"{other} is not told: {error.message}", peer=other))
            return No(error.message)
        now = asyncio.get_running_loop().time()
        for name in error.until:
            found = self.others[name]
            if not await self._present(name):
                found.sought = found.sought or now
                if now - found.sought > self.patience:
                    return No(error.message)
        await asyncio.sleep(_AGAIN)
        return Later(self.round)

    def _never(self, number: int) -> bool:
        """Whether nothing will be said of a round that was not said before."""
        return BEFORE < number < max(self.begins, self.round)

    def _known(self) -> bytes:
        found = {name: str(each.address) for name, each in self.others.items() if each.address is not None}
        return packed(Known({**found, self.name: str(self._own)}))

    def _met(self, name: str, word: Here | There, addresses: Mapping[str, str]) -> None:
        """Another one has presented itself."""
        found = self.others[name]
        if found.gone or not found.met:
            back = "is there again" if found.met else "is there"
            self.tell(said("met", f"{name} {back}", peer=name))
        found.met, found.gone, found.begins, found.round = True, False, word.begins, word.round
        found.key, found.sought = word.key, 0.0
        if word.gone:
            self._without[name] = word.round
        for each, text in addresses.items():
            if each in self.others and (each == name or self.others[each].address is None):
                with contextlib.suppress(ConfigError):
                    self.others[each].address = Address.parse(text)

    # --- what it hears ----------------------------------------------------------------------------------------

    async def gather(self, names: Sequence[str], seconds: float | None) -> list[str]:
        """Wait until these others are there, at most so long; those that are not, who are gone for now.

        Who is told that others have gone on without it does not wait for the rest.
        """
        due, clock = [name for name in names if not self.others[name].met], asyncio.get_running_loop().time
        begun = clock()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while due := [name for name in names if not self.others[name].met]:
                    if self.behind and clock() - begun > _REVIVE:
                        break
                    await self._look()
                    if any(not self.others[name].met for name in due):
                        await asyncio.sleep(_AGAIN)
        for name in due:
            self.others[name].gone = True
        return due

    async def _look(self) -> None:
        """Call everybody whose address is known and who was not met, and ask those who were for more addresses."""
        strangers = list(self._strangers)
        await asyncio.gather(*map(self._stranger, strangers))
        lost = any(each.address is None for each in self.others.values())
        await asyncio.gather(
            *(
                self._present(name)
                for name, each in self.others.items()
                if each.address is not None and (not each.met or lost)
            )
        )

    async def _stranger(self, where: Address) -> None:
        with contextlib.suppress(*GONE):
            await self.lines.stranger(where)
            self._strangers.remove(where)

    async def _present(self, name: str) -> bool:
        """Tell another one that this is here; whether it could be told.  Raises ConfigError where it refuses."""
        try:
            here = Here(self.run, self.begins, self.round, self.others[name].gone, self.key)
            word, body = await self.lines.ask(name, here, self._known(), most=_WORDS)
            if isinstance(word, No):
                raise ConfigError(f"{name} refuses: {word.why}", hint="all peers start with one file")
            if not isinstance(word, There):
                raise PartyError(f"{name} answered something else")
            self._met(name, word, known(body))
        except (*GONE, CodecError):
            await self.lines.drop(name)
            return False
        return True

    async def reaches(self, name: str) -> bool:
        """Whether another one is there; who was, and cannot be reached, is given up."""
        other = self.others[name]
        if not other.gone and not await self._present(name):
            other.gone = True
            self.tell(
                said("gone", f"{name} is gone: another one missed it, and it cannot be reached", peer=name)
            )
        return not other.gone

    async def announce(self, begins: int) -> None:
        """Take part from a later round on, and tell all that can be reached."""
        self.begins = self.round = begins
        self._without = {}
        await self.sayings.changed()
        await asyncio.gather(
            *(self._present(n) for n, each in self.others.items() if each.address is not None)
        )

    def enter(self, number: int) -> None:
        """This one is in that round now."""
        self.round = number

    @property
    def behind(self) -> int:
        """The round of those who have given this one up, and gone on without it; 0 where nobody has.

        Of several the median: one that lies about its round leads nobody astray by itself.
        """
        rounds = sorted(self._without.values())
        found = rounds[(len(rounds) - 1) // 2] if rounds else 0
        return found if found > self.begins else 0

    async def hear(
        self,
        number: int,
        names: Sequence[str],
        most: int,
        read: Callable[[str, bytes, bool], T],
        *,
        chained: bool = False,
        sum_of: bytes = b"",
    ) -> tuple[dict[str, T], list[str]]:
        """What these others said in a round, as `read` has it, and of whom nothing came: they are gone, or were absent.

        Args:
            most: bytes that one may have.
            read: makes something of who it is from, a body, and whether it stands by itself; raises CodecError for
                what cannot be used.
            chained: whether what one says says it only to who has heard what came before.
            sum_of: for shares of a sum, what is asked (`Among`). As soon as nothing comes of one, the others are not
                waited for: without it theirs are nothing.
        """
        works = [self._hear(name, number, most, chained, sum_of) for name in names]
        came, lost = dict[str, T](), list[str]()
        for at, body in (await ended_of(works, all_or_none=bool(sum_of))).items():
            name = names[at]
            if body is None:
                lost.append(name)
                continue
            try:
                came[name] = read(name, *body)
            except CodecError as error:
                text = f"round {number}: what {name} said cannot be used: {error.message}"
                self.tell(said("unusable", text, peer=name, round=number))
                lost.append(name)
            else:
                self.others[name].heard = number
        return came, lost

    async def _hear(
        self, name: str, number: int, most: int, chained: bool, sum_of: bytes
    ) -> tuple[bytes, bool] | None:
        """(what one said, whether it stands by itself)."""
        other, clock = self.others[name], asyncio.get_running_loop().time
        begun = sign = clock()
        whole = not chained
        while not other.gone and (number == BEFORE or number >= other.begins):
            try:
                word, body = await self.lines.ask(
                    name, Wanted(number, self.round, whole), sum_of, most=most,
                    patience=_POLL + min(self.patience, _POLL),
                )  # fmt: skip
                if not isinstance(word, Said | Later | Absent | No):
                    raise PartyError(f"{name} answered something else")
            except GONE as error:
                await self.lines.drop(name)
                if clock() - sign > self.patience:
                    self._lost(name, number, f"nothing was heard from it for {self.patience:g} s", error)
                await asyncio.sleep(_AGAIN)
                continue
            if isinstance(word, No):
                text = f"round {number}: {name} does not tell: {word.why}"
                self.tell(said("withheld", text, peer=name, round=number))
                return None
            sign, other.round = clock(), word.round
            if isinstance(word, Said):
                other.received += len(body)
                if whole or word.since == other.heard:
                    return body, whole
                whole = True  # something in between was missed
                continue
            if isinstance(word, Absent):
                other.begins = max(other.begins, word.begins)
                if number >= word.begins:  # it was there, and has not kept it for this one
                    self._without[name] = word.round
                return None
            if self.deadline is not None and clock() - begun > self.deadline:
                self.tell(said("late", f"round {number}: {name} is late, and is not waited for", peer=name))
                return None
        return None

    def _lost(self, name: str, number: int, why: str, error: BaseException) -> None:
        self.others[name].gone = True
        text = f"round {number}: {name} is gone: {why} ({str(error) or type(error).__name__})"
        self.tell(said("gone", text, peer=name, round=number))

    async def part(self, number: int) -> None:
        """Wait until those that are there have fetched what was said in the last round, or are silent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience):
                while any(not self.others[name].gone for name in self.sayings.due(number)):
                    await asyncio.sleep(_AGAIN / 4)

    async def _revive(self) -> None:
        """Look again and again whether those that are gone are back."""
        while True:
            await asyncio.sleep(_REVIVE)
            for name, other in self.others.items():
                if other.gone and other.address is not None:
                    with contextlib.suppress(AtollError):
                        await self._present(name)
